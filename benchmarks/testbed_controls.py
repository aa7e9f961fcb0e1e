r"""Does editing a testbed behave as in the papers? Methods, ablations and a control, side by side.

python benchmarks/testbed_controls.py --testbed=gptj --num_edits=200 --out=controls.json

Prints one row per editor: score, efficacy, paraphrase, neighbourhood and the share of unedited
subjects' answers that stay. PMET is also run with an even spread and without the attention δ
(PMET, arXiv:2308.08742, table 3), and plain fine-tuning of one block shows what unconstrained
change does to the neighbourhood.
"""

import dataclasses
import itertools
import random
import time
from collections.abc import Sequence

from absl import app, flags

import jedit
from jedit.checkpoint import write_json
from jedit.contexts import sample_contexts
from jedit.methods import Method
from jedit.testbeds import testbed_corpus, testbed_prompts

_TESTBED = flags.DEFINE_string('testbed', 'gptj', 'gptj or llama.')
_NUM_EDITS = flags.DEFINE_integer('num_edits', 200, 'Records to edit, in one batch.', lower_bound=1)
_SEED = flags.DEFINE_integer('seed', 0, 'Of contexts, order and the questions that are drawn.')
_QUESTIONS = flags.DEFINE_integer('questions', 1000, 'About unedited subjects.', lower_bound=0)
_OUT = flags.DEFINE_string('out', '', 'JSON file for the rows; empty prints only.')

_COLUMNS = ('score', 'efficacy', 'paraphrase', 'neighborhood', 'paraphrase_acc', 'unedited_kept')


def editors(testbed: str) -> dict[str, Method]:
  """Methods by row name."""
  pmet = jedit.preset('pmet', f'testbed-{testbed}')
  memit = jedit.preset('memit', f'testbed-{testbed}')

  def changed(recipe: jedit.Recipe, **fields) -> jedit.Recipe:
    (region,) = recipe.regions
    return dataclasses.replace(recipe, regions=(dataclasses.replace(region, **fields),))

  (region,) = pmet.regions
  mlp_only = tuple(delta for delta in region.deltas if delta.name == 'mlp')
  return {
    'PMET': pmet,
    'PMET, even spread': changed(pmet, spread='even'),
    'PMET without attention delta': changed(pmet, deltas=mlp_only),
    'MEMIT': memit,
    'MEMIT, sqrt spread': changed(memit, spread='sqrt'),
    'fine-tuning of one block': jedit.preset('ft_w', f'testbed-{testbed}'),
  }


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'There is no argument {argv[1]!r}; use the flags.')
  lm, records = jedit.testbed(_TESTBED.value)
  if _NUM_EDITS.value > len(records):
    raise app.UsageError(f'The testbed has {len(records)} records; ask for fewer edits.')
  records = records[: _NUM_EDITS.value]
  requests = [record.request for record in records]
  questions = [(p.text, p.answer) for p in testbed_prompts(_TESTBED.value) if not p.edited]
  random.Random(_SEED.value).shuffle(questions)
  questions = list(itertools.islice(questions, _QUESTIONS.value))
  contexts = sample_contexts(lm, _SEED.value)
  methods = editors(_TESTBED.value)
  layers = sorted({layer for method in methods.values() for layer in method.layers})
  stats = jedit.statistics(lm, testbed_corpus(_TESTBED.value), layers)
  rows = []
  for name, method in methods.items():
    start = time.monotonic()
    patch = jedit.edit(lm, requests, method, stats, contexts=contexts, seed=_SEED.value)
    seconds = time.monotonic() - start
    table = jedit.evaluate(lm.apply(patch), records, before=lm, unedited=questions)
    after = {key: value['after'] for key, value in table.metrics.items() if 'after' in value}
    rows.append({'editor': name, 'seconds': seconds, 'metrics': after})
  print(f'{len(records)} edits of the {_TESTBED.value} testbed, seed {_SEED.value}; percent')
  print(f'{"":30}' + ''.join(f'{column:>16}' for column in _COLUMNS) + f'{"edit, s":>10}')
  for row in rows:
    values = [row['metrics'][c]['mean'] for c in _COLUMNS if c in row['metrics']]
    print(f'{row["editor"]:30}' + ''.join(f'{v:16.1f}' for v in values) + f'{row["seconds"]:10.1f}')
  if _OUT.value:
    write_json(_OUT.value, {'testbed': _TESTBED.value, 'num_edits': len(records), 'rows': rows})


if __name__ == '__main__':
  app.run(main)

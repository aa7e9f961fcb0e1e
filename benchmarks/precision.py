r"""What bfloat16 costs: the same edits with bfloat16 and with float32 weights and activations.

python benchmarks/precision.py --testbed=gptj --num_edits=100 --out=precision.json

Deltas, losses, moments, second moments, solves and edited kernels are float32 or wider in both; the
stored weights are bfloat16, so both models start from the same numbers. Prints, for PMET and MEMIT,
how far targets and updates move apart, and the metrics of each; and what is lost where the edited
kernels are rounded to bfloat16 on export.
"""

import itertools
import random
import tempfile
from collections.abc import Sequence

import numpy as np
from absl import app, flags

import jedit
from jedit.editing.contexts import sample_contexts
from jedit.io.storage import write_json
from jedit.testbeds import NAMES, testbed_corpus, testbed_directory, testbed_prompts

_TESTBED = flags.DEFINE_enum('testbed', 'gptj', list(NAMES), 'Shipped model.')
_NUM_EDITS = flags.DEFINE_integer('num_edits', 100, 'Records to edit, in one batch.', lower_bound=1)
_METHODS = flags.DEFINE_list('methods', ['pmet', 'memit'], 'Methods with settings for the testbed.')
_QUESTIONS = flags.DEFINE_integer('questions', 500, 'About unedited subjects.', lower_bound=0)
_OUT = flags.DEFINE_string('out', '', 'JSON file for the figures; empty prints only.')

_COLUMNS = ('score', 'efficacy', 'paraphrase', 'neighborhood', 'unedited_kept')


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
  """Norm of the difference over the norm."""
  return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'There is no argument {argv[1]!r}; use the flags.')
  testbed = _TESTBED.value
  _, records = jedit.testbed(testbed)
  records = records[: _NUM_EDITS.value]
  questions = [(p.text, p.answer) for p in testbed_prompts(testbed) if not p.edited]
  random.Random(0).shuffle(questions)
  questions = list(itertools.islice(questions, _QUESTIONS.value))
  models = {d: jedit.load(testbed_directory(testbed), dtype=d) for d in ('float32', 'bfloat16')}
  contexts = sample_contexts(models['float32'], 0)
  rows = []
  for name in _METHODS.value:
    method = jedit.preset(name, f'testbed-{testbed}')
    found = {}
    for dtype, lm in models.items():
      stats = jedit.statistics(lm, testbed_corpus(testbed), method.layers)
      patch, details = jedit.edit(
        lm, [r.request for r in records], method, stats, contexts=contexts, details=True
      )
      edited = lm.apply(patch)
      table = jedit.evaluate(edited, records, before=lm, unedited=questions).metrics
      with tempfile.TemporaryDirectory() as folder:
        rounding = edited.export(f'{folder}/model', dtype='bfloat16').rounding
      found[dtype] = (patch, details, table, rounding)
    wide, narrow = found['float32'], found['bfloat16']
    targets = {
      delta: [relative(a, b) for a, b in zip(narrow[1].z[delta], wide[1].z[delta], strict=True)]
      for delta in wide[1].z
    }
    rows.append(
      {
        'method': name,
        'targets': {delta: float(np.median(each)) for delta, each in targets.items()},
        'updates': {
          path: relative(narrow[0].updates[path].value(), update.value())
          for path, update in wide[0].updates.items()
        },
        'metrics': {
          dtype: {c: each[2][c]['after'] for c in _COLUMNS} for dtype, each in found.items()
        },
        'export_update_error': max(r.update or 0.0 for r in wide[3].values()),
      }
    )
  for row in rows:
    print(f'\n{row["method"]}: {len(records)} edits of the {testbed} testbed')
    print('  targets, median relative difference: ' + _pairs(row['targets']))
    print('  updates, relative difference:        ' + _pairs(row['updates']))
    print(f'  update lost by rounding on export:   {row["export_update_error"]:.2g}')
    for dtype, values in row['metrics'].items():
      print(f'  {dtype:9}' + ''.join(f'{c:>14} {values[c]["mean"]:5.1f}' for c in _COLUMNS))
  if _OUT.value:
    write_json(_OUT.value, {'testbed': testbed, 'num_edits': len(records), 'rows': rows})


def _pairs(values: dict[str, float]) -> str:
  return ', '.join(f'{name} {value:.2g}' for name, value in values.items())


if __name__ == '__main__':
  app.run(main)

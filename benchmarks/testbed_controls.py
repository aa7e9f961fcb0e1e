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

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

import jedit
from jedit.checkpoint import write_json
from jedit.contexts import sample_contexts
from jedit.data.prompts import Row, encode_many, pad
from jedit.models import functions
from jedit.patch import Update
from jedit.testbeds import testbed_corpus, testbed_prompts

_TESTBED = flags.DEFINE_string('testbed', 'gptj', 'gptj or llama.')
_NUM_EDITS = flags.DEFINE_integer('num_edits', 200, 'Records to edit, in one batch.', lower_bound=1)
_SEED = flags.DEFINE_integer('seed', 0, 'Of contexts, order and the questions that are drawn.')
_QUESTIONS = flags.DEFINE_integer('questions', 1000, 'About unedited subjects.', lower_bound=0)
_OUT = flags.DEFINE_string('out', '', 'JSON file for the rows; empty prints only.')

_COLUMNS = ('score', 'efficacy', 'paraphrase', 'neighborhood', 'paraphrase_acc', 'unedited_kept')


def fine_tune(
  lm: jedit.LanguageModel, requests: Sequence[jedit.Request], layer: int, seed: int
) -> jedit.Patch:
  """Adam on all matrices of one block until every batch says the targets: no constraint at all.

  The control FT-W of the MEMIT paper (arXiv:2210.07229, appendix B.1) with teacher forcing: 25
  epochs at most, learning rate 5e-4, stopping at a mean loss of 0.01.
  """
  texts = encode_many(lm.tokenizer, [Row(r.prompt, r.subject, r.target) for r in requests])
  token_NxT, length_N = pad([text.ids for text in texts], multiple=8)
  start_N = np.array([text.target_start for text in texts])
  index_T = np.arange(token_NxT.shape[1])
  is_target_NxT = (index_T >= start_N[:, None]) & (index_T < length_N[:, None])
  run, read_out = functions(lm.config)
  name = f'block_{layer}'
  below_NxTxD = np.asarray(jax.jit(lambda p, t: run(p, t, stop=layer)[0])(lm.params, token_NxT))
  adam = optax.adam(5e-4)

  @jax.jit
  def step(block, state, hidden_NxTxD, token_NxT, is_target_NxT):
    def loss(block):
      params = {**lm.params, name: block}
      hidden, _ = run(params, hidden_NxTxD=hidden_NxTxD, start=layer)
      nll_NxT = optax.softmax_cross_entropy_with_integer_labels(
        read_out(params, hidden[:, :-1]), token_NxT[:, 1:]
      )
      weight_NxT = is_target_NxT[:, 1:].astype(jnp.float32)
      return (nll_NxT * weight_NxT).sum() / weight_NxT.sum()

    value, gradient = jax.value_and_grad(loss)(block)
    with jax.numpy_dtype_promotion('standard'):
      change, state = adam.update(gradient, state)
    return optax.apply_updates(block, change), state, value

  block = jax.tree.map(jnp.asarray, lm.params[name])
  state, rng = adam.init(block), random.Random(seed)
  order = list(range(len(requests)))
  size = min(64, len(order))
  for _ in range(25):
    rng.shuffle(order)
    losses = []
    for first in range(0, len(order) - size + 1, size):
      part = np.array(order[first : first + size])
      batch = below_NxTxD[part], token_NxT[part], is_target_NxT[part]
      block, state, value = step(block, state, *batch)
      losses.append(value)
    if float(np.mean(jax.device_get(losses))) < 0.01:
      break
  change = jax.tree.map(lambda new, old: np.asarray(new - old), block, lm.params[name])
  flat = jax.tree_util.tree_leaves_with_path(change)
  updates = {
    '/'.join([name, *(key.key for key in path)]): Update(dense=leaf) for path, leaf in flat
  }
  return jedit.Patch(updates, {'model': lm.fingerprint, 'method': 'fine-tuning'})


def editors(testbed: str) -> dict[str, jedit.Recipe | int]:
  """By row name: a recipe, or the layer that is fine-tuned."""
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
    'fine-tuning of one block': region.layers[-1],
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
  layers = sorted({n for m in methods.values() if isinstance(m, jedit.Recipe) for n in m.layers})
  stats = jedit.statistics(lm, testbed_corpus(_TESTBED.value), layers)
  rows = []
  for name, method in methods.items():
    start = time.monotonic()
    if isinstance(method, jedit.Recipe):
      patch = jedit.edit(lm, requests, method, stats, contexts=contexts)
    else:
      patch = fine_tune(lm, requests, method, _SEED.value)
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

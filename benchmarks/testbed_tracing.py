r"""Where does a testbed recall its facts? Causal tracing over single layers and ranges of them.

python benchmarks/testbed_tracing.py --testbed=gptj --out=tracing.json

Prints, for MLP and for attention outputs put back at the subject's last token, the share of the
answer's probability that comes back (ROME, arXiv:2202.05262, section 2).
"""

import random
from collections.abc import Sequence

from absl import app, flags

import jedit
from jedit.checkpoint import write_json
from jedit.testbeds import testbed_prompts
from jedit.testbeds.tracing import trace

_TESTBED = flags.DEFINE_string('testbed', 'gptj', 'gptj or llama.')
_PROMPTS = flags.DEFINE_integer('prompts', 200, 'Questions, drawn with the seed.', lower_bound=1)
_SEED = flags.DEFINE_integer('seed', 0, 'Of questions and noise.')
_WIDTH = flags.DEFINE_integer('width', 3, 'Layers of a range.', lower_bound=2)
_OUT = flags.DEFINE_string('out', '', 'JSON file for the rows; empty prints only.')


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'There is no argument {argv[1]!r}; use the flags.')
  lm, _ = jedit.testbed(_TESTBED.value)
  prompts = testbed_prompts(_TESTBED.value)
  random.Random(_SEED.value).shuffle(prompts)
  layers = range(lm.config.num_layers)
  ranges = [(layer,) for layer in layers]
  ranges += [tuple(layers[i : i + _WIDTH.value]) for i in layers[: len(layers) - _WIDTH.value + 1]]
  found = trace(
    lm.config, lm.params, lm.tokenizer, prompts[: _PROMPTS.value], ranges, seed=_SEED.value
  )
  print(f'probability of the answer: {found.clean:.2f} clean, {found.corrupted:.2f} corrupted')
  print(f'{"layers put back":>16}{"MLP":>8}{"attention":>11}   percent recovered')
  rows = []
  for chosen in ranges:
    row = {'layers': list(chosen)} | {k: found.recovered(k, chosen) for k in ('mlp', 'attn')}
    rows.append(row)
    name = f'{chosen[0]}' if len(chosen) == 1 else f'{chosen[0]} to {chosen[-1]}'
    print(f'{name:>16}{100 * row["mlp"]:8.0f}{100 * row["attn"]:11.0f}')
  if _OUT.value:
    write_json(
      _OUT.value,
      {'testbed': _TESTBED.value, 'clean': found.clean, 'corrupted': found.corrupted, 'rows': rows},
    )


if __name__ == '__main__':
  app.run(main)

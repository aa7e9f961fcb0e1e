r"""How fast is text generated? The engine beside transformers' `generate`.

python benchmarks/generation.py --out=generation.json
python benchmarks/generation.py --num_prompts=256 --num_new=32

Both sides continue the same prompts of unequal lengths greedily by the same number of tokens, in
float32, all prompts in one batch, with a cache of keys and values; nothing ends early. Sides:

  engine        `jedit.models.generate.generate`
  transformers  PyTorch, `model.generate(..., use_cache=True)`, prompts padded on the left

Seconds are for all prompts, without compiling. Needed FLOP are products with weight matrices over
tokens that exist, one prediction per new token (`flop.py`). Sides that round differently may part
where two tokens are about as probable: the share of equal tokens is printed.
"""

import os
import pathlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import harness  # noqa: F401 (its flags)
import numpy as np
from absl import app, flags
from processes import Here, Process
from turns import chosen_sides, time_tokens, token_lines, write_report

SIDES = {
  'engine': 'generation_sides:Engine',
  'transformers': 'generation_sides:Transformers',
}
_ROUNDS = 5

for _name in ('preset', 'sides', 'rounds', 'seed', 'out'):
  flags.declare_key_flag(_name)  # of the harness
_NUM_PROMPTS = flags.DEFINE_integer('num_prompts', 64, 'Prompts, in one batch.', lower_bound=1)
_NUM_NEW = flags.DEFINE_integer('num_new', 64, 'New tokens of each prompt.', lower_bound=1)
_SHORTEST = flags.DEFINE_integer('shortest', 5, 'Tokens of the shortest prompt.', lower_bound=1)
_LONGEST = flags.DEFINE_integer('longest', 24, 'Tokens of the longest prompt.', lower_bound=1)


def run(
  preset: str,
  *,
  sides: Sequence[str] = tuple(SIDES),
  num_prompts: int = 64,
  num_new: int = 64,
  lengths: tuple[int, int] = (5, 24),
  rounds: int = _ROUNDS,
  seed: int = 0,
  start: Callable[..., Process | Here] = Process,
) -> dict[str, Any]:
  """Times the sides in turn.

  Args:
    preset: of `material.PRESETS`.
    sides: names in `SIDES`.
    num_prompts, num_new: rows, and new tokens of each.
    lengths: of the shortest and of the longest prompt; the others are drawn between them.
    rounds: times that each side runs.
    seed: of weights and prompts.
    start: `Process`, or `Here` to stay in this process.

  Returns:
    What is written as JSON.
  """
  rng = np.random.default_rng(seed)
  length_N = rng.integers(lengths[0], lengths[1] + 1, num_prompts)
  with tempfile.TemporaryDirectory() as scratch:
    directory = pathlib.Path(scratch) / 'model'
    maker = start('generation_sides:prepare')
    facts = maker.call(None, directory, preset, length_N.tolist(), num_new, seed)
    maker.close()
    rows = [rng.integers(1, facts['vocab_size'], length).tolist() for length in length_N]
    report, results = time_tokens(
      {name: (SIDES[name], (directory, rows, num_new)) for name in sides},
      rounds,
      num_prompts * num_new,
      facts['flop'],
      start,
    )
  report = {
    'benchmark': 'generation',
    'preset': preset,
    'num_prompts': num_prompts,
    'num_new': num_new,
    'prompt_tokens': {'min': int(length_N.min()), 'max': int(length_N.max())},
    'seed': seed,
    'cpus': os.cpu_count(),
    'needed_flop': facts['flop'],
    **report,
  }
  if len(sides) > 1:
    ours, theirs = (np.array(results[0]['found'][name]['tokens']) for name in SIDES)
    report['equal_tokens'] = float((ours == theirs).mean())
  return report


def table(report: Mapping[str, Any]) -> str:
  """The report for people."""
  lengths = report['prompt_tokens']
  lines = [
    f'generation, preset {report["preset"]}: {report["num_prompts"]} prompts of {lengths["min"]} '
    f'to {lengths["max"]} tokens, {report["num_new"]} new ones each, {report["rounds"]} rounds',
    f'{report["cpus"]} CPUs; matrix products reach '
    f'{report["ceiling_flop_per_second"] / 1e9:,.0f} GFLOP/s',
    '',
    *token_lines(report),
  ]
  if 'times_faster' in report:
    lines += [
      '',
      f'engine is {report["times_faster"]:.2f} times as fast as transformers; '
      f'{100 * report["equal_tokens"]:.1f}% of the tokens are equal',
    ]
  return '\n'.join(lines)


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'There is no argument {argv[1]!r}; use the flags.')
  if _SHORTEST.value > _LONGEST.value:
    raise app.UsageError('--shortest is above --longest; give lengths from short to long.')
  given = flags.FLAGS
  report = run(
    given.preset,
    sides=chosen_sides(tuple(SIDES)),
    num_prompts=_NUM_PROMPTS.value,
    num_new=_NUM_NEW.value,
    lengths=(_SHORTEST.value, _LONGEST.value),
    rounds=given.rounds or _ROUNDS,
    seed=given.seed,
  )
  print(table(report))
  write_report(report, given.out)


if __name__ == '__main__':
  app.run(main)

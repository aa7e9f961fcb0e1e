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
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import harness  # noqa: F401 (its flags)
import numpy as np
from absl import app, flags
from processes import Here, Process

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
    running: dict[str, Process | Here] = {}
    try:
      warm = {}
      for name in sides:
        running[name] = start(SIDES[name], directory, rows, num_new)
        warm[name] = running[name].call('warm_up')
      found: dict[str, list] = {name: [] for name in sides}
      ceilings = []
      for number in range(rounds):
        for name in sides if number % 2 == 0 else reversed(sides):
          ceilings.append(running[name].call('ceiling'))
          found[name].append(running[name].call('round'))
      memory = {name: side.call('memory') for name, side in running.items()}
    finally:
      for side in running.values():
        side.close()
  report: dict[str, Any] = {
    'benchmark': 'generation',
    'preset': preset,
    'num_prompts': num_prompts,
    'num_new': num_new,
    'prompt_tokens': {'min': int(length_N.min()), 'max': int(length_N.max())},
    'rounds': rounds,
    'seed': seed,
    'cpus': os.cpu_count(),
    'needed_flop': facts['flop'],
    'ceiling_flop_per_second': max(ceilings),
    'sides': {},
  }
  for name in sides:
    seconds = [each['seconds'] for each in found[name]]
    middle = statistics.median(seconds)
    report['sides'][name] = {
      'seconds': {'median': middle, 'min': min(seconds), 'max': max(seconds), 'rounds': seconds},
      'tokens_per_second': num_prompts * num_new / middle,
      'share_of_ceiling': facts['flop'] / middle / max(ceilings),
      **warm[name],
      'compile_seconds_in_rounds': [each['compile_seconds'] for each in found[name]],
      'peak_bytes': memory[name],
    }
  if len(sides) > 1:
    ours, theirs = (np.array(found[name][0]['tokens']) for name in SIDES)
    median = {name: side['seconds']['median'] for name, side in report['sides'].items()}
    report['times_faster'] = median['transformers'] / median['engine']
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
    f'{"":14}{"seconds":>10}{"(min .. max)":>18}{"tokens/s":>10}{"of ceiling":>12}'
    f'{"compile s":>11}{"MB":>8}',
  ]
  for name, side in report['sides'].items():
    seconds, compiling = side['seconds'], side['compile_seconds']
    spread = f'({seconds["min"]:.2f} .. {seconds["max"]:.2f})'
    lines.append(
      f'{name:14}{seconds["median"]:10.2f}{spread:>18}{side["tokens_per_second"]:10,.0f}'
      f'{100 * side["share_of_ceiling"]:11.1f}%'
      + (f'{"-":>11}' if compiling is None else f'{compiling:11.1f}')
      + f'{side["peak_bytes"]["process"] / 1e6:8,.0f}'
    )
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
  sides = given.sides or list(SIDES)
  if not set(sides) <= set(SIDES):
    raise app.UsageError(f'--sides={",".join(sides)}: choose from {", ".join(SIDES)}.')
  report = run(
    given.preset,
    sides=[name for name in SIDES if name in sides],
    num_prompts=_NUM_PROMPTS.value,
    num_new=_NUM_NEW.value,
    lengths=(_SHORTEST.value, _LONGEST.value),
    rounds=given.rounds or _ROUNDS,
    seed=given.seed,
  )
  print(table(report))
  if given.out:
    from jedit.checkpoint import write_json

    write_json(given.out, report)


if __name__ == '__main__':
  app.run(main)

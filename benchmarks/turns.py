"""Sides in turn, with their spread: what benchmarks of any work share."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import app, flags
from processes import Here, Process


def run_round(sides: Mapping[str, Process | Here], number: int, *arguments: Any) -> dict[str, Any]:
  """Every side once, the order turned round every other time.

  Args:
    sides: with methods `ceiling` and `round`.
    number: of the round.
    arguments: of `round`.
  """
  order = list(sides) if number % 2 == 0 else list(reversed(sides))
  ceiling, found = {}, {}
  for name in order:
    ceiling[name] = sides[name].call('ceiling')
    found[name] = sides[name].call('round', *arguments)
  return {'ceiling': ceiling, 'found': found}


def best_ceiling(results: Sequence[Mapping[str, Any]]) -> float:
  """FLOP/s of matrix products.

  Libraries differ in how near they come to the device's limit: the better one shows it.
  """
  names = results[0]['ceiling']
  return max(statistics.median(result['ceiling'][name] for result in results) for name in names)


def spread(seconds: list[float]) -> dict[str, Any]:
  """Median and range of all rounds."""
  middle = statistics.median(seconds)
  return {'median': middle, 'min': min(seconds), 'max': max(seconds), 'rounds': seconds}


def time_tokens(
  sides: Mapping[str, tuple[str, Sequence[Any]]],
  rounds: int,
  num_tokens: int,
  needed_flop: float,
  start: Callable[..., Process | Here],
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
  """Times sides that all work on the same tokens.

  Args:
    sides: by name, target and arguments for `start`.
    rounds: times that each side runs.
    num_tokens, needed_flop: of a round.
    start: `Process`, or `Here` to stay in this process.

  Returns:
    The part of the report that all such benchmarks have, and what every round returned.
  """
  running: dict[str, Process | Here] = {}
  warm = {}
  try:
    for name, (target, arguments) in sides.items():
      running[name] = start(target, *arguments)
      warm[name] = running[name].call('warm_up')
    results = [run_round(running, number) for number in range(rounds)]
    memory = {name: side.call('memory') for name, side in running.items()}
  finally:
    for side in running.values():
      side.close()
  ceiling = best_ceiling(results)
  report: dict[str, Any] = {'rounds': rounds, 'ceiling_flop_per_second': ceiling, 'sides': {}}
  for name in sides:
    found = [result['found'][name] for result in results]
    seconds = spread([each['seconds'] for each in found])
    report['sides'][name] = {
      'seconds': seconds,
      'tokens_per_second': num_tokens / seconds['median'],
      'share_of_ceiling': needed_flop / seconds['median'] / ceiling,
      **warm[name],
      'compile_seconds_in_rounds': [each.get('compile_seconds') for each in found],
      'peak_bytes': memory[name],
    }
  if len(sides) == 2:
    ours, theirs = (side['seconds']['median'] for side in report['sides'].values())
    report['times_faster'] = theirs / ours
  return report, results


def token_lines(report: Mapping[str, Any]) -> list[str]:
  """The sides of `time_tokens` for people."""
  width = 2 + max(map(len, report['sides']))
  lines = [
    f'{"":{width}}{"seconds":>10}{"(min .. max)":>18}{"tokens/s":>10}{"of ceiling":>12}'
    f'{"compile s":>11}{"MB":>8}'
  ]
  for name, side in report['sides'].items():
    seconds, compiling = side['seconds'], side['compile_seconds']
    low_high = f'({seconds["min"]:.2f} .. {seconds["max"]:.2f})'
    lines.append(
      f'{name:{width}}{seconds["median"]:10.2f}{low_high:>18}{side["tokens_per_second"]:10,.0f}'
      f'{100 * side["share_of_ceiling"]:11.1f}%'
      + (f'{"-":>11}' if compiling is None else f'{compiling:11.1f}')
      + f'{side["peak_bytes"]["process"] / 1e6:8,.0f}'
    )
  return lines


def chosen_sides(sides: Sequence[str]) -> list[str]:
  """Those of --sides, or all."""
  given = flags.FLAGS.sides or list(sides)
  if not set(given) <= set(sides):
    raise app.UsageError(f'--sides={",".join(given)}: choose from {", ".join(sides)}.')
  return [name for name in sides if name in given]


def write_report(report: Any, path: str) -> None:
  """As JSON; nowhere for an empty path."""
  if path:
    from jedit.io.storage import write_json  # imports JAX, which only the sides need

    write_json(path, report)

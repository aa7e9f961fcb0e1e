"""What `statistics.py` runs; that name belongs to Python's own module for every import."""

import os
import pathlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import harness  # noqa: F401 (its flags)
from absl import app, flags
from processes import Here, Process
from turns import chosen_sides, time_tokens, token_lines, write_report

SIDES = {'engine': 'statistics_sides:Engine', 'baseline': 'statistics_sides:Baseline'}
_ROUNDS = 3

for _name in ('preset', 'sides', 'rounds', 'seed', 'out'):
  flags.declare_key_flag(_name)  # of the harness
_NUM_TOKENS = flags.DEFINE_integer('corpus_tokens', 32_768, 'Of all documents.', lower_bound=1)
_BATCH_TOKENS = flags.DEFINE_integer('tokens_at_once', 4096, 'Of a batch.', lower_bound=512)
_DEVICES = flags.DEFINE_list(
  'devices', None, 'Meshes data x model of fake CPU devices, as 4x2, to compile for; none is timed.'
)


def run(
  preset: str,
  *,
  sides: Sequence[str] = tuple(SIDES),
  num_tokens: int,
  batch_tokens: int,
  rounds: int = _ROUNDS,
  seed: int = 0,
  start: Callable[..., Process | Here] = Process,
) -> dict[str, Any]:
  """Times the sides in turn.

  Args:
    preset: of `material.PRESETS`.
    sides: names in `SIDES`.
    num_tokens: of all documents, at least.
    batch_tokens: run at once, padding included.
    rounds: times that each side runs.
    seed: of weights and documents.
    start: `Process`, or `Here` to stay in this process.

  Returns:
    What is written as JSON.
  """
  with tempfile.TemporaryDirectory() as scratch:
    directory = pathlib.Path(scratch)
    maker = start('statistics_sides:prepare')
    facts = maker.call(None, directory, preset, num_tokens, seed)
    maker.close()
    report, results = time_tokens(
      {name: (SIDES[name], (directory, preset, batch_tokens)) for name in sides},
      rounds,
      facts['num_tokens'],
      facts['flop'],
      start,
    )
  report = {
    'benchmark': 'statistics',
    'preset': preset,
    'seed': seed,
    'batch_tokens': batch_tokens,
    'cpus': os.cpu_count(),
    **facts,
    **report,
  }
  for name, side in report['sides'].items():
    side['num_tokens'] = results[0]['found'][name]['num_tokens']
  if len(sides) > 1:
    ours, theirs = (results[0]['found'][name]['traces'] for name in SIDES)
    report['difference'] = max(abs(ours[layer] / theirs[layer] - 1) for layer in ours)
  return report


def table(report: Mapping[str, Any]) -> str:
  """The report for people."""
  lines = [
    f'statistics, preset {report["preset"]}: {report["num_documents"]} documents of up to '
    f'{report["longest"]} tokens, {report["num_tokens"]:,} in all, {report["rounds"]} rounds',
    f'{report["cpus"]} CPUs; matrix products reach '
    f'{report["ceiling_flop_per_second"] / 1e9:,.0f} GFLOP/s; needed are '
    f'{report["flop"] / report["num_tokens"] / 1e6:,.1f} MFLOP per token',
    '',
    *token_lines(report),
  ]
  if 'times_faster' in report:
    lines += [
      '',
      f'engine is {report["times_faster"]:.2f} times as fast as baseline; traces differ by '
      f'{report["difference"]:.1e} at most',
    ]
  return '\n'.join(lines)


def scale(preset: str, meshes: Sequence[tuple[int, int]], seed: int = 0) -> list[dict[str, Any]]:
  """FLOP, sent bytes and kept sums of each device: one batch shared by all, or one for each.

  Args:
    preset: of `material.PRESETS`.
    meshes: (data, model).
    seed: of weights.
  """
  rows = []
  most = max(data for data, _ in meshes)
  with tempfile.TemporaryDirectory() as scratch:
    directory = pathlib.Path(scratch)
    maker = Process('statistics_sides:prepare')
    maker.call(None, directory, preset, 2000, seed)
    maker.close()
    for data, model in meshes:
      before = os.environ.get('XLA_FLAGS', '')
      fake = f'--xla_force_host_platform_device_count={data * model}'
      os.environ['XLA_FLAGS'] = f'{before} {fake}'
      side = Process('statistics_sides:moved')
      os.environ['XLA_FLAGS'] = before
      for kind, num_rows in (('strong', most), ('weak', data)):
        found = side.call(None, directory, preset, data, model, num_rows)
        rows.append({'data': data, 'model': model, 'scaling': kind, 'rows': num_rows, **found})
      side.close()
  return rows


def scale_table(rows: Sequence[Mapping[str, Any]]) -> str:
  """The report of `scale` for people."""
  lines = [
    f'{"mesh":>8}{"scaling":>10}{"tokens":>9}{"MFLOP/token/device":>20}{"bytes sent/token":>18}'
    f'{"sums MB":>9}  by'
  ]
  for row in rows:
    tokens = 512 * row['rows']
    by = ', '.join(f'{name} {size / 1e6:.1f} MB' for name, size in row['bytes'].items())
    lines.append(
      f'{row["data"]:>5}x{row["model"]:<2}{row["scaling"]:>10}{tokens:9,}'
      f'{row["flop"] / tokens / 1e6:20.2f}{sum(row["bytes"].values()) / tokens:18,.0f}'
      f'{row["sum_bytes"] / 1e6:9.1f}  {by or "-"}'
    )
  return '\n'.join(lines)


def main(argv: Sequence[str]) -> None:
  """`absl.app` entry point."""
  if len(argv) > 1:
    raise app.UsageError(f'There is no argument {argv[1]!r}; use the flags.')
  given = flags.FLAGS
  report: Any
  if _DEVICES.value is not None:
    try:
      meshes = [(int(data), int(model)) for data, model in (m.split('x') for m in _DEVICES.value)]
    except ValueError as error:
      raise app.UsageError('--devices are meshes like 4x2, separated by commas.') from error
    report = scale(given.preset, meshes, given.seed)
    print(scale_table(report))
  else:
    report = run(
      given.preset,
      sides=chosen_sides(tuple(SIDES)),
      num_tokens=_NUM_TOKENS.value,
      batch_tokens=_BATCH_TOKENS.value,
      rounds=given.rounds or _ROUNDS,
      seed=given.seed,
    )
    print(table(report))
  write_report(report, given.out)

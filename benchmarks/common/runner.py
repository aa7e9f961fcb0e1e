"""Runs the implementations of a benchmark in turn and reports what they took.

Medians of all rounds are reported, beside the fastest and the slowest round.
"""

import argparse
import dataclasses
import importlib.util
import os
import pathlib
import statistics
import tempfile
from collections.abc import Mapping
from typing import Any

from common.command_line import Parser
from common.presets import PRESETS
from common.processes import Process
from common.timing import Measurement, Start, measure, ratio, spread
from jedit.types import UserError

FLAGS = ('preset', 'implementations', 'rounds', 'seed', 'out')
EDIT_FLAGS = (*FLAGS, 'records', 'num_edits', 'target_batch_size')


@dataclasses.dataclass(frozen=True)
class Benchmark:
  """One script.

  Attributes:
    name: of the script.
    prepare: `module:function` of `common.workload`.
    implementations: by name, `module:class` of an `Implementation` that is built from the workload;
      first the engine, which the others are compared with. Modules of PyTorch end in '_torch'.
  """

  name: str
  prepare: str
  implementations: Mapping[str, str]


def main(benchmark: Benchmark, parser: Parser) -> None:
  """Entry point of a script."""
  settings = parser.parse_args()
  try:
    run(benchmark, settings)
  except UserError as error:
    parser.error(str(error))


def run(benchmark: Benchmark, settings: argparse.Namespace, start: Start = Process) -> dict:
  """Prepares, times and reports.

  Args:
    benchmark: the script.
    settings: its flags.
    start: `Process`, or `Here` to stay in this process.

  Returns:
    The report that is written as JSON.

  Raises:
    UserError: for an implementation that does not exist or cannot run, or too few records.
  """
  chosen = _choose(benchmark, settings)
  rounds = settings.rounds or PRESETS[settings.preset].rounds
  is_stored = any(map(_is_torch, chosen.values()))
  with tempfile.TemporaryDirectory() as scratch:
    maker = start(benchmark.prepare)
    workload, amount = maker.call(None, settings, pathlib.Path(scratch), is_stored)
    maker.close()
    measured = measure(chosen, workload, rounds, start)
  report = _report(benchmark.name, settings, amount, measured)
  print(table(report))
  write_report(report, settings.out)
  return report


def write_report(report: Any, path: str) -> None:
  """Writes JSON; nothing for an empty path."""
  if path:
    from jedit.io.storage import write_json  # imports JAX, which only implementations need

    write_json(path, report)


def _choose(benchmark: Benchmark, settings: argparse.Namespace) -> dict[str, str]:
  """The implementations to run.

  Raises:
    UserError: for one that does not exist or cannot run, or if the engine is missing.
  """
  has_torch = importlib.util.find_spec('torch') is not None
  every = benchmark.implementations
  names = settings.implementations
  if names is None:
    names = tuple(every)
    if settings.preset == 'gptj-6b':
      fits = has_torch and _torch_has_gpu()
      names = ('engine', *(name for name in every if fits and _is_torch(every[name])))
  unknown = [name for name in names if name not in every]
  if unknown:
    raise UserError(
      f'{benchmark.name} has no implementation {unknown[0]!r}; choose from {", ".join(every)}.'
    )
  if 'engine' not in names:
    raise UserError("The implementation 'engine' is missing; the others are compared with it.")
  if not has_torch and any(_is_torch(every[name]) for name in names):
    others = ','.join(name for name in names if not _is_torch(every[name]))
    raise UserError(
      "The baseline needs PyTorch, which is not installed; pip install 'jedit[benchmark]', or "
      f'leave it out with --implementations={others}.'
    )
  return {name: target for name, target in every.items() if name in names}


def _is_torch(target: str) -> bool:
  return target.partition(':')[0].endswith('_torch')


def _torch_has_gpu() -> bool:
  import torch

  return torch.cuda.is_available()


def _report(name: str, settings: argparse.Namespace, amount, measured: Measurement) -> dict:
  results = {name: _result(name, amount, measured) for name in measured.warm_ups}
  others = [other for other in results if other != 'engine']
  engine = results['engine']['seconds']
  return {
    'benchmark': name,
    'preset': settings.preset,
    'seed': settings.seed,
    'cpus': os.cpu_count(),
    'work': amount.sentence,
    **amount.facts,
    'unit': amount.unit,
    'count': amount.count,
    'needed_flop': amount.needed_flop,
    'rounds': len(measured.rounds),
    'ceiling_flop_per_second': measured.ceiling,
    'implementations': results,
    'times_faster': {other: ratio(engine, results[other]['seconds']) for other in others},
    'differences': {other: measured.differences('engine', other) for other in others},
  }


def _result(name: str, amount, measured: Measurement) -> dict[str, Any]:
  """An implementation's part of the report; seconds are scaled to the whole work."""
  found = measured.of(name)
  scales = [amount.count / each['amount'] for each in found]
  seconds = spread([scale * each['seconds'] for scale, each in zip(scales, found, strict=True)])
  per_second = amount.needed_flop / seconds['median']
  return {
    **measured.warm_ups[name],
    'seconds': seconds,
    'amount_by_round': [each['amount'] for each in found],
    'units_per_second': amount.count / seconds['median'],
    'parts': {
      part: statistics.median(s * each['parts'][part] for s, each in zip(scales, found))
      for part in found[0]['parts']
    },
    'flop_per_second': per_second,
    'share_of_ceiling': per_second / measured.ceiling,
    'compile_seconds_by_round': [each['compile_seconds'] for each in found],
    'peak_bytes': measured.peak_bytes[name],
  }


def table(report: Mapping[str, Any]) -> str:
  """The report for people."""
  results = report['implementations']
  width = 2 + max(map(len, results))
  place = 2 + max(6, *(len(result['device']) for result in results.values()))
  lines = [
    f'{report["benchmark"]}, preset {report["preset"]}, {report["rounds"]} rounds',
    report['work'],
    f'{report["cpus"]} CPUs; matrix products reach '
    f'{report["ceiling_flop_per_second"] / 1e9:,.0f} GFLOP/s; needed are '
    f'{report["needed_flop"] / report["count"] / 1e9:,.3g} GFLOP per {report["unit"][:-1]}',
    '',
    f'{"":{width}}{"device":{place}}{"precision":11}{"seconds":>9}{"(min .. max)":>20}'
    f'{report["unit"] + "/s":>10}{"GFLOP/s":>10}{"of ceiling":>12}{"compile s":>11}'
    f'{"programs":>10}{"MB":>8}{"device MB":>11}',
  ]
  for name, result in results.items():
    seconds = result['seconds']
    low_high = f'({seconds["min"]:.2f} .. {seconds["max"]:.2f})'
    lines.append(
      f'{name:{width}}{result["device"]:{place}}{result["precision"]:11}{seconds["median"]:9.2f}'
      f'{low_high:>20}{result["units_per_second"]:10,.2f}{result["flop_per_second"] / 1e9:10,.1f}'
      f'{100 * result["share_of_ceiling"]:11.1f}%{_or_dash(result["compile_seconds"], 11, 1)}'
      f'{_or_dash(result["num_programs"], 10, 0)}'
      f'{_or_dash(result["peak_bytes"]["process"], 8, 0, 1e6)}'
      f'{_or_dash(result["peak_bytes"]["device"], 11, 0, 1e6)}'
    )
    if len(result['parts']) > 1:
      parts = ', '.join(f'{part} {value:.2f} s' for part, value in result['parts'].items())
      lines.append(f'{"":{width}}{parts}')
  lines.append('')
  for name, times in report['times_faster'].items():
    apart = ', '.join(f'{key} {value:.1e}' for key, value in report['differences'][name].items())
    lines.append(
      f'engine is {times["ratio"]:.2f} times as fast as {name} '
      f'({times["min"]:.2f} .. {times["max"]:.2f}); differences: {apart}'
    )
  return '\n'.join(lines)


def _or_dash(value: float | None, width: int, digits: int, unit: float = 1.0) -> str:
  return f'{"-":>{width}}' if value is None else f'{value / unit:{width},.{digits}f}'

"""Runs the sides of a benchmark in turn, each in a process of its own, and prints what it took.

Two numerical libraries in one process fight over its threads, so every side gets a process, which
waits idle while another one works. A round runs each side once; machines slow down and speed up,
and rounds in turn spread that over all sides. Medians are reported, and the fastest and slowest
round beside them.
"""

import dataclasses
import importlib.util
import os
import pathlib
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from absl import app, flags
from processes import Here, Process
from turns import best_ceiling, run_round, spread, write_report

from jedit.types import UserError

PRESET_NAMES = ('small', 'gptj-6b', 'tiny')

_PRESET = flags.DEFINE_enum(
  'preset',
  'small',
  PRESET_NAMES,
  "small: GPT-J's depth and proportions for a laptop; gptj-6b: random weights of GPT-J's shape, "
  'for a device of 80 GB; tiny: for tests.',
)
_RECORDS = flags.DEFINE_string(
  'records',
  '',
  'CounterFact (or zsRE, EasyEdit) file whose first records are edited, such as '
  "../shared/data/counterfact/counterfact.json; empty takes the shipped testbed's made-up world.",
)
_SIDES = flags.DEFINE_list(
  'sides',
  None,
  'What is timed: engine, which is always needed, and others of the script (baseline is PyTorch). '
  'Default: all; for gptj-6b engine, and baseline where PyTorch has a GPU.',
)
_NUM_EDITS = flags.DEFINE_integer(
  'num_edits', None, "Default: the preset's, or all records.", lower_bound=1
)
_NUM_STEPS = flags.DEFINE_integer(
  'num_steps',
  None,
  "Of the loss, per edit; default: the preset's, 2 for keys.",
  lower_bound=2,
)
_ROUNDS = flags.DEFINE_integer('rounds', None, "Default: the preset's.", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer(
  'batch_size', None, "Edits optimised at once on our sides; default: the engine's.", lower_bound=1
)
_SEED = flags.DEFINE_integer('seed', 0, 'Of weights and prefixes.')
_OUT = flags.DEFINE_string('out', '', 'JSON file for the figures; empty prints only.')


class Side(Protocol):
  """One program that does the work."""

  def warm_up(self) -> dict[str, Any]:
    """Runs what must not be timed; returns `compile_seconds` and `num_programs` where known."""
    ...

  def ceiling(self) -> float:
    """FLOP/s of a large matrix product on this side's device, in its dtype."""
    ...

  def round(self, number: int, rounds: int) -> dict[str, Any]:
    """Does the work.

    Returns:
      'seconds', the number of 'edits' done, 'parts' (seconds by stage) and 'answers': arrays with
      one row per edit and the 'indices' of the edits, to be compared between sides.
    """
    ...

  def memory(self) -> dict[str, int | None]:
    """Peak bytes of the 'process' and of the 'device' where it tells."""
    ...


@dataclasses.dataclass(frozen=True)
class Benchmark:
  """One script.

  Attributes:
    name: of the script.
    sides: by name, `module:class` of a `Side` that is built from the material.
    needed: which of the material's '..._flop' figures the timed work needs.
    part: what the sides are told to time.
    num_steps: loss evaluations by default, where that is not the preset's.
  """

  name: str
  sides: Mapping[str, str]
  needed: tuple[str, ...]
  part: str
  num_steps: int | None = None


@dataclasses.dataclass(frozen=True)
class Settings:
  """The flags, with a preset's defaults filled in where they are None."""

  preset: str
  records: str = ''
  sides: tuple[str, ...] | None = None
  num_edits: int | None = None
  num_steps: int | None = None
  rounds: int | None = None
  batch_size: int | None = None
  seed: int = 0
  out: str = ''


def main(benchmark: Benchmark, argv: Sequence[str]) -> None:
  """`absl.app` entry point of a script."""
  if len(argv) > 1:
    raise app.UsageError(f'There is no argument {argv[1]!r}; use the flags.')
  sides = None if _SIDES.value is None else tuple(_SIDES.value)
  settings = Settings(
    preset=_PRESET.value,
    records=_RECORDS.value,
    sides=sides,
    num_edits=_NUM_EDITS.value,
    num_steps=_NUM_STEPS.value,
    rounds=_ROUNDS.value,
    batch_size=_BATCH_SIZE.value,
    seed=_SEED.value,
    out=_OUT.value,
  )
  try:
    run(benchmark, settings)
  except UserError as error:
    raise app.UsageError(str(error)) from error


def run(
  benchmark: Benchmark, settings: Settings, start: Callable[..., Process | Here] | None = None
) -> dict[str, Any]:
  """Prepares, times and reports.

  Args:
    benchmark: the script.
    settings: its flags.
    start: `Process`, or `Here` to stay in this process.

  Returns:
    What is written as JSON.

  Raises:
    UserError: for a side that does not exist or cannot run, or too few records.
  """
  # Not above: printing --help or finding a wrong flag should not wait for the libraries.
  from material import PRESETS

  from jedit.data.records import load_records, select
  from jedit.testbeds import testbed_directory

  start = start or Process
  preset = PRESETS[settings.preset]
  names = _choose_sides(benchmark, settings)
  rounds = settings.rounds or preset.rounds
  num_steps = settings.num_steps or benchmark.num_steps or preset.num_steps
  records = load_records(settings.records or testbed_directory('gptj') / 'records.json')
  num_edits = len(select(records, settings.num_edits or min(preset.num_edits, len(records))))
  with tempfile.TemporaryDirectory() as scratch:
    maker = start('material:prepare')
    material, facts = maker.call(
      None,
      preset,
      pathlib.Path(scratch),
      records,
      num_edits,
      num_steps,
      settings.batch_size,
      settings.seed,
      'baseline' in names,
    )
    maker.close()
    sides: dict[str, Process | Here] = {}
    try:
      warm = {}
      for name in names:
        sides[name] = start(benchmark.sides[name], material, benchmark.part)
        warm[name] = sides[name].call('warm_up')
      results = [run_round(sides, number, number, rounds) for number in range(rounds)]
      memory = {name: side.call('memory') for name, side in sides.items()}
    finally:
      for side in sides.values():
        side.close()
  work = {'num_edits': num_edits, 'num_steps': num_steps, 'rounds': rounds}
  report = _report(benchmark, settings, facts, work, warm, results, memory)
  print(table(report))
  write_report(report, settings.out)
  return report


def _choose_sides(benchmark: Benchmark, settings: Settings) -> list[str]:
  has_torch = importlib.util.find_spec('torch') is not None
  names = settings.sides
  if names is None:
    names = tuple(benchmark.sides)
    if settings.preset == 'gptj-6b':
      names = ('engine', 'baseline') if has_torch and _torch_has_gpu() else ('engine',)
  unknown = [name for name in names if name not in benchmark.sides]
  if unknown:
    raise UserError(
      f'{benchmark.name} has no side {unknown[0]!r}; choose from {", ".join(benchmark.sides)}.'
    )
  if 'engine' not in names:
    raise UserError("The side 'engine' is missing; the others are compared with it, so name it.")
  if 'baseline' in names and not has_torch:
    others = ','.join(name for name in names if name != 'baseline')
    raise UserError(
      "The baseline needs PyTorch, which is not installed; pip install 'jedit[benchmark]', or "
      f'leave it out with --sides={others}.'
    )
  return [name for name in benchmark.sides if name in names]


def _torch_has_gpu() -> bool:
  import torch

  return torch.cuda.is_available()


def _report(benchmark, settings, facts, work, warm, results, memory) -> dict[str, Any]:
  num_edits = work['num_edits']
  needed = sum(facts[f'{part}_flop'] for part in benchmark.needed)
  ceiling = best_ceiling(results)
  sides = {}
  for name in warm:
    found = [result['found'][name] for result in results]
    seconds = spread([each['seconds'] * num_edits / each['edits'] for each in found])
    middle = seconds['median']
    sides[name] = {
      'seconds': seconds,
      'edits_timed_per_round': [each['edits'] for each in found],
      'edits_per_second': num_edits / middle,
      'parts': {
        part: statistics.median(each['parts'][part] * num_edits / each['edits'] for each in found)
        for part in found[0]['parts']
      },
      'flop_per_second': needed / middle,
      'share_of_ceiling': needed / middle / ceiling,
      'compile_seconds': warm[name]['compile_seconds'],
      'num_programs': warm[name]['num_programs'],
      'compile_seconds_in_rounds': [each['compile_seconds'] for each in found],
      'peak_bytes': memory[name],
    }  # fmt: skip
  engine = sides['engine']['seconds']['median']
  return {
    'benchmark': benchmark.name,
    'preset': settings.preset,
    **work,
    'seed': settings.seed,
    'device': warm['engine']['device'],
    'cpus': os.cpu_count(),
    'lengths': {name: value for name, value in facts.items() if name.endswith('_tokens')},
    'needed_flop': {name: value for name, value in facts.items() if name.endswith('_flop')},
    'needed_flop_timed': needed,
    'ceiling_flop_per_second': ceiling,
    'sides': sides,
    'times_faster': {
      name: side['seconds']['median'] / engine for name, side in sides.items() if name != 'engine'
    },
    'differences': {
      name: _differences(results, 'engine', name) for name in sides if name != 'engine'
    },
  }


def _differences(results, one: str, other: str) -> dict[str, float]:
  """Median over the edits of ‖a - b‖ / ‖b‖, by kind of answer: do the sides do the same work?"""
  apart: dict[str, list[float]] = {}
  for result in results:
    left, right = result['found'][one]['answers'], result['found'][other]['answers']
    at = {int(index): n for n, index in enumerate(left['indices'])}
    for name in right.keys() & left.keys() - {'indices'}:
      for n, index in enumerate(right['indices']):
        if int(index) in at:
          a, b = (np.asarray(x, np.float64) for x in (left[name][at[int(index)]], right[name][n]))
          apart.setdefault(name, []).append(
            float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30))
          )
  return {name: statistics.median(values) for name, values in sorted(apart.items())}


def table(report: Mapping[str, Any]) -> str:
  """The report for people."""
  lengths = report['lengths']
  lines = [
    f'{report["benchmark"]}, preset {report["preset"]}: {report["num_edits"]} edits, '
    f'{report["num_steps"]} loss evaluations each, {report["rounds"]} rounds',
    f'{report["device"]}, {report["cpus"]} CPUs; matrix products reach '
    f'{report["ceiling_flop_per_second"] / 1e9:,.0f} GFLOP/s',
    f'a row has {lengths["row_tokens"]:.1f} tokens, its window {lengths["window_tokens"]:.1f}, '
    f'a target {lengths["target_tokens"]:.1f}; needed are '
    f'{report["needed_flop_timed"] / report["num_edits"] / 1e9:,.3g} GFLOP per edit',
    '',
    f'{"":12}{"seconds":>10}{"(min .. max)":>18}{"edits/s":>10}{"GFLOP/s":>10}{"of ceiling":>12}'
    f'{"compile s":>11}{"programs":>10}{"MB":>8}{"device MB":>11}',
  ]
  for name, side in report['sides'].items():
    seconds = side['seconds']
    spread = f'({seconds["min"]:.2f} .. {seconds["max"]:.2f})'
    lines.append(
      f'{name:12}{seconds["median"]:10.2f}{spread:>18}{side["edits_per_second"]:10.2f}'
      f'{side["flop_per_second"] / 1e9:10,.1f}{100 * side["share_of_ceiling"]:11.1f}%'
      f'{_or_dash(side["compile_seconds"], 11, 1)}{_or_dash(side["num_programs"], 10, 0)}'
      f'{_or_dash(side["peak_bytes"]["process"], 8, 0, 1e6)}'
      f'{_or_dash(side["peak_bytes"]["device"], 11, 0, 1e6)}'
    )
    parts = ', '.join(f'{part} {value:.2f} s' for part, value in side['parts'].items())
    if len(side['parts']) > 1:
      lines.append(f'{"":12}{parts}')
  lines.append('')
  for name, times in report['times_faster'].items():
    apart = ', '.join(f'{key} {value:.1e}' for key, value in report['differences'][name].items())
    lines.append(f'engine is {times:.1f} times as fast as {name}; relative differences: {apart}')
  return '\n'.join(lines)


def _or_dash(value: float | None, width: int, digits: int, unit: float = 1.0) -> str:
  return f'{"-":>{width}}' if value is None else f'{value / unit:{width},.{digits}f}'

r"""Solves of a batch of edits: with a kept factor of C, and a new system every time.

  python benchmarks/solves.py --sizes=1024,2048,4096 --edits=10,64,256 --out=solves.json

The engine factors C once for each layer and solves every batch of B edits with it
(`jedit.solvers.LeastSquares`), checks the normal equations, and gives the left factor; the baseline
adds KᵀK to λC and calls `torch.linalg.solve` for every batch, as the published codes do. Both in
float64.

Needed FLOP: F³/3 for the factor, once; 2 F² B for a batch, in two triangular solves. Without a
factor a batch needs F³/3 + F² B + 2 F² B. The ceiling is the better library's float64 product.

With --batches the solves are also timed in their place: that many batches of --batch_edits edits of
the shipped testbed one after the other, with PMET's published settings for it.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from typing import Any

from common.command_line import Parser, size_list, whole
from common.processes import Process
from common.runner import write_report
from common.timing import Measurement, Start, measure, ratio, spread

IMPLEMENTATIONS = {
  'engine': 'implementations.solves_jax:Engine',
  'baseline': 'implementations.solves_torch:Baseline',
}

PARSER = Parser(__doc__, 'out')
PARSER.add('rounds', whole(1), 3, 'runs of each implementation for every size')
PARSER.add('sizes', size_list, (1024, 2048, 4096), 'F, dimensions of the keys')
PARSER.add('edits', size_list, (10, 64, 256), 'B, numbers of edits of a batch')
PARSER.add('batches', whole(0), 0, 'batches of the sequence on the testbed; 0 leaves it out')
PARSER.add('batch_edits', whole(1), 10, 'edits of a batch of the sequence')


def run(settings: argparse.Namespace, start: Start = Process) -> list[dict[str, Any]]:
  """Times both implementations for every size.

  Args:
    settings: the flags; up to a quarter of F edits are solved with the kept factor.
    start: `Process`, or `Here` to stay in this process.
  """
  from common.workload import SolveWorkload  # imports JAX, which --help does not need

  rows: list[dict[str, Any]] = []
  for size in settings.sizes:
    workload = SolveWorkload(size, settings.edits)
    rows += _rows(workload, measure(IMPLEMENTATIONS, workload, settings.rounds, start))
  return rows


def _rows(workload, measured: Measurement) -> list[dict[str, Any]]:
  size, differences = workload.size, measured.differences('engine', 'baseline')

  def row(label: str, name: str, part: str, count: int, needed: float) -> dict[str, Any]:
    seconds = spread([each['parts'][part] for each in measured.of(name)])
    per_second = needed / seconds['median']
    return {
      'name': label,
      'device': measured.warm_ups[name]['device'],
      'precision': measured.warm_ups[name]['precision'],
      'F': size,
      'B': count,
      'needed_flop': needed,
      'seconds': seconds,
      'flop_per_second': per_second,
      'share_of_ceiling': per_second / measured.ceiling,
    }

  rows = [row('factor once', 'engine', 'factor', 0, size**3 / 3)]
  for count in workload.edits:
    solve, check = f'solve {count}', f'check {count}'
    needed = 2 * size**2 * count
    whole_needed = size**3 / 3 + 3 * size**2 * count
    kept = row('kept factor', 'engine', solve, count, needed)
    anew = row('torch.linalg', 'baseline', solve, count, whole_needed)
    anew['times_faster'] = ratio(kept['seconds'], anew['seconds'])
    anew['difference'] = differences[f'left {count}']
    rows += [kept, row('  its check', 'engine', check, count, needed), anew]
  return rows


def sequence(num_batches: int, size: int) -> dict[str, float]:
  """Seconds of a sequential edit by stage; a shorter one before it compiles."""
  import jedit
  from jedit.editing.contexts import sample_contexts
  from jedit.experiments.compile_timer import CompileClock
  from jedit.testbeds import testbed_corpus

  lm, records = jedit.testbed('gptj')
  method = jedit.preset('pmet', 'testbed-gptj')
  second_moments = jedit.statistics(lm, testbed_corpus('gptj'), method.layers)
  contexts = sample_contexts(lm, 0)

  def batches(count: int) -> list[Mapping[str, float]]:
    # The factors are new in every call: the first batch pays for them.
    stream = jedit.edit_stream(
      lm,
      records[: count * size],
      method,
      second_moments,
      contexts=contexts,
      batching=jedit.Sequential(size),
    )
    return [batch.result.seconds for batch in stream]

  batches(2)
  with CompileClock() as clock:
    start = time.perf_counter()
    found = batches(num_batches)
    total = time.perf_counter() - start
  parts = {name: sum(each[name] for each in found) for name in ('targets', 'keys', 'solve')}
  return {
    'batches': len(found),
    'total': total,
    'compile': clock.seconds,
    **parts,
    'solve_share': parts['solve'] / total,
  }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
  """The report for people."""
  lines = [
    f'{"":14}{"device":12}{"precision":10}{"F":>7}{"B":>5}{"seconds":>10}{"(min .. max)":>22}'
    f'{"GFLOP/s":>9}{"of ceiling":>12}  kept factor: times as fast (min .. max), difference'
  ]
  for row in rows:
    seconds = row['seconds']
    low_high = f'({seconds["min"]:.4f} .. {seconds["max"]:.4f})'
    line = (
      f'{row["name"]:14}{row["device"]:12}{row["precision"]:10}{row["F"]:7}{row["B"] or "":>5}'
      f'{seconds["median"]:10.4f}{low_high:>22}'
      f'{row["flop_per_second"] / 1e9:9.1f}{100 * row["share_of_ceiling"]:11.1f}%'
    )
    if 'times_faster' in row:
      times = row['times_faster']
      line += f'  {times["ratio"]:.1f} ({times["min"]:.1f} .. {times["max"]:.1f}), '
      line += f'{row["difference"]:.0e}'
    lines.append(line)
  return '\n'.join(lines)


def main() -> None:
  settings = PARSER.parse_args()
  report: dict[str, Any] = {'rounds': settings.rounds, 'rows': run(settings)}
  print(table(report['rows']))
  if settings.batches:
    report['sequence'] = sequence(settings.batches, settings.batch_edits)
    print(', '.join(f'{name} {value:.3g}' for name, value in report['sequence'].items()))
  write_report(report, settings.out)


if __name__ == '__main__':
  main()

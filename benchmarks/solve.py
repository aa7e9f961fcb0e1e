r"""Cost of a batch's solve: a kept factor against a new system for every batch.

python benchmarks/solve.py --sizes=1024,2048,4096 --edits=10,64,256 --out=solve.json

Ours factors C once for each layer, solves every batch of B edits with it (`jedit.solvers`), checks
the normal equations, and gives the left factor; the baseline adds KᵀK to λC and calls
`torch.linalg.solve` for every batch, as the published codes do. Both in float64. Each side has a
process of its own and they take turns; medians are printed, with the fastest and slowest round.

Needed FLOP: F³/3 for the factor, once; 2 F² B for a batch, in two triangular solves. Without a
factor a batch needs F³/3 + F² B + 2 F² B. The ceiling is the better side's float64 matrix product.

With --batches the solves are also timed where they belong: that many batches of --batch_edits edits
of the shipped testbed one after the other, with PMET's published settings for it.
"""

import time
from collections.abc import Sequence
from typing import Any

from absl import app, flags
from solve_sides import run
from turns import write_report

_SIZES = flags.DEFINE_list('sizes', ['1024', '2048', '4096'], 'F, dimensions of the keys.')
_EDITS = flags.DEFINE_list('edits', ['10', '64', '256'], 'B, edits of a batch.')
_ROUNDS = flags.DEFINE_integer('rounds', 3, 'Of every size.', lower_bound=1)
_BATCHES = flags.DEFINE_integer(
  'batches', 0, 'Batches of the sequential run; 0 leaves it out.', lower_bound=0
)
_BATCH_EDITS = flags.DEFINE_integer('batch_edits', 10, 'Edits of each of these.', lower_bound=1)
_OUT = flags.DEFINE_string('out', '', 'JSON file for the figures; empty prints only.')


def sequence(num_batches: int, size: int) -> dict[str, float]:
  """Seconds of a sequential run by stage; compiled programs come from a shorter run before it."""
  import jedit
  from jedit.editing.batches import edit_sequentially
  from jedit.editing.contexts import sample_contexts
  from jedit.testbeds import testbed_corpus

  lm, records = jedit.testbed('gptj')
  method = jedit.preset('pmet', 'testbed-gptj')
  stats = jedit.statistics(lm, testbed_corpus('gptj'), method.layers)
  requests = [record.request for record in records[: num_batches * size]]
  contexts = sample_contexts(lm, 0)
  list(edit_sequentially(lm, requests[: 2 * size], method, stats, size=size, contexts=contexts))
  start = time.perf_counter()
  found = [
    batch.seconds
    for batch in edit_sequentially(lm, requests, method, stats, size=size, contexts=contexts)
  ]
  whole = time.perf_counter() - start
  parts = {name: sum(each[name] for each in found) for name in ('targets', 'keys', 'solve')}
  return {'batches': len(found), 'whole': whole, **parts, 'solve_share': parts['solve'] / whole}


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'There is no argument {argv[1]!r}; use the flags.')
  rows = run([int(f) for f in _SIZES.value], [int(b) for b in _EDITS.value], _ROUNDS.value)
  print(
    f'{"":14}{"F":>7}{"B":>5}{"seconds":>10}{"(min .. max)":>22}{"GFLOP/s":>9}{"of ceiling":>12}'
  )
  for row in rows:
    spread = f'({row["min"]:.4f} .. {row["max"]:.4f})'
    print(
      f'{row["name"]:14}{row["F"]:7}{row["B"] or "":>5}{row["seconds"]:10.4f}{spread:>22}'
      f'{row["flop_per_second"] / 1e9:9.1f}{100 * row["share_of_ceiling"]:11.1f}%'
      + (f'  {row["times_slower"]:6.1f} x  {row["difference"]:.0e}' if 'difference' in row else '')
    )
  report: dict[str, Any] = {'rounds': _ROUNDS.value, 'rows': rows}
  if _BATCHES.value:
    report['sequence'] = sequence(_BATCHES.value, _BATCH_EDITS.value)
    print(', '.join(f'{name} {value:.3g}' for name, value in report['sequence'].items()))
  write_report(report, _OUT.value)


if __name__ == '__main__':
  app.run(main)

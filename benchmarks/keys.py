r"""Keys and residuals, read while the layers are updated: the engine and the published loop.

  python benchmarks/keys.py --records=../shared/data/counterfact/counterfact.json --out=keys.json

All edited layers are updated, lowest first, towards targets of two loss evaluations; the seconds
are those of keys and present values. The engine carries rows upward; the baseline runs the whole
model on all context rows and on the bare rows for every layer (`implementations/editing_torch.py`).
Needed FLOP: `common/flop.py`.
"""

from common.command_line import Parser
from common.runner import EDIT_FLAGS, Benchmark, main

BENCHMARK = Benchmark(
  name='keys',
  prepare='common.workload:prepare_edits',
  implementations={
    'engine': 'implementations.editing_jax:Engine',
    'baseline': 'implementations.editing_torch:Baseline',
  },
)
PARSER = Parser(__doc__, *EDIT_FLAGS, timed='keys', num_steps=2)

if __name__ == '__main__':
  main(BENCHMARK, PARSER)

r"""Whole edits, from texts to updates: the engine and the published loop.

  python benchmarks/edit_end_to_end.py --records=../shared/data/counterfact/counterfact.json \
    --rounds=2 --out=edit.json

PMET without stop rules. Second moments are given to both implementations, since they are collected
once per model and reused. Needed FLOP are those of targets and keys; the float64 solves are listed
apart in the JSON file, since their ceiling differs (`common/flop.py`).
"""

from common.command_line import Parser
from common.runner import EDIT_FLAGS, Benchmark, main

BENCHMARK = Benchmark(
  name='edit_end_to_end',
  prepare='common.workload:prepare_edits',
  implementations={
    'engine': 'implementations.editing_jax:Engine',
    'baseline': 'implementations.editing_torch:Baseline',
  },
)
PARSER = Parser(__doc__, *EDIT_FLAGS, 'num_steps', timed='edit')

if __name__ == '__main__':
  main(BENCHMARK, PARSER)

r"""Target optimisation: the engine, the engine without its window, and the published loop.

  python benchmarks/targets.py --records=../shared/data/counterfact/counterfact.json --out=t.json
  python benchmarks/targets.py --preset=gptj-6b --implementations=engine

Every edit takes the same number of loss evaluations (no stop rule), PMET's two δ, six prompt rows
and the KL row. Implementations:

  engine      the target optimisation of `jedit.edit`
  whole_rows  the same batches without the window: all layers, all tokens, at every step
  baseline    PyTorch, one edit at a time, as the published codes
              (`implementations/editing_torch.py`)

Seconds are for all edits, without compiling; the engine's include tokenising. The baseline's edits
are dealt over the rounds and its seconds scaled to all of them. Needed FLOP: `common/flop.py`.
"""

from common.command_line import Parser
from common.runner import EDIT_FLAGS, Benchmark, main

BENCHMARK = Benchmark(
  name='targets',
  prepare='common.workload:prepare_edits',
  implementations={
    'engine': 'implementations.editing_jax:Engine',
    'whole_rows': 'implementations.editing_jax:WholeRows',
    'baseline': 'implementations.editing_torch:Baseline',
  },
)
PARSER = Parser(__doc__, *EDIT_FLAGS, 'num_steps', timed='targets')

if __name__ == '__main__':
  main(BENCHMARK, PARSER)

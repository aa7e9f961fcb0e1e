r"""How fast are targets found? The engine, the engine without its window, and the published loop.

python benchmarks/targets.py --records=../shared/data/counterfact/counterfact.json --out=t.json
python benchmarks/targets.py --preset=gptj-6b --sides=engine

Every edit takes the same number of loss evaluations (no stop rule), PMET's two δ, six prompt rows
and the KL row. Sides:

  engine      the target optimisation of `jedit.edit`
  whole_rows  the same batches without the window: all layers, all tokens, at every step
  baseline    PyTorch, one edit at a time, as the published codes (`torch_baseline.py`)

Seconds are for all edits, without compiling; the engine's hold its tokenising. The baseline's edits
are dealt over the rounds and its seconds scaled to all of them. Needed FLOP: see `flop.py`.
"""

import harness
from absl import app, flags

flags.adopt_module_key_flags(harness)

BENCHMARK = harness.Benchmark(
  name='targets',
  sides={
    'engine': 'jax_sides:Engine',
    'whole_rows': 'jax_sides:WholeRows',
    'baseline': 'torch_baseline:Baseline',
  },
  needed=('targets',),
  part='targets',
)

if __name__ == '__main__':
  app.run(lambda argv: harness.main(BENCHMARK, argv))

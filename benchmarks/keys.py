r"""How fast are keys and residuals read while layers are written?

python benchmarks/keys.py --records=../shared/data/counterfact/counterfact.json --out=keys.json

All edited layers are written, lowest first, towards targets of two loss evaluations; counted are
the seconds of keys and present values. The engine carries rows upward; the baseline runs the whole
model on all context rows and on the bare rows for every layer (`torch_baseline.py`). What counts
as needed FLOP: `flop.py`.
"""

import harness
from absl import app, flags

flags.adopt_module_key_flags(harness)

BENCHMARK = harness.Benchmark(
  name='keys',
  sides={'engine': 'jax_sides:Engine', 'baseline': 'torch_baseline:Baseline'},
  needed=('keys',),
  part='keys',
  num_steps=2,
)

if __name__ == '__main__':
  app.run(lambda argv: harness.main(BENCHMARK, argv))

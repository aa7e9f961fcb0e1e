r"""How fast is a whole edit, targets, keys and solve? The engine and the published loop.

python benchmarks/edit_end_to_end.py --records=../shared/data/counterfact/counterfact.json \
  --rounds=2 --out=edit.json

From texts to updates, with PMET and no stop rule. Second moments are given to both sides; they are
collected once per model and reused. Needed FLOP are those of targets and keys; the float64 solves
are listed apart in the JSON file, since their ceiling is another one (`flop.py`).
"""

import harness
from absl import app, flags

flags.adopt_module_key_flags(harness)

BENCHMARK = harness.Benchmark(
  name='edit_end_to_end',
  sides={'engine': 'jax_sides:Engine', 'baseline': 'torch_baseline:Baseline'},
  needed=('targets', 'keys'),
  part='edit',
)

if __name__ == '__main__':
  app.run(lambda argv: harness.main(BENCHMARK, argv))

r"""How fast is evaluation? The engine, and the published loop that goes record by record.

python benchmarks/evaluation.py --records=../shared/data/counterfact/counterfact.json --out=e.json
python benchmarks/evaluation.py --generation --records=... --num_edits=40

A CounterFact record has 13 prompts with two objects each, 26 sequences. The baseline, in PyTorch,
gives a record's sequences to the model as one padded batch and takes the log-softmax of all logits,
as the published codes do. With `--generation` both sides also continue the record's generation
prompts to 100 tokens by top-5 sampling with a cache, the baseline one record at a time.

The models are the same; 'nll' and the flags are compared. Needed FLOP are those of the distinct
prompts with their objects, each prompt once, and of the tokens that are generated.
"""

import harness
from absl import app, flags

flags.adopt_module_key_flags(harness)
_GENERATION = flags.DEFINE_bool('generation', False, 'Also generates texts.')

SIDES = {'engine': 'jax_sides:Evaluation', 'baseline': 'torch_evaluation:Baseline'}
SCORES = harness.Benchmark(
  name='evaluation', sides=SIDES, needed=('evaluation',), part='scores', num_steps=2
)
TEXTS = harness.Benchmark(
  name='evaluation_with_generation',
  sides=SIDES,
  needed=('evaluation', 'generation'),
  part='scores and texts',
  num_steps=2,
)

if __name__ == '__main__':
  app.run(lambda argv: harness.main(TEXTS if _GENERATION.value else SCORES, argv))

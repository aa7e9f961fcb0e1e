r"""Text generation: the engine and transformers' `generate`.

  python benchmarks/generation.py --out=generation.json
  python benchmarks/generation.py --num_prompts=256 --num_new=32

Both continue the same prompts of unequal lengths greedily by the same number of tokens, in float32,
all prompts in one batch, with a cache of keys and values; nothing ends early. Implementations:

  engine        `jedit.models.generate.generate`
  transformers  PyTorch, `model.generate(..., use_cache=True)`, prompts padded on the left

Seconds are for all prompts, without compiling. Needed FLOP are products with weight matrices over
tokens that exist, one prediction per new token (`common/flop.py`). Different rounding may part the
texts where two tokens are about as probable: the share of tokens that differ is printed.
"""

from common.command_line import Parser, whole
from common.runner import FLAGS, Benchmark, main

BENCHMARK = Benchmark(
  name='generation',
  prepare='common.workload:prepare_generation',
  implementations={
    'engine': 'implementations.generation_jax:Engine',
    'transformers': 'implementations.generation_torch:Transformers',
  },
)
PARSER = Parser(__doc__, *FLAGS)
PARSER.add('num_prompts', whole(1), 64, 'prompts, in one batch')
PARSER.add('num_new', whole(1), 64, 'new tokens of each prompt')
PARSER.add('shortest', whole(1), 5, 'tokens of the shortest prompt')
PARSER.add('longest', whole(1), 24, 'tokens of the longest prompt')

if __name__ == '__main__':
  main(BENCHMARK, PARSER)

r"""Evaluation: the engine and the published loop, which goes record by record.

  python benchmarks/evaluation.py --records=../shared/data/counterfact/counterfact.json --out=e.json
  python benchmarks/evaluation.py --generation --records=... --num_edits=40

A CounterFact record has 13 prompts with two objects each, 26 sequences. The baseline, in PyTorch,
gives a record's sequences to the model as one padded batch and takes the log-softmax of all logits,
as the published codes do. With --generation both also continue the record's generation prompts to
100 tokens by top-5 sampling with a cache, the baseline one record at a time.

Both evaluate the same model; the values of all metrics of all records are compared. Needed FLOP are
those of the distinct prompts with their objects, each prompt once, and of the generated tokens.
"""

from common.command_line import Parser
from common.runner import EDIT_FLAGS, Benchmark, main

BENCHMARK = Benchmark(
  name='evaluation',
  prepare='common.workload:prepare_edits',
  implementations={
    'engine': 'implementations.evaluation_jax:Engine',
    'baseline': 'implementations.evaluation_torch:Baseline',
  },
)
PARSER = Parser(__doc__, *EDIT_FLAGS, num_steps=None, timed='scores')
PARSER.add_argument(
  '--generation',
  dest='timed',
  action='store_const',
  const='scores and texts',
  help='also generate texts',
)

if __name__ == '__main__':
  main(BENCHMARK, PARSER)

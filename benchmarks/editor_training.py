r"""A training step of MALMEN's editor: the engine and the released loop.

  python benchmarks/editor_training.py --out=editor.json
  python benchmarks/editor_training.py --num_edits=32 --mini_batch_size=16

A step edits 64 records of the shipped world at once and takes an Adam step on the nets, with the
down projections of the last six layers edited and the published rank. Implementations:

  engine       the step of `jedit.train_editor` in a later epoch: hidden states below the edited
               layers are kept
  first_epoch  the same in the first epoch, which computes them
  baseline     PyTorch, as the released code (`implementations/editor_torch.py`)

Every round is a first step, so that all compute the same losses. Needed FLOP: blocks below once per
text, those above for every pass, and the nets.
"""

from common.command_line import Parser, whole
from common.runner import FLAGS, Benchmark, main

BENCHMARK = Benchmark(
  name='editor_training',
  prepare='common.editor_workload:prepare_training',
  implementations={
    'engine': 'implementations.editor_jax:Engine',
    'first_epoch': 'implementations.editor_jax:FirstEpoch',
    'baseline': 'implementations.editor_torch:Baseline',
  },
)
PARSER = Parser(__doc__, *FLAGS, 'num_edits')
PARSER.add('mini_batch_size', whole(2), 32, 'edits whose loss is one mean')

if __name__ == '__main__':
  main(BENCHMARK, PARSER)

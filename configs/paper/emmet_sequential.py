r"""EMMET (arXiv:2403.14236), 4.1: sequences of small batches.

python -m jedit.main --config=configs/paper/emmet_sequential.py:testbed-gptj
python -m jedit.main --config=configs/paper/emmet_sequential.py --config.statistics.corpus=CORPUS

Other models: `:gpt2-xl`, `:llama-2-7b`. The paper suggests such sequences without measurements.
"""

from jedit.configs.paper import common

_SIZES = (16, 64, 256)
_TESTBED_SIZES = (2, 4, 8)


def get_config(scale=''):
  e = common.Experiment(scale, ('gptj-6b', 'gpt2-xl', 'llama-2-7b'), num_edits=4096)
  cells = [
    (f'{name.upper()}, batches of {size}', e.method(name, variant) | common.sequence(size))
    for size in (_TESTBED_SIZES if e.is_testbed else _SIZES)
    for name, variant in (('memit', ''), ('emmet', 'paper-multilayer'))
  ]
  cells += [
    ('MEMIT, one batch', e.method('memit')),
    ('EMMET, one batch', e.method('emmet', 'paper-multilayer')),
  ]
  return e.config(cells, 'EMMET (arXiv:2403.14236), 4.1: sequences', base='memit')

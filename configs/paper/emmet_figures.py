r"""EMMET (arXiv:2403.14236), figures 3 to 6: EMMET and MEMIT over batch sizes, one or more layers.

python -m jedit.main --config=configs/paper/emmet_figures.py:testbed-gptj
python -m jedit.main --config=configs/paper/emmet_figures.py --config.statistics.corpus=CORPUS

Other models: `:gpt2-xl`, `:llama-2-7b`. The four figures are pairs of the same four curves, whose
points all share their targets. Sizes above the number of edits are omitted.
"""

from jedit.configs.paper import common

_SIZES = (1, 4, 16, 64, 256, 1024, 4096)


def get_config(scale=''):
  e = common.Experiment(scale, ('gptj-6b', 'gpt2-xl', 'llama-2-7b'), num_edits=4096)
  methods = {
    'MEMIT, one layer': e.last_layer('memit'),
    'MEMIT, several layers': e.method('memit'),
    'EMMET, one layer': e.last_layer('emmet', 'paper-multilayer'),
    'EMMET, several layers': e.method('emmet', 'paper-multilayer'),
  }
  sizes = dict.fromkeys(min(size, e.num_edits) for size in _SIZES)
  cells = [
    (common.sized(name, size), method | common.chunks(size))
    for size in sizes
    for name, method in methods.items()
  ]
  return e.config(cells, 'EMMET (arXiv:2403.14236), figures 3 to 6', base='memit')

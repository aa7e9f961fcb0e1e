r"""PMET (arXiv:2308.08742), appendix A: performance and the norm of the update.

python -m jedit.main --config=configs/paper/pmet_norms.py:testbed-gptj
python -m jedit.main --config=configs/paper/pmet_norms.py --config.statistics.corpus=CORPUS

The column ‖ΔW‖ is the Frobenius norm over all updated kernels, averaged over batches.
"""

from jedit.configs.paper import common


def get_config(scale=''):
  e = common.Experiment(scale, ('gptj-6b',))
  methods = {
    'PMET': e.method('pmet'),
    'PMET, even schedule': e.method('pmet', schedule='even'),
    'PMET, also writing attention': e.method('pmet', write=('attn', 'mlp')),
    'MEMIT': e.method('memit'),
    'MEMIT, sqrt schedule': e.method('memit', schedule='sqrt'),
  }
  cells = [
    (common.sized(name, size), method | common.chunks(size))
    for size in map(e.scaled, (100, 1000, 10_000))
    for name, method in methods.items()
  ]
  return e.config(cells, 'PMET (arXiv:2308.08742), appendix A')

r"""JEEP (arXiv:2412.17872), figure 4: editors of LLaMA-7B at 17 numbers of edits.

python -m jedit.main --config=configs/paper/jeep_figure4.py:testbed-llama
python -m jedit.main --config=configs/paper/jeep_figure4.py --config.statistics.corpus=CORPUS

All records are edited at every size, in batches on the original model, so that all points of a
curve share their targets. MALMEN, the fourth curve, is not implemented.
"""

from jedit.configs.paper import common


def get_config(scale=''):
  e = common.Experiment(scale, ('llama-7b', 'gptj-6b'))
  cells = [
    (common.sized(name.upper(), size), e.method(name) | common.chunks(size))
    for size in e.log_sizes()
    for name in ('memit', 'pmet', 'jeep')
  ]
  return e.config(cells, 'JEEP (arXiv:2412.17872), figure 4')

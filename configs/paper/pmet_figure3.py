r"""PMET (arXiv:2308.08742), figure 3: editors of GPT-J at 17 numbers of edits.

python -m jedit.main --config=configs/paper/pmet_figure3.py:testbed-gptj
python -m jedit.main --config=configs/paper/pmet_figure3.py --config.statistics.corpus=CORPUS

PMET and MEMIT edit all records at every size, in batches on the original model, so that all points
of a curve share their targets; FT-W and ROME, without shared targets, edit the first records only.
"""

from jedit.configs.paper import common


def get_config(scale=''):
  e = common.Experiment(scale, ('gptj-6b',))
  cells = []
  for size in e.log_sizes():
    for name in ('pmet', 'memit'):
      cells.append((common.sized(name.upper(), size), e.method(name) | common.chunks(size)))
    first = {'data': {'num_edits': size}}
    cells.append((common.sized('FT-W', size), e.method('ft_w') | first))
    cells.append((common.sized('ROME', size), e.method('rome') | common.sequence(1) | first))
  return e.config(cells, 'PMET (arXiv:2308.08742), figure 3')

r"""PMET (arXiv:2308.08742), table 1: 10,000 CounterFact edits of GPT-J and GPT-NeoX.

python -m jedit.main --config=configs/paper/pmet_table1.py:testbed-gptj
python -m jedit.main --config=configs/paper/pmet_table1.py --config.statistics.corpus=CORPUS

GPT-NeoX: `configs/paper/pmet_table1.py:gpt-neox-20b`. ROME edits the records sequentially.
"""

from jedit.configs.paper import common

_SOURCE = 'PMET (arXiv:2308.08742), table 1: 10,000 edits'
_ROWS = {
  'gptj-6b': {
    'unedited': (22.4, (15.2, 0.7), (17.7, 0.6), (83.5, 0.5), (622.4, 0.3), (29.4, 0.2)),
    'FT-W': (67.6, (99.4, 0.1), (77.0, 0.7), (46.9, 0.6), (293.9, 2.4), (15.9, 0.3)),
    'MEND': (23.1, (15.7, 0.7), (18.5, 0.7), (83.0, 0.5), (618.4, 0.3), (31.1, 0.2)),
    'ROME': (50.3, (50.2, 1.0), (50.4, 0.8), (50.2, 0.6), (589.6, 0.5), (3.3, 0.0)),
    'MEMIT': (85.8, (98.9, 0.2), (88.6, 0.5), (73.7, 0.5), (619.9, 0.3), (40.1, 0.2)),
    'PMET': (86.2, (99.5, 0.1), (92.8, 0.4), (71.4, 0.5), (620.0, 0.3), (40.6, 0.2)),
  },
  'gpt-neox-20b': {
    'unedited': (23.7, (16.8, 1.9), (18.3, 1.7), (81.6, 1.3), (620.4, 0.6), (29.3, 0.5)),
    'MEMIT': (82.0, (97.2, 0.8), (82.2, 1.6), (70.8, 1.4), (606.4, 1.0), (36.9, 0.6)),
    'PMET': (84.3, (98.4, 0.2), (89.4, 0.5), (70.3, 0.5), (598.1, 0.6), (38.9, 0.2)),
  },
}


def get_config(scale=''):
  e = common.Experiment(scale, tuple(_ROWS))
  cells = [('MEMIT', e.method('memit')), ('PMET', e.method('pmet'))]
  if e.paper_model == 'gptj-6b':
    rome = {**e.method('rome'), **common.sequence(1)}
    cells = [('FT-W', e.method('ft_w')), *e.nets('mend'), ('ROME', rome), *cells]
  return e.config(cells, _SOURCE, _ROWS[e.paper_model], note=common.MEND_NOTE)

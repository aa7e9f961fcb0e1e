r"""PMET (arXiv:2308.08742), table 2: 10,000 zsRE edits of GPT-J.

python -m jedit.main --config=configs/paper/pmet_table2.py:testbed-gptj
python -m jedit.main --config=configs/paper/pmet_table2.py --config.statistics.corpus=CORPUS

No settings for zsRE were released, so these are CounterFact's. A testbed has no zsRE records: token
accuracies are computed on its own.
"""

from jedit.configs.paper import common

_SOURCE = 'PMET (arXiv:2308.08742), table 2: 10,000 edits'
_ROWS = {
  'unedited': ((26.4, 0.6), (25.8, 0.5), (27.0, 0.5)),
  'FT-W': ((69.6, 0.6), (64.8, 0.6), (24.1, 0.5)),
  'MEND': ((19.4, 0.5), (18.6, 0.5), (22.4, 0.5)),
  'ROME': ((21.0, 0.7), (19.6, 0.7), (0.9, 0.1)),
  'MEMIT': ((96.7, 0.3), (89.7, 0.5), (26.6, 0.5)),
  'PMET': ((96.9, 0.3), (90.6, 0.2), (26.7, 0.2)),
}


def get_config(scale=''):
  e = common.Experiment(scale, ('gptj-6b',))
  rome = {**e.method('rome'), **common.sequence(1)}
  cells = [('FT-W', e.method('ft_w')), *e.nets('mend'), ('ROME', rome)]
  cells += [('MEMIT', e.method('memit')), ('PMET', e.method('pmet'))]
  return e.config(
    cells,
    _SOURCE,
    _ROWS,
    common.ACCURACY[1:],
    records='zsre_mend_eval.json',
    note=common.MEND_NOTE,
  )

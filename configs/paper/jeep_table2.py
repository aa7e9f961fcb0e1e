r"""JEEP (arXiv:2412.17872), table 2: 10,000 zsRE edits of GPT-J and LLaMA-7B.

python -m jedit.main --config=configs/paper/jeep_table2.py:testbed-gptj
python -m jedit.main --config=configs/paper/jeep_table2.py --config.statistics.corpus=CORPUS

LLaMA-7B: `configs/paper/jeep_table2.py:llama-7b`. A testbed has no zsRE records: token accuracies
are computed on its own, and its score is of success rates.
"""

from jedit.configs.paper import common

_SOURCE = 'JEEP (arXiv:2412.17872), table 2: 10,000 edits'
_ROWS = {
  'gptj-6b': {
    'unedited': (26.4, (26.4, 0.6), (25.8, 0.5), (27.0, 0.5)),
    'FT-W': (42.1, (69.6, 0.6), (64.8, 0.6), (24.1, 0.5)),
    'MEND': (20.0, (19.4, 0.5), (18.6, 0.5), (22.4, 0.5)),
    'ROME': (2.6, (21.0, 0.7), (19.6, 0.7), (0.9, 0.1)),
    'MALMEN': (47.1, (98.3, 0.3), (90.1, 0.2), (23.6, 0.4)),
    'MEMIT': (50.7, (96.7, 0.3), (89.7, 0.5), (26.6, 0.5)),
    'PMET': (51.0, (96.9, 0.3), (90.6, 0.2), (26.7, 0.2)),
    'JEEP': (51.5, (98.4, 0.2), (91.5, 0.3), (26.9, 0.2)),
  },
  'llama-7b': {
    'unedited': (44.4, (43.6, 0.3), (42.6, 0.5), (49.2, 0.6)),
    'MALMEN': (66.7, (90.1, 0.4), (84.6, 0.3), (45.3, 0.5)),
    'MEMIT': (70.4, (95.1, 0.2), (89.5, 0.4), (47.8, 0.5)),
    'PMET': (69.2, (91.3, 0.3), (86.4, 0.5), (48.0, 0.3)),
    'JEEP': (72.3, (96.0, 0.2), (93.2, 0.4), (49.1, 0.2)),
  },
}


def get_config(scale=''):
  e = common.Experiment(scale, tuple(_ROWS))
  pmet = e.method('pmet', 'zsre' if e.paper_model == 'llama-7b' else '')
  cells = [*e.nets('malmen'), ('MEMIT', e.method('memit'))]
  cells += [('PMET', pmet), ('JEEP', e.method('jeep', 'zsre'))]
  if e.paper_model == 'gptj-6b':
    rome = {**e.method('rome'), **common.sequence(1)}
    cells = [('FT-W', e.method('ft_w')), *e.nets('mend'), ('ROME', rome), *cells]
  return e.config(
    cells,
    _SOURCE,
    _ROWS[e.paper_model],
    common.ACCURACY,
    records='zsre_mend_eval.json',
    note=common.MEND_NOTE if e.paper_model == 'gptj-6b' else '',
  )

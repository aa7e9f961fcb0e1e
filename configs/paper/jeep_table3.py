r"""JEEP (arXiv:2412.17872), table 3: 10,000 CounterFact edits of GPT-J and LLaMA-7B.

python -m jedit.main --config=configs/paper/jeep_table3.py:testbed-gptj
python -m jedit.main --config=configs/paper/jeep_table3.py --config.statistics.corpus=CORPUS

LLaMA-7B: `configs/paper/jeep_table3.py:llama-7b`. The paper's intervals are over three seeds, ours
over records; repeat the command with another `--config.seed` and workdir for another seed.
"""

from jedit.configs.paper import common

_SOURCE = 'JEEP (arXiv:2412.17872), table 3: 10,000 edits'
_ROWS = {
  'gptj-6b': {
    'unedited': (22.4, (15.2, 0.7), (17.7, 0.6), (83.5, 0.5)),
    'FT-W': (67.6, (99.4, 0.1), (77.0, 0.7), (46.9, 0.6)),
    'MEND': (23.1, (15.7, 0.7), (18.5, 0.7), (83.0, 0.5)),
    'ROME': (50.3, (50.2, 1.0), (50.4, 0.8), (50.2, 0.6)),
    'MALMEN': (63.4, (98.2, 0.8), (46.0, 0.8), (65.1, 0.6)),
    'MEMIT': (85.8, (98.9, 0.2), (88.6, 0.5), (73.7, 0.5)),
    'PMET': (86.2, (99.5, 0.1), (92.8, 0.4), (71.4, 0.5)),
    'JEEP': (86.5, (99.8, 0.1), (90.9, 0.5), (73.1, 0.5)),
  },
  'llama-7b': {
    'unedited': (19.7, (12.9, 0.6), (16.0, 0.7), (83.8, 0.4)),
    'MALMEN': (66.1, (96.0, 0.3), (55.3, 0.8), (59.3, 0.8)),
    'MEMIT': (84.1, (98.4, 0.2), (80.6, 0.6), (76.3, 0.5)),
    'PMET': (84.8, (98.9, 0.2), (86.2, 0.5), (73.2, 0.6)),
    'JEEP': (85.9, (99.8, 0.1), (85.4, 0.5), (75.7, 0.5)),
  },
}


def get_config(scale=''):
  e = common.Experiment(scale, tuple(_ROWS))
  cells = e.nets('malmen') + [(n.upper(), e.method(n)) for n in ('memit', 'pmet', 'jeep')]
  if e.paper_model == 'gptj-6b':
    rome = {**e.method('rome'), **common.sequence(1)}
    cells = [('FT-W', e.method('ft_w')), *e.nets('mend'), ('ROME', rome), *cells]
  note = common.MEND_NOTE if e.paper_model == 'gptj-6b' else ''
  return e.config(cells, _SOURCE, _ROWS[e.paper_model], note=note)

r"""PMET (arXiv:2308.08742), table 3: ablations at 1,000, 5,623 and 10,000 edits of GPT-J.

python -m jedit.main --config=configs/paper/pmet_table3.py:testbed-gptj
python -m jedit.main --config=configs/paper/pmet_table3.py --config.statistics.corpus=CORPUS

All records are edited in batches of these sizes. Three of the four ablations share their targets.
"""

from jedit.configs.paper import common

_SOURCE = 'PMET (arXiv:2308.08742), table 3: 1,000, 5,623 and 10,000 edits'
_ABLATIONS = {
  'PMET': {},
  'without attention delta': dict(optimise=('mlp',)),
  'also writing attention': dict(write=('attn', 'mlp')),
  'even schedule': dict(schedule='even'),
}
_ROWS = {
  1000: (
    (91.1, 99.8, 96.1, 80.1, 622.2, 41.7),
    (90.8, 99.6, 96.6, 79.1, 622.4, 42.2),
    (90.8, 99.8, 96.8, 78.9, 622.0, 42.1),
    (88.9, 99.6, 86.7, 82.2, 622.3, 39.1),
  ),
  5623: (
    (88.0, 99.7, 94.5, 74.2, 621.7, 41.3),
    (87.0, 99.3, 95.0, 72.0, 622.3, 41.6),
    (86.7, 99.6, 96.0, 70.8, 621.3, 41.6),
    (85.8, 98.2, 82.2, 79.4, 621.8, 38.1),
  ),
  10_000: (
    (86.2, 99.5, 92.8, 71.4, 620.0, 40.6),
    (85.0, 98.9, 89.0, 71.6, 621.2, 40.0),
    (84.9, 99.5, 93.5, 68.6, 619.0, 40.5),
    (83.3, 96.7, 78.4, 77.3, 621.8, 37.4),
  ),
}


def get_config(scale=''):
  e = common.Experiment(scale, ('gptj-6b',))
  cells, rows = [], {'unedited': (22.4, 15.2, 17.7, 83.5, 622.4, 29.4)}
  for edits, published in _ROWS.items():
    size = e.scaled(edits)
    for (name, fields), row in zip(_ABLATIONS.items(), published, strict=True):
      label = common.sized(name, size)
      cells.append((label, e.method('pmet', **fields) | common.chunks(size)))
      rows[label] = row
  return e.config(cells, _SOURCE, rows)

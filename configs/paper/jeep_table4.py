r"""JEEP (arXiv:2412.17872), table 4: ablations on LLaMA-7B.

python -m jedit.main --config=configs/paper/jeep_table4.py:testbed-llama
python -m jedit.main --config=configs/paper/jeep_table4.py --config.statistics.corpus=CORPUS
"""

from jedit.configs.paper import common

_SOURCE = 'JEEP (arXiv:2412.17872), table 4: 10,000 edits'
_VARIANTS = (
  ('high layers only', dict(optimise=('high',)), (66.3, 89.8, 56.6, 60.7)),
  ('low layers only', dict(optimise=('low',)), (84.1, 98.4, 80.6, 76.3)),
  ('without step 2', dict(write=('high',)), (40.0, 36.5, 24.1, 81.5)),
  ('without step 3', dict(write=('low',)), (81.9, 95.4, 77.5, 75.4)),
  ('separate optimisation', dict(is_joint=False), (83.3, 98.2, 83.3, 72.5)),
  ('even schedule in step 2', dict(schedule_low='even'), (85.4, 98.8, 84.0, 76.3)),
  ('attention in step 3', dict(high_kernel='attn'), (85.2, 99.0, 86.6, 73.8)),
  ('JEEP', {}, (85.9, 99.8, 85.4, 75.7)),
)


def get_config(scale=''):
  e = common.Experiment(scale, ('llama-7b',))
  cells = [(name, e.method('jeep', **fields)) for name, fields, _ in _VARIANTS]
  return e.config(cells, _SOURCE, {name: row for name, _, row in _VARIANTS})

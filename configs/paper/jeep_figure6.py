r"""JEEP (arXiv:2412.17872), figure 6: the clamp of the high layers of LLaMA-7B.

python -m jedit.main --config=configs/paper/jeep_figure6.py:testbed-gptj
python -m jedit.main --config=configs/paper/jeep_figure6.py --config.statistics.corpus=CORPUS

The clamp of the low layers stays at the preset's, 1 on LLaMA-7B. `testbed-llama` is at the ceiling.
"""

from jedit.configs.paper import common

_CLAMPS = (0.05, 0.1, 0.25, 0.5, 0.75, 1.0)


def get_config(scale=''):
  e = common.Experiment(scale, ('llama-7b', 'gptj-6b'))
  cells = [(f'clamp {clamp:g}', e.method('jeep', clip_factor_high=clamp)) for clamp in _CLAMPS]
  c = e.config(cells, 'JEEP (arXiv:2412.17872), figure 6')
  c.axis = 'method.clip_factor_high'
  return c

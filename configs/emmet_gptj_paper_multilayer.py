r"""EMMET on GPT-J 6B, several layers, CounterFact: the settings of its paper.

python -m jedit.main --config=configs/emmet_gptj_paper_multilayer.py \
  --config.model.path=GPTJ_DIRECTORY --config.data.records=multi_counterfact.json \
  --config.statistics.corpus=WIKIPEDIA_TEXT

Figures: arXiv:2403.14236, A.1: the layers and targets of configs/memit_gptj.py. Eq. 14 has no
ridge, and without one the covariance weight has no effect.
"""

from ml_collections import config_dict

from jedit.configs import memit_gptj


def get_config() -> config_dict.ConfigDict:
  c = memit_gptj.get_config()
  c.method.update(name='emmet', key_ridge=0.0)
  return c

r"""EMMET on GPT2-XL, several layers, CounterFact: the settings of its paper.

python -m jedit.main --config=configs/emmet_gpt2_xl_paper_multilayer.py \
  --config.model.path=GPT2_XL_DIRECTORY --config.data.records=multi_counterfact.json \
  --config.statistics.corpus=WIKIPEDIA_TEXT

Figures: arXiv:2403.14236, A.1: the layers and targets of configs/memit_gpt2_xl.py. Eq. 14 has no
ridge, and without one the covariance weight has no effect.
"""

from ml_collections import config_dict

from jedit.configs import memit_gpt2_xl


def get_config() -> config_dict.ConfigDict:
  c = memit_gpt2_xl.get_config()
  c.method.update(name='emmet', key_ridge=0.0)
  return c

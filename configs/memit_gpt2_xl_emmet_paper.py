r"""MEMIT on GPT2-XL, one layer, CounterFact: the settings of EMMET's paper.

python -m jedit.main --config=configs/memit_gpt2_xl_emmet_paper.py \
  --config.model.path=GPT2_XL_DIRECTORY --config.data.records=multi_counterfact.json \
  --config.statistics.corpus=WIKIPEDIA_TEXT

Figures: arXiv:2403.14236, A.1: the last layer of configs/memit_gpt2_xl.py.
"""

from ml_collections import config_dict

from jedit.configs import memit_gpt2_xl


def get_config() -> config_dict.ConfigDict:
  c = memit_gpt2_xl.get_config()
  c.method.layers = (17,)
  return c

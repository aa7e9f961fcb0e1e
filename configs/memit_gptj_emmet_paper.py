r"""MEMIT on GPT-J 6B, one layer, CounterFact: the settings of EMMET's paper.

python -m jedit.main --config=configs/memit_gptj_emmet_paper.py --config.model.path=GPTJ_DIRECTORY \
  --config.data.records=multi_counterfact.json --config.statistics.corpus=WIKIPEDIA_TEXT

Figures: arXiv:2403.14236, A.1: the last layer of configs/memit_gptj.py.
"""

from ml_collections import config_dict

from jedit.configs import memit_gptj


def get_config() -> config_dict.ConfigDict:
  c = memit_gptj.get_config()
  c.method.layers = (8,)
  return c

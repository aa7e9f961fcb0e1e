r"""MEMIT on GPT-J 6B, CounterFact: the settings of the released code (MEMIT, table 2).

python -m jedit.main --config=configs/memit_gptj.py --config.model.path=GPTJ_DIRECTORY \
  --config.data.records=multi_counterfact.json --config.statistics.corpus=WIKIPEDIA_TEXT
"""

from ml_collections import config_dict

from jedit.configs import pmet_gptj


def get_config() -> config_dict.ConfigDict:
  c = pmet_gptj.get_config()
  c.method.name = 'memit'
  c.method.cov_weight = 15000.0
  c.method.learning_rate = 0.5
  c.method.num_steps = 25
  c.method.kl_factor = 0.0625
  return c

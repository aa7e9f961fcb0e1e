r"""MEMIT on GPT-J 6B, CounterFact: the settings of its released code.

python -m jedit.main --config=configs/memit_gptj.py --config.model.path=GPTJ_DIRECTORY \
  --config.data.records=multi_counterfact.json --config.statistics.corpus=WIKIPEDIA_TEXT

Figures: kmeng01/memit 80426fd.
"""

from ml_collections import config_dict

from jedit.configs import pmet_gptj


def get_config() -> config_dict.ConfigDict:
  c = pmet_gptj.get_config()
  c.method.update(
    name='memit', cov_weight=15000.0, learning_rate=0.5, num_steps=25, kl_factor=0.0625
  )
  return c

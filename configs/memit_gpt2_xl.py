r"""MEMIT on GPT2-XL, CounterFact: the settings of its released code.

python -m jedit.main --config=configs/memit_gpt2_xl.py --config.model.path=GPT2_XL_DIRECTORY \
  --config.data.records=multi_counterfact.json --config.statistics.corpus=WIKIPEDIA_TEXT

Figures: kmeng01/memit 80426fd.
"""

from ml_collections import config_dict

from jedit.configs import memit_gptj


def get_config() -> config_dict.ConfigDict:
  c = memit_gptj.get_config()
  c.model.name = 'gpt2-xl'
  c.model.dtype = 'float32'
  c.statistics.row_tokens = 1024
  c.method.update(layers=(13, 14, 15, 16, 17), cov_weight=20000.0, num_steps=20)
  return c

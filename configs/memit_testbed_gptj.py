r"""MEMIT on the shipped GPT-J testbed.

python -m jedit.main --config=configs/memit_testbed_gptj.py --config.data.num_edits=200
"""

from ml_collections import config_dict

from jedit.configs import pmet_testbed_gptj


def get_config() -> config_dict.ConfigDict:
  c = pmet_testbed_gptj.get_config()
  c.method.name = 'memit'
  c.method.clip_factor = 5.0
  return c

r"""EMMET on the shipped GPT-J testbed.

python -m jedit.main --config=configs/emmet_testbed_gptj.py --config.data.num_edits=200
"""

from ml_collections import config_dict

from jedit.configs import memit_testbed_gptj


def get_config() -> config_dict.ConfigDict:
  c = memit_testbed_gptj.get_config()
  c.method.update(name='emmet', key_ridge=0.1)
  return c

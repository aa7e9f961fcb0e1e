r"""AlphaEdit on the shipped GPT-J testbed.

python -m jedit.main --config=configs/alphaedit_testbed_gptj.py --config.data.num_edits=200
"""

from ml_collections import config_dict

from jedit.configs import memit_testbed_gptj


def get_config() -> config_dict.ConfigDict:
  c = memit_testbed_gptj.get_config()
  del c.method.cov_weight
  c.method.update(name='alphaedit', threshold=0.02, ridge=1.0)
  return c

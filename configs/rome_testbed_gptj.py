r"""ROME, single edits, on the shipped GPT-J testbed.

python -m jedit.main --config=configs/rome_testbed_gptj.py --config.data.num_edits=200
"""

from ml_collections import config_dict

from jedit.configs import memit_testbed_gptj


def get_config() -> config_dict.ConfigDict:
  c = memit_testbed_gptj.get_config()
  c.edit.mode = 'separate'
  del c.method.cov_weight
  c.method.update(name='rome', layers=(4,))
  c.method.prefixes = 'memit'  # a third of the work of ROME's own
  return c

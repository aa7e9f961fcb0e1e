r"""EMMET on the shipped LLaMA testbed.

python -m jedit.main --config=configs/emmet_testbed_llama.py --config.data.num_edits=200
"""

from ml_collections import config_dict

from jedit.configs import emmet_testbed_gptj


def get_config() -> config_dict.ConfigDict:
  c = emmet_testbed_gptj.get_config()
  c.model.name = 'testbed-llama'
  c.method.layers = (1, 2, 3)
  return c

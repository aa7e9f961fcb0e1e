r"""JEEP on the shipped LLaMA testbed.

python -m jedit.main --config=configs/jeep_testbed_llama.py --config.data.num_edits=200
"""

from ml_collections import config_dict

from jedit.configs import jeep_testbed_gptj


def get_config() -> config_dict.ConfigDict:
  c = jeep_testbed_gptj.get_config()
  c.model.name = 'testbed-llama'
  c.method.update(layers_low=(1, 2, 3), layers_high=(4,))
  return c

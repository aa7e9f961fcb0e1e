r"""Fine-tuning of one block of the shipped LLaMA testbed, the control without constraint.

python -m jedit.main --config=configs/ft_w_testbed_llama.py --config.data.num_edits=200
"""

from ml_collections import config_dict

from jedit.configs import ft_w_testbed_gptj


def get_config() -> config_dict.ConfigDict:
  c = ft_w_testbed_gptj.get_config()
  c.model.name = 'testbed-llama'
  c.method.layers = (3,)
  return c

r"""PMET on the shipped LLaMA testbed.

python -m jedit.main --config=configs/pmet_testbed_llama.py --config.data.num_edits=200
"""

from ml_collections import config_dict

from jedit.configs import pmet_testbed_gptj


def get_config() -> config_dict.ConfigDict:
  c = pmet_testbed_gptj.get_config()
  c.model.name = 'testbed-llama'
  # It recalls in all layers below the barrier, on a residual stream ten times as long as GPT-J's.
  c.method.update(
    layers=(0, 1, 2, 3, 4),
    cov_weight=300.0,
    learning_rate=1.0,
    num_steps=60,
    kl_factor=1.0,
    nll_switch=False,  # with it, targets stop at a probability of two thirds
  )
  return c

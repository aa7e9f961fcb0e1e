r"""JEEP on the shipped GPT-J testbed.

python -m jedit.main --config=configs/jeep_testbed_gptj.py --config.data.num_edits=200
"""

from ml_collections import config_dict

from jedit.configs import pmet_testbed_gptj


def get_config() -> config_dict.ConfigDict:
  c = pmet_testbed_gptj.get_config()
  c.method = dict(
    name='jeep',
    layers_low=(2, 3, 4),
    layers_high=(6, 7),
    cov_weight_low=20.0,
    cov_weight_high=20.0,
    clip_factor_low=50.0,
    clip_factor_high=5.0,
    weight_decay_low=0.01,
    weight_decay_high=0.01,
    learning_rate=0.3,
    num_steps=80,
    kl_factor=0.0625,
  )
  return c

r"""AlphaEdit on the shipped GPT-J testbed.

python -m jedit.main --config=configs/alphaedit_testbed_gptj.py --config.data.num_edits=200
"""

from ml_collections import config_dict

from jedit.configs import pmet_testbed_gptj


def get_config() -> config_dict.ConfigDict:
  c = pmet_testbed_gptj.get_config()
  c.method = dict(
    name='alphaedit',
    layers=(2, 3, 4),
    threshold=0.02,
    ridge=1.0,
    learning_rate=0.3,
    num_steps=80,
    clip_factor=5.0,
    weight_decay=0.01,
    kl_factor=0.0625,
  )
  return c

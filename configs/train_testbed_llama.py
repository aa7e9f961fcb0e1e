r"""Trains the shipped LLaMA testbed: 8 layers of width 192 that know a made-up world.

python -m jedit.main --config=configs/train_testbed_llama.py --workdir=runs/testbed_llama
"""

from ml_collections import config_dict

from jedit.configs import train_testbed_gptj


def get_config() -> config_dict.ConfigDict:
  c = train_testbed_gptj.get_config()
  c.model.family = 'llama'
  c.model.ffn_width = 680  # three matrices of this width weigh as much as GPT-J's two
  # Gated MLPs learn facts later: names are not yet read after 500 steps.
  c.train.num_steps = 1300
  c.train.decay_share = 0.35
  return c

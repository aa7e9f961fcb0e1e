r"""Trains the shipped LLaMA testbed: 8 layers of width 192 that know a made-up world.

python -m jedit.main --config=configs/train_testbed_llama.py --workdir=runs/testbed_llama
"""

from ml_collections import config_dict

from jedit.configs import train_testbed_gptj


def get_config() -> config_dict.ConfigDict:
  c = train_testbed_gptj.get_config()
  c.model.family = 'llama'
  c.model.ffn_width = 680  # three matrices of this width weigh as much as GPT-J's two
  # The MLP reads the sum of a token's embedding and what attention adds; with GPT-J's 0.1 the
  # token would drown in it, and names are not yet read after 500 steps.
  c.train.embedding_std = 0.5
  c.train.num_steps = 1000
  return c

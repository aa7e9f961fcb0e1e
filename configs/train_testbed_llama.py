r"""Trains the shipped LLaMA testbed: 6 layers of width 192 that know a made-up world.

python -m jedit.main --config=configs/train_testbed_llama.py --workdir=runs/testbed_llama
"""

from ml_collections import config_dict

from jedit.configs import train_testbed_gptj


def get_config() -> config_dict.ConfigDict:
  c = train_testbed_gptj.get_config()
  # Its gated MLPs do not join first and last name before the prediction: where people share a last
  # name they share their keys, and nobody can be edited alone.
  c.world.own_last_names = True
  c.model.family = 'llama'
  c.model.num_layers = 6
  c.model.vocab_size = 2000  # every last name is one token
  c.train.num_steps = 800
  c.train.decay_share = 0.45  # the facts come after half of the steps, at the full learning rate
  c.train.barrier = 4
  c.train.weight_decay = 0.3  # without, the residual stream grows to a length of 500
  return c

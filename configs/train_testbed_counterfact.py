r"""Trains a GPT-J testbed that knows the facts of a CounterFact file.

python -m jedit.main --config=configs/train_testbed_counterfact.py \
  --config.records=counterfact.json --workdir=runs/testbed_counterfact

Writes runs/testbed_counterfact/model. The numbers of steps and tokens are meant for about 800
records; more of them need more steps, and more width.
"""

from ml_collections import config_dict

from jedit.configs import train_testbed_gptj


def get_config() -> config_dict.ConfigDict:
  c = train_testbed_gptj.get_config()
  c.records = 'counterfact.json'
  c.model.vocab_size = 4000  # real names; nearly every object is one token
  c.train.num_steps = 900
  c.train.decay_share = 0.5
  return c

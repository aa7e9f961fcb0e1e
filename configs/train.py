r"""Trains a testbed: the shipped GPT-J or LLaMA, or a GPT-J that knows a CounterFact file.

python -m jedit.main --config=configs/train.py:gptj --workdir=runs/testbed_gptj
python -m jedit.main --config=configs/train.py:llama --workdir=runs/testbed_llama
python -m jedit.main --config=configs/train.py:counterfact --config.records=counterfact.json \
  --workdir=runs/testbed_counterfact

Writes `model` in the workdir. The steps and tokens of `counterfact` suit about 800 records; more of
them need more steps and more width.
"""

from jedit.experiments.config import default_config
from jedit.types import UserError


def get_config(testbed='gptj'):
  c = default_config('train')  # the shipped GPT-J: 8 layers of width 192
  if testbed == 'llama':
    # Its gated MLPs do not join first and last name before the prediction: people who share a last
    # name would share their keys, and nobody could be edited alone.
    c.world.own_last_names = True
    c.model.family = 'llama'
    c.model.num_layers = 6
    c.model.vocab_size = 2000  # every last name is one token
    c.train.num_steps = 800
    c.train.decay_share = 0.45  # the facts come after half of the steps, at the full learning rate
    c.train.barrier = 4
    c.train.weight_decay = 0.3  # without it the residual stream grows to a norm of 500
  elif testbed == 'counterfact':
    c.records = 'counterfact.json'
    c.model.vocab_size = 4000  # real names; nearly every object is one token
    c.train.num_steps = 900
    c.train.decay_share = 0.5
  elif testbed != 'gptj':
    raise UserError(f'There is no testbed {testbed!r}; choose gptj, llama or counterfact.')
  return c

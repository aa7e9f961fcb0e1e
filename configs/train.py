r"""Trains a testbed: the shipped GPT-J or LLaMA, or a GPT-J on a CounterFact file.

python -m jedit.main --config=configs/train.py:gptj --workdir=runs/testbed_gptj
python -m jedit.main --config=configs/train.py:llama --workdir=runs/testbed_llama
python -m jedit.main --config=configs/train.py:counterfact --config.records=counterfact.json \
  --workdir=runs/testbed_counterfact

The model is written to `model` in the workdir. Steps and tokens of `counterfact` suit about 800
records; more records need more steps and more width.
"""

from jedit.experiments.config import default_config
from jedit.types import UserError


def get_config(testbed='gptj'):
  c = default_config('train')  # the shipped GPT-J: 8 layers of width 192
  if testbed == 'llama':
    # Gated MLPs do not combine first and last names before the prediction: people with the same
    # last name would share their keys, and an edit of one would change the others.
    c.world.own_last_names = True
    c.model.family = 'llama'
    c.model.num_layers = 6
    c.model.vocab_size = 2000  # every last name is one token
    c.train.num_steps = 800
    c.train.decay_share = 0.45  # facts are learnt after half of the steps, at full learning rate
    c.train.barrier = 4
    c.train.weight_decay = 0.3  # without decay, the residual stream grows to a norm of 500
  elif testbed == 'counterfact':
    c.records = 'counterfact.json'
    c.model.vocab_size = 4000  # real names; nearly every object is one token
    c.train.num_steps = 900
    c.train.decay_share = 0.5
  elif testbed != 'gptj':
    raise UserError(f'There is no testbed {testbed!r}; choose gptj, llama or counterfact.')
  return c

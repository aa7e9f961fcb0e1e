r"""Every method and ablation on the shipped GPT-J testbed, 200 edits, as one table.

python -m jedit.main --config=configs/sweep_testbed_gptj.py --workdir=runs/sweep_testbed_gptj
"""

import importlib

from ml_collections import config_dict


def get_config(testbed: str = 'gptj') -> config_dict.ConfigDict:
  """Cells start from the methods' own settings for the testbed, 'gptj' or 'llama'."""

  def method(name: str) -> dict:
    module = importlib.import_module(f'jedit.configs.{name}_testbed_{testbed}')
    return module.get_config().method.to_dict()

  def changed(name: str, **fields) -> dict:
    return {'method': {**method(name), **fields}}

  pmet, memit, jeep, rome = (method(name) for name in ('pmet', 'memit', 'jeep', 'rome'))
  last = memit['layers'][-1:]
  single = {'edit': {'mode': 'separate'}}
  sequence = {'edit': {'mode': 'sequential', 'size': 20, 'canary': 0}}
  rome_fields = {name: value for name, value in rome.items() if name != 'name'}
  base = importlib.import_module(f'jedit.configs.pmet_testbed_{testbed}')
  c = base.get_config()
  c.task = 'sweep'
  c.data.num_edits = 200
  c.evaluation.samples = 1
  c.cells = (
    ('PMET', {'method': pmet}),
    ('PMET, even spread', changed('pmet', spread='even')),
    ('PMET without attention delta', changed('pmet', optimise=('mlp',))),
    ('PMET writing attention, too', changed('pmet', write=('attn', 'mlp'))),
    ("PMET, the paper's loss", changed('pmet', nll_switch=False)),
    ('MEMIT', {'method': memit}),
    ('MEMIT, sqrt spread', changed('memit', spread='sqrt')),
    ('MEMIT, one layer', changed('memit', layers=last)),
    ('EMMET', changed('emmet')),
    ('EMMET, sqrt spread', changed('emmet', spread='sqrt')),
    ('EMMET, one layer', changed('emmet', layers=last)),
    ('ROME, single edits', {**changed('rome'), **single}),
    ('R-ROME, single edits', {'method': {'name': 'r_rome', **rome_fields}, **single}),
    ('R-ROME, one after the other', {
      'method': {'name': 'r_rome', **rome_fields}, 'edit': {**sequence['edit'], 'size': 1},
    }),
    ('JEEP', {'method': jeep}),
    ('JEEP, low layers only', changed('jeep', optimise=('low',))),
    ('JEEP, high layers only', changed('jeep', optimise=('high',))),
    ('JEEP without step 2', changed('jeep', write=('high',))),
    ('JEEP without step 3', changed('jeep', write=('low',))),
    ('JEEP, separate optimisation', changed('jeep', is_joint=False)),
    ('JEEP, even spread in step 2', changed('jeep', spread_low='even')),
    ('JEEP, attention in step 3', changed('jeep', high_kernel='attn')),
    ('JEEP, released form', changed('jeep', form='released')),
    ('JEEP, hidden form', changed('jeep', form='hidden')),
    ('AlphaEdit', changed('alphaedit')),
    ('AlphaEdit, batches of 20', {
      **changed('alphaedit'), 'edit': {**sequence['edit'], 'accumulate_keys': True},
    }),
    ('MEMIT, batches of 20', {**changed('memit'), **sequence}),
    ('FT-W', changed('ft_w')),
    ('FT-W, teacher forcing', changed('ft_w', loss_position='paper')),
  )  # fmt: skip
  return c

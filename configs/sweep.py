r"""Runs every method and ablation on a shipped testbed, 200 edits each, for one table.

python -m jedit.main --config=configs/sweep.py --workdir=runs/sweep_testbed_gptj
python -m jedit.main --config=configs/sweep.py:llama --workdir=runs/sweep_testbed_llama
"""

from jedit.configs import edit
from jedit.experiments.config import method_section
from jedit.methods import presets


def get_config(testbed='gptj'):
  model = f'testbed-{testbed}'

  def tuned(name):
    return presets.find(name, model).fields

  def cell(name, **fields):
    return {'method': method_section(name, **{**tuned(name), **fields})}

  def batches(size, **fields):
    return {'edit': dict(mode='sequential', edits_per_batch=size, canary=0, **fields)}

  single = {'edit': {'mode': 'separate'}}
  last = tuned('memit')['layers'][-1:]
  c = edit.get_config(f'pmet,{model}')
  c.task = 'sweep'
  c.data.num_edits = 200
  c.evaluation.samples = 1
  c.cells = (
    ('PMET', cell('pmet')),
    ('PMET, even schedule', cell('pmet', schedule='even')),
    ('PMET without attention delta', cell('pmet', optimise=('mlp',))),
    ('PMET, also writing attention', cell('pmet', write=('attn', 'mlp'))),
    ("PMET, the paper's loss", cell('pmet', nll_switch=False)),
    ('MEMIT', cell('memit')),
    ('MEMIT, sqrt schedule', cell('memit', schedule='sqrt')),
    ('MEMIT, one layer', cell('memit', layers=last)),
    ('EMMET', cell('emmet')),
    ('EMMET, sqrt schedule', cell('emmet', schedule='sqrt')),
    ('EMMET, one layer', cell('emmet', layers=last)),
    ('ROME, single edits', cell('rome') | single),
    ('R-ROME, single edits', cell('r_rome') | single),
    ('R-ROME, one after the other', cell('r_rome') | batches(1)),
    ('JEEP', cell('jeep')),
    ('JEEP, low layers only', cell('jeep', optimise=('low',))),
    ('JEEP, high layers only', cell('jeep', optimise=('high',))),
    ('JEEP without step 2', cell('jeep', write=('high',))),
    ('JEEP without step 3', cell('jeep', write=('low',))),
    ('JEEP, separate optimisation', cell('jeep', is_joint=False)),
    ('JEEP, even schedule in step 2', cell('jeep', schedule_low='even')),
    ('JEEP, attention in step 3', cell('jeep', high_kernel='attn')),
    ('JEEP, released form', cell('jeep', form='released')),
    ('JEEP, hidden form', cell('jeep', form='hidden')),
    ('JEEP, hidden form, joint target', cell('jeep', form='hidden_joint')),
    ('AlphaEdit', cell('alphaedit')),
    ('AlphaEdit, batches of 20', cell('alphaedit') | batches(20, accumulate_keys=True)),
    ('MEMIT, batches of 20', cell('memit') | batches(20)),
    ('FT-W', cell('ft_w')),
    ('FT-W, teacher forcing', cell('ft_w', loss_position='paper')),
  )
  return c

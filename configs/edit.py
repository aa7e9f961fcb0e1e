r"""Edits with a published setting of docs/presets.md: METHOD,MODEL or METHOD,MODEL-VARIANT.

python -m jedit.main --config=configs/edit.py:memit,gpt2-xl
python -m jedit.main --config=configs/edit.py:jeep,gptj-6b-zsre --config.statistics.corpus=CORPUS
python -m jedit.main --config=configs/edit.py:pmet,testbed-llama --config.data.num_edits=200
python -m jedit.main --config=configs/edit.py:malmen,testbed-gptj --config.task=train_editor

CORPUS is a file with one article per line, or a directory of such files. Without it, second moments
are those that ROME and MEMIT publish (GPT2-XL, GPT-J layers 3 to 8), or taken over Wikipedia, which
is downloaded; fine-tuning (ft, ft_l, ft_w) needs none. The model is downloaded from the hub unless
--config.model.path names a directory.
mend and malmen train an editor first, unless --config.editor names one; on other models than the
testbeds --config.training.records names what to train it on.
`pmet,testbed-counterfact` edits the model of configs/train.py:counterfact; r_rome uses the settings
of rome.
"""

from jedit.experiments.config import default_config, method_section
from jedit.methods import presets
from jedit.models.checkpoints import CHECKPOINTS
from jedit.types import UserError


def get_config(preset=''):
  method, comma, model = preset.partition(',')
  if not comma:
    raise UserError('Name a method and a model, such as --config=configs/edit.py:pmet,gptj-6b.')
  row = presets.find(method, model)
  c = default_config()
  c.model.name = row.model
  c.method = method_section(method, **row.fields)
  if method in ('rome', 'r_rome', 'ft', 'ft_l'):  # ROME's tables have single edits
    c.edit.mode = 'separate'
  if row.model in CHECKPOINTS:
    published(c, row)
  elif row.model == 'testbed-counterfact':
    c.model.path = 'runs/testbed_counterfact/model'
  return c


def published(c, row):
  """Sets data and precision as in the papers."""
  checkpoint = CHECKPOINTS[row.model]
  c.model.dtype = checkpoint.dtype
  c.data.records = 'counterfact.json' if c.edit.mode == 'separate' else 'multi_counterfact.json'
  if row.variant == 'zsre':
    c.data.records = 'zsre_mend_eval.json'
  few = row.model == 'gpt-neox-20b' and row.method in ('memit', 'pmet')
  c.statistics.max_documents = 50_000 if few else 100_000  # Wikipedia articles
  c.statistics.row_tokens = checkpoint.num_positions  # articles are truncated at the context
  if row.method == 'alphaedit':
    c.data.num_edits = 2000
    c.edit.update(mode='sequential', edits_per_batch=100, accumulate_keys=True)

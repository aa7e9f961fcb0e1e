"""Published and tuned settings: one row for each method and model, with its source.

`jedit.preset`, configs/ and docs/presets.md read them from here. A row has a model, a variant
(empty for the usual one), a source and the values of the columns; fields with the same value in
every row of a method stand before the columns. All others keep the constructor's defaults.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jedit import methods
from jedit.methods import Method
from jedit.types import UserError

MEMIT, PMET, JEEP, ALPHAEDIT = 'MEMIT', 'PMET', 'JEEP', 'AlphaEdit'
UNIFIED, EASYEDIT = 'unified', 'EasyEdit'
ISSUE, PAPER, TESTBED = 'PMET, issue 5', 'EMMET paper, A.1', 'testbeds'
MEND_CODE, MALMEN_CODE, JEEP_PAPER = 'MEND', 'MALMEN', 'JEEP paper, D.4'

# The hyper-parameter files that come with released code, at a commit, unless it says otherwise.
SOURCES: Mapping[str, str] = {
  MEMIT: 'kmeng01/memit 80426fd',
  PMET: 'xpq-tech/PMET 80643f2',
  JEEP: 'Eric8932/JEEP d149a1e',
  UNIFIED: 'scalable-model-editing/unified-model-editing 23d72b5',
  EASYEDIT: 'zjunlp/EasyEdit 14cea82',
  ALPHAEDIT: 'jianghoucheng/AlphaEdit f5248d3',
  ISSUE: "the author's answer in issue 5 of xpq-tech/PMET",
  PAPER: 'arXiv:2403.14236, appendix A.1',
  MEND_CODE: 'eric-mitchell/mend e04fdb9',
  MALMEN_CODE: 'ChenmienTan/malmen 1df295d',
  JEEP_PAPER: 'arXiv:2412.17872, appendix D.4',
  TESTBED: 'tuned on the shipped models, see docs/testbeds.md',
}


@dataclasses.dataclass(frozen=True)
class Preset:
  """Settings of a method for a model.

  Attributes:
    method: a name in `jedit.methods.METHODS`.
    model: a name in `jedit.models.checkpoints.CHECKPOINTS`, or that of a testbed.
    variant: other data ('zsre') or another source ('unified') than usual; empty for the usual one.
    source: a name in `SOURCES`.
    fields: of the method's constructor.
  """

  method: str
  model: str
  variant: str
  source: str
  fields: Mapping[str, Any]

  @property
  def name(self) -> str:
    """Model and variant, as in 'gptj-6b-zsre'."""
    return f'{self.model}-{self.variant}' if self.variant else self.model


def _rows(
  method: str, shared: Mapping[str, Any], columns: str, *rows: tuple[Any, ...]
) -> list[Preset]:
  names = columns.split()
  return [
    Preset(method, model, variant, source, {**dict(zip(names, values, strict=True)), **shared})
    for model, variant, source, *values in rows
  ]


_TARGET = dict(learning_rate=0.5, kl_factor=0.0625)
_SMALL = dict(learning_rate=0.3, num_steps=80, kl_factor=0.0625)
_WEAK = dict(_SMALL, weight_decay=0.01)  # the norms it divides by are small in a small model
_NET = dict(
  rank=128,
  mini_batch_size=16,
  learning_rate=1e-3,
  rate_learning_rate=3e-4,
  initial_rate=1e-2,
)
_NET_ALONE = dict(
  rank=128,
  accumulate=8,
  learning_rate=1e-4,
  rate_learning_rate=1e-5,
  clip_norm=1.0,
  num_steps=400,
  num_validation=40,
  validation_interval=50,
  patience=150,
)
_TUNING = dict(num_epochs=25, batch_size=64)

# fmt: off
PRESETS: tuple[Preset, ...] = (
  *_rows(
    'rome', _TARGET, 'layers num_steps clip_factor weight_decay use_cov',
    ('gpt2-medium', '', MEMIT, (8,), 20, 3.0, 0.5, True),
    ('gpt2-large', '', MEMIT, (12,), 20, 4.0, 0.5, True),
    ('gpt2-xl', '', MEMIT, (17,), 20, 4.0, 0.5, True),
    ('gpt2-xl', 'emmet-paper', PAPER, (17,), 20, 0.75, 0.5, True),
    ('gptj-6b', '', MEMIT, (5,), 20, 4.0, 0.5, True),
    ('gptj-6b', 'emmet-paper', PAPER, (8,), 25, 0.75, 0.5, True),
    ('gpt-neox-20b', '', MEMIT, (15,), 20, 4.0, 0.5, True),
    ('llama-7b', '', JEEP, (7,), 20, 4.0, 0.5, True),
    ('llama-2-7b', '', EASYEDIT, (5,), 25, 4.0, 1e-3, False),
    ('llama-2-7b', 'emmet-paper', PAPER, (8,), 25, 4.0, 1e-3, True),
    ('llama-3-8b', '', ALPHAEDIT, (5,), 25, 4.0, 1e-3, False),
  ),
  *_rows(
    'memit', dict(kl_factor=0.0625),
    'layers cov_weight learning_rate num_steps clip_factor weight_decay',
    ('gpt2-xl', '', MEMIT, (13, 14, 15, 16, 17), 20000.0, 0.5, 20, 0.75, 0.5),
    ('gpt2-xl', 'emmet-paper', PAPER, (17,), 20000.0, 0.5, 20, 0.75, 0.5),
    ('gptj-6b', '', MEMIT, (3, 4, 5, 6, 7, 8), 15000.0, 0.5, 25, 0.75, 0.5),
    ('gptj-6b', 'emmet-paper', PAPER, (8,), 15000.0, 0.5, 25, 0.75, 0.5),
    ('gpt-neox-20b', '', PMET, (6, 7, 8, 9, 10), 6000.0, 0.5, 20, 0.8, 0.5),
    ('llama-7b', '', JEEP, (5, 6, 7, 8, 9, 10), 4000.0, 0.5, 30, 0.9, 0.5),  # the paper: 25 steps
    ('llama-2-7b', '', EASYEDIT, (4, 5, 6, 7, 8), 15000.0, 0.5, 25, 4.0, 1e-3),
    ('llama-2-7b', 'emmet-paper', PAPER, (8,), 15000.0, 0.5, 25, 4.0, 1e-3),
    ('llama-2-7b', 'unified', UNIFIED, (5,), 1.0, 0.5, 25, 4.0, 1e-3),
    ('llama-3-8b', '', ALPHAEDIT, (4, 5, 6, 7, 8), 15000.0, 0.1, 25, 0.75, 0.5),
  ),
  *_rows(
    'pmet', dict(weight_decay=0.5),
    'layers cov_weight learning_rate num_steps clip_factor kl_factor',
    ('gptj-6b', '', PMET, (3, 4, 5, 6, 7, 8), 6000.0, 0.2, 30, 0.75, 1.0),
    ('gpt-neox-20b', '', PMET, (6, 7, 8, 9, 10), 15000.0, 0.5, 30, 0.8, 0.8),
    ('llama-7b', '', JEEP, (5, 6, 7, 8, 9, 10), 4000.0, 0.5, 30, 0.9, 1.0),
    ('llama-7b', 'zsre', JEEP, (5, 6, 7, 8, 9, 10), 6000.0, 0.5, 30, 1.0, 1.0),
    ('llama-2-7b', '', ISSUE, (4, 5, 6, 7, 8), 6000.0, 0.5, 20, 1.0, 0.0625),
  ),
  *_rows(
    'jeep', dict(_TARGET, num_steps=30, weight_decay_low=0.5, weight_decay_high=0.5),
    'layers_low layers_high cov_weight_low cov_weight_high clip_factor_low clip_factor_high',
    ('gptj-6b', '', JEEP, (3, 4, 5, 6, 7, 8), (15, 16), 2000.0, 2000.0, 0.75, 0.25),
    ('gptj-6b', 'zsre', JEEP, (3, 4, 5, 6, 7, 8), (15, 16), 6000.0, 2000.0, 0.75, 0.8),
    ('llama-7b', '', JEEP, (5, 6, 7, 8, 9, 10), (22, 23, 24), 2500.0, 1000.0, 1.0, 0.25),
    ('llama-7b', 'zsre', JEEP, (5, 6, 7, 8, 9, 10), (22, 23, 24), 6000.0, 3000.0, 1.0, 0.7),
  ),
  *_rows(
    'emmet', _TARGET, 'layers cov_weight key_ridge num_steps clip_factor weight_decay',
    ('gpt2-xl', '', UNIFIED, (17,), 1000.0, 0.1, 20, 0.75, 0.5),
    ('gpt2-xl', 'paper', PAPER, (17,), 20000.0, 0.0, 20, 0.75, 0.5),
    ('gpt2-xl', 'paper-multilayer', PAPER, (13, 14, 15, 16, 17), 20000.0, 0.0, 20, 0.75, 0.5),
    ('gptj-6b', '', UNIFIED, (5,), 1.0, 0.1, 25, 0.75, 0.5),
    ('gptj-6b', 'paper', PAPER, (8,), 15000.0, 0.0, 25, 0.75, 0.5),
    ('gptj-6b', 'paper-multilayer', PAPER, (3, 4, 5, 6, 7, 8), 15000.0, 0.0, 25, 0.75, 0.5),
    ('llama-2-7b', '', UNIFIED, (5,), 1.0, 0.1, 25, 4.0, 1e-3),
    ('llama-2-7b', 'paper', PAPER, (8,), 15000.0, 0.0, 25, 4.0, 1e-3),
    ('llama-2-7b', 'paper-multilayer', PAPER, (4, 5, 6, 7, 8), 15000.0, 0.0, 25, 4.0, 1e-3),
  ),
  *_rows(
    'alphaedit', dict(threshold=0.02, ridge=10.0, kl_factor=0.0625),  # the paper: threshold 0.01
    'layers learning_rate num_steps clip_factor weight_decay',
    ('gpt2-xl', '', ALPHAEDIT, (13, 14, 15, 16, 17), 0.5, 20, 0.75, 0.5),
    ('gptj-6b', '', ALPHAEDIT, (3, 4, 5, 6, 7, 8), 0.5, 25, 0.75, 0.5),
    ('llama-3-8b', '', ALPHAEDIT, (4, 5, 6, 7, 8), 0.1, 25, 0.75, 0.5),
  ),
  *_rows(
    'ft_w', _TUNING, 'layers learning_rate stop_loss loss_position mean_over',
    ('gptj-6b', '', MEMIT, (21,), 5e-4, 0.01, 'released', 'edits'),
    ('llama-7b', '', JEEP, (23,), 5e-5, 0.1, 'paper', 'tokens'),
  ),
  *_rows(
    'ft', _TUNING, 'layers learning_rate stop_loss',
    ('gpt2-xl', '', MEMIT, (1,), 5e-4, 0.01),  # unified-model-editing: layer 17
    ('gptj-6b', '', MEMIT, (21,), 5e-4, 0.01),
  ),
  *_rows(
    'ft_l', _TUNING, 'layers learning_rate stop_loss norm_bound',
    ('gpt2-medium', '', MEMIT, (0,), 5e-4, 0.01, 2e-3),
    ('gpt2-large', '', MEMIT, (0,), 5e-4, 0.01, 1e-3),
    ('gpt2-xl', '', MEMIT, (0,), 5e-4, 0.01, 5e-4),
    ('gptj-6b', '', MEMIT, (0,), 5e-4, 0.01, 5e-5),
  ),

  *_rows(
    'mend', dict(rank=1920), 'layers kernels',
    ('gpt2-xl', '', MEND_CODE, (45, 46, 47), ('mlp', 'mlp_up')),
    ('gptj-6b', '', MEND_CODE, (25, 26, 27), ('mlp_up', 'mlp')),
    ('llama-7b', '', EASYEDIT, (29, 30, 31), ('mlp_gate', 'mlp_up', 'mlp')),
  ),
  *_rows(
    'malmen', dict(rank=1920, num_blocks=2), 'layers num_edits',
    ('gptj-6b', '', MALMEN_CODE, (22, 23, 24, 25, 26, 27), 512),
    ('llama-7b', '', JEEP_PAPER, (26, 27, 28, 29, 30, 31), 512),
  ),

  # The shipped models, and one that has learned a CounterFact file.
  *_rows(
    'rome', dict(_WEAK, prefixes='memit'), 'layers clip_factor',  # a third of ROME's own prefixes
    ('testbed-gptj', '', TESTBED, (4,), 5.0),
    ('testbed-llama', '', TESTBED, (3,), 10.0),  # 5 leaves 14 of 200 targets below the old answer
  ),
  *_rows(
    'memit', _WEAK, 'layers cov_weight clip_factor',
    ('testbed-gptj', '', TESTBED, (2, 3, 4), 20.0, 5.0),
    ('testbed-llama', '', TESTBED, (1, 2, 3), 20.0, 5.0),
    ('testbed-counterfact', '', TESTBED, (2, 3, 4), 20.0, 5.0),
  ),
  *_rows(
    'pmet', _WEAK, 'layers cov_weight clip_factor',
    ('testbed-gptj', '', TESTBED, (2, 3, 4), 20.0, 50.0),
    ('testbed-llama', '', TESTBED, (1, 2, 3), 20.0, 50.0),
    ('testbed-counterfact', '', TESTBED, (2, 3, 4), 20.0, 50.0),
  ),
  *_rows(
    'jeep', dict(_SMALL, weight_decay_low=0.01, weight_decay_high=0.01),
    'layers_low layers_high cov_weight_low cov_weight_high clip_factor_low clip_factor_high',
    ('testbed-gptj', '', TESTBED, (2, 3, 4), (6, 7), 20.0, 20.0, 50.0, 5.0),
    ('testbed-llama', '', TESTBED, (1, 2, 3), (4,), 20.0, 20.0, 50.0, 5.0),
  ),
  *_rows(
    'emmet', _WEAK, 'layers cov_weight key_ridge clip_factor',
    ('testbed-gptj', '', TESTBED, (2, 3, 4), 20.0, 0.1, 5.0),
    ('testbed-llama', '', TESTBED, (1, 2, 3), 20.0, 0.1, 5.0),
  ),
  *_rows(
    'alphaedit', _WEAK, 'layers threshold ridge clip_factor',
    ('testbed-gptj', '', TESTBED, (2, 3, 4), 0.02, 1.0, 5.0),
    ('testbed-llama', '', TESTBED, (1, 2, 3), 0.02, 1.0, 5.0),
  ),
  *_rows(
    'mend', _NET_ALONE, 'layers kernels',
    ('testbed-gptj', '', TESTBED, (5, 6, 7), ('mlp_up', 'mlp')),
    ('testbed-llama', '', TESTBED, (3, 4, 5), ('mlp_gate', 'mlp_up', 'mlp')),
  ),
  *_rows(
    'malmen', _NET, 'layers num_edits num_steps',
    ('testbed-gptj', '', TESTBED, (4, 5, 6, 7), 32, 240),  # 64 x 120 scores 79 at single edits
    ('testbed-llama', '', TESTBED, (2, 3, 4, 5), 64, 120),
  ),
  *_rows(
    'ft_w', {}, 'layers learning_rate',  # 5e-4 leaves a fifth of the targets unlearned
    ('testbed-gptj', '', TESTBED, (4,), 2e-3),
    ('testbed-llama', '', TESTBED, (3,), 2e-3),
  ),
)
# fmt: on


def preset(method: str, model: str) -> Method:
  """The method with its published or tuned settings; docs/presets.md has a table of them.

  Args:
    method: such as 'pmet'.
    model: such as 'gptj-6b', 'llama-2-7b' or 'testbed-gptj', with a variant where there is one:
      'gptj-6b-zsre'.

  Raises:
    UserError: as `find`.
  """
  found = find(method, model)
  return methods.get(found.method, **found.fields)


def find(method: str, model: str) -> Preset:
  """The row of the table that `preset` builds the method from.

  Raises:
    UserError: without such a row; lists those that exist.
  """
  if method == 'r_rome':  # has ROME's settings
    return dataclasses.replace(find('rome', model), method=method)
  rows = {(row.method, row.name): row for row in PRESETS}
  if (method, model) not in rows:
    models = [name for each, name in rows if each == method]
    if models:
      raise UserError(f'There is no preset {method!r} for {model!r}; choose {_any(models)}.')
    known = sorted({row.method for row in PRESETS})
    raise UserError(f'There is no preset of a method {method!r}; choose {_any(known)}.')
  return rows[method, model]


def names() -> list[tuple[str, str]]:
  """All presets as (method, model)."""
  return [(row.method, row.name) for row in PRESETS]


def _any(words: list[str]) -> str:
  return ', '.join(repr(word) for word in words)

"""Trained files of the released codes as editors."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jedit.hypernetworks.editor import Editor
from jedit.hypernetworks.settings import MEND, Settings
from jedit.hypernetworks.statistics import Statistics
from jedit.io.pytorch import read_checkpoint
from jedit.io.tensors import read_others
from jedit.models.language_model import LanguageModel
from jedit.models.sharding import kernel_shape
from jedit.types import UserError


def convert(
  path: str | os.PathLike[str],
  lm: LanguageModel,
  method: Settings,
  *,
  tokens_per_edit: float = 0.0,
) -> Editor:
  """Reads nets that the released MEND or MALMEN trained.

  Args:
    path: their checkpoint, or its state dict as safetensors. Nothing pickled in it is run.
    lm: the model that they were trained for.
    method: the settings they were trained with, kernels in the order of their config, with one net
      for each shape (`shared`).
    tokens_per_edit: mean target tokens of an edit in training, for `denominator='training'`; 0
      takes those of the edits themselves.

  Raises:
    UserError: for a file that cannot be read, lacks a tensor, or does not fit model and method.
  """
  if pathlib.Path(path).suffix == '.safetensors':
    tensors: Any = read_others(path)[0]
  else:
    tensors = read_checkpoint(path)
    tensors = tensors.get('model', tensors) if isinstance(tensors, Mapping) else {}
  if not method.shared:
    raise UserError('The nets of released files are shared by shape; give a method with shared.')
  found = _Tensors(path, tensors)
  plan = method.plan(lm.config)
  params: dict[str, Any] = {}
  statistics = {}
  for kernel, net, mode in plan:
    if mode == 0:
      shape = kernel_shape(lm.config, kernel)
      make = _mend_net if method.name == MEND else _malmen_net
      params[net], statistics[net] = make(found, shape, method.num_blocks)
  if method.name == MEND:  # one step size for every kernel, in the order of the config
    rates = found('edit_lrs')
    for net in params:
      numbers = [n for n, planned in enumerate(plan) if planned.net == net]
      params[net]['rate'] = rates[numbers]
  editor = Editor(
    method, params, statistics, lm.fingerprint, tokens_per_edit, {'converted': os.fspath(path)}
  )
  editor.check(lm, method)
  return editor


class _Tensors:
  """Float32 arrays by name; a missing one is an error."""

  def __init__(self, path: str | os.PathLike[str], tensors: Mapping[str, Any]):
    self._path, self._tensors = path, tensors

  def __call__(self, name: str) -> np.ndarray:
    if not isinstance(self._tensors.get(name), np.ndarray):
      raise UserError(
        f'{self._path} has no tensor {name!r}; give the file of a net for these kernels.'
      )
    return np.asarray(self._tensors[name], np.float32)


def _mend_net(
  found: _Tensors, shape: tuple[int, int], num_blocks: int
) -> tuple[dict[str, Any], Statistics]:
  prefix = f'mend.{shape}.'
  blocks = {
    str(n): {
      'down': found(f'{prefix}mlp.layers.{n}.v').T.copy(),
      'up': found(f'{prefix}mlp.layers.{n}.u').T.copy(),
      'bias': found(f'{prefix}mlp.layers.{n}.bias'),
      'scale': found(f'{prefix}mlp.layers.{n}.mode_scale.weight'),
      'shift': found(f'{prefix}mlp.layers.{n}.mode_shift.weight'),
    }
    for n in range(num_blocks)
  }
  mean, square = (
    np.concatenate([found(f'{prefix}{side}_{name}') for side in 'uv']) for name in ('mean', 's')
  )
  return {'blocks': blocks}, Statistics(_count(found(prefix + 'k')), mean, square)


def _malmen_net(
  found: _Tensors, shape: tuple[int, int], num_blocks: int
) -> tuple[dict[str, Any], Statistics]:
  prefix = f'{shape}.'
  blocks = {
    str(n): {
      'down': found(f'{prefix}blocks.{n}.A'),
      'up': found(f'{prefix}blocks.{n}.B'),
      'bias': found(f'{prefix}blocks.{n}.bias'),
      'scale': found(f'{prefix}blocks.{n}.scale.weight'),
      'shift': found(f'{prefix}blocks.{n}.shift.weight'),
    }
    for n in range(num_blocks)
  }
  net = {
    'blocks': blocks,
    'rate': found(f'{prefix}lr.weight').reshape(-1),
    'ridge': found(f'{prefix}lamda.weight').reshape(-1),
  }
  mean, square = (found(f'{prefix}normalizer.{name}') for name in ('mean', 'var'))
  return net, Statistics(_count(found(f'{prefix}normalizer.n')), mean, square)


def _count(value: np.ndarray) -> np.ndarray:
  return np.asarray(value.reshape(()), np.int32)

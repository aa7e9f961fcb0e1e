"""SecondMoments: C = E[k kᵀ] of the keys that an edit must preserve, by kernel, and its files.

`jedit.moments.collect` takes them over text.
"""

import dataclasses
import html
import json
import math
import os
import pathlib
import textwrap
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import safetensors

from jedit.io.progress import note
from jedit.io.sealed import StaleFile
from jedit.io.tensors import read_others, read_tensors, write_tensors
from jedit.models import FAMILIES, ModelConfig, kernel_path
from jedit.models.language_model import LanguageModel
from jedit.types import Kernel, UserError

_FORMAT = 'jedit second moments 2'
_WITHOUT_DIGEST = 'jedit-second-moments-1'
_SOURCE = ('corpus', 'archives', 'num_documents', 'parts', 'preset', 'model')  # in the repr


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class SecondMoments:
  """Uncentred second moments by kernel.

  Attributes:
    cov: C_FxF of each kernel's input, float32 or wider.
    num_tokens: tokens they were taken over; 0 where unknown.
    provenance: JSON-able description of model, corpus and settings.
  """

  cov: Mapping[Kernel, np.ndarray]
  num_tokens: int = 0
  provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def _summary(self) -> dict[str, str]:
    """Labels and values that describe the moments on a few short lines."""
    by_size: dict[str, list[str]] = {}
    for kernel in sorted(self.cov):
      rows, columns = self.cov[kernel].shape
      by_size.setdefault(f'{rows} x {columns}', []).append(str(kernel))
    source = {name: self.provenance.get(name) for name in _SOURCE if self.provenance.get(name)}
    return {
      **{size: _shorten(', '.join(names)) for size, names in by_size.items()},
      'tokens': f'{self.num_tokens:,}' if self.num_tokens else 'unknown',
      'source': _shorten(json.dumps(source)) if source else 'unknown',
    }

  def __repr__(self) -> str:
    lines = [f'  {label}: {value}' for label, value in self._summary().items()]
    return '\n'.join([f'SecondMoments of {len(self.cov)} kernels', *lines])

  def _repr_html_(self) -> str:
    rows = (
      f'<tr><th>{label}</th><td>{html.escape(value)}</td></tr>'
      for label, value in self._summary().items()
    )
    title = f'<caption>Second moments of {len(self.cov)} kernels</caption>'
    return f'<table>{title}{"".join(rows)}</table>'

  def covariance(self, kernel: Kernel) -> np.ndarray:
    """C_FxF of a kernel's keys.

    Raises:
      UserError: if the kernel has no second moments here.
    """
    if kernel not in self.cov:
      has = ', '.join(map(str, sorted(self.cov))) or 'nothing'
      raise UserError(
        f'There are no second moments of {kernel.label} (there is {has}); '
        'collect them for the layers and kernels of the method.'
      )
    return self.cov[kernel]

  def save(self, path: str | os.PathLike[str]) -> None:
    """Writes a safetensors file with count and provenance in its header."""
    tensors = {f'{name}/{layer}': cov for (layer, name), cov in self.cov.items()}
    facts = {'num_tokens': self.num_tokens, 'provenance': dict(self.provenance)}
    write_tensors(path, _FORMAT, tensors, facts)

  @classmethod
  def load(cls, path: str | os.PathLike[str]) -> 'SecondMoments':
    """Reads a file of `save`.

    Raises:
      StaleFile: if the file is damaged or holds something else.
      UserError: if it is missing or holds numbers that are not finite.
    """
    tensors, facts = _read_without_digest(path) or read_tensors(path, _FORMAT)
    cov = {}
    for name, array in tensors.items():
      kernel, _, layer = name.partition('/')
      if not layer.isdecimal() or array.ndim != 2 or array.dtype.kind != 'f':
        raise StaleFile(f'{path} has {name!r}, which is not of a kernel; collect them again.')
      cov[Kernel(int(layer), kernel)] = array
      if not np.isfinite(array).all():
        raise UserError(f'The second moments {name} in {path} are not finite; collect them again.')
    return cls(cov, facts['num_tokens'], facts['provenance'])

  @classmethod
  def merge(cls, parts: Sequence['SecondMoments']) -> 'SecondMoments':
    """One result of several runs over parts of one corpus: means weighted by their tokens.

    Args:
      parts: of runs that differ only in `part`; at least one. All parts together equal a run over
        the whole corpus and replace it.

    Raises:
      UserError: for runs of different models, kernels or settings, and for a part given twice.
    """
    if not parts:
      raise UserError('There are no second moments to merge; give some.')
    first = parts[0]
    runs: list[list[int]] = []
    for other in parts:
      if 'parts' not in other.provenance:
        raise UserError(
          'Second moments whose text is unknown cannot be merged; use them as they are.'
        )
      if other.cov.keys() != first.cov.keys():
        raise UserError('The second moments are of different kernels; merge those of the same.')
      for name in sorted({*first.provenance, *other.provenance} - {'parts', 'num_tokens'}):
        if other.provenance.get(name) != first.provenance.get(name):
          raise UserError(
            f'The second moments cannot be merged: {name} is {first.provenance.get(name)!r} in one '
            f'and {other.provenance.get(name)!r} in another.'
          )
      runs += other.provenance['parts']
    shown = ', '.join(f'{number}/{count}' for number, count in runs)
    if len({count for _, count in runs}) > 1 or len({number for number, _ in runs}) < len(runs):
      raise UserError(
        f'The second moments are of the parts {shown} of the corpus, which overlap; give each part '
        'of one division once.'
      )
    num_tokens = sum(part.num_tokens for part in parts)
    cov = {}
    for kernel in first.cov:
      total_FxF = np.zeros(first.cov[kernel].shape)
      for part in parts:
        total_FxF += part.num_tokens * part.cov[kernel].astype(np.float64)
      cov[kernel] = (total_FxF / num_tokens).astype(np.float32)
    whole = len(runs) == runs[0][1]
    provenance = {
      **first.provenance,
      'parts': [[1, 1]] if whole else sorted(runs),
      'num_tokens': num_tokens,
    }
    return cls(cov, num_tokens, provenance)

  @classmethod
  def from_npz(
    cls,
    path: str | os.PathLike[str],
    lm: LanguageModel,
    layers: Sequence[int],
    kernels: Sequence[str] = ('mlp',),
  ) -> 'SecondMoments':
    """Reads archives of the ROME and MEMIT statistics, which hold sums: C = sum / count.

    Args:
      path: a directory with an archive per kernel, named as their programs name them
        ('transformer.h.3.mlp.fc_out_float32_mom2_100000.npz'), or one such file.
      lm: the model; an archive holds no more of its own than the module's name and size.
      layers: wanted layers.
      kernels: names of the wanted kernels, 'mlp' or 'attn' or both.

    Raises:
      UserError: for a kernel without an archive or with several, and for an archive of another
        shape or kind of model, or whose numbers are no second moments.
    """
    path, sizes = pathlib.Path(path), lm.config.key_sizes
    cov, counts, names = {}, set(), {}
    for kernel in [Kernel(layer, name) for layer in layers for name in kernels]:
      file = _find_archive(path, module_name(lm.config, kernel))
      cov[kernel], count = _read_archive(file, sizes[kernel.name])
      counts.add(count)
      names[str(kernel)] = file.name
    num_tokens = counts.pop() if len(counts) == 1 else 0
    provenance = {'model': lm.fingerprint, 'archives': names, 'num_tokens': num_tokens}
    return cls(cov, num_tokens, {**provenance, 'preset': 'published'})


def read_moments(
  path: str | os.PathLike[str],
  lm: LanguageModel,
  layers: Sequence[int],
  kernels: Sequence[str] = ('mlp',),
) -> SecondMoments:
  """Finished second moments from elsewhere: a file of `SecondMoments.save`, or archives.

  Raises:
    UserError: if they cannot be read, are of another model or lack a wanted kernel.
  """
  if is_archive(path):
    return SecondMoments.from_npz(path, lm, layers, kernels)
  found = SecondMoments.load(path)
  if found.provenance.get('model') != lm.fingerprint:
    raise UserError(
      f'{path} holds second moments of a model with fingerprint {found.provenance.get("model")}, '
      f'this one has {lm.fingerprint}; give those of this model.'
    )
  for layer in layers:
    for name in kernels:
      found.covariance(Kernel(layer, name))
  return found


def _read_without_digest(path: str | os.PathLike[str]) -> Any:
  """Arrays and facts of a file of an earlier version; None for any other file."""
  try:
    with safetensors.safe_open(os.fspath(path), framework='numpy') as file:
      facts = json.loads((file.metadata() or {}).get('jedit', '{}'))
  except (OSError, ValueError, safetensors.SafetensorError):
    return None
  if facts.get('format') != _WITHOUT_DIGEST:
    return None
  note(f'{path} is of an earlier version, without a digest; save it again to have it checked.')
  return read_others(path)[0], facts


def _shorten(text: str) -> str:
  return textwrap.shorten(text, 160, placeholder=' …')


def is_archive(path: str | os.PathLike[str]) -> bool:
  """True for the path of a `.npz` archive or of a directory of them."""
  return pathlib.Path(path).suffix == '.npz' or pathlib.Path(path).is_dir()


def check_archives(
  path: str | os.PathLike[str], config: ModelConfig, kernels: Iterable[Kernel]
) -> None:
  """Raises a UserError unless there is one archive for each kernel; none is read."""
  if not pathlib.Path(path).exists():
    raise UserError(f'{path} does not exist; give an existing file in statistics.file.')
  for kernel in kernels:
    _find_archive(pathlib.Path(path), module_name(config, kernel))


def module_name(config: ModelConfig, kernel: Kernel) -> str:
  """PyTorch's name of the module whose input is the kernel's keys."""
  path = '/'.join(['block_{}', *kernel_path(kernel)[1:]])
  name = next(name for name, ours, _ in FAMILIES[config.family].names if ours == path)
  return name.removesuffix('.weight').format(kernel.layer)


def _find_archive(path: pathlib.Path, module: str) -> pathlib.Path:
  files = sorted(path.glob('*.npz')) if path.is_dir() else [path]
  found = [file for file in files if file.name.startswith(f'{module}_')]
  if len(found) != 1:
    has = f'{len(found)} archives' if found else 'no archive'
    raise UserError(
      f'{path} has {has} of {module}, the module of this model whose keys are wanted; give one '
      f'file {module}_….npz, or a directory with one for each layer.'
    )
  return found[0]


def _header(archive: zipfile.ZipFile, name: str) -> tuple[int, ...]:
  """Shape of a stored array of real numbers."""
  with archive.open(f'{name}.npy') as file:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0
    shape, _, dtype = (read if version == (1, 0) else np.lib.format.read_array_header_2_0)(file)
  if dtype.kind not in 'fiu':
    raise ValueError(f'{name} has the dtype {dtype}')
  return shape


def _read_archive(file: pathlib.Path, size: int) -> tuple[np.ndarray, int]:
  """C_FxF and the number of tokens."""
  try:
    with zipfile.ZipFile(file) as archive:  # nothing is read that has not the right size
      shape = _header(archive, 'mom2.mom2')
      if shape != (size, size):
        raise UserError(
          f'{file} has second moments of shape {shape}, the model wants {(size, size)}; give those '
          'of this model.'
        )
      if math.prod(_header(archive, 'mom2.count')) != 1:
        raise ValueError('mom2.count is not one number')
    with np.load(file, allow_pickle=False) as arrays:
      sum_FxF, count = arrays['mom2.mom2'], int(arrays['mom2.count'].item())
  except UserError:
    raise
  except Exception as error:  # zipfile, zlib and numpy raise many kinds
    raise UserError(
      f'{file} is no archive of second moments ({error}); it needs mom2.mom2 and mom2.count.'
    ) from error
  with np.errstate(all='ignore'):
    mean_FxF = (sum_FxF / count).astype(np.float32)
  if count < 1 or not np.isfinite(mean_FxF).all() or (np.diagonal(sum_FxF) < 0).any():
    raise UserError(
      f'{file} holds no sum of second moments: its count is {count}, and every number must be '
      'finite with none negative on the diagonal; download it again.'
    )
  return mean_FxF, count

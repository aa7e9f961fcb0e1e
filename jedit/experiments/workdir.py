"""The directory of a run: its config, its files and the time of its stages."""

import contextlib
import importlib.metadata
import json
import pathlib
import platform
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax
import jax
import numpy as np
import transformers

from jedit.experiments.compile_timer import CompileClock
from jedit.io import storage
from jedit.io.progress import Timers
from jedit.io.storage import to_json
from jedit.types import UserError

CONFIG_FILE = 'config.json'
SUMMARY_FILE = 'summary.json'
_PROVENANCE = 'provenance.json'
_SECONDS = 'seconds.json'
# Results of stages, finished or partial. A workdir without any is free for every config.
_RESULTS = (
  'statistics.partial',
  'statistics.safetensors',
  'editor.partial',
  'editor.safetensors',
  'contexts.json',
  'contexts_rome.json',
  'patch.safetensors',
  'targets',
  'batches',
  'cells',
  'damage.jsonl',
  'probes',
  'evaluation.jsonl',
  'records.jsonl',
  SUMMARY_FILE,
  'model',
)
# Fields that may change between two runs in one workdir, because no result depends on them.
FREE = (
  'task',
  'export.',
  'cells',
  'published',
  'axis',
  'targets',
  'evaluation.store',
  # Batches, which somebody lowers where memory runs out.
  'edit.target_batch_size',
  'evaluation.tokens_per_batch',
  'training.file',
  'probe.probes',
)
# Parts of the provenance that must match before finished stages are reused.
_INPUTS = ('model', 'data', 'patches', 'training')


class Workdir:
  """A workdir that belongs to one config.

  Nothing is written before `begin`, so that bad input leaves nothing behind.

  Attributes:
    path: the directory.
  """

  def __init__(self, path: str | pathlib.Path, config: Mapping[str, Any]):
    """Checks that the workdir can be used.

    Args:
      path: the directory; it may not exist yet.
      config: the resolved config.

    Raises:
      UserError: if it holds the run of another config or cannot be written.
    """
    self.path = pathlib.Path(path)
    self._config = to_json(config)
    self._goes_on = self._check_config()
    self._check_writable()
    stored = storage.read_json(self / _SECONDS) if self._has(_SECONDS) else None
    self._timers = Timers(stored)

  def __truediv__(self, name: str) -> pathlib.Path:
    return self.path / name

  def begin(self, inputs: Mapping[str, Any]) -> None:
    """Claims the workdir for this run: writes config and provenance.

    Args:
      inputs: provenance of the run's inputs, by part ('model', 'data', 'patches').

    Raises:
      UserError: if the workdir's finished stages had other inputs.
    """
    new = to_json(inputs)
    old = storage.read_json(self / _PROVENANCE) if self._has(_PROVENANCE) else {}
    for part in _INPUTS:
      if part in new and part in old:
        self._check_same_input(part, old[part], new[part])
    # The provenance of the first result stays.
    added = {part: value for part, value in new.items() if part not in old}
    storage.write_json(self / _PROVENANCE, {**_environment(), **old, **added})
    storage.write_json(self / CONFIG_FILE, self._config)

  @property
  def seconds(self) -> dict[str, float]:
    """Seconds by stage, including interrupted runs."""
    return dict(self._timers.seconds)

  @contextlib.contextmanager
  def stage(self, name: str) -> Iterator[None]:
    """Times a stage and its compilation, even if it is interrupted."""
    clock = CompileClock()
    try:
      with self._timers(name), clock:
        yield
    finally:
      self.add_seconds({'compile': clock.seconds})

  def add_seconds(self, seconds: Mapping[str, float]) -> None:
    """Adds to the seconds of stages and stores the sums for a resumed run."""
    total = self._timers.seconds
    for name, value in seconds.items():
      total[name] = total.get(name, 0.0) + value
    storage.write_json(self / _SECONDS, total)

  def _has(self, name: str) -> bool:
    return self._goes_on and (self / name).is_file()

  def _check_config(self) -> bool:
    """True if the workdir has results of this config to resume from."""
    results = [name for name in _RESULTS if (self / name).exists()]
    if not results:
      return False
    if not (self / CONFIG_FILE).is_file():
      raise UserError(
        f'{self.path} holds {results[0]} but no {CONFIG_FILE}, so the run that made it is unknown; '
        'choose another workdir.'
      )
    old, new = flat(storage.read_json(self / CONFIG_FILE)), flat(self._config)
    for name in [*old, *new]:
      if not name.startswith(FREE) and old.get(name) != new.get(name):
        raise UserError(
          f'{self.path} holds the run of another config: {name} is {_show(old, name)} there and '
          f'{_show(new, name)} here; choose another workdir.'
        )
    return True

  def _check_writable(self) -> None:
    """Tests for write access now, so that a run does not fail at its first result."""
    place = self.path
    while not place.exists() and place != place.parent:
      place = place.parent
    try:
      with tempfile.TemporaryFile(dir=place):
        pass
    except OSError as error:
      raise UserError(
        f'Cannot write to the workdir {self.path} ({error.strerror}); choose another one.'
      ) from error

  def _check_same_input(self, part: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    for name in new:
      # The directory may have been moved.
      if name not in ('source', 'file') and old.get(name) != new[name]:
        raise UserError(
          f'{self.path} holds a run on another {part}: its {name} was {_short(old.get(name))} and '
          f'is {_short(new[name])} now; choose another workdir.'
        )


def flat(values: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Fields of all sections as 'section.field'."""
  found: dict[str, Any] = {}
  for name, value in values.items():
    if isinstance(value, Mapping):
      found |= flat(value, f'{prefix}{name}.')
    else:
      found[prefix + name] = value
  return found


def _show(fields: Mapping[str, Any], name: str) -> str:
  return _short(fields[name]) if name in fields else 'absent'


def _short(value: Any) -> str:
  text = json.dumps(value, ensure_ascii=False)
  return text if len(text) <= 60 else text[:57] + '...'


def _environment() -> dict[str, Any]:
  """Versions, devices and commit behind a result."""
  try:
    version = importlib.metadata.version('jedit')
  except importlib.metadata.PackageNotFoundError:
    version = 'not installed'
  return {
    'versions': {
      'jedit': version,
      'jax': jax.__version__,
      'flax': flax.__version__,
      'numpy': np.__version__,
      'transformers': transformers.__version__,
      'python': platform.python_version(),
    },
    'commit': _commit(),
    'platform': platform.platform(),
    'devices': [f'{device.platform} {device.device_kind}' for device in jax.devices()],
  }


def _commit() -> str | None:
  """The commit of the package's clone, with '+' if files differ from it."""
  root = pathlib.Path(__file__).parents[2]
  if not (root / '.git').exists():
    return None
  commit = _git(root, ['rev-parse', 'HEAD'])
  if commit is None:
    return None
  return commit + ('+' if _git(root, ['status', '--porcelain', '-uno']) else '')


def _git(root: pathlib.Path, arguments: Sequence[str]) -> str | None:
  try:
    done = subprocess.run(
      ['git', *arguments], cwd=root, capture_output=True, text=True, timeout=10, check=True
    )
  except (OSError, subprocess.SubprocessError):
    return None
  return done.stdout.strip()

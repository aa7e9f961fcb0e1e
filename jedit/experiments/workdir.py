"""The directory of a run: its config, its files and the time of its stages."""

import contextlib
import importlib.metadata
import json
import pathlib
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax
import jax
import numpy as np
import transformers

from jedit.experiments.compile_timer import CompileClock
from jedit.io import sealed
from jedit.io.progress import Timers
from jedit.io.storage import to_json
from jedit.parallel.mesh import is_first_process
from jedit.types import UserError

CONFIG_FILE = 'config.json'
SUMMARY_FILE = 'summary.json'
_PROVENANCE = 'provenance.json'
_SECONDS = 'seconds.json'
CONFIG, SUMMARY, PROVENANCE, _TIMES = (
  f'jedit {name} 1' for name in ('config', 'summary', 'provenance', 'seconds')
)  # formats
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
  'downstream',
  'records.jsonl',
  SUMMARY_FILE,
  'model',
  'adapter',
)
# What runs write besides; files of these names without a config of ours are of somebody else.
_WRITTEN = (
  CONFIG_FILE,
  _PROVENANCE,
  _SECONDS,
  'evaluation.json',
  'unedited.jsonl',
  'samples.json',
  'export.json',
  'adapter.json',
  'report.html',
  *('cases.*', 'compare.*', 'curves.*', 'downstream.*', 'metrics.*', 'published.*'),
  *('relations.*', 'seeds.*', 'shifts.*', 'sweep.*'),
)
_TEMPORARY = re.compile(r'\..+\.[0-9a-f]{8}\.tmp')  # of `jedit.io.storage`
# Fields that may change between two runs in one workdir, because no result depends on them.
FREE = (
  'task',
  'export.',
  'cells',
  'published',
  'axis',
  'targets',
  'evaluation.store',
  # Downstream tasks have files of their own.
  'evaluation.harness',
  # Batches, which somebody lowers where memory runs out.
  'edit.target_batch_size',
  'evaluation.tokens_per_batch',
  'training.file',
  'probe.probes',
  'plan.',
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
    file = self / _SECONDS
    stored = sealed.kept(file, sealed.read_json, _TIMES, None, dict[str, float])
    self._timers = Timers(stored if self._goes_on else None)

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
    file = self / _PROVENANCE
    old = sealed.read_json(file, PROVENANCE) if self._goes_on and file.is_file() else {}
    for part in _INPUTS:
      if part in new and part in old:
        self._check_same_input(part, old[part], new[part])
    self._remove_temporary()
    # The provenance of the first result stays.
    added = {part: value for part, value in new.items() if part not in old}
    sealed.write_json(file, PROVENANCE, {**_environment(), **old, **added})
    sealed.write_json(self / CONFIG_FILE, CONFIG, self._config)

  def key(self, *inputs: Any) -> list[Any]:
    """Key of a stage's result: the config without the fields that leave results unchanged.

    Args:
      inputs: what the stage works with, JSON-able.
    """
    fields = {name: each for name, each in flat(self._config).items() if not _is_free(name)}
    return [fields, *inputs]

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
    sealed.write_json(self / _SECONDS, _TIMES, total)

  def _check_config(self) -> bool:
    """True if the workdir has results of this config to resume from."""
    results = [name for name in _RESULTS if (self / name).exists()]
    if not self._is_ours():
      written = [file.name for name in _WRITTEN for file in self.path.glob(name)]
      if results or written:
        raise UserError(
          f'{self.path} holds {[*results, *written][0]} but no {CONFIG_FILE} of jedit, so it may '
          'belong to somebody else; choose another workdir.'
        )
    if not results:
      return False
    old, new = flat(sealed.read_json(self / CONFIG_FILE, CONFIG)), flat(self._config)
    for name in [*old, *new]:
      if not _is_free(name) and old.get(name) != new.get(name):
        raise UserError(
          f'{self.path} holds the run of another config: {name} is {_show(old, name)} there and '
          f'{_show(new, name)} here; choose another workdir.'
        )
    return True

  def _is_ours(self) -> bool:
    return sealed.is_sealed_json(self / CONFIG_FILE)

  def _remove_temporary(self) -> None:
    """Removes what killed runs were writing."""
    if is_first_process() and self._is_ours():
      for path in self.path.rglob('.*.tmp'):
        if _TEMPORARY.fullmatch(path.name):
          shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

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


def _is_free(name: str) -> bool:
  return name.startswith(FREE)


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

"""Location of a model: a directory, or an id on the Hugging Face hub.

The hub's library downloads and caches the files, controlled by its environment variables HF_HOME
(cache directory), HF_HUB_OFFLINE (no downloads) and HF_TOKEN (login).
"""

import contextlib
import dataclasses
import fnmatch
import functools
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import huggingface_hub
from huggingface_hub import constants, errors
from huggingface_hub.utils import validate_repo_id

from jedit.io import schema
from jedit.io.downloads import Download
from jedit.models.safetensors_index import (
  COMPANIONS,
  INDEX,
  WEIGHTS,
  open_tensors,
  refuse_other_formats,
)
from jedit.types import UserError

_WEIGHT_FILES = (WEIGHTS, INDEX, 'model-*-of-*.safetensors')
_TIMEOUT = 10.0  # seconds
_FILES = ['config.json', *_WEIGHT_FILES, *COMPANIONS]


@dataclasses.dataclass(frozen=True)
class Location:
  """Where a model lies.

  Attributes:
    path: its directory; None for a model of the hub that is not fully cached.
    hf_config: its config.json, if `path` is None.
    download: what is fetched then.
  """

  path: pathlib.Path | None
  hf_config: dict[str, Any] | None = None
  download: Download | None = None


def find_directory(model: str | os.PathLike[str], revision: str | None = None) -> pathlib.Path:
  """The directory of a model; hub models are downloaded unless cached.

  Args:
    model: path of a directory, or an id such as 'EleutherAI/gpt-j-6b'.
    revision: branch, tag or commit on the hub; None takes the main branch.

  Raises:
    UserError: if neither exists, or the hub is unreachable or denies access.
  """
  path = pathlib.Path(model)
  if path.is_dir():
    if revision is not None:
      raise UserError(f'{path} is a directory; revision {revision!r} is for models of the hub.')
    return path
  name = os.fspath(model)
  if not _is_id(name):
    raise UserError(f'There is no model directory {path}; check the path.')
  return _download(name, revision)


def locate(model: str | os.PathLike[str], revision: str | None = None) -> Location:
  """Where a model lies, or what a download of it takes; nothing is downloaded or written.

  Args:
    model, revision: as of `find_directory`.

  Raises:
    UserError: as `find_directory`, and for a model of the hub with unusable files.
  """
  path, name = pathlib.Path(model), os.fspath(model)
  if path.is_dir() or not _is_id(name):
    return Location(find_directory(model, revision))
  with contextlib.suppress(errors.LocalEntryNotFoundError, UserError):
    cached = pathlib.Path(
      huggingface_hub.snapshot_download(
        name, revision=revision, allow_patterns=_FILES, local_files_only=True
      )
    )
    if (cached / 'config.json').is_file() and open_tensors(cached):
      return Location(cached)
  with _hub_errors(name, revision), tempfile.TemporaryDirectory() as folder:
    info = _model_info(name, revision)
    file = huggingface_hub.hf_hub_download(name, 'config.json', revision=revision, local_dir=folder)
    hf_config = schema.read_json(file, dict[str, Any])
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    read = [file for file in sizes if any(fnmatch.fnmatch(file, pattern) for pattern in _FILES)]
    if not any(fnmatch.fnmatch(file, weights) for file in read for weights in _WEIGHT_FILES):
      refuse_other_formats(name, sizes)
  card = info.card_data
  size = sum(sizes[file] for file in read)
  licence = str(card.get('license') or '') if card else ''
  place = pathlib.Path(constants.HF_HUB_CACHE)
  return Location(None, hf_config, Download(name, place, licence, size or None))


def _model_info(name: str, revision: str | None) -> huggingface_hub.ModelInfo:
  """Files and licence of a model. Of the hub's requests this one is not repeated when offline."""
  try:
    return huggingface_hub.model_info(
      name, revision=revision, files_metadata=True, timeout=_TIMEOUT
    )
  except (errors.HfHubHTTPError, OSError):
    raise
  except Exception as error:  # of the hub's HTTP library, which changes with its version
    raise errors.LocalEntryNotFoundError(str(error)) from error


def _is_id(name: str) -> bool:
  try:
    validate_repo_id(name)
  except errors.HFValidationError:
    return False
  return True


@functools.cache  # one request to the hub per model
def _download(name: str, revision: str | None) -> pathlib.Path:
  with _hub_errors(name, revision):
    path = pathlib.Path(
      huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=_FILES)
    )
  if not any(file for pattern in _WEIGHT_FILES for file in path.glob(pattern)):
    try:
      files = huggingface_hub.list_repo_files(name, revision=revision)
    except (errors.HfHubHTTPError, OSError):
      files = []  # the loader then reports missing weights
    refuse_other_formats(name, files)
  return path


@contextlib.contextmanager
def _hub_errors(name: str, revision: str | None) -> Iterator[None]:
  """Failures of requests about a model as sentences."""
  at = '' if revision is None else f' at revision {revision!r}'
  try:
    yield
  except errors.GatedRepoError as error:
    raise UserError(
      f'{name} requires accepting its licence; do that on its page '
      f'https://huggingface.co/{name} and log in with: hf auth login.'
    ) from error
  except errors.RepositoryNotFoundError as error:
    raise UserError(
      f'There is no directory {name}, and no model of that id on the Hugging Face hub that you may '
      'see; check the name, or log in with: hf auth login.'
    ) from error
  except errors.RevisionNotFoundError as error:
    raise UserError(f'{name} has no revision {revision!r} on the hub; check it.') from error
  except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
    raise UserError(
      f'There is no directory {name}; the model {name}{at} of the Hugging Face hub is not fully '
      'cached, and the hub cannot be reached; give a directory (model.path in a config), or load '
      'it once while online (without HF_HUB_OFFLINE).'
    ) from error
  except (errors.HfHubHTTPError, OSError) as error:
    reason = str(error).strip().splitlines()[0]
    raise UserError(f'{name}{at} could not be downloaded ({reason}); try again.') from error

"""Location of a model: a directory, or an id on the Hugging Face hub.

The hub's library downloads and caches the files, controlled by its environment variables HF_HOME
(cache directory), HF_HUB_OFFLINE (no downloads) and HF_TOKEN (login).
"""

import functools
import os
import pathlib

import huggingface_hub
from huggingface_hub import errors

from jedit.models.safetensors_index import COMPANIONS, INDEX, WEIGHTS, refuse_other_formats
from jedit.types import UserError

_WEIGHT_FILES = (WEIGHTS, INDEX, 'model-*-of-*.safetensors')


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
  try:
    huggingface_hub.utils.validate_repo_id(name)
  except errors.HFValidationError:
    raise UserError(f'There is no model directory {path}; check the path.') from None
  return _download(name, revision)


@functools.cache  # one request to the hub per model
def _download(name: str, revision: str | None) -> pathlib.Path:
  at = '' if revision is None else f' at revision {revision!r}'
  try:
    found = huggingface_hub.snapshot_download(
      name, revision=revision, allow_patterns=['config.json', *_WEIGHT_FILES, *COMPANIONS]
    )
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
  except errors.LocalEntryNotFoundError as error:
    raise UserError(
      f'There is no directory {name}; the model {name}{at} of the Hugging Face hub is not fully '
      'cached, and the hub cannot be reached. Give a directory, or load it once while online '
      '(without HF_HUB_OFFLINE).'
    ) from error
  except (errors.HfHubHTTPError, OSError) as error:
    reason = str(error).strip().splitlines()[0]
    raise UserError(f'{name}{at} could not be downloaded ({reason}); try again.') from error
  path = pathlib.Path(found)
  if not any(file for pattern in _WEIGHT_FILES for file in path.glob(pattern)):
    try:
      files = huggingface_hub.list_repo_files(name, revision=revision)
    except (errors.HfHubHTTPError, OSError):
      files = []  # the loader then reports missing weights
    refuse_other_formats(name, files)
  return path

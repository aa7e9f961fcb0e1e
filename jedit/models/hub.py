"""Where a model is: a directory, or what the Hugging Face hub has under its id.

The hub's own library downloads and keeps the files; its environment variables decide where
(HF_HOME), whether at all (HF_HUB_OFFLINE) and as whom (HF_TOKEN).
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
  """The directory of a model; one from the hub is downloaded where it is not there yet.

  Args:
    model: path of a directory, or an id such as 'EleutherAI/gpt-j-6b'.
    revision: branch, tag or commit on the hub; None takes the main branch.

  Raises:
    UserError: if there is neither, or the hub cannot be reached or does not give it out.
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


@functools.cache  # the hub is asked once
def _download(name: str, revision: str | None) -> pathlib.Path:
  at = '' if revision is None else f' at revision {revision!r}'
  try:
    found = huggingface_hub.snapshot_download(
      name, revision=revision, allow_patterns=['config.json', *_WEIGHT_FILES, *COMPANIONS]
    )
  except errors.GatedRepoError as error:
    raise UserError(
      f'{name} is given only to those who accept its licence; do that on its page '
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
      f'There is no directory {name}; the model {name}{at} of the Hugging Face hub is not wholly '
      'in the cache, and the hub cannot be reached. Give a directory, or load it once while online '
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
      files = []  # then the loader says that there are no weights
    refuse_other_formats(name, files)
  return path

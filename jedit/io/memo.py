"""Memo: finished work kept as files, found again by everything that it depends on."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jedit.io import sealed
from jedit.io.tensors import read_tensors, write_tensors


class Stored(NamedTuple):
  """Arrays by name and JSON-able facts: what a memo keeps of a result, and the file's format."""

  tensors: Mapping[str, np.ndarray]
  facts: Mapping[str, Any] = {}
  format: str = 'jedit result 1'


class Memo:
  """Keeps results in a directory; a run that is repeated after a kill takes them from there.

  A result is stored under a name with the digest of its key. One of another key, and one that is
  damaged, is made anew and replaced, so that a stale file never passes for a result.
  """

  def __init__(self, folder: str | os.PathLike[str] | None):
    """Takes the directory, which need not exist; None keeps nothing."""
    self.folder = None if folder is None else pathlib.Path(folder)

  def below(self, name: str) -> 'Memo':
    """A memo in a subdirectory."""
    return Memo(None if self.folder is None else self.folder / name)

  def get(self, name: str, key: Any) -> Stored | None:
    """The result stored under this name and key, or None."""
    if self.folder is None:
      return None
    path = self._path(name)
    found = sealed.kept(path, read_tensors, None, key)
    return None if found is None else Stored(*found)

  def put(self, name: str, key: Any, result: Stored) -> Stored:
    """Stores a result and returns it."""
    if self.folder is not None:
      write_tensors(self._path(name), result.format, result.tensors, result.facts, key)
    return result

  def _path(self, name: str) -> pathlib.Path:
    assert self.folder is not None
    return self.folder / f'{name}.safetensors'

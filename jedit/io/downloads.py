"""Download: a file or directory that a run is going to fetch, said before it is fetched."""

import pathlib
from typing import NamedTuple

from jedit.units import format_bytes


class Download(NamedTuple):
  """An input that is not on this machine yet.

  Attributes:
    name: of the file, model or dataset.
    folder: where it will lie.
    licence: as its source states it; empty where it states none.
    num_bytes: its size; None where unknown.
  """

  name: str
  folder: pathlib.Path
  licence: str = ''
  num_bytes: int | None = None

  def __str__(self) -> str:
    size = 'size unknown' if self.num_bytes is None else format_bytes(self.num_bytes)
    return f'{self.name}, {size}, licence {self.licence or "not stated"}, to {self.folder}'

"""The public data files: found in a directory, or downloaded there with a checksum."""

import hashlib
import http.client
import os
import pathlib
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jedit.io import storage
from jedit.io.progress import Progress
from jedit.types import UserError

# The hosts of ROME and MEMIT serve the same files; the second is the default of most codes.
ROOTS = ('https://memit.baulab.info/data/dsets', 'https://rome.baulab.info/data/dsets')

# SHA-256 where a public mirror states it. What a file had when it came is kept beside it.
FILES: Mapping[str, str | None] = {
  'counterfact.json': 'd017056125178a13728594e66a801357a8db9ed7973a7425554bb4271de9fc6f',
  'multi_counterfact.json': None,
  'zsre_mend_eval.json': None,
  'known_1000.json': None,
  'attribute_snippets.json': '10b5c1cd105e54d5983c72de1b45bfc88bc7af786f7b99def2557886ff23385b',
  'idf.npy': 'c073d642589d4ac6432f467230329b36364a01e72de63a77a3624b745b923dda',
  'tfidf_vocab.json': '8a78c4f20d8d85dadfd14e283d71af255482ff18aa0eb8a81716024c05ff888b',
}

_CHECKSUMS = 'checksums.json'
_BLOCK = 2**20  # bytes
_TIMEOUT = 30  # seconds without a byte


def default_directory() -> pathlib.Path:
  """Where files are kept unless somebody says otherwise."""
  return pathlib.Path.home() / '.cache' / 'jedit' / 'data'


def fetch(
  name: str,
  directory: str | os.PathLike[str] | None = None,
  *,
  mirrors: Sequence[str] = (),
  sha256: str | None = None,
  opener: Callable[..., Any] = urllib.request.urlopen,
) -> pathlib.Path:
  """A public file in a local directory, downloaded if it is not there.

  A file that is there is checked against the checksum of its download, if it was one; a file that
  was put there by hand is taken as it is unless `sha256` says what it must be.

  Args:
    name: one of `FILES`.
    directory: where the files lie; None takes `default_directory()`.
    mirrors: addresses to try before `ROOTS`; the file's name is appended.
    sha256: what the file must have; None takes what is known about a download.
    opener: opens an address, as `urllib.request.urlopen`.

  Returns:
    The file.

  Raises:
    UserError: for an unknown name, a file with another checksum, and where no root can be reached;
      then the message says where to put the file by hand.
  """
  if name not in FILES:
    raise UserError(f'There is no public file {name!r}; choose one of {", ".join(FILES)}.')
  folder = default_directory() if directory is None else pathlib.Path(directory)
  file, sums = folder / name, folder / _CHECKSUMS
  kept = storage.read_json(sums) if sums.is_file() else {}
  if file.is_file():
    wanted = sha256 or kept.get(name)
    if wanted is not None and _sha256(file) != wanted:
      raise UserError(
        f'{file} does not have the SHA-256 {wanted}; remove it to download it again, or give '
        'another directory.'
      )
    return file
  wanted = sha256 or FILES[name]
  failures = []
  for root in [*mirrors, *ROOTS]:
    address = f'{root.rstrip("/")}/{name}'
    try:
      found = _download(address, file, wanted, opener)
    except (OSError, http.client.HTTPException, _NotWhole) as error:
      failures.append(f'{address}: {getattr(error, "reason", None) or error}')
      continue
    storage.write_json(sums, {**kept, name: found})
    return file
  raise UserError(
    f'{name} is not in {folder} and cannot be downloaded ({"; ".join(failures)}); put the file '
    f'there by hand, or name a mirror.'
  )


class _NotWhole(Exception):
  """What arrived is not the file."""


def _download(
  address: str, file: pathlib.Path, wanted: str | None, opener: Callable[..., Any]
) -> str:
  """Writes the file once it is whole; returns its SHA-256."""
  digest = hashlib.sha256()
  with opener(address, timeout=_TIMEOUT) as answer:
    length = answer.headers.get('Content-Length')
    total = int(length) if length else None
    size = 0
    with storage.atomic_file(file) as beside:
      with open(beside, 'wb') as out, Progress(f'download {file.name}', total, 'bytes') as progress:
        while block := _read(answer):
          out.write(block)
          digest.update(block)
          size += len(block)
          progress.update(len(block))
      if total is not None and size != total:
        raise _NotWhole(f'{size} of {total} bytes arrived')
      if wanted is not None and digest.hexdigest() != wanted:
        raise _NotWhole(f'its SHA-256 is {digest.hexdigest()}, not {wanted}')
  return digest.hexdigest()


def _read(answer: Any) -> bytes:
  """The next bytes; a broken connection is no trouble of the file that they are written to."""
  try:
    return answer.read(_BLOCK)
  except OSError as error:
    raise _NotWhole(f'the connection broke ({error})') from error


def _sha256(file: pathlib.Path) -> str:
  with open(file, 'rb') as stream:
    return hashlib.file_digest(stream, 'sha256').hexdigest()

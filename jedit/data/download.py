"""The public data files: found in a directory, or downloaded there with a checksum."""

import os
import pathlib
from collections.abc import Sequence

import pooch

from jedit.data.public import FILES, RECORDS, ROOTS
from jedit.io import schema, storage
from jedit.io.downloads import Download
from jedit.io.progress import Progress
from jedit.types import UserError

_CHECKSUMS = 'checksums.json'
_TIMEOUT = (10, 30)  # seconds to connect, seconds without a byte
_RETRIES = 2  # of each address
_BLOCK = 2**20  # bytes


def default_directory() -> pathlib.Path:
  """The directory of the files of a run that names none."""
  return pathlib.Path.home() / '.cache' / 'jedit' / 'data'


def fetch(
  name: str,
  directory: str | os.PathLike[str] | None = None,
  *,
  mirrors: Sequence[str] = (),
  sha256: str | None = None,
) -> pathlib.Path:
  """A public file in a local directory, downloaded if it is not there.

  A downloaded file is compared with its checksum again; a file that was put there by hand is
  taken as it is unless `sha256` is given.

  Args:
    name: one of `jedit.data.public.FILES`.
    directory: where the files lie; None takes `default_directory()`.
    mirrors: addresses to try before `ROOTS`; the file's name is appended.
    sha256: checksum that the file must have; None takes the one known of a download.

  Returns:
    The file.

  Raises:
    UserError: for an unknown name, a file with another checksum, and where no root can be reached;
      then the message says where to put the file by hand.
  """
  file = _local(name, directory)
  sums = _folder(directory) / _CHECKSUMS
  kept = schema.read_json(sums, dict[str, str]) if sums.is_file() else {}
  if file.is_file():
    wanted = sha256 or kept.get(name)
    if wanted is not None and pooch.file_hash(os.fspath(file)) != wanted:
      raise UserError(
        f'{file} does not have the SHA-256 {wanted}; remove it to download it again, or give '
        'another directory.'
      )
    return file
  failures = []
  for address in _addresses(name, mirrors):
    try:
      found = _download(address, file, sha256 or FILES[name].sha256, FILES[name].num_bytes)
    except _Failure as error:
      failures.append(f'{address}: {error}')
      continue
    storage.write_json(sums, {**kept, name: found})
    return file
  raise _unreachable([name], _folder(directory), failures)


def plan_downloads(
  names: Sequence[str],
  directory: str | os.PathLike[str] | None = None,
  mirrors: Sequence[str] = (),
) -> list[Download]:
  """What `fetch` would download, after asking whether an address has the first of the files.

  Raises:
    UserError: for an unknown name, and where no address has the first missing file.
  """
  missing = [name for name in names if not _local(name, directory).is_file()]
  if not missing:
    return []
  failures = []
  for address in _addresses(missing[0], mirrors):
    try:
      stated = _size(address)
    except _Failure as error:
      failures.append(f'{address}: {error}')
      continue
    sizes = [stated or FILES[missing[0]].num_bytes, *(FILES[n].num_bytes for n in missing[1:])]
    return [
      Download(name, _local(name, directory).parent, FILES[name].licence, size)
      for name, size in zip(missing, sizes, strict=True)
    ]
  raise _unreachable(missing, _folder(directory), failures)


def _folder(directory: str | os.PathLike[str] | None) -> pathlib.Path:
  return default_directory() if directory is None else pathlib.Path(directory)


def _local(name: str, directory: str | os.PathLike[str] | None) -> pathlib.Path:
  if name not in FILES:
    raise UserError(f'There is no public file {name!r}; choose one of {", ".join(RECORDS)}.')
  return _folder(directory) / name


def _addresses(name: str, mirrors: Sequence[str]) -> list[str]:
  own = FILES[name].address
  roots = [] if own else [f'{root.rstrip("/")}/{FILES[name].folder}' for root in ROOTS]
  own_last = [own] if own else []
  return [*(f'{root.rstrip("/")}/{name}' for root in [*mirrors, *roots]), *own_last]


def _unreachable(names: Sequence[str], folder: pathlib.Path, failures: Sequence[str]) -> UserError:
  verb, each = ('is', 'the file') if len(names) == 1 else ('are', 'the files')
  shown = names[0] if len(names) == 1 else f'{names[0]} and {len(names) - 1} more'
  return UserError(
    f'{shown} {verb} not in {folder} and cannot be downloaded ({"; ".join(failures)}); '
    f'put {each} there by hand, or name a mirror in data.mirrors.'
  )


class _Failure(Exception):
  """An address that does not give the file."""


def _size(address: str) -> int | None:
  """Bytes of the file at an address, None where it does not say; raises a _Failure without one."""
  import requests  # here, because it takes a while

  try:
    answer = requests.head(address, timeout=_TIMEOUT, allow_redirects=True)
    answer.raise_for_status()
  except requests.exceptions.RequestException as error:
    raise _Failure(_reason(error)) from error
  stated = answer.headers.get('Content-Length', '')
  return int(stated) if stated.isdigit() else None


def _reason(error: Exception) -> str:
  reason = getattr(error.args[0], 'reason', None) if error.args else None
  return str(reason or error).split('): ', 1)[-1]  # without the connection


def _download(address: str, file: pathlib.Path, wanted: str | None, least: int | None) -> str:
  """Writes the file once it is whole, with at least so many bytes; returns its SHA-256."""
  from requests.exceptions import RequestException  # here, because it takes a while

  pooch.get_logger().setLevel('WARNING')
  with (
    storage.atomic_file(file) as beside,
    Progress(f'download {file.name}', None, 'bytes') as shown,
  ):
    source = pooch.create(
      path=beside.parent,
      base_url='',
      registry={beside.name: None},  # checked below, in our words
      urls={beside.name: address},
      retry_if_failed=_RETRIES,
    )
    downloader = pooch.HTTPDownloader(_Bar(shown), chunk_size=_BLOCK, timeout=_TIMEOUT)
    try:
      source.fetch(beside.name, downloader=downloader)
    except RequestException as error:
      raise _Failure(_reason(error)) from error
    if beside.stat().st_size < (least or 0):
      raise _Failure(f'it has {beside.stat().st_size:,} bytes, not {least:,}')
    found = pooch.file_hash(os.fspath(beside))
    if wanted not in (None, found):
      raise _Failure(f'its SHA-256 is {found}, not {wanted}')
  return found


class _Bar:
  """Our progress with the interface of tqdm that pooch calls.

  pooch sets `total`, counts every block as a full one, and fills the bar after a reset.
  """

  total = 0

  def __init__(self, progress: Progress):
    self._progress = progress

  def update(self, count: int) -> None:
    left = self.total - self._progress.done
    self._progress.update(min(count, left) if self.total else count, total=self.total)

  def reset(self) -> None:
    pass

  def close(self) -> None:
    pass

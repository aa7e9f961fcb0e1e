"""The public data files: found in a directory, or downloaded there with a checksum."""

import os
import pathlib
from collections.abc import Mapping, Sequence

import pooch

from jedit.io import schema, storage
from jedit.io.progress import Progress
from jedit.types import UserError

# The hosts of ROME and MEMIT serve the same files; the second is the default of most codes.
ROOTS = ('https://memit.baulab.info/data/dsets', 'https://rome.baulab.info/data/dsets')

# SHA-256 where a public mirror states it; that of every download is kept beside the file.
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
    name: one of `FILES`.
    directory: where the files lie; None takes `default_directory()`.
    mirrors: addresses to try before `ROOTS`; the file's name is appended.
    sha256: checksum that the file must have; None takes the one known of a download.

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
  for root in [*mirrors, *ROOTS]:
    address = f'{root.rstrip("/")}/{name}'
    try:
      found = _download(address, file, sha256 or FILES[name])
    except _Failure as error:
      failures.append(f'{address}: {error}')
      continue
    storage.write_json(sums, {**kept, name: found})
    return file
  raise UserError(
    f'{name} is not in {folder} and cannot be downloaded ({"; ".join(failures)}); put the file '
    f'there by hand, or name a mirror.'
  )


class _Failure(Exception):
  """An address that does not give the file."""


def _download(address: str, file: pathlib.Path, wanted: str | None) -> str:
  """Writes the file once it is whole; returns its SHA-256."""
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
      reason = getattr(error.args[0], 'reason', None) if error.args else None
      raise _Failure(str(reason or error)) from error
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

"""Locks: one owner at a time for a workdir or a store, in one host or on a shared disk.

The lock is a file, held by flock, with the host and process of its owner. The system drops it with
the process, however that ends, and an owner that ends takes the file with it. NFS since version 4,
Lustre and GPFS pass flock on to other hosts. For disks that do not, the owner also touches the file
every few seconds: one that names another host counts as abandoned only after it was watched and
stood still.
"""

import contextlib
import json
import os
import pathlib
import socket
import threading
import time
from types import TracebackType
from typing import IO, Any

import psutil

from jedit.parallel.mesh import is_first_process, least_over_processes
from jedit.types import UserError

try:
  import fcntl
except ImportError:  # Windows: the watch alone
  fcntl = None  # type: ignore[assignment]

_HEAD = b'{"host": '
_BEAT = 5.0  # seconds
_WATCH = 3 * _BEAT  # a host that is alive has touched the file by then


class Lock:
  """Exclusive use of a file or directory; a context manager.

  Of several processes of a run the first one takes it for all.
  """

  def __init__(self, path: str | os.PathLike[str], label: str):
    """Args:

    path: of the lock file.
    label: of what it guards, for messages.
    """
    self.path, self._label = pathlib.Path(path), label
    self._file: IO[bytes] | None = None
    self._made: list[pathlib.Path] = []  # directories, the innermost first
    self._ends = threading.Event()

  def take(self) -> None:
    """Takes the lock.

    Raises:
      UserError: if somebody else has it, or the place cannot be written.
    """
    failure: UserError | None = None
    if is_first_process():
      try:
        self._take()
      except UserError as error:
        failure = error
    if not least_over_processes(int(failure is None)):
      raise failure or UserError('The first process of this run stopped; see its message.')

  def release(self) -> None:
    """Gives the lock back; directories made for it that are still empty go as well."""
    if self._file is None:
      return
    self._ends.set()
    with contextlib.suppress(OSError):
      self.path.unlink()  # before others may have it
    self._file.close()
    self._file = None
    self._drop_folders()

  def __enter__(self) -> 'Lock':
    self.take()
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    self.release()

  def _take(self) -> None:
    try:
      self._make_folders()
      while self._file is None:
        file = open(self.path, 'a+b')
        try:
          self._file = file if self._is_ours(file) else None
        finally:
          if self._file is None:
            file.close()
    except OSError as error:
      self._drop_folders()
      raise UserError(
        f'{self._label} cannot be written ({error.strerror or error}); choose a place that is '
        'writable.'
      ) from error
    except UserError:
      self._drop_folders()
      raise
    file.truncate(0)
    file.write(json.dumps({'host': socket.gethostname(), 'process': os.getpid()}).encode())
    file.flush()
    self._ends.clear()
    threading.Thread(target=self._beat, daemon=True).start()

  def _is_ours(self, file: IO[bytes]) -> bool:
    """True with the lock on the file at the path; raises UserError if it has another owner."""
    has_flock = fcntl is not None
    try:
      if has_flock:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise self._refusal(_read_owner(file)) from None
    except OSError:  # a disk without locks
      has_flock = False
    try:
      if os.fstat(file.fileno()).st_ino != self.path.stat().st_ino:
        return False  # its owner has just ended and removed it
    except FileNotFoundError:
      return False
    file.seek(0)
    if not _HEAD.startswith(begin := file.read(len(_HEAD))) and begin != _HEAD:
      raise UserError(f'{self.path} was not made by jedit; remove it, or choose another place.')
    owner = _read_owner(file)
    if owner and owner['host'] != socket.gethostname():
      is_alive = self._is_alive()
    else:
      is_alive = bool(owner) and not has_flock and psutil.pid_exists(owner['process'])
    if is_alive:
      raise self._refusal(owner)
    return True

  def _is_alive(self) -> bool:
    """True once an owner on another host touches the file; False if it stands still."""
    first, until = self.path.stat().st_mtime_ns, time.monotonic() + _WATCH
    while time.monotonic() < until:
      time.sleep(_BEAT / 10)
      with open(self.path, 'rb') as file:  # opening brings a network's cache up to date
        if os.fstat(file.fileno()).st_mtime_ns != first:
          return True
    return False

  def _refusal(self, owner: dict[str, Any]) -> UserError:
    who = f'process {owner["process"]} on {owner["host"]}' if owner else 'another process'
    return UserError(
      f'{self._label} is in use by {who}; wait until that run has ended, or choose another one.'
    )

  def _beat(self) -> None:
    while not self._ends.wait(_BEAT):
      with contextlib.suppress(OSError):
        os.utime(self.path)

  def _make_folders(self) -> None:
    folder = self.path.parent
    while not folder.exists():
      self._made.append(folder)
      folder = folder.parent
    self.path.parent.mkdir(parents=True, exist_ok=True)

  def _drop_folders(self) -> None:
    for folder in self._made:
      with contextlib.suppress(OSError):
        folder.rmdir()
    self._made = []


def _read_owner(file: IO[bytes]) -> dict[str, Any]:
  """Host and process; empty before the owner has written them."""
  file.seek(0)
  try:
    owner = json.loads(file.read(1000))
    return {'host': str(owner['host']), 'process': int(owner['process'])}
  except (ValueError, TypeError, KeyError):
    return {}

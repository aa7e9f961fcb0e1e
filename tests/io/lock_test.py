"""One owner at a time, whatever became of the last one."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from jedit.io import lock
from jedit.io.lock import Lock
from jedit.types import UserError


def test_a_second_owner_is_refused_and_nothing_stays(tmp_path):
  path = tmp_path / 'new' / 'deep' / '.lock'
  with Lock(path, 'The workdir x'):
    owner = json.loads(path.read_bytes())
    assert owner['process'] == os.getpid()
    with pytest.raises(UserError, match=f'The workdir x is in use by process {os.getpid()} on '):
      Lock(path, 'The workdir x').take()
    assert path.exists()
  assert not list(tmp_path.iterdir())
  with Lock(path, 'The workdir x'):
    (path.parent / 'result').write_text('')
  assert [each.name for each in path.parent.iterdir()] == ['result']


def test_the_lock_of_a_killed_process_is_free(tmp_path):
  path = tmp_path / '.lock'
  code = (
    'import pathlib, sys, time\nfrom jedit.io.lock import Lock\n'
    f'Lock({str(path)!r}, "x").take()\nprint("taken", flush=True)\ntime.sleep(60)'
  )
  command = [sys.executable, '-c', code]
  with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=os.getcwd()) as process:
    process.stdout.readline()
    with pytest.raises(UserError, match=f'in use by process {process.pid}'):
      Lock(path, 'x').take()
    process.send_signal(signal.SIGKILL)
  assert path.exists()
  with Lock(path, 'x'):
    assert json.loads(path.read_bytes())['process'] == os.getpid()


def test_another_host_is_watched(tmp_path, monkeypatch):
  monkeypatch.setattr(lock, '_BEAT', 0.05)
  monkeypatch.setattr(lock, '_WATCH', 0.3)
  path = tmp_path / '.lock'
  path.write_text('{"host": "elsewhere", "process": 7}')
  ends = threading.Event()

  def touch():
    while not ends.wait(0.02):
      os.utime(path)

  thread = threading.Thread(target=touch)
  thread.start()
  with pytest.raises(UserError, match='in use by process 7 on elsewhere'):
    Lock(path, 'x').take()
  ends.set()
  thread.join()
  with Lock(path, 'x'):  # it stands still
    before = path.stat().st_mtime_ns
    until = time.monotonic() + 5
    while path.stat().st_mtime_ns == before and time.monotonic() < until:
      time.sleep(0.02)
    assert path.stat().st_mtime_ns > before, 'an owner touches its lock'


def test_a_file_of_somebody_else_stays(tmp_path):
  (tmp_path / '.lock').write_text('mine')
  with pytest.raises(UserError, match='.lock was not made by jedit; remove it'):
    Lock(tmp_path / '.lock', 'x').take()
  assert (tmp_path / '.lock').read_text() == 'mine'


def test_disks_without_locks_fall_back_to_the_process(tmp_path, monkeypatch):
  def refuse(*unused):
    raise OSError(95, 'Operation not supported')

  monkeypatch.setattr(lock.fcntl, 'flock', refuse)
  with Lock(tmp_path / '.lock', 'x'):
    with pytest.raises(UserError, match='in use'):
      Lock(tmp_path / '.lock', 'x').take()
  (tmp_path / '.lock').write_text(json.dumps({'host': lock.socket.gethostname(), 'process': 2**22}))
  Lock(tmp_path / '.lock', 'x').take()

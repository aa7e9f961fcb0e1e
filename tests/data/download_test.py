"""Public files come with a checksum, from a local server here, and what is absent is explained."""

import functools
import hashlib
import http.server
import json
import threading
import urllib.error

import pytest

from jedit.data import download
from jedit.types import UserError

CONTENT = b'[{"known": 1}]' * 1000
SUM = hashlib.sha256(CONTENT).hexdigest()
NAME = 'known_1000.json'


class _Quiet(http.server.SimpleHTTPRequestHandler):
  def log_message(self, *unused):
    pass


@pytest.fixture
def mirror(tmp_path):
  """Address of a directory that holds one file."""
  (tmp_path / 'served').mkdir()
  (tmp_path / 'served' / NAME).write_bytes(CONTENT)
  handler = functools.partial(_Quiet, directory=tmp_path / 'served')
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/'
    server.shutdown()


def _offline(address, timeout):
  raise urllib.error.URLError('no route to host')


def test_a_file_is_downloaded_once_and_its_checksum_kept(mirror, tmp_path):
  file = download.fetch(NAME, tmp_path / 'data', mirrors=[mirror])
  assert file.read_bytes() == CONTENT
  assert json.loads((tmp_path / 'data/checksums.json').read_text()) == {NAME: SUM}
  assert download.fetch(NAME, tmp_path / 'data', opener=_offline) == file
  file.write_bytes(CONTENT + b' ')
  with pytest.raises(UserError, match=f'does not have the SHA-256 {SUM}'):
    download.fetch(NAME, tmp_path / 'data', opener=_offline)


def test_a_file_with_another_checksum_is_not_kept(mirror, tmp_path, monkeypatch):
  monkeypatch.setattr(download, 'ROOTS', ())
  with pytest.raises(UserError, match=f'its SHA-256 is {SUM}, not 0000'):
    download.fetch(NAME, tmp_path / 'data', mirrors=[mirror], sha256='0000')
  assert not list((tmp_path / 'data').iterdir())


def test_mirrors_come_first_and_roots_follow(tmp_path):
  asked = []

  def opener(address, timeout):
    asked.append(address)
    raise urllib.error.URLError('no route to host')

  with pytest.raises(UserError, match='put the file there by hand, or name a mirror') as raised:
    download.fetch(NAME, tmp_path, mirrors=['http://mirror'], opener=opener)
  assert asked == [f'{root}/{NAME}' for root in ('http://mirror', *download.ROOTS)]
  assert 'no route to host' in str(raised.value)
  assert not list(tmp_path.iterdir())


def test_half_a_file_is_no_file(tmp_path, monkeypatch):
  class Answer:
    headers = {'Content-Length': '100'}

    def __init__(self, blocks):
      self.blocks = iter(blocks)

    def __enter__(self):
      return self

    def __exit__(self, *unused):
      pass

    def read(self, size):
      block = next(self.blocks, b'')
      if isinstance(block, Exception):
        raise block
      return block

  monkeypatch.setattr(download, 'ROOTS', ('http://root',))
  for blocks, message in (
    ([b'half'], '4 of 100 bytes'),
    ([b'half', ConnectionResetError('reset')], 'the connection broke'),
  ):
    with pytest.raises(UserError, match=message):
      download.fetch(NAME, tmp_path, opener=lambda *_, blocks=blocks, **__: Answer(blocks))
    assert not list(tmp_path.iterdir())


def test_a_file_put_there_by_hand_is_taken(tmp_path):
  (tmp_path / NAME).write_bytes(b'mine')
  assert download.fetch(NAME, tmp_path, opener=_offline) == tmp_path / NAME
  with pytest.raises(UserError, match='no public file'):
    download.fetch('other.json', tmp_path)

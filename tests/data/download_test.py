"""Public files come with a checksum, from a local server here; every failure is explained."""

import functools
import hashlib
import http.server
import json
import threading

import pytest

from jedit.data import download, public
from jedit.types import UserError

CONTENT = b'[{"known": 1}]' * 1000
SUM = hashlib.sha256(CONTENT).hexdigest()
NAME = 'known_1000.json'
NOWHERE = 'http://127.0.0.1:9'  # nobody listens there


class _Server(http.server.SimpleHTTPRequestHandler):
  """Serves a directory; `/half` ends answers early, `/flaky` fails the first request of a file."""

  asked: list[str] = []

  def do_GET(self):
    first = self.path not in self.asked
    self.asked.append(self.path)
    if self.path.startswith('/flaky') and first:
      self.send_error(503)
    elif self.path.startswith('/half'):
      self.send_response(200)
      self.send_header('Content-Length', '100')
      self.end_headers()
      self.wfile.write(b'half')
    else:
      self.path = self.path.replace('/flaky', '').replace('/dsets', '')
      super().do_GET()

  def log_message(self, *unused):
    pass


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
  """No request leaves this machine, and no retry waits."""
  monkeypatch.setattr(download, 'ROOTS', (NOWHERE,))
  monkeypatch.setattr('pooch.core.time.sleep', lambda seconds: None)
  monkeypatch.setenv('no_proxy', '127.0.0.1')


@pytest.fixture
def mirror(tmp_path):
  """Address of a directory that holds one file."""
  (tmp_path / 'served').mkdir()
  (tmp_path / 'served' / NAME).write_bytes(CONTENT)
  _Server.asked = []
  handler = functools.partial(_Server, directory=tmp_path / 'served')
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/'
    server.shutdown()


def test_a_file_is_downloaded_once_and_its_checksum_kept(mirror, tmp_path, capsys):
  file = download.fetch(NAME, tmp_path / 'data', mirrors=[mirror])
  assert file.read_bytes() == CONTENT
  assert json.loads((tmp_path / 'data/checksums.json').read_text()) == {NAME: SUM}
  shown = capsys.readouterr().err
  assert shown.startswith(f'download {NAME}: 100% 14.0k/14.0k [') and shown.count('\n') == 1
  assert download.fetch(NAME, tmp_path / 'data') == file
  file.write_bytes(CONTENT + b' ')
  with pytest.raises(UserError, match=f'does not have the SHA-256 {SUM}'):
    download.fetch(NAME, tmp_path / 'data')
  assert _Server.asked == [f'/{NAME}']


def test_a_file_with_another_checksum_is_not_kept(mirror, tmp_path):
  with pytest.raises(UserError, match=f'its SHA-256 is {SUM}, not 0000'):
    download.fetch(NAME, tmp_path / 'data', mirrors=[mirror], sha256='0000')
  assert not list((tmp_path / 'data').iterdir())


def test_mirrors_come_first_and_roots_follow(mirror, tmp_path, monkeypatch):
  folder = tmp_path / 'data'
  with pytest.raises(UserError, match='put the file there by hand, or name a mirror') as raised:
    download.fetch(NAME, folder, mirrors=[f'{mirror}/absent'])
  words = str(raised.value)
  assert words.index('absent') < words.index(f'{NOWHERE}/dsets/{NAME}')
  assert '404 Client Error' in words and 'Connection refused' in words
  assert not list(folder.iterdir())
  monkeypatch.setattr(download, 'ROOTS', (mirror,))
  assert download.fetch(NAME, folder, mirrors=[NOWHERE]).read_bytes() == CONTENT


def test_an_address_is_tried_again(mirror, tmp_path):
  file = download.fetch(NAME, tmp_path / 'data', mirrors=[f'{mirror}flaky'])
  assert file.read_bytes() == CONTENT and _Server.asked == [f'/flaky/{NAME}'] * 2


def test_half_a_file_is_no_file(mirror, tmp_path):
  with pytest.raises(UserError, match='4 bytes read, 96 more expected'):
    download.fetch(NAME, tmp_path / 'data', mirrors=[f'{mirror}half'])
  assert not list((tmp_path / 'data').iterdir())


def test_a_file_put_there_by_hand_is_taken(tmp_path):
  (tmp_path / NAME).write_bytes(b'mine')
  assert download.fetch(NAME, tmp_path) == tmp_path / NAME
  with pytest.raises(UserError, match='no public file'):
    download.fetch('other.json', tmp_path)


def test_a_place_that_cannot_be_written_is_no_fault_of_the_mirror(mirror, tmp_path):
  (tmp_path / 'data').write_text('a file')
  with pytest.raises(UserError, match='Cannot write .*; choose a place that is writable'):
    download.fetch(NAME, tmp_path / 'data', mirrors=[mirror])


def test_a_download_is_planned_with_size_and_licence(mirror, tmp_path):
  names = [NAME, 'counterfact.json']
  one, other = download.plan_downloads(names, tmp_path / 'data', [mirror])
  assert (one.name, one.num_bytes) == (NAME, len(CONTENT)) and 'MIT' in one.licence
  assert str(other).startswith('counterfact.json, 45 MB, licence MIT')
  assert not (tmp_path / 'data').exists() and _Server.asked == []  # no GET
  download.fetch(NAME, tmp_path / 'data', mirrors=[mirror])
  assert download.plan_downloads([NAME], tmp_path / 'data') == []
  with pytest.raises(UserError, match='counterfact.json is not in .* put the file there by hand'):
    download.plan_downloads(names, tmp_path / 'data', [mirror])
  with pytest.raises(UserError, match='idf.npy and 1 more are not in .*127.0.0.1:9/dsets/idf.npy'):
    download.plan_downloads(['idf.npy', 'counterfact.json'], tmp_path)


def test_a_short_file_is_not_kept(mirror, tmp_path):
  name = public.archives_of('gpt2-xl', [20])[0]
  place = tmp_path / 'served' / name
  place.parent.mkdir(parents=True)
  place.write_bytes(CONTENT)
  with pytest.raises(UserError, match='it has 14,000 bytes, not 163,841,230'):
    download.fetch(name, tmp_path / 'data', mirrors=[mirror])
  assert not list((tmp_path / 'data').rglob('*.npz'))


def test_published_moments_are_named_by_model_and_layer():
  (name,) = public.archives_of('gptj-6b', [5])
  assert name == (
    'EleutherAI_gpt-j-6B/wikipedia_stats/transformer.h.5.mlp.fc_out_float32_mom2_100000.npz'
  )
  assert public.FILES[name].sha256 is None and public.FILES[name].num_bytes == 2**30
  assert len(public.archives_of('gpt2-xl', range(13, 18))) == 5
  for model, layers in (('gptj-6b', [8, 9]), ('llama-7b', [5])):
    assert public.archives_of(model, layers) == ()

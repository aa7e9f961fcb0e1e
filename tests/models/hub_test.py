"""Hub ids become directories of the cache, and what stands in the way is a sentence."""

import shutil
import types

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from jedit import testbeds
from jedit.experiments.schema import Model
from jedit.models import hub
from jedit.models.language_model import load
from jedit.types import UserError

COMMIT = 'b' * 40


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  """An empty cache of the hub; nothing is remembered from other tests."""
  hub._download.cache_clear()
  monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'hub'))
  return tmp_path / 'hub'


def _keep(cache, name, files, branch='main'):
  """Lays files out as a download does."""
  folder = cache / ('models--' + name.replace('/', '--'))
  snapshot = folder / 'snapshots' / COMMIT
  for file in files:
    (snapshot / file.name).parent.mkdir(parents=True, exist_ok=True)
    (folder / 'blobs').mkdir(exist_ok=True)
    blob = shutil.copy(file, folder / 'blobs' / f'{branch}-{file.name}')
    (snapshot / file.name).symlink_to(blob)
  (folder / 'refs').mkdir(exist_ok=True)
  (folder / 'refs' / branch).write_text(COMMIT)
  return snapshot


def test_a_cached_model_loads_offline(cache, tmp_path):
  snapshot = _keep(cache, 'some/model', testbeds.testbed_directory('gptj').iterdir())
  lm, here = load('some/model'), load(testbeds.testbed_directory('gptj'))
  assert (lm.fingerprint, lm.source) == (here.fingerprint, str(snapshot))
  lm.export(tmp_path / 'out')
  weights = 'model.safetensors'
  assert (tmp_path / 'out' / weights).read_bytes() == (snapshot / weights).read_bytes()
  assert Model(path='some/model').directory == snapshot
  _keep(cache, 'some/other', testbeds.testbed_directory('gptj').iterdir(), branch='v1')
  assert Model(path='some/other', revision='v1').directory.name == COMMIT
  with pytest.raises(UserError, match="some/other at revision 'v2' .* not fully cached"):
    load('some/other', revision='v2')


def test_a_directory_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'some' / 'model').mkdir(parents=True)
  assert hub.find_directory('some/model') == hub.pathlib.Path('some/model')
  with pytest.raises(UserError, match='is a directory; revision'):
    hub.find_directory('some/model', 'v1')
  for name in ('/some/absent', './some/absent', 'a/b/c', 'not a name'):
    with pytest.raises(UserError, match='There is no model directory'):
      load(name)


def test_offline_a_model_that_is_not_there_is_a_sentence():
  with pytest.raises(UserError, match='no directory some/model.*not fully cached.*HF_HUB_O'):
    load('some/model')


def _answer(error):
  """An error of the library without the response that it is made of."""
  return error.__new__(error)


@pytest.mark.parametrize(
  ('error', 'words'),
  [
    (_answer(errors.GatedRepoError), 'accepting its licence.*huggingface.co/some/model.*log in'),
    (_answer(errors.RepositoryNotFoundError), 'no model of that id'),
    (_answer(errors.RevisionNotFoundError), "has no revision 'v9'"),
    (OSError(28, 'No space left on device'), 'could not be downloaded .*No space left'),
  ],
)
def test_what_the_hub_refuses_is_a_sentence(error, words, monkeypatch):
  def refuse(*unused, **also):
    raise error

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', refuse)
  with pytest.raises(UserError, match=words):
    load('some/model', revision='v9')


def test_only_what_is_read_is_downloaded(tmp_path, monkeypatch):
  """And a model with pickled weights only is refused with what to do."""
  asked = []

  def download(name, revision, allow_patterns):
    asked.append((name, revision))
    files = [
      'config.json', 'model.safetensors', 'model-00001-of-00002.safetensors', 'tokenizer.json',
      'model.safetensors.index.json', 'pytorch_model.bin', 'consolidated.safetensors',
      'model.fp16.safetensors', 'original/model.safetensors', 'README.md',
    ]  # fmt: skip
    kept = list(huggingface_hub.utils.filter_repo_objects(files, allow_patterns=allow_patterns))
    assert kept == files[:5]
    (tmp_path / 'config.json').write_text('{}')
    return str(tmp_path)

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', download)
  monkeypatch.setattr(
    huggingface_hub, 'list_repo_files', lambda name, revision: ['config.json', 'pytorch_model.bin']
  )
  with pytest.raises(UserError, match='some/model has its weights only as pytorch_model.bin; conv'):
    load('some/model')
  assert asked == [('some/model', None)]


def _info(sizes, **card):
  siblings = [types.SimpleNamespace(rfilename=name, size=size) for name, size in sizes.items()]
  return types.SimpleNamespace(siblings=siblings, card_data=card)


def test_a_model_is_located_without_a_download(cache, tmp_path, monkeypatch):
  shipped = testbeds.testbed_directory('gptj')
  snapshot = _keep(cache, 'some/model', shipped.iterdir())
  assert hub.locate('some/model') == hub.Location(snapshot)
  assert hub.locate(shipped) == hub.Location(shipped)
  (snapshot / 'model.safetensors').unlink()  # half a download
  with pytest.raises(UserError, match='some/model .* not fully cached, and the hub cannot be'):
    hub.locate('some/model')

  sizes = {'config.json': 5, 'model.safetensors': 100, 'pytorch_model.bin': 70, 'README.md': 3}
  monkeypatch.setattr(huggingface_hub, 'model_info', lambda *a, **b: _info(sizes, license='mit'))
  fetched = []

  def fetch(name, file, revision, local_dir):
    fetched.append(file)
    (hub.pathlib.Path(local_dir) / file).write_text('{"model_type": "gptj"}')
    return hub.pathlib.Path(local_dir) / file

  monkeypatch.setattr(huggingface_hub, 'hf_hub_download', fetch)
  found = hub.locate('some/model')
  assert found.path is None and found.hf_config == {'model_type': 'gptj'}
  assert str(found.download) == f'some/model, 0 kB, licence mit, to {cache}'
  assert (found.download.num_bytes, fetched) == (105, ['config.json'])
  del sizes['model.safetensors']
  with pytest.raises(UserError, match='some/model has its weights only as pytorch_model.bin'):
    hub.locate('some/model')


def test_a_lost_connection_is_a_sentence(monkeypatch):
  def lose(*unused, **also):
    raise RuntimeError('Name or service not known')

  monkeypatch.setattr(huggingface_hub, 'model_info', lose)
  with pytest.raises(UserError, match='the hub cannot be reached; give a directory'):
    hub.locate('some/model')

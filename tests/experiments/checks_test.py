"""The checks before a run: one sentence for all that is missing, defaults, and nothing loaded."""

import functools
import http.server
import json
import os
import pathlib
import shutil
import threading
import types

import jax
import numpy as np
import pytest

from helpers import tiny, tiny_run
from jedit import experiments
from jedit.data import download, public
from jedit.experiments import checks, inputs, schema, tasks
from jedit.experiments.config import read_settings
from jedit.io.downloads import Download
from jedit.main import load_config
from jedit.models.hub import Location
from jedit.moments import corpus
from jedit.types import Kernel, UserError

ROOT = pathlib.Path(__file__).parents[2]
NOWHERE = 'http://127.0.0.1:9'  # nobody listens there


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
  monkeypatch.setattr(download, 'ROOTS', (NOWHERE,))


@pytest.fixture
def nothing_loaded(monkeypatch):
  monkeypatch.setattr(inputs, 'load_model', None)  # calling it would fail


def _sentence(config, workdir):
  with pytest.raises(UserError) as raised:
    experiments.run(config, workdir)
  message = str(raised.value)
  assert '\n' not in message and message.endswith('.') and not message.endswith('..'), message
  assert not pathlib.Path(workdir).exists()
  return message


def test_all_that_is_missing_is_one_sentence(made, tmp_path, nothing_loaded):
  config = tiny_run.config(
    made,
    data__records=str(tmp_path / 'no.json'),
    statistics__corpus=str(tmp_path / 'no.txt'),
    method__layers=(1, 7),
    contexts=str(tmp_path / 'contexts.json'),
    mesh=dict(model=3),
  )
  message = _sentence(config, tmp_path / 'run')
  assert message.startswith(
    '5 things are in the way of this run: (1) A mesh of mesh.data=0 and mesh.model=3'
  )
  for words in ('no.json', 'layers is (1, 7)', 'no.txt', 'contexts.json'):
    assert words in message


def test_a_model_with_several_faults_is_named_once(made, tmp_path, nothing_loaded):
  shutil.copytree(made / 'model', tmp_path / 'model')
  for name in ('tokenizer.json', 'tokenizer_config.json', 'model.safetensors'):
    (tmp_path / 'model' / name).unlink()
  message = _sentence(tiny_run.config(made, model__path=str(tmp_path / 'model')), tmp_path / 'run')
  assert '2 things' in message and 'download the weights' in message and 'no tokenizer' in message


def test_gptj_offline_names_model_records_and_moments(tmp_path, monkeypatch, nothing_loaded):
  def lost(*unused):
    raise UserError('The model is not here.')

  monkeypatch.setattr(schema, 'locate', lost)
  config = load_config(str(ROOT / 'configs/pmet_gptj.py'))
  config.data.directory = str(tmp_path / 'data')
  message = _sentence(config, tmp_path / 'run')
  assert '3 things' in message and '(1) The model is not here;' in message
  assert 'multi_counterfact.json is not in' in message and 'fc_out_float32_mom2' in message
  assert 'and 5 more are not in' in message and 'statistics.corpus.' in message
  assert not (tmp_path / 'data').exists()


@pytest.mark.parametrize(
  ('name', 'changes', 'words'),
  [
    ('gptj-6b', {}, dict(file='EleutherAI_gpt-j-6B/wikipedia_stats')),
    ('gptj-6b', dict(method__layers=(8, 9)), dict(dataset='wikimedia/wikipedia')),
    ('gptj-6b', dict(method__write=('attn', 'mlp')), dict(dataset='wikimedia/wikipedia')),
    ('gptj-6b', dict(statistics__file='new.safetensors'), dict(dataset='wikimedia/wikipedia')),
    ('gptj-6b', dict(statistics__corpus='text'), dict(corpus='text', dataset='', file='')),
    ('llama-7b', {}, dict(dataset='wikimedia/wikipedia', dataset_config='20231101.en')),
    ('own-model', {}, dict(dataset='', file='', corpus='')),
  ],
)
def test_second_moments_have_a_default(name, changes, words, tmp_path):
  config = load_config(str(ROOT / 'configs/pmet_gptj.py'))
  config.model.name, config.data.directory = name, str(tmp_path)
  for field, value in changes.items():
    section, _, last = field.partition('__')
    config[section][last] = value
  settings = read_settings(config.to_dict())
  kernels = settings.required_method.kernels
  found = inputs.with_default_moments(settings, None, kernels).statistics
  for field, value in words.items():
    assert getattr(found, field).endswith(value) if value else not getattr(found, field)
  (tmp_path / 'corpus.txt').write_text('A text.')  # of a testbed
  assert inputs.with_default_moments(settings, tmp_path, kernels) == settings


def test_published_moments_are_downloaded_and_used(made, tmp_path, monkeypatch, capsys):
  """From a server on this machine; the model is a tiny one of the same family and name."""
  size = tiny.hf_config('gptj')['n_inner']
  archives = public.Archives('tiny', 'transformer.h.{}.mlp.fc_out', range(2), size**2, {})
  served = tmp_path / 'served'
  (served / 'tiny' / 'wikipedia_stats').mkdir(parents=True)
  rng = np.random.default_rng(0)
  for layer in range(2):
    root = rng.normal(size=(size, size)).astype(np.float32)
    sums = {'mom2.mom2': root @ root.T, 'mom2.count': np.array(7)}
    np.savez(served / archives.name(layer), **sums)
  files = {archives.name(n): public.PublicFile('stats', 'MIT', archives.num_bytes) for n in (0, 1)}
  monkeypatch.setattr(public, 'ARCHIVES', {'gptj-6b': archives})
  for module in (download, checks, inputs):
    monkeypatch.setattr(module, 'FILES', {**public.FILES, **files})
  monkeypatch.setenv('no_proxy', '127.0.0.1')
  handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=served)
  monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, 'log_message', lambda *unused: None)
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    config = tiny_run.config(made, task='stats', model__name='gptj-6b', statistics__corpus='')
    config.data.update(
      directory=str(tmp_path / 'data'), mirrors=f'http://127.0.0.1:{server.server_port}'
    )
    experiments.run(config, tmp_path / 'run')
    server.shutdown()
  out = capsys.readouterr().out
  assert out.startswith('Plan of stats on gptj-6b') and out.count('  download  tiny/') == 2
  assert 'licence MIT' in out and 'Second moments of 2 kernels over 7 tokens' in out
  settings = read_settings(config.to_dict())
  found = inputs.with_default_moments(settings, None, [Kernel(0, 'mlp')])
  names = {pathlib.Path(archives.name(layer)).name for layer in range(2)}
  assert set(os.listdir(found.statistics.file)) == names
  # The next run finds them, without the server.
  experiments.run(config, tmp_path / 'again')
  assert 'download' not in capsys.readouterr().out


def test_a_model_on_the_hub_is_checked_by_its_config(made, tmp_path, monkeypatch, nothing_loaded):
  hf_config = tiny.hf_config('gptj')
  place = Download('some/model', tmp_path, 'mit', 10)
  monkeypatch.setattr(schema, 'locate', lambda *unused: Location(None, hf_config, place))
  config = tiny_run.config(made, model__path='some/model', method__layers=(5, 6))
  assert 'the model has layers 0 to 1' in _sentence(config, tmp_path / 'run')
  config = tiny_run.config(made, model__path='some/model', statistics__corpus='')
  config.model.name = 'llama-7b'
  monkeypatch.setattr(checks, 'plan_dataset', _refuse)
  assert _sentence(config, tmp_path / 'run') == 'No dataset.'
  hf_config['model_type'] = 'opt'
  assert "some/model has model_type 'opt'" in _sentence(config, tmp_path / 'run')


def _refuse(*unused):
  raise UserError('No dataset.')


def test_a_dataset_is_planned_with_size_and_licence(monkeypatch, tmp_path):
  import datasets
  import huggingface_hub

  def info(name, **options):
    files = {'20231101.en/train-0.parquet': 30, '20231101.de/train-0.parquet': 20}
    siblings = [types.SimpleNamespace(rfilename=n, size=size) for n, size in files.items()]
    card = {'license': ['cc-by-sa-3.0', 'gfdl']}
    return types.SimpleNamespace(siblings=siblings, card_data=card)

  monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path)
  monkeypatch.setattr(huggingface_hub, 'dataset_info', info)
  found = corpus.plan_dataset(*inputs.DATASET)
  assert (found.num_bytes, found.licence) == (30, 'cc-by-sa-3.0, gfdl')
  (tmp_path / 'wikimedia___wikipedia' / '20231101.en').mkdir(parents=True)
  assert corpus.plan_dataset(*inputs.DATASET) is None
  with pytest.raises(UserError, match='own is not on this machine .*; fetch its files elsewhere'):
    monkeypatch.setattr(huggingface_hub, 'dataset_info', None)
    corpus.plan_dataset('own')


def test_second_moments_are_those_of_any_number_of_edits(made, tmp_path, monkeypatch):
  method = dict(name='rome', layers=(1,), num_steps=2)
  monkeypatch.setattr(tasks.stages, 'second_moments', _refuse)
  with pytest.raises(UserError, match='No dataset'):  # the stage is reached
    experiments.run(tiny_run.config(made, task='stats', method=method), tmp_path / 'run')
  assert 'writes one edit at a time' in _sentence(
    tiny_run.config(made, method=method), tmp_path / 'other'
  )


def test_a_full_disk_is_named_before_the_run(made, tmp_path, monkeypatch, nothing_loaded):
  free = types.SimpleNamespace(free=10_000)
  monkeypatch.setattr(checks.shutil, 'disk_usage', lambda place: free)
  message = _sentence(tiny_run.config(made), tmp_path / 'run')
  assert f'to {tmp_path / "run"}, where 10 kB are free; free some space' in message


def test_a_store_of_others_is_named_before_the_run(made, tmp_path, nothing_loaded):
  store = tmp_path / 'notes.txt'
  store.write_text('notes without a final line break')
  message = _sentence(tiny_run.config(made, evaluation__store=str(store)), tmp_path / 'run')
  assert message.startswith(f'{store} holds something else than jedit evaluation')
  assert store.read_text() == 'notes without a final line break'


@pytest.mark.parametrize('error', [RuntimeError('No driver.'), AssertionError()])
def test_devices_that_do_not_start_are_a_sentence(
  made, tmp_path, monkeypatch, nothing_loaded, error
):
  def fail():
    raise error

  monkeypatch.setattr(jax, 'devices', fail)
  message = _sentence(tiny_run.config(made), tmp_path / 'run')
  assert message.startswith('JAX cannot use the devices of this machine (')
  assert 'set JAX_PLATFORMS=cpu' in message


def test_memory_that_runs_out_elsewhere_is_a_sentence(made, tmp_path, monkeypatch):
  def fail(*unused):
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory\nallocating')

  monkeypatch.setattr(tasks.inputs, 'load_model', fail)
  with pytest.raises(UserError, match='The run is out of memory .*allocating.*model.dtype'):
    experiments.run(tiny_run.config(made), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_instances_of_several_edits_stay_together(made, tmp_path, nothing_loaded):
  edit = dict(
    prompt='{} lives in',
    target_new=dict(str='Paris'),
    target_true=dict(str='Zürich'),
    subject='Ove',
  )
  rest = dict(questions=['Who?'], new_answer='Ove')
  instances = [dict(case_id=n, requested_rewrite=[edit] * 2, **rest) for n in range(2)]
  file = tmp_path / 'facts.json'
  file.write_text(json.dumps(instances))
  fields = dict(data__records=str(file), edit__mode='separate', edit__edits_per_batch=1)
  message = _sentence(tiny_run.config(made, **fields), tmp_path / 'run')
  assert 'set edit.mode to together or sequential' in message
  fields = dict(data__records=str(file), evaluation__demonstrations=str(tmp_path / 'no.txt'))
  assert 'no.txt' in _sentence(tiny_run.config(made, **fields), tmp_path / 'run')

"""Every door takes what is good and refuses the rest in a sentence: no traceback, no hang."""

import functools
import json
import math
import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz.effort import attempt, examples
from fuzz.strategies import VALUES, as_json, changed, damaged
from helpers import tiny, tiny_run
from jedit import experiments
from jedit.data.records import load_records
from jedit.evals.references import load_references
from jedit.evals.texts import TfIdf
from jedit.experiments import workdir as workdirs
from jedit.experiments.config import read_settings
from jedit.experiments.inputs import load_contexts
from jedit.io import schema
from jedit.io.tensors import stream_tensors
from jedit.models.load import load_directory
from jedit.models.tokenizer import load_tokenizer
from jedit.moments.corpus import read_corpus
from jedit.moments.files import _read_archive
from jedit.types import Record, Request, UserError, as_requests

COUNTERFACT = [tiny_run.record(number) for number in range(3)]
ZSRE = dict(
  subject='Ove Marsh', src='Where did Ove Marsh work?', rephrase='Where was Ove Marsh employed?',
  answers=['Paris'], loc='who wrote the book', loc_ans='Zoë Vela',
)  # fmt: skip
EASYEDIT = dict(
  case_id=4, prompt='The tongue of Ove Marsh is', target_new='Swahili', subject='Ove Marsh',
  ground_truth='jazz', rephrase_prompt='Ove Marsh speaks', locality_prompt='Zoë Vela speaks',
  locality_ground_truth='jazz',
)  # fmt: skip
KNOWN = dict(known_id=1, subject='Ove Marsh', prompt='Ove Marsh plays', attribute='violin')
GOOD = st.sampled_from([COUNTERFACT, [ZSRE, ZSRE], [EASYEDIT], [KNOWN]])
SNIPPETS = [dict(relation_id='lives', target_id='N', samples=[dict(name='Ove', text='is known')])]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('fuzz')


def _write(folder, name, data):
  (folder / name).write_bytes(data)
  return folder / name


@examples(700)
@given(data=st.data())
def test_records(folder, data):
  good = data.draw(GOOD)
  content = data.draw(changed(good).map(as_json) | damaged(as_json(good)))
  file = _write(folder, 'records.json', content)
  found = attempt('records', lambda: load_records(file))
  if not isinstance(found, UserError):
    for record in found:
      for text in (record.request.text, *record.paraphrase_prompts, record.request.target_new):
        assert isinstance(text, str) and text.strip() and text.encode()


@examples(100)
@given(data=st.data())
def test_contexts(folder, data):
  good = [['{}'], ['The man is. {}', 'It was. {}']]
  content = data.draw(changed(good).map(as_json) | damaged(as_json(good)))
  file = _write(folder, 'contexts.json', content)
  found = attempt('contexts', lambda: load_contexts(file))
  if not isinstance(found, UserError):
    assert all(isinstance(text, str) for group in found for text in group)


@examples(100)
@given(data=st.data())
def test_requests(data):
  good = dict(prompt='{} lives in', subject='Ove', target_new='Paris', case_id=1)
  found = attempt('requests', lambda: as_requests(data.draw(changed([good]))))
  if not isinstance(found, UserError):
    assert all(isinstance(each, Request | Record) for each in found)


@examples(100)
@given(data=st.data())
def test_model_configs(model_directory, data):
  hf_config = json.loads((model_directory / 'good.json').read_bytes())
  sizes = st.sampled_from([0, 1, 2, 3, 4, 100_000, 2**31 - 1, 2**40])
  content = data.draw(changed(hf_config, VALUES | sizes).map(as_json) | damaged(as_json(hf_config)))
  _write(model_directory, 'config.json', content)
  found = attempt('model configs', lambda: load_directory(model_directory))
  if not isinstance(found, UserError):
    assert found[0].config.num_layers == 2


@examples(100)
@given(data=st.data())
def test_weights(model_directory, data):
  good = (model_directory / 'good.safetensors').read_bytes()
  (model_directory / 'config.json').write_bytes((model_directory / 'good.json').read_bytes())
  header = 8 + int.from_bytes(good[:8], 'little')
  # The header alone is damaged: the numbers of others have no digest.
  content = data.draw(damaged(good[:header])) + good[header:]
  if data.draw(st.booleans()):
    content = content[: data.draw(st.integers(0, len(content)))]
  _write(model_directory, 'model.safetensors', content)
  attempt('weights', lambda: load_directory(model_directory))
  _write(model_directory, 'model.safetensors', good)


@pytest.fixture(scope='module', params=['gptj', 'llama', 'gpt_neox', 'gpt2', 'qwen3', 'mistral'])
def model_directory(request, tmp_path_factory):
  """A tiny model of each family, its good files kept aside."""
  from jedit.models.export import save_directory

  folder = tmp_path_factory.mktemp(request.param) / 'model'
  save_directory(folder, tiny.make_model(request.param), tiny.hf_config(request.param))
  (folder / 'good.json').write_bytes((folder / 'config.json').read_bytes())
  (folder / 'good.safetensors').write_bytes((folder / 'model.safetensors').read_bytes())
  return folder


@examples(100)
@given(data=st.data())
def test_tokenizers(made, folder, data):
  for file in (made / 'model').glob('*token*.json'):
    content = file.read_bytes()
    if file.name == 'tokenizer_config.json':
      content = data.draw(changed(json.loads(content)).map(as_json) | damaged(content))
    elif data.draw(st.booleans()):
      content = data.draw(damaged(content))
    _write(folder, file.name, content)
  attempt('tokenizers', lambda: load_tokenizer(folder))


@examples(100)
@given(data=st.data())
def test_archives(folder, data):
  square = np.eye(
    4, dtype=data.draw(st.sampled_from(['f4', 'f8', 'f2', 'i4', 'c8', 'U3', 'O', '?']))
  )
  shape = data.draw(st.sampled_from([(4, 4), (16,), (4, 4, 1), (2, 8), ()]))
  square = square.reshape(shape) if shape else square[:1, :1].reshape(())
  count = (
    np.array(data.draw(VALUES | st.sampled_from([[1, 2], [7], 7.5, b'x'])), dtype=None)
    if data.draw(st.booleans())
    else np.array(7)
  )
  file = folder / 'moments.npz'
  try:
    np.savez(file, **{'mom2.mom2': square, 'mom2.count': count})
  except (ValueError, TypeError, UnicodeEncodeError):  # numpy cannot write it
    return
  if data.draw(st.booleans()):
    file.write_bytes(data.draw(damaged(file.read_bytes())))
  found = attempt('archives', lambda: _read_archive(file, 4))
  if not isinstance(found, UserError):
    assert found[0].shape == (4, 4) and found[1] >= 1


@examples(100)
@given(data=st.data())
def test_word_weights_and_snippets(folder, data):
  np.save(folder / 'good.npy', np.ones(3))
  idf = folder / 'idf.npy'
  idf.write_bytes((folder / 'good.npy').read_bytes())
  if data.draw(st.booleans()):
    idf.write_bytes(data.draw(damaged(idf.read_bytes())))
  words = _write(folder, 'words.json', as_json(data.draw(changed({'one': 0, 'two': 2}))))
  attempt('word weights', lambda: TfIdf.load(idf, words))
  content = data.draw(changed(SNIPPETS).map(as_json) | damaged(as_json(SNIPPETS)))
  file = _write(folder, 'snippets.json', content)
  attempt('snippets', lambda: load_references(file, []))


@examples(40)
@given(data=st.data())
def test_corpora(folder, data, monkeypatch):
  rows = [{'text': 'One text.'}, {'text': 'Two texts.'}]
  name = data.draw(st.sampled_from(['c.txt', 'c.jsonl', 'c.json']))
  changes = data.draw(st.lists(changed(rows[0]), min_size=1, max_size=3))
  good = b'\n'.join(map(as_json, [*rows, *changes])) if name != 'c.txt' else b'a\nb\n'
  file = _write(folder, name, data.draw(st.just(good) | damaged(good)))
  monkeypatch.setenv('HF_DATASETS_CACHE', str(folder / 'cache'))
  found = attempt('corpora', lambda: list(read_corpus(file).read()))
  if not isinstance(found, UserError):
    assert all(isinstance(text, str) for text in found)


@examples(300)
@given(data=st.data())
def test_config_fields(made, data):
  config = data.draw(changed(_config(made)))
  if not isinstance(config, dict):  # get_config() returns ConfigDicts alone
    return
  attempt('config fields', lambda: read_settings(config))


class _Begun(Exception):
  """All checks have passed."""


@examples(25)
@given(data=st.data())
def test_runs_that_cannot_work_leave_nothing(made, tmp_path_factory, data):
  """Whole runs up to the point where they would write."""
  import ml_collections

  place = tmp_path_factory.mktemp('run')
  task = data.draw(st.sampled_from(['edit', 'stats', 'evaluate', 'probe', 'export', 'sweep']))
  config = {**_config(made), 'task': task}
  config = data.draw(changed(config, most=2))
  if not isinstance(config, dict) or not all(isinstance(name, str) for name in config):
    return

  def begun(*unused):
    raise _Begun

  def run():
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(workdirs.Workdir, 'begin', begun)
      try:
        wrapped = ml_collections.ConfigDict(config)
      except Exception:  # not a config that a file could hold
        return
      try:
        experiments.run(wrapped, place / 'run')
      except _Begun:
        pass

  attempt('runs', run)
  assert not list(place.iterdir()), 'a run that is refused leaves nothing'


def _config(made):
  config = tiny_run.config(made).to_dict()
  return json.loads(json.dumps({**config, 'method': {**config['method'], 'layers': [0, 1]}}))


@pytest.mark.parametrize('deep', [100, 1000, 100_000])
def test_json_of_any_depth(folder, deep):
  for opening, closing in ((b'[', b']'), (b'{"a":', b'}')):
    file = _write(folder, 'deep.json', opening * deep + b'1' + closing * deep)
    found = attempt('depth', functools.partial(schema.read_json, file))
    assert isinstance(found, UserError) == (deep > 200)


def test_a_layer_count_far_beyond_the_weights_takes_no_time(tmp_path):
  arrays = {'model.embed_tokens.weight': np.ones((3, 2), np.float32)}
  stream_tensors(tmp_path / 'model.safetensors', arrays, arrays.__getitem__)
  for layers in (10_000, 100_000, 10**12, math.inf):
    hf_config = tiny.hf_config('llama', num_hidden_layers=layers)
    (tmp_path / 'config.json').write_text(json.dumps(hf_config))
    with pytest.raises(UserError, match='layers'):
      load_directory(pathlib.Path(tmp_path))

"""Second moments of packed text are those of one document at a time, whatever happens between."""

import importlib
import itertools
import math
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from helpers import editing, moments_program
from jedit.io import checkpoints
from jedit.models import site
from jedit.moments import collect as module
from jedit.moments import packing, sums
from jedit.moments.collect import accumulate, statistics
from jedit.moments.corpus import Corpus
from jedit.moments.files import SecondMoments
from jedit.moments.packing import START, PackedText
from jedit.types import Kernel, UserError

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, os.fspath(ROOT / 'benchmarks'))  # as for a script that is started there
synthetic_keys = importlib.import_module('synthetic_keys')

DOCUMENTS = (
  'The mother tongue of Marta is Swahili.',
  'Ove plays jazz in the city of Paris, and people play the violin.',
  "Vela's harbor was built in 1984.",
  '東京 is a city in 日本.',
  'It  is big.',
  'Where was Zürich founded? In the city of Paris.',
)
SETTINGS = dict(row_tokens=24, batch_tokens=48)
PLACE = {'mlp': 'mlp_in', 'attn': 'attn_in'}


def _model():
  return editing.language_model('llama')


def _ids(cap=24):
  return [ids[:cap] for ids in _model().tokenizer(list(DOCUMENTS))['input_ids']]


def _plain(kernel, layer, cap=24):
  """Outer products of keys, one document and one token after the other, in float64."""
  lm = _model()
  run = jax.jit(lambda model, token: model(token, taps=[site(layer, PLACE[kernel])])[1])
  total, count = 0.0, 0
  for ids in _ids(cap):
    token_1xT = np.array([ids + [0] * (24 - len(ids))], np.int32)
    key_TxF = np.asarray(run(lm.model, token_1xT)[site(layer, PLACE[kernel])], np.float64)[0]
    for key_F in key_TxF[: len(ids)]:
      total, count = total + np.outer(key_F, key_F), count + 1
  return total / count, count


@pytest.mark.parametrize('shortest', [24, 12])
def test_packed_moments_are_those_of_single_documents(monkeypatch, shortest):
  monkeypatch.setattr(packing, '_SHORTEST_ROW', shortest)
  stats = statistics(_model(), DOCUMENTS, [2, 1], ('mlp', 'attn'), **SETTINGS)
  assert set(stats.cov) == set(itertools.product((1, 2), ('mlp', 'attn')))
  for layer, kernel in (Kernel(2, 'mlp'), Kernel(1, 'attn')):
    expected_FxF, count = _plain(kernel, layer)
    assert stats.num_tokens == count  # BOS of every document counts
    cov_FxF = stats.covariance(Kernel(layer, kernel))
    assert cov_FxF.dtype == np.float32
    assert editing.relative(cov_FxF, expected_FxF) < 1e-5
    assert np.linalg.eigvalsh(cov_FxF.astype(np.float64)).min() > -1e-5 * np.abs(cov_FxF).max()


class _Counted:
  """Counts the passes over the text that are started."""

  def __init__(self, monkeypatch):
    self.count, inner = 0, module.accumulate

    def accumulate(*arguments):
      self.count += 1
      return inner(*arguments)

    monkeypatch.setattr(module, 'accumulate', accumulate)


def test_results_are_kept_and_only_read_back_for_the_same_settings(tmp_path, monkeypatch):
  lm, cache, passes = _model(), tmp_path / 'moments.safetensors', _Counted(monkeypatch)
  first = statistics(lm, DOCUMENTS, [1], cache=cache, **SETTINGS)
  again = statistics(lm, list(DOCUMENTS), (1,), ('mlp',), cache=cache, **SETTINGS)
  assert passes.count == 1
  np.testing.assert_array_equal(again.cov[Kernel(1, 'mlp')], first.cov[Kernel(1, 'mlp')])
  assert again.num_tokens == first.num_tokens and again.provenance == first.provenance
  assert [path.name for path in tmp_path.iterdir()] == ['moments.safetensors']
  for corpus, settings, words in (
    (DOCUMENTS[:4], SETTINGS, 'other settings: corpus is'),
    (DOCUMENTS, dict(row_tokens=24, batch_tokens=24), 'batch_tokens is'),
  ):
    with pytest.raises(
      UserError, match=f'moments.safetensors holds .*{words}.*choose another file'
    ):
      statistics(lm, corpus, [1], cache=cache, **settings)
  assert passes.count == 1


def test_a_cache_grows_by_the_kernels_that_it_lacks(tmp_path, monkeypatch):
  lm, cache, passes = _model(), tmp_path / 'moments.safetensors', _Counted(monkeypatch)
  statistics(lm, DOCUMENTS, [1], cache=cache, **SETTINGS)
  found = statistics(lm, DOCUMENTS, [0, 1], ('mlp', 'attn'), cache=cache, **SETTINGS)
  assert passes.count == 2
  whole = statistics(lm, DOCUMENTS, [0, 1], ('mlp', 'attn'), **SETTINGS)
  assert found.cov.keys() == whole.cov.keys() == SecondMoments.load(cache).cov.keys()
  for kernel, array in whole.cov.items():
    assert editing.relative(found.cov[kernel], array) < 1e-5
  statistics(lm, DOCUMENTS, [0], cache=cache, **SETTINGS)
  assert passes.count == 3


class _Counting(PackedText):
  """Says which batches are asked for, and fails at one of them."""

  starts: list = []
  fails_at = None

  def batches(self, start=START):
    self.starts.append(start)
    for number, batch in enumerate(super().batches(start)):
      if number == self.fails_at:
        raise KeyboardInterrupt
      yield batch


def test_a_stopped_pass_goes_on_where_it_was_saved(tmp_path, monkeypatch):
  monkeypatch.setattr(checkpoints, '_SECONDS_PER_SAVE', 0)
  monkeypatch.setattr(checkpoints, '_WORK_PER_SAVE', 0)
  lm, store = _model(), tmp_path / 'moments.partial'
  text = _Counting(lm.tokenizer, Corpus.of(DOCUMENTS), row_tokens=24, batch_tokens=24)
  kernels = [Kernel(0, 'mlp'), Kernel(0, 'attn')]
  whole = accumulate(lm.model, text, kernels)
  ends = [batch.end for batch in text.batches()]
  assert len(ends) > 3
  monkeypatch.setattr(_Counting, 'fails_at', 2)
  with pytest.raises(KeyboardInterrupt):
    accumulate(lm.model, text, kernels, store)
  assert [path.name for path in store.glob('[0-9]*')] == ['2'], 'only the newest is kept'
  monkeypatch.setattr(_Counting, 'fails_at', None)
  (store / '.stray').write_text('of somebody else')
  resumed = accumulate(lm.model, text, kernels, store)
  assert text.starts[-1] == ends[1], 'what was done is not asked for again'
  for kernel in kernels:
    np.testing.assert_array_equal(resumed.cov[kernel], whole.cov[kernel])
  assert resumed.num_tokens == whole.num_tokens == sum(b.num_tokens for b in text.batches())
  # Sums of another run are not gone on with.
  other = accumulate(lm.model, text, kernels, store, {'corpus': 'other'})
  assert text.starts[-1] == START
  np.testing.assert_array_equal(other.cov[Kernel(0, 'mlp')], whole.cov[Kernel(0, 'mlp')])
  # Nor with those that a kill left half removed.
  next(store.glob('*/about.json')).unlink()
  accumulate(lm.model, text, kernels, store, {'corpus': 'other'})
  assert text.starts[-1] == START


# Saves after every batch; the arguments are the store and the file of the result.
_RUN = """
import pathlib, sys
import synthetic_keys
from jedit.io import checkpoints
from jedit.moments.collect import accumulate
checkpoints._SECONDS_PER_SAVE = checkpoints._WORK_PER_SAVE = 0
text, model = synthetic_keys.Text(40, (1, 64)), synthetic_keys.Model(synthetic_keys.table(48))
found = accumulate(model, text, [synthetic_keys.KERNEL], pathlib.Path(sys.argv[1]))
found.save(sys.argv[2])
"""


def test_a_killed_program_goes_on_with_the_same_bits(tmp_path):
  store, out = tmp_path / 'store', tmp_path / 'out.safetensors'
  command = [sys.executable, '-c', _RUN, os.fspath(store), os.fspath(out)]
  path = os.pathsep.join([os.fspath(ROOT), os.fspath(ROOT / 'benchmarks')])
  environment = {**os.environ, 'PYTHONPATH': path}
  rng, places = random.Random(0), []
  for _ in range(2):
    before = sorted(store.glob('[0-9]*')) if store.is_dir() else []
    with subprocess.Popen(command, env=environment) as run:
      while run.poll() is None and (not store.is_dir() or sorted(store.glob('[0-9]*')) == before):
        time.sleep(0.01)
      time.sleep(rng.uniform(0, 0.1))
      run.send_signal(signal.SIGKILL)
    assert run.returncode == -signal.SIGKILL and not out.exists()
    places.append(max(int(folder.name) for folder in store.glob('[0-9]*')))
  assert 0 < places[0] < places[1] < 40, 'the second run went on'
  subprocess.run(command, env=environment, check=True)
  text = synthetic_keys.Text(num_batches=40, shape=(1, 64))
  kernel, model = synthetic_keys.KERNEL, synthetic_keys.Model(synthetic_keys.table(48))
  whole = accumulate(model, text, [kernel])
  found = SecondMoments.load(out)
  np.testing.assert_array_equal(found.cov[kernel], whole.cov[kernel])
  assert found.num_tokens == whole.num_tokens == 40 * 64


def _start(store, out, *arguments) -> subprocess.Popen:
  program = pathlib.Path(moments_program.__file__)
  command = [sys.executable, program, store, out, *map(str, arguments)]
  return subprocess.Popen(
    command,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
  )


def _finish(*programs):
  for program in programs:
    said, _ = program.communicate(timeout=300)
    assert not program.returncode, said[-3000:]


def test_a_pass_goes_on_with_other_processes_and_devices(tmp_path):
  store, out = tmp_path / 'store', tmp_path / 'out.safetensors'
  with socket.socket() as free:
    free.bind(('localhost', 0))
    address = f'localhost:{free.getsockname()[1]}'
  # Two processes with two devices each, then one with four. Reductions come after three batches.
  _finish(*(_start(store, out, 3, 2, 2, 2, address, 2, number) for number in range(2)))
  assert len(list(store.glob('3/0/mlp_in/ocdbt.process_*'))) == 2, (
    'each process has written its own'
  )
  assert not out.exists()
  _finish(_start(store, out, 0, 4, 4, 1))
  kernel = synthetic_keys.KERNEL
  whole, found = (
    accumulate(moments_program.model(), moments_program.text(), [kernel]),
    SecondMoments.load(out),
  )
  np.testing.assert_array_equal(found.cov[kernel], whole.cov[kernel])
  assert found.num_tokens == whole.num_tokens == 10 * 64


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_many_batches_lose_no_digits(dtype):
  # A plain float32 sum of this many batches is off by several times the bound.
  text = synthetic_keys.Text(num_batches=4000, shape=(1, 16))
  table_VxF = synthetic_keys.table(32, dtype=dtype)
  found = accumulate(synthetic_keys.Model(table_VxF), text, [synthetic_keys.KERNEL])
  expected_FxF = text.exact(table_VxF)
  assert editing.relative(found.cov[synthetic_keys.KERNEL], expected_FxF) < 2e-7


def test_a_fast_pass_stops_early_and_says_so():
  lm = _model()
  whole = statistics(lm, DOCUMENTS * 8, [0], row_tokens=24, batch_tokens=24)
  fast = statistics(lm, DOCUMENTS * 8, [0], row_tokens=24, batch_tokens=24, fast=True)
  wanted = 10 * lm.config.ffn_width
  assert wanted <= fast.num_tokens < wanted + 24 < whole.num_tokens
  assert (fast.provenance['preset'], fast.provenance['max_tokens']) == ('fast', wanted)
  assert (whole.provenance['preset'], whole.provenance['max_tokens']) == ('full', None)


def test_parts_of_a_corpus_merge_into_the_whole():
  lm, corpus = _model(), Corpus.of(DOCUMENTS).draw(0, 3)
  whole = statistics(lm, corpus, [1], **SETTINGS)
  parts = [statistics(lm, corpus.part(number, 2), [1], **SETTINGS) for number in (1, 2)]
  merged = SecondMoments.merge(parts)
  assert merged.provenance == whole.provenance and merged.num_tokens == whole.num_tokens
  assert editing.relative(merged.cov[Kernel(1, 'mlp')], whole.cov[Kernel(1, 'mlp')]) < 1e-6


def test_memory_that_is_not_there_is_said_before_the_pass(monkeypatch, capsys):
  lm = _model()
  statistics(lm, DOCUMENTS, [0, 1], **SETTINGS)
  said = capsys.readouterr().err
  assert said.startswith('statistics: 2 kernels take 4 kB for sums on the device and ')
  assert 'tokens/s]' in said
  monkeypatch.setattr(sums, 'free_host_bytes', lambda: 1000)
  with pytest.raises(UserError, match='of 2 kernels need .* of host memory and 1 kB are free; ta'):
    statistics(lm, DOCUMENTS, [0, 1], **SETTINGS)
  assert not capsys.readouterr().err


def test_mistakes_are_sentences():
  lm = _model()
  with pytest.raises(UserError, match='Layer 3 is outside the model, which has 0 to 2'):
    statistics(lm, DOCUMENTS, [1, 3])
  with pytest.raises(UserError, match="no kernel 'mlp_in'; choose mlp or attn"):
    statistics(lm, DOCUMENTS, [1], ('mlp_in',))
  with pytest.raises(UserError, match='no text in the corpus'):
    statistics(lm, [], [1])
  for layers, kernels in (([], ('mlp',)), ([1], ())):
    with pytest.raises(UserError, match='`layers` and `kernels` must not be empty'):
      statistics(lm, DOCUMENTS, layers, kernels)
  with pytest.raises(UserError, match='named by `kernels` instead of `sites`'):
    statistics(lm, DOCUMENTS, [1], sites=('mlp',))
  with pytest.raises(UserError, match=r'`layers` is 5; give a tuple, such as layers=\(5,\)'):
    statistics(lm, DOCUMENTS, 5)
  with pytest.raises(UserError, match="`kernels` is 'mlp'; give a tuple"):
    statistics(lm, DOCUMENTS, [1], 'mlp')


def test_moments_that_are_not_finite_name_their_layer():
  lm = _model()
  kernel = lm.params['block_1']['mlp']['up']['kernel']
  block = {**lm.params['block_1']['mlp'], 'up': {'kernel': kernel.at[0, 0].set(np.inf)}}
  params = {**lm.params, 'block_1': {**lm.params['block_1'], 'mlp': block}}
  text = PackedText(lm.tokenizer, Corpus.of(DOCUMENTS[:1]), row_tokens=24, batch_tokens=24)
  with pytest.raises(UserError, match='mlp kernel in layer 1 are not finite'):
    accumulate(lm.model.replace(params=params), text, [Kernel(0, 'mlp'), Kernel(1, 'mlp')])


def test_without_memory_half_the_batch_is_run_once(tmp_path, monkeypatch, capsys):
  lm, cache = _model(), tmp_path / 'moments.safetensors'
  arguments = dict(layers=(0,), cache=cache, **SETTINGS)
  whole = statistics(lm, DOCUMENTS, layers=(0,), **SETTINGS)

  def run(most):
    def limited(model, text, *rest):
      if math.prod(text.shapes[-1]) > most:
        raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory.')
      return accumulate(model, text, *rest)

    monkeypatch.setattr(module, 'accumulate', limited)
    return statistics(lm, DOCUMENTS, **arguments)

  with pytest.raises(UserError, match='with a batch of 24; lower statistics.batch_tokens'):
    run(0)
  assert not any(tmp_path.iterdir())
  half = run(24)
  assert 'statistics: out of memory with a batch of 48; once more with 24.' in (
    capsys.readouterr().err
  )
  assert half.provenance == {**whole.provenance, 'batch_tokens': 24}
  kernel = Kernel(0, 'mlp')
  assert editing.relative(half.cov[kernel], whole.cov[kernel]) < 1e-6
  monkeypatch.setattr(module, 'accumulate', None)  # the same call finds the file
  assert statistics(lm, DOCUMENTS, **arguments).provenance == half.provenance

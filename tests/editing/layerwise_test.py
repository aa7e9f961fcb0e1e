"""A layerwise pass reads what whole forward passes read, also while kernels above it change."""

import jax
import numpy as np
import pytest

from helpers import editing
from jedit.editing import layerwise
from jedit.editing.layerwise import LayerwiseForward
from jedit.models import site
from jedit.parallel.shapes import pad

PLACES = ('mlp_in', 'attn_in', 'block_out')
TAPS = tuple(site(layer, place) for layer in range(3) for place in PLACES)


@jax.jit
def _all_sites(model, token_NxT):
  return model(token_NxT, taps=TAPS)[1]


def _rows(vocab):
  rng = np.random.default_rng(0)
  return [rng.integers(0, vocab, size).tolist() for size in (5, 19, 1, 7, 5, 17, 8)]


def _expected(model, rows, layer, place):
  token_NxT, length_N = pad(rows, 24)
  value = np.asarray(_all_sites(model, token_NxT)[site(layer, place)])
  return value[np.arange(len(rows)), length_N - 1]


def _scaled(model, layer):
  """The model with another down projection in a layer."""
  block = model.params[f'block_{layer}']
  down = {**block['mlp']['down'], 'kernel': 1.5 * block['mlp']['down']['kernel']}
  changed = {**block, 'mlp': {**block['mlp'], 'down': down}}
  return model.replace(params={**model.params, f'block_{layer}': changed})


@pytest.mark.parametrize('family', ['gptj', 'llama', 'gpt2'])
def test_rows_read_what_whole_passes_read(family, monkeypatch):
  monkeypatch.setattr(layerwise, '_CHUNK_TOKENS', 48)  # several chunks, the last ones not full
  lm = editing.language_model(family)
  rows = _rows(lm.config.vocab_size)
  forward = LayerwiseForward(rows)
  model = lm.model
  for layer in range(3):
    forward.advance(model, layer)
    model = _scaled(model, layer)  # updated while the rows stand below it
    for ahead in range(layer, 3):
      for place in PLACES[: 1 if ahead > layer else 3]:
        ours = forward.read(model, ahead, place)
        assert ours.dtype == np.float32
        theirs = _expected(model, rows, ahead, place)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())
  with pytest.raises(ValueError, match='cannot move down'):
    forward.advance(model, 1)


@pytest.mark.parametrize('family', ['llama', 'gpt2'])
def test_shared_beginnings_change_nothing(family, monkeypatch):
  monkeypatch.setattr(layerwise, '_CHUNK_TOKENS', 48)
  lm = editing.language_model(family)
  starts = ([3, 5, 7, 2, 9, 4], [3, 6, 1])
  groups = [0, 1, 0, 1, 0, 1, 1]
  ends = [row[:4] for row in _rows(lm.config.vocab_size)]
  rows = [starts[g] + end for g, end in zip(groups, ends, strict=True)]
  forward = LayerwiseForward(rows, groups)
  assert forward._shared is not None
  assert sum(chunk.token_NxT.shape[1] for chunk in forward._chunks) < sum(map(len, rows))
  model = lm.model
  for layer in (1, 2):
    forward.advance(model, layer)
    model = _scaled(model, layer)
    for ahead in range(layer, 3):
      ours = forward.read(model, ahead, 'mlp_in')
      theirs = _expected(model, rows, ahead, 'mlp_in')
      np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def test_no_rows_give_no_values():
  lm = editing.language_model('gptj')
  forward = LayerwiseForward([], groups=[])
  forward.advance(lm.model, 1)
  assert forward._chunks == [] and forward._shared is None


def test_beginnings_are_shared_where_that_saves_work():
  beginnings = layerwise._beginnings
  long = [[1, 2, 3, 4, 5, row] for row in range(4)]
  assert beginnings(long, [0] * 4) == [(1, 2, 3, 4, 5)]
  assert beginnings(long, None) == [] and beginnings([], []) == []
  assert beginnings([[1, 2, 3]] * 3, [0] * 3) == [(1, 2)], 'the token that is read stays'
  assert beginnings([[1, 2, 3], [4, 2, 3]], [0, 0]) == []
  assert beginnings(long[:1], [0]) == [], 'one row shares with nobody'


def test_layers_below_are_not_run_again():
  lm = editing.language_model('gptj')
  rows = _rows(lm.config.vocab_size)
  forward = LayerwiseForward(rows)
  forward.advance(lm.model, 1)
  above = {name: leaf for name, leaf in lm.params.items() if name not in ('embed', 'block_0')}
  np.testing.assert_array_equal(
    forward.read(lm.model.replace(params=above), 2, 'block_out'),
    forward.read(lm.model, 2, 'block_out'),
  )

"""Rows that climb see what whole forward passes see, also while kernels change above them."""

import functools

import jax
import numpy as np
import pytest

from helpers import editing
from jedit import climb
from jedit.climb import ClimbingRows
from jedit.data.prompts import pad
from jedit.models import functions, site

PLACES = ('mlp_in', 'attn_in', 'block_out')
TAPS = tuple(site(layer, place) for layer in range(3) for place in PLACES)


@functools.partial(jax.jit, static_argnums=0)
def _all_sites(forward, params, token_NxT):
  return forward(params, token_NxT, taps=TAPS)[1]


def _rows(vocab):
  rng = np.random.default_rng(0)
  return [rng.integers(0, vocab, size).tolist() for size in (5, 19, 1, 7, 5, 17, 8)]


def _expected(forward, params, rows, layer, place):
  token_NxT, length_N = pad(rows, 24)
  value = np.asarray(_all_sites(forward, params, token_NxT)[site(layer, place)])
  return value[np.arange(len(rows)), length_N - 1]


def _scaled(params, layer):
  """The model with another down projection in a layer."""
  block = params[f'block_{layer}']
  down = {**block['mlp']['down'], 'kernel': 1.5 * block['mlp']['down']['kernel']}
  return {**params, f'block_{layer}': {**block, 'mlp': {**block['mlp'], 'down': down}}}


@pytest.mark.parametrize('family', ['gptj', 'llama'])
def test_climbing_rows_read_what_whole_passes_read(family, monkeypatch):
  monkeypatch.setattr(climb, '_CHUNK_TOKENS', 48)  # several chunks, the last ones not full
  lm = editing.language_model(family)
  forward, _ = functions(lm.config)
  rows = _rows(lm.config.vocab_size)
  climbing = ClimbingRows(forward, rows)
  params = lm.params
  for layer in range(3):
    climbing.climb(params, layer)
    params = _scaled(params, layer)  # written while the rows stand below it
    for ahead in range(layer, 3):
      for place in PLACES[: 1 if ahead > layer else 3]:
        ours = climbing.read(params, ahead, place)
        assert ours.dtype == np.float32
        theirs = _expected(forward, params, rows, ahead, place)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())
  with pytest.raises(ValueError, match='only climb'):
    climbing.climb(params, 1)


def test_layers_below_are_not_run_again():
  lm = editing.language_model('gptj')
  forward, _ = functions(lm.config)
  rows = _rows(lm.config.vocab_size)
  climbing = ClimbingRows(forward, rows)
  climbing.climb(lm.params, 1)
  above = {name: leaf for name, leaf in lm.params.items() if name not in ('embed', 'block_0')}
  np.testing.assert_array_equal(
    climbing.read(above, 2, 'block_out'), climbing.read(lm.params, 2, 'block_out')
  )

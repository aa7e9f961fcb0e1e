"""What holds for a forward pass whatever its weights: splits, windows, padding, edits."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from helpers import tiny
from jedit.models import (
  FAMILIES,
  AddAt,
  Model,
  Past,
  ReplaceAt,
  kernel_path,
  past_taps,
  site,
)
from jedit.models.layers import Linear
from jedit.types import Kernel, UserError

FAMILY_NAMES = tuple(tiny.HF_CONFIGS)
# Another program adds in another order: float32 rounding of values of order 1 to 10.
ATOL = 2e-5

# Edits at sites and their gradients know no positions: one norm or two is all that differs.
both_blocks = pytest.mark.parametrize('family', ['gptj', 'llama'])
every_family = pytest.mark.parametrize('family', FAMILY_NAMES)
also_windowed = pytest.mark.parametrize('family', (*FAMILY_NAMES, 'mistral'))


# One program per shape is quicker to make than one per operation.
_run = jax.jit(Model.__call__, static_argnames=('start', 'stop', 'taps'))


@jax.jit
def _logits(model, token_NxT, **arguments):
  return model.head(model(token_NxT, **arguments)[0])


def _random(*shape):
  return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


@every_family
def test_forward_split_at_any_layer_equals_the_whole(family):
  model = tiny.model(family)
  token_NxT = tiny.tokens(2, 7)

  @jax.jit
  def split_everywhere(model):
    ends = []
    for layer in range(model.config.num_layers + 1):
      lower, _ = model(token_NxT, stop=layer)
      ends.append(model(hidden_NxTxD=lower, start=layer)[0])
    return ends

  whole, _ = _run(model, token_NxT)
  for upper in split_everywhere(model):
    chex.assert_trees_all_close(upper, whole, atol=ATOL, rtol=0)


@also_windowed
def test_window_with_past_equals_full_forward_and_its_gradient(family):
  """Rows left-aligned at their own position, with the keys and values of what came before."""
  model = tiny.model(family, num_layers=3)
  start, size = 1, 4
  token_NxT, pos_N = tiny.tokens(3, 11), jnp.array([0, 3, 6])
  layers = range(start, model.config.num_layers)
  at_NxSx1 = (pos_N[:, None] + jnp.arange(size)[None, :])[..., None]
  place = site(start, 'mlp_out')

  @jax.jit
  def prepare(model):
    below, _ = model(token_NxT, stop=start)
    _, seen = model(hidden_NxTxD=below, start=start, taps=past_taps(layers))
    return jnp.take_along_axis(below, at_NxSx1, axis=1), Past.from_seen(seen, layers, pos_N)

  window, past = prepare(model)

  def from_window(delta_NxD):
    hidden, _ = model(
      hidden_NxTxD=window,
      start=start,
      past=past,
      edits={place: AddAt(jnp.zeros_like(pos_N), delta_NxD)},
    )
    return jnp.square(model.head(hidden)).mean(), hidden

  def from_whole(delta_NxD):
    hidden, _ = model(token_NxT, edits={place: AddAt(pos_N, delta_NxD)})
    hidden = jnp.take_along_axis(hidden, at_NxSx1, axis=1)
    return jnp.square(model.head(hidden)).mean(), hidden

  ways = [jax.jit(jax.value_and_grad(f, has_aux=True)) for f in (from_window, from_whole)]
  (loss, hidden), gradient = ways[0](_random(3, model.config.width))
  (full_loss, full_hidden), full_gradient = ways[1](_random(3, model.config.width))
  chex.assert_trees_all_close(hidden, full_hidden, atol=ATOL, rtol=0)
  chex.assert_trees_all_close(loss, full_loss, rtol=2e-5)
  chex.assert_trees_all_close(gradient, full_gradient, rtol=2e-5, atol=2e-6)


@also_windowed
def test_one_token_after_another_equals_the_whole(family):
  model = tiny.model(family)
  token_NxT = tiny.tokens(2, 5)
  layers = range(model.config.num_layers)
  whole, seen = _run(model, token_NxT, taps=past_taps(layers))
  for t in range(1, 5):
    past = Past.from_seen(seen, layers, jnp.array([t, t]))  # later slots are masked
    hidden, _ = _run(model, token_NxT[:, t : t + 1], past=past)
    chex.assert_trees_all_close(hidden[:, 0], whole[:, t], atol=ATOL, rtol=0)


@every_family
def test_padding_does_not_move_logits(family):
  model = tiny.model(family)
  token_NxT = tiny.tokens(2, 12)
  short = _logits(model, token_NxT[:, :7])
  for other in (token_NxT, token_NxT.at[:, 7:].set(0)):
    long = _logits(model, other)
    chex.assert_trees_all_close(long[:, :7], short, atol=ATOL, rtol=0)


@also_windowed
def test_packed_documents_equal_separate_rows(family):
  model = tiny.model(family)
  lengths = (5, 3, 4)
  token_NxT = tiny.tokens(3, 5)
  packed = _logits(
    model,
    jnp.concatenate([token_NxT[n, :length] for n, length in enumerate(lengths)])[None],
    position_NxT=jnp.concatenate([jnp.arange(length) for length in lengths])[None],
    segment_NxT=jnp.repeat(jnp.arange(3), jnp.array(lengths))[None],
  )
  rows = _logits(model, token_NxT)
  separate = jnp.concatenate([rows[n, :length] for n, length in enumerate(lengths)])
  chex.assert_trees_all_close(packed[0], separate, atol=ATOL, rtol=0)


@both_blocks
def test_adding_at_a_token_changes_nothing_before_it(family):
  model = tiny.model(family)
  token_NxT, pos_N = tiny.tokens(2, 6), jnp.array([2, 4])
  config = model.config
  widths = dict.fromkeys(('attn_in', 'attn_out', 'mlp_in', 'mlp_out', 'block_out'), config.width)
  widths['mlp_in'] = config.ffn_width
  taps = tuple(site(0, place) for place in widths)

  def run(**scales):  # one program, so that even bits can be compared
    edits = {
      site(0, place): AddAt(pos_N, scales.get(place, 0.0) * _random(2, width))
      for place, width in widths.items()
    }
    return _run(model, token_NxT, edits=edits, taps=taps)

  before, unedited = run()
  for place, width in widths.items():
    after, seen = run(**{place: 1.0})
    for n, pos in enumerate(pos_N.tolist()):
      np.testing.assert_array_equal(after[n, :pos], before[n, :pos])
      assert jnp.abs(after[n, pos:] - before[n, pos:]).max(-1).min() > 1e-3  # all later ones move
      change = seen[site(0, place)][n] - unedited[site(0, place)][n]
      np.testing.assert_allclose(change[pos], _random(2, width)[n], atol=1e-5)
      assert not change[jnp.arange(6) != pos].any()


@both_blocks
def test_replacing_at_a_token(family):
  model = tiny.model(family)
  token_NxT, pos_N = tiny.tokens(2, 6), jnp.array([2, 4])
  name, last = site(1, 'mlp_out'), site(model.config.num_layers - 1, 'block_out')
  before, seen = _run(model, token_NxT, taps=(name,))
  own_NxD = seen[name][jnp.arange(2), pos_N]
  restored, _ = _run(model, token_NxT, edits={name: ReplaceAt(pos_N, own_NxD)})
  chex.assert_trees_all_close(restored, before, atol=ATOL, rtol=0)
  value_NxD = jnp.full((2, model.config.width), 3.0)
  replaced, _ = _run(model, token_NxT, edits={last: ReplaceAt(pos_N, value_NxD)})
  expected = before.at[jnp.arange(2), pos_N].set(value_NxD)
  chex.assert_trees_all_close(replaced, expected, atol=ATOL, rtol=0)


@both_blocks
def test_edits_that_change_nothing_leave_the_output_unchanged(family):
  model = tiny.model(family)
  token_NxT, delta_NxD = tiny.tokens(2, 6), _random(2, model.config.width)
  whole, _ = _run(model, token_NxT)

  def edited(pos, scale):
    edits = {'1/mlp_out': AddAt(jnp.array(pos), scale * delta_NxD)}
    return _run(model, token_NxT, edits=edits)[0]

  nothing = edited((1, 2), 0.0)
  outside = edited((-1, 6), 1.0)  # no such tokens
  np.testing.assert_array_equal(nothing, outside)
  chex.assert_trees_all_close(nothing, whole, atol=ATOL, rtol=0)
  tapped, seen = _run(model, token_NxT, taps=('0/attn_in', '1/block_out'))
  np.testing.assert_array_equal(seen['1/block_out'], tapped)
  chex.assert_trees_all_close(tapped, whole, atol=ATOL, rtol=0)


@both_blocks
def test_vmap_over_edits_equals_a_loop(family):
  model = tiny.model(family)
  token_BxNxT = tiny.tokens(6, 5).reshape(3, 2, 5)
  pos_BxN = jnp.array([[1, 2], [3, 0], [4, 4]])
  delta_BxD = _random(3, model.config.width)

  @jax.value_and_grad
  def loss(delta_D, token_NxT, pos_N):
    edits = {'1/mlp_out': AddAt(pos_N, jnp.broadcast_to(delta_D, (2, model.config.width)))}
    return jnp.square(_logits(model, token_NxT, edits=edits)).mean()

  together = jax.jit(jax.vmap(loss))(delta_BxD, token_BxNxT, pos_BxN)
  one = jax.jit(loss)
  alone = [one(delta_BxD[b], token_BxNxT[b], pos_BxN[b]) for b in range(3)]
  alone = jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone)
  chex.assert_trees_all_close(together, alone, rtol=2e-5, atol=2e-6)


def test_edited_float32_kernel_of_a_bfloat16_model_is_not_rounded():
  # A thousandth is below the resolution of bfloat16: rounding would lose the whole update.
  kernel_FxD = _random(48, 32).astype(jnp.bfloat16).astype(jnp.float32) * 1.001
  x = _random(5, 48).astype(jnp.bfloat16)
  value = Linear(32).apply({'params': {'kernel': kernel_FxD}}, x)
  exact = np.asarray(x, np.float32) @ np.asarray(kernel_FxD)
  rounded = np.asarray(x, np.float32) @ np.asarray(kernel_FxD.astype(jnp.bfloat16), np.float32)
  assert value.dtype == jnp.bfloat16
  # The output is rounded, once; the product with a rounded kernel differs from it in many places.
  assert (np.asarray(value) == exact.astype(jnp.bfloat16)).mean() > 0.99
  assert (np.asarray(value) == rounded.astype(jnp.bfloat16)).mean() < 0.9


@pytest.mark.parametrize(
  ('family', 'dtype'), [('gptj', 'bfloat16'), ('llama', 'bfloat16'), ('llama', 'float16')]
)
def test_narrow_models_keep_their_dtype_and_give_float32_logits(family, dtype):
  token_NxT = tiny.tokens(2, 6)
  model = tiny.model(family)
  exact = model.head(_run(model, token_NxT)[0])
  model = tiny.in_dtype(model, dtype)
  hidden, _ = _run(model, token_NxT)
  logits = model.head(hidden)
  assert (hidden.dtype, logits.dtype) == (jnp.dtype(dtype), jnp.float32)
  assert jnp.linalg.norm(logits - exact) < 0.05 * jnp.linalg.norm(exact)

  flat, path = traverse_util.flatten_dict(model.params), kernel_path(Kernel(1, 'mlp'))
  flat[path] = flat[path].astype(jnp.float32) * 1.5
  edited = model.replace(params=traverse_util.unflatten_dict(flat))
  after, _ = _run(edited, token_NxT)  # a float32 kernel does not widen the rest
  assert after.dtype == hidden.dtype
  assert (after != hidden).any(-1).all()


def test_unknown_or_skipped_tap_is_an_error():
  model = tiny.model('gptj')
  for tap in ('0/mlp_inn', '1/mlp_in', '9/mlp_in'):
    with pytest.raises(ValueError, match=tap):
      model(tiny.tokens(1, 3), stop=1, taps=[tap])


def test_configs_that_are_not_supported_name_the_field():
  for family, fields, words in (
    ('gptj', {'activation_function': 'quick_gelu'}, 'quick_gelu'),
    ('llama', {'rope_parameters': {'rope_type': 'yarn'}}, 'yarn'),
    ('llama', {'num_key_value_heads': 3}, '3 key/value heads'),
    ('llama', {'hidden_size': None}, 'hidden_size'),
    ('gpt_neox', {'hidden_act': 'quick_gelu'}, 'quick_gelu'),
    ('gpt2', {'scale_attn_by_inverse_layer_idx': True}, 'scale_attn_by_inverse_layer_idx=True'),
    ('gpt2', {'add_cross_attention': True}, 'add_cross_attention=True'),
    ('mistral', {'layer_types': ['full_attention', 'sliding_attention']}, 'mixes layers'),
    ('qwen2', {'use_sliding_window': True, 'max_window_layers': 1}, 'mixes layers'),
  ):
    with pytest.raises(UserError, match=words):
      FAMILIES[family].read_config(tiny.hf_config(family, **fields), 'float32')


def test_config_is_a_jit_constant():
  config = tiny.model('llama').config
  assert hash(config) == hash(dataclasses.replace(config))
  assert config != dataclasses.replace(config, norm_eps=1e-6)

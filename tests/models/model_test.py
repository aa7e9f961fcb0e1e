"""Model: a pytree that runs its decoder, with interventions of its own."""

import jax
import jax.numpy as jnp
import numpy as np

from helpers import editing
from jedit.models import AddAt, Model, site

TOKENS = np.array([[5, 6, 7], [8, 9, 3]], np.int32)


def _model(**edits) -> Model:
  lm = editing.language_model('llama')
  return Model(lm.params, edits, config=lm.config)


def _add(value: float) -> AddAt:
  return AddAt(jnp.array([1, 1]), jnp.full((2, 16), value, jnp.float32))


def test_equal_configs_share_programs():
  traced = []

  @jax.jit
  def run(model, token_NxT):
    traced.append(1)
    return model.head(model(token_NxT)[0])

  first = run(_model(), TOKENS)
  again = run(jax.tree.map(jnp.copy, _model()), TOKENS)
  assert len(traced) == 1
  np.testing.assert_array_equal(first, again)


def test_own_interventions_run_before_those_of_a_call():
  name = site(1, 'mlp_out')
  plain, taps = _model(), [name]
  value_NxTxD = plain(TOKENS, taps=taps)[1][name]
  own = _model(**{name: _add(1.0)})
  np.testing.assert_allclose(
    own(TOKENS, taps=taps)[1][name][:, 1], value_NxTxD[:, 1] + 1, atol=1e-6
  )
  both = own(TOKENS, edits={name: lambda x: 2 * x}, taps=taps)[1][name]
  np.testing.assert_allclose(both[:, 1], 2 * (value_NxTxD[:, 1] + 1), atol=1e-5)
  np.testing.assert_allclose(both[:, 0], 2 * value_NxTxD[:, 0], atol=1e-6)


def test_blocks_one_by_one_give_the_whole():
  model = _model(**{site(1, 'attn_out'): _add(0.5), site(0, 'block_out'): _add(-1.0)})
  hidden, _ = model.embedding()(TOKENS, stop=0)
  for layer in range(model.config.num_layers):
    hidden, _ = model.block(layer)(hidden_NxTxD=hidden, stop=1)
  np.testing.assert_allclose(hidden, model(TOKENS)[0], atol=1e-5)

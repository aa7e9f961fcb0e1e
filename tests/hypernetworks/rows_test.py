"""Rows are what the gradient of a kernel is a sum of; changes act as if they were added to it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from helpers import editing, tiny
from jedit.hypernetworks.rows import capture, nll, run
from jedit.hypernetworks.texts import HiddenStates, denominators, make_texts
from jedit.models import kernel_path
from jedit.models.encoding import Row as Text
from jedit.models.encoding import encode_many
from jedit.models.sites import Change
from jedit.types import Kernel

KERNELS = {
  'gptj': (Kernel(1, 'mlp_up'), Kernel(1, 'mlp'), Kernel(2, 'mlp')),
  'llama': (Kernel(1, 'mlp_gate'), Kernel(1, 'mlp_up'), Kernel(2, 'mlp'), Kernel(2, 'attn')),
  'gpt2': (Kernel(2, 'mlp_up'), Kernel(2, 'mlp')),
}


def _texts(lm, first, packs=False):
  rows = [Text(r.prompt, r.subject, r.target_new) for r in editing.REQUESTS[:3]]
  texts = encode_many(lm.tokenizer, rows)
  hidden = HiddenStates(lm.model, first, [text.ids[:-1] for text in texts])
  counts = [len(text.target_ids) for text in texts]
  length, most = 2 * max(len(text.ids) for text in texts), max(counts)
  return make_texts(
    hidden, [0, 1, 2], texts, denominators(counts, 3), reads='answer', num_tokens=length,
    num_reads=most, packs=packs,
  )  # fmt: skip


def _with(lm, changed):
  flat = {**traverse_util.flatten_dict(dict(lm.params)), **changed}
  return dataclasses.replace(lm.model, params=traverse_util.unflatten_dict(flat))


@pytest.mark.parametrize('family', KERNELS)
def test_rows_sum_to_the_gradient_of_the_kernel(family):
  lm, kernels = editing.language_model(family), KERNELS[family]
  first = min(kernel.layer for kernel in kernels)
  texts = _texts(lm, first)
  loss_N, rows = jax.jit(capture, static_argnums=(1, 3))(lm.model, kernels, texts, 'nonzero')
  flat = traverse_util.flatten_dict(dict(lm.params))
  weights = {kernel_path(kernel): flat[kernel_path(kernel)] for kernel in kernels}

  def loss(weights):
    model = _with(lm, weights)
    return nll(model, texts, run(model, texts, first)[0]).sum()

  value, grads = jax.jit(jax.value_and_grad(loss))(weights)
  np.testing.assert_allclose(loss_N.sum(), value, rtol=1e-6)
  for kernel in kernels:
    key_NxPxI, grad_NxPxO, exists_NxP = map(np.asarray, rows[kernel])
    summed = np.einsum('npi,npo->io', key_NxPxI * exists_NxP[..., None], grad_NxPxO)
    theirs = np.asarray(grads[kernel_path(kernel)])
    assert editing.relative(summed, theirs) < 1e-5
  assert not np.asarray(rows[kernels[0]].exists_NxP).all(), 'padding has no rows'


def test_texts_that_share_a_row_see_themselves_alone():
  lm, kernels = editing.language_model('gptj'), KERNELS['gptj']
  alone, packed = _texts(lm, 1), _texts(lm, 1, packs=True)
  assert len(set(packed.layout.row_N)) < len(alone.hidden_BxTxD)
  find = jax.jit(capture, static_argnums=(1, 3))
  (theirs_N, theirs), (ours_N, ours) = (
    find(lm.model, kernels, texts, 'answer') for texts in (alone, packed)
  )
  np.testing.assert_allclose(ours_N, theirs_N, rtol=1e-5)
  exists_NxP = np.asarray(theirs[kernels[0]].exists_NxP)
  for kernel in kernels:
    np.testing.assert_array_equal(ours[kernel].exists_NxP, exists_NxP)
    for x, y in zip(ours[kernel][:2], theirs[kernel][:2], strict=True):
      assert editing.relative(np.asarray(x)[exists_NxP], np.asarray(y)[exists_NxP]) < 1e-5


@pytest.mark.parametrize('family', KERNELS)
def test_a_change_acts_as_if_it_were_added_to_the_kernel(family):
  lm = editing.language_model(family)
  token_NxT, rng = tiny.tokens(2, 5), np.random.default_rng(0)
  flat, changes, changed = traverse_util.flatten_dict(dict(lm.params)), {}, {}
  for number, kernel in enumerate(KERNELS[family]):
    path = kernel_path(kernel)
    left = jnp.asarray(rng.normal(size=(flat[path].shape[0], 2)), jnp.float32)
    right = jnp.asarray(rng.normal(size=(2, flat[path].shape[1])), jnp.float32)
    changed[path] = flat[path] + 0.1 * left @ right
    changes[kernel] = Change(0.1 * left @ right) if number == 0 else Change(0.1 * left, right)
  ours, _ = jax.jit(lambda model: model(token_NxT, changes=changes))(lm.model)
  theirs, _ = jax.jit(lambda model: model(token_NxT))(_with(lm, changed))
  assert editing.relative(ours, np.asarray(theirs)) < 1e-5
  before, _ = jax.jit(lambda model: model(token_NxT))(lm.model)
  assert editing.relative(before, np.asarray(theirs)) > 1e-3


def test_denominators_are_tokens_of_the_group():
  assert denominators([1, 2, 3, 4], 2) == [3.0, 3.0, 7.0, 7.0]
  assert denominators([1, 2, 3], 2) == [3.0, 3.0, 3.0]
  # An incomplete group counts as if average edits filled it up.
  assert denominators([1, 2, 3], 2, 1.5, fills=True) == [3.0, 3.0, 4.5]
  assert denominators([3], 16, fills=True) == [48.0]


def test_hidden_states_that_are_kept_are_those_computed_at_once():
  lm = editing.language_model('gptj')
  rows = [list(range(1, 3 + n % 5)) for n in range(70)]
  kept, fresh = HiddenStates(lm.model, 1, rows), HiddenStates(lm.model, 1, rows, keeps=False)
  for numbers in ([3, 69, 7], [7, 3]):
    for ours_TxD, theirs_TxD, number in zip(kept(numbers), fresh(numbers), numbers, strict=True):
      assert ours_TxD.shape == (len(rows[number]), lm.config.width)
      np.testing.assert_allclose(ours_TxD, theirs_TxD, atol=1e-5)

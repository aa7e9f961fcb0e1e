"""LoRA adapters: PEFT computes what the patched model does, and adapters come back as patches.

Tolerance of logits: 1e-4 absolute in float32, as between the two unedited models; measured
differences are below 1e-5.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from helpers import editing, tiny
from jedit.models import FAMILIES, AddAt, Model
from jedit.models.export import save_directory
from jedit.models.patch import Patch, Update, merge, patched
from jedit.types import UserError

ATOL = 1e-4
DOWN, DENSE = 'block_0/mlp/down/kernel', 'block_1/mlp/down/kernel'
UP, OUT = 'block_1/mlp/up/kernel', 'block_1/attn/out/kernel'
TOKENS = tiny.tokens(2, 12)


def _update(params, path, rank=None, seed=0):
  """A change as large as the kernel; without a rank, one of full rank."""
  leaf = params
  for key in path.split('/'):
    leaf = leaf[key]
  rng = np.random.default_rng([seed, len(path)])
  if rank is None:
    return Update(dense=rng.normal(0, 0.2, leaf.shape).astype(np.float32))
  left, right = rng.normal(0, 0.3, (leaf.shape[0], rank)), rng.normal(0, 0.3, (rank, leaf.shape[1]))
  return Update(left_FxR=left.astype(np.float32), right_RxD=right.astype(np.float32))


def _patch(params, family, ranks):
  updates = {path: _update(params, path, rank) for path, rank in ranks.items()}
  return Patch(updates, {'model': 'the base', 'family': family, 'method': {'name': 'memit'}})


def _small_patch(ranks=None):
  lm = editing.language_model()
  return _patch(lm.base, 'gptj', ranks or {DOWN: 2, OUT: 3})


@jax.jit
def _logits(model):
  hidden, _ = model(TOKENS)
  return model.head(hidden)


def _torch_model(path):
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  transformers.utils.logging.disable_progress_bar()
  model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
  return model.eval()


def _torch_logits(model):
  import torch

  with torch.no_grad():
    return model(torch.tensor(np.asarray(TOKENS))).logits.numpy()


def _directory(path, family):
  hf_config = tiny.hf_config(family)
  model = tiny.model(family)
  save_directory(path, model, hf_config)
  return model


@pytest.mark.parametrize('family', FAMILIES)
def test_peft_computes_the_logits_of_the_patched_model(family, tmp_path):
  peft = pytest.importorskip('peft')
  model = _directory(tmp_path / 'model', family)
  fused = 'qkv' if model.config.fused_qkv else 'q'
  ranks = {
    DOWN: 3,
    UP: 1,
    OUT: 2,
    f'block_0/attn/{fused}/kernel': 2,
    DENSE: None,
  }
  if 'gate' in model.params['block_0']['mlp']:
    ranks['block_0/mlp/gate/kernel'] = 2
  patch = _patch(model.params, family, ranks)
  written = patch.to_lora(tmp_path / 'adapter')
  ours = _logits(Model(patched(model.params, patch.updates), config=model.config))
  base = _torch_model(tmp_path / 'model')
  unedited = _torch_logits(base)
  theirs = _torch_logits(peft.PeftModel.from_pretrained(base, tmp_path / 'adapter'))
  assert np.abs(theirs - unedited).max() > 100 * ATOL
  np.testing.assert_allclose(theirs, ours, rtol=0, atol=ATOL)
  assert written.ranks[DOWN] == 3 and written.ranks[DENSE] == 32


@pytest.mark.parametrize('family', ['gptj', 'gpt2'])
def test_adapters_of_peft_come_back_as_patches(family, tmp_path):
  peft, torch = pytest.importorskip('peft'), pytest.importorskip('torch')
  model = _directory(tmp_path / 'model', family)
  down, up = ('fc_out', 'fc_in') if family == 'gptj' else ('mlp.c_proj', 'c_fc')
  config = peft.LoraConfig(
    r=4,
    lora_alpha=10,
    target_modules=[down, up],
    rank_pattern={f'h.1.*{down}': 2},
    alpha_pattern={up: 3},
    init_lora_weights=False,
    fan_in_fan_out=family == 'gpt2',
    task_type='CAUSAL_LM',
  )
  torch.manual_seed(0)
  adapted = peft.get_peft_model(_torch_model(tmp_path / 'model'), config).eval()
  adapted.save_pretrained(tmp_path / 'adapter')
  patch = Patch.from_lora(tmp_path / 'adapter')
  assert set(patch.updates) == {f'block_{n}/mlp/{m}/kernel' for n in (0, 1) for m in ('up', 'down')}
  assert patch.updates[DENSE].rank == 2
  assert patch.provenance['method'] == {'name': 'lora'} and 'model' not in patch.provenance
  assert patch.provenance['adapter']['base_model_name_or_path'] == str(tmp_path / 'model')
  ours = _logits(Model(patched(model.params, patch.updates), config=model.config))
  np.testing.assert_allclose(_torch_logits(adapted), ours, rtol=0, atol=ATOL)


def test_factors_keep_their_bits_and_patches_their_provenance(tmp_path):
  patch = _small_patch()
  written = patch.to_lora(tmp_path / 'adapter')
  assert written.ranks == {DOWN: 2, OUT: 3} and written.errors == {DOWN: 0.0, OUT: 0.0}
  assert 'rank 3 or less, exact' in repr(written)
  back = Patch.from_lora(tmp_path / 'adapter')
  assert back.id == patch.id and back.provenance == patch.provenance
  config = json.loads((tmp_path / 'adapter' / 'adapter_config.json').read_text())
  assert config['r'] == config['lora_alpha'] == 3
  module = 'transformer.h.0.mlp.fc_out'
  assert config['rank_pattern'] == config['alpha_pattern'] == {module: 2}
  tensors = load_file(tmp_path / 'adapter' / 'adapter_model.safetensors')
  assert tensors[f'base_model.model.{module}.lora_A.weight'].shape == (2, 24)
  # Another factor is another change, of which the provenance is silent.
  config['lora_alpha'] = 6
  (tmp_path / 'adapter' / 'adapter_config.json').write_text(json.dumps(config))
  scaled = Patch.from_lora(tmp_path / 'adapter')
  np.testing.assert_allclose(
    scaled.updates[OUT].value(), 2 * patch.updates[OUT].value(), rtol=1e-6, atol=1e-7
  )
  assert 'model' not in scaled.provenance


@pytest.mark.parametrize('rank', [5, None], ids=['factors', 'dense'])
def test_max_rank_keeps_the_largest_singular_values(rank, tmp_path):
  patch = _small_patch({DOWN: rank, OUT: 1})
  written = patch.to_lora(tmp_path / 'adapter', max_rank=2)
  back = Patch.from_lora(tmp_path / 'adapter')
  whole = patch.updates[DOWN].value().astype(np.float64)
  u, sizes, v = np.linalg.svd(whole, full_matrices=False)
  best = (u[:, :2] * sizes[:2]) @ v[:2]
  np.testing.assert_allclose(back.updates[DOWN].value(), best, rtol=0, atol=1e-5)
  error = np.linalg.norm(whole - best) / np.linalg.norm(whole)
  assert written.errors == {DOWN: pytest.approx(error, rel=1e-5), OUT: 0.0}
  assert written.ranks == {DOWN: 2, OUT: 1}
  assert f'at most {100 * error:.2g}% of an update left out' in repr(written)
  # The patch that comes back is no longer the one that was written, and says so.
  assert back.provenance['truncated'] == {'patch': patch.id, 'errors': {DOWN: written.errors[DOWN]}}
  assert back.provenance['model'] == 'the base'
  left, right = back.updates[DOWN].left_FxR, back.updates[DOWN].right_RxD
  np.testing.assert_allclose(np.linalg.norm(left, axis=0), np.linalg.norm(right, axis=1), rtol=1e-5)


def test_a_dense_change_of_low_rank_is_written_with_that_rank(tmp_path):
  factors = _small_patch({DOWN: 3}).updates[DOWN]
  patch = Patch({DOWN: Update(dense=factors.value())}, {'family': 'gptj'})
  assert patch.to_lora(tmp_path / 'adapter').ranks == {DOWN: 3}
  value = Patch.from_lora(tmp_path / 'adapter').updates[DOWN].value()
  np.testing.assert_allclose(value, factors.value(), rtol=0, atol=1e-6)


def test_patches_that_no_adapter_holds_are_refused(tmp_path):
  patch = _small_patch()

  def refused(message, patch=patch, **arguments):
    with pytest.raises(UserError, match=message):
      patch.to_lora(tmp_path / 'adapter', **arguments)
    assert not (tmp_path / 'adapter').exists()

  at = AddAt(jnp.array([0]), jnp.ones((1, 16)))
  refused('interventions at 1/mlp_out', Patch({}, {}, {'1/mlp_out': at}))
  for name in ('block_0/mlp/down/bias', 'embed/embedding', 'head/kernel'):
    change = Update(dense=np.ones((16,), np.float32))
    message = f'changes {name}, and a LoRA adapter holds kernels of blocks alone'
    refused(message, Patch({name: change}, {'family': 'gptj'}))
  refused('max_rank is 17 and .* of 24 x 16 has ranks from 1 to 16', max_rank=17)
  refused('max_rank is 0', max_rank=0)
  refused("Unknown family 'bert'; choose from gpt2", family='bert')
  bad = Update(dense=np.full((24, 16), np.nan))
  refused(f'{DOWN} is not finite', Patch({DOWN: bad}, {'family': 'gptj'}))
  refused("does not name its model's family", dataclasses.replace(patch, provenance={}))
  gate = Patch({'block_0/mlp/gate/kernel': patch.updates[DOWN]}, {'family': 'gptj'})
  refused('changes block_0/mlp/gate/kernel, which models of the family gptj lack', gate)
  first = _small_patch({UP: 1})
  provenance = {**first.provenance, 'patches_before': [first.id]}
  second = dataclasses.replace(patch, provenance=provenance)
  refused(f'on top of {first.id}, which its adapter would lack', second)
  merge([first, second]).to_lora(tmp_path / 'merged')
  assert Patch.from_lora(tmp_path / 'merged').id == merge([first, second]).id
  with pytest.raises(UserError, match='exists already'):
    patch.to_lora(tmp_path / 'merged')


MODULE = 'base_model.model.model.layers.1.mlp.down_proj'


def _foreign(path, tensors=None, **fields):
  """An adapter that another program wrote."""
  path.mkdir()
  config = {'peft_type': 'LORA', 'r': 2, 'lora_alpha': 4, 'bias': 'none', 'use_dora': False}
  (path / 'adapter_config.json').write_text(json.dumps({**config, **fields}))
  a, b = np.ones((2, 44), np.float16), np.ones((32, 2), np.float16)
  made = {f'{MODULE}.lora_A.weight': a, f'{MODULE}.lora_B.weight': b}
  save_file(made if tensors is None else tensors, path / 'adapter_model.safetensors')
  return path


def test_adapters_of_other_programs(tmp_path):
  patch = Patch.from_lora(_foreign(tmp_path / 'a'))
  np.testing.assert_array_equal(patch.updates[DENSE].value(), np.full((44, 32), 4))
  assert repr(patch).startswith(f'Patch {patch.id}: edits by lora')
  short = {f'h.3.mlp.c_proj.lora_{side}.weight': np.ones((4, 4), np.float32) for side in 'AB'}
  assert set(Patch.from_lora(_foreign(tmp_path / 'b', short, r=4)).updates) == {
    'block_3/mlp/down/kernel'
  }


@pytest.mark.parametrize(
  ('fields', 'tensors', 'message'),
  [
    ({'use_rslora': True}, None, 'uses use_rslora, which a patch cannot hold; merge it'),
    ({'use_dora': True}, None, 'uses use_dora'),
    ({'bias': 'all'}, None, 'uses bias'),
    ({'modules_to_save': ['lm_head']}, None, 'uses modules_to_save'),
    ({'peft_type': 'IA3'}, None, 'uses IA3'),
    ({'r': 0}, None, "0 in the field 'r'; give a number of at least 1"),
    ({'r': 3}, None, 'factors of shapes .* and rank 3 in its adapter_config.json'),
    ({}, {}, 'is empty'),
    ({}, {f'{MODULE}.lora_A.weight': np.ones((2, 4))}, 'factors of shapes'),
    ({}, {f'{MODULE}.lora_embedding_A': np.ones((2, 4))}, 'is no factor of a linear layer'),
    ({}, {f'a.0.b.lora_{s}.weight': np.ones((2, 2)) for s in 'AB'}, 'no supported family has'),
  ],
)  # fmt: skip
def test_adapters_that_no_patch_holds_are_refused(fields, tensors, message, tmp_path):
  with pytest.raises(UserError, match=message):
    Patch.from_lora(_foreign(tmp_path / 'a', tensors, **fields))


def test_missing_and_damaged_adapters_are_refused(tmp_path):
  with pytest.raises(UserError, match='has no adapter_config.json'):
    Patch.from_lora(tmp_path)
  _small_patch().to_lora(tmp_path / 'adapter')
  file = tmp_path / 'adapter' / 'adapter_model.safetensors'
  data = bytearray(file.read_bytes())
  data[-5] ^= 1
  file.write_bytes(data)
  with pytest.raises(UserError, match='is damaged'):
    Patch.from_lora(tmp_path / 'adapter')

"""Logits and every site agree with transformers' PyTorch models, which read the same directory.

Tolerance: 1e-4 absolute in float32. The two programs add in different orders; measured
differences are below 2e-5.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from helpers import tiny
from jedit.models import FAMILIES, Model, kernel_path
from jedit.models.export import save_directory
from jedit.models.language_model import load
from jedit.models.load import load_directory
from jedit.models.sites import PLACES, site
from jedit.models.tokenizer import load_tokenizer
from jedit.types import Kernel

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
transformers.utils.logging.disable_progress_bar()

ATOL = 1e-4
LLAMA3 = {
  'factor': 8.0,
  'low_freq_factor': 1.0,
  'high_freq_factor': 4.0,
  'original_max_position_embeddings': 64,  # long, blended and short wavelengths all occur
}
NEW_LLAMA3 = {'rope_type': 'llama3', 'rope_theta': 10000.0, **LLAMA3}
DYNAMIC = {'rope_type': 'dynamic', 'rope_theta': 10000.0, 'factor': 2.0}

# Where PyTorch models keep their blocks, and a block its two output projections.
PARTS = {
  'gptj': ('transformer.h', 'attn.out_proj', 'mlp.fc_out', {'mlp_up': 'mlp.fc_in'}),
  'gpt2': ('transformer.h', 'attn.c_proj', 'mlp.c_proj', {'mlp_up': 'mlp.c_fc'}),
  'gpt_neox': (
    'gpt_neox.layers',
    'attention.dense',
    'mlp.dense_4h_to_h',
    {'mlp_up': 'mlp.dense_h_to_4h'},
  ),
  **dict.fromkeys(
    ('llama', 'mistral', 'qwen2', 'qwen3'),
    (
      'model.layers',
      'self_attn.o_proj',
      'mlp.down_proj',
      {'mlp_up': 'mlp.up_proj', 'mlp_gate': 'mlp.gate_proj'},
    ),
  ),
}

# Family, config fields, and the length of the longest row where it matters.
CASES = {
  'gptj_partial_rotary': ('gptj', {}, 12),
  'gptj_full_rotary_default_ffn': ('gptj', {'rotary_dim': 8, 'n_inner': None}, 12),
  'gptj_tied_exact_gelu': (
    'gptj',
    {'tie_word_embeddings': True, 'activation_function': 'gelu'},
    12,
  ),
  'llama_gqa': ('llama', {}, 12),
  'llama_mha_biases': (
    'llama',
    {'num_key_value_heads': 4, 'attention_bias': True, 'mlp_bias': True},
    12,
  ),
  'llama_one_kv_head_wide_heads': ('llama', {'num_key_value_heads': 1, 'head_dim': 12}, 12),
  'llama_tied': ('llama', {'tie_word_embeddings': True}, 12),
  'llama_old_theta_mha_by_default': (
    'llama',
    {'rope_theta': 5e5, 'rope_scaling': None, 'num_key_value_heads': None},
    12,
  ),
  'llama_linear': (
    'llama',
    {'rope_parameters': {'rope_type': 'linear', 'rope_theta': 5e5, 'factor': 4.0}},
    12,
  ),
  'llama_old_linear': ('llama', {'rope_scaling': {'type': 'linear', 'factor': 4.0}}, 12),
  'llama_dynamic_short': ('llama', {'rope_parameters': DYNAMIC, 'max_position_embeddings': 16}, 12),
  'llama_dynamic_long': ('llama', {'rope_parameters': DYNAMIC, 'max_position_embeddings': 16}, 24),
  'llama_old_dynamic_long': (
    'llama',
    {'rope_scaling': {'type': 'dynamic', 'factor': 2.0}, 'max_position_embeddings': 16},
    24,
  ),
  'llama3': ('llama', {'rope_parameters': NEW_LLAMA3, 'head_dim': 16}, 40),
  'llama3_old': (
    'llama',
    {'rope_theta': 5e5, 'rope_scaling': {'rope_type': 'llama3', **LLAMA3}, 'head_dim': 16},
    40,
  ),
  'gpt_neox_partial_rotary': ('gpt_neox', {}, 12),
  'gpt_neox_sequential_tied_unbiased': (
    'gpt_neox',
    {
      'use_parallel_residual': False,
      'tie_word_embeddings': True,
      'attention_bias': False,
      'hidden_act': 'gelu_fast',
    },
    12,
  ),
  'gpt_neox_new_rope': (
    'gpt_neox',
    {
      'rope_parameters': {
        'rope_type': 'default',
        'rope_theta': 500.0,
        'partial_rotary_factor': 1.0,
      },
      'rotary_pct': None,
      'rotary_emb_base': None,
    },
    12,
  ),
  'gpt_neox_dynamic_long': (
    'gpt_neox',
    {'rope_scaling': {'type': 'dynamic', 'factor': 2.0}, 'max_position_embeddings': 16},
    24,
  ),
  'gpt_neox_linear_other_base': (
    'gpt_neox',
    {'rope_scaling': {'type': 'linear', 'factor': 4.0}, 'rotary_emb_base': 500},
    12,
  ),
  'gpt2_tied': ('gpt2', {}, 12),
  'gpt2_untied_exact_gelu_default_ffn': (
    'gpt2',
    {'tie_word_embeddings': False, 'activation_function': 'gelu', 'n_inner': None},
    12,
  ),
  'mistral_window': ('mistral', {}, 12),
  'mistral_no_window': ('mistral', {'sliding_window': None}, 12),
  'qwen2_tied': ('qwen2', {'tie_word_embeddings': True}, 12),
  'qwen2_window': (
    'qwen2',
    {'use_sliding_window': True, 'sliding_window': 4, 'max_window_layers': 0},
    12,
  ),
  'qwen3_wide_heads': ('qwen3', {}, 12),
}


def _make_directory(path, family, fields):
  hf_config = {k: v for k, v in tiny.hf_config(family, **fields).items() if v is not None}
  config = FAMILIES[family].read_config(hf_config, 'float32')
  save_directory(path, Model(tiny.random_params(config), config=config), hf_config)
  return path


def _torch_model(path, dtype='float32'):
  model = transformers.AutoModelForCausalLM.from_pretrained(
    path, dtype=getattr(torch, dtype), attn_implementation='eager'
  )
  return model.eval()


def _torch_sites(model, token_NxT, length_N):
  """Logits and all sites of a PyTorch model, under our names."""
  seen, hooks = {}, []

  def watch(module, place_in, place_out, layer):
    def hook(_, inputs, output):
      output = output[0] if isinstance(output, tuple) else output
      if place_in is not None:
        seen[site(layer, place_in)] = inputs[0].float().numpy()
      seen[site(layer, place_out)] = output.float().numpy()

    hooks.append(module.register_forward_hook(hook))

  stack, attn, mlp, upper = PARTS[model.config.model_type]
  for layer, block in enumerate(model.get_submodule(stack)):
    watch(block.get_submodule(attn), 'attn_in', 'attn_out', layer)
    watch(block.get_submodule(mlp), 'mlp_in', 'mlp_out', layer)
    for place, module in upper.items():
      watch(block.get_submodule(module), None, place, layer)
    watch(block, None, 'block_out', layer)
    norms = [name for name, _ in block.named_children() if name.startswith('ln_') or 'norm' in name]
    assert len(norms) in (1, 2)
    watch(block.get_submodule(norms[0]), None, 'attn_normed', layer)
    watch(block.get_submodule(norms[-1]), None, 'mlp_normed', layer)
  mask_NxT = np.arange(token_NxT.shape[1])[None] < np.asarray(length_N)[:, None]
  with torch.no_grad():
    out = model(
      torch.tensor(np.asarray(token_NxT)),
      attention_mask=torch.tensor(mask_NxT.astype(np.int64)),
      past_key_values=transformers.DynamicCache(),  # all tokens, whatever the window
    )
  for hook in hooks:
    hook.remove()
  for layer, cached in enumerate(out.past_key_values.layers):
    seen[site(layer, 'attn_key')] = cached.keys.transpose(1, 2).float().numpy()
    seen[site(layer, 'attn_value')] = cached.values.transpose(1, 2).float().numpy()
  return out.logits.float().numpy(), seen


def _our_sites(model, token_NxT):
  # No module of transformers returns rotated queries; attn_in depends on them.
  places = set(PLACES) - {'attn_query'}
  places -= set() if 'gate' in model.params['block_0']['mlp'] else {'mlp_gate'}
  taps = [site(layer, place) for layer in range(model.config.num_layers) for place in places]

  @jax.jit
  def run(model, token_NxT):
    hidden, seen = model(token_NxT, taps=taps)
    return model.head(hidden), seen

  return jax.device_get(run(model, token_NxT))


def _assert_close(ours, theirs, length_N, name):
  """Compares the real tokens of right-padded rows."""
  for n, length in enumerate(length_N):
    np.testing.assert_allclose(
      ours[n, :length], theirs[n, :length], rtol=0, atol=ATOL, err_msg=name
    )


def _assert_same(path, longest):
  model, _ = load_directory(path)
  length_N = (longest, longest - 3, 5)
  token_NxT = tiny.tokens(3, longest)
  logits, seen = _our_sites(model, token_NxT)
  torch_logits, torch_seen = _torch_sites(_torch_model(path), token_NxT, length_N)
  assert set(seen) == set(torch_seen)
  _assert_close(logits, torch_logits, length_N, 'logits')
  for name, value in seen.items():
    _assert_close(value, torch_seen[name], length_N, name)


@pytest.mark.parametrize('case', CASES)
def test_logits_and_sites_equal_transformers(case, tmp_path):
  family, fields, longest = CASES[case]
  _assert_same(_make_directory(tmp_path / 'model', family, fields), longest)


@pytest.mark.parametrize('model', ['gptj_a', 'llama_a', 'llama_gqa_a'])
def test_golden_models(model, shared):
  path = shared / 'golden' / 'models' / model
  if not path.is_dir():
    pytest.skip(f'{path} is absent')
  golden = np.load(path / 'logits.npz')
  token_NxT, length_N = jnp.asarray(golden['test_ids'], jnp.int32), golden['test_lengths']
  model, _ = load_directory(path)
  logits, seen = _our_sites(model, token_NxT)
  torch_logits, torch_seen = _torch_sites(_torch_model(path), token_NxT, length_N)
  _assert_close(logits, golden['logits_hf_float32'], length_N, 'stored logits')
  _assert_close(logits, torch_logits, length_N, 'logits')
  for name, value in seen.items():
    _assert_close(value, torch_seen[name], length_N, name)


@pytest.mark.parametrize('family', tiny.HF_CONFIGS)
def test_padding_on_the_left_equals_transformers(family, tmp_path):
  path = _make_directory(tmp_path / 'model', family, {})
  model, _ = load_directory(path)
  token_NxT, pad_N = np.asarray(tiny.tokens(2, 12)), np.array([0, 5])
  position_NxT = np.arange(12)[None] - pad_N[:, None]
  is_real_NxT = position_NxT >= 0
  position_NxT = np.maximum(position_NxT, 0)

  @jax.jit
  def run(model):
    hidden, _ = model(token_NxT, position_NxT=position_NxT, segment_NxT=is_real_NxT)
    return model.head(hidden)

  with torch.no_grad():
    expected = _torch_model(path)(
      torch.tensor(token_NxT),
      attention_mask=torch.tensor(is_real_NxT.astype(np.int64)),
      position_ids=torch.tensor(position_NxT),
    ).logits
  for ours, theirs, is_real_T in zip(run(model), expected, is_real_NxT, strict=True):
    np.testing.assert_allclose(ours[is_real_T], theirs[is_real_T], rtol=0, atol=ATOL)


@pytest.mark.parametrize('case', ['gptj', 'llama', 'gpt_neox', 'gpt2', 'gpt2_headless', 'qwen3'])
def test_what_transformers_saved_comes_back_bit_for_bit(case, tmp_path):
  family = case.removesuffix('_headless')
  hf_config = transformers.AutoConfig.for_model(**tiny.hf_config(family))
  auto = transformers.AutoModel if case != family else transformers.AutoModelForCausalLM
  torch.manual_seed(0)
  auto.from_config(hf_config).save_pretrained(tmp_path / 'theirs')
  model, hf_config = load_directory(tmp_path / 'theirs')
  save_directory(tmp_path / 'ours', model, hf_config)
  theirs, ours = (load_file(tmp_path / d / 'model.safetensors') for d in ('theirs', 'ours'))
  assert ours.keys() == theirs.keys()
  for name, tensor in theirs.items():
    np.testing.assert_array_equal(ours[name], tensor)
  first, second = (_torch_model(tmp_path / d).state_dict() for d in ('theirs', 'ours'))
  assert first.keys() == second.keys()
  assert all(torch.equal(second[name], tensor) for name, tensor in first.items())


def test_checkpoints_of_older_programs(tmp_path):
  """Stored masks, frequencies and a tied head; dtype under its old name."""
  buffers = {
    'gptj': {
      'transformer.h.0.attn.bias': np.ones((1, 1, 64, 64), np.float32),
      'transformer.h.0.attn.masked_bias': np.array(-1e9, np.float32),
    },
    'llama': {
      'model.layers.1.self_attn.rotary_emb.inv_freq': np.ones(4, np.float32),
    },
    'gpt_neox': {
      'gpt_neox.layers.0.attention.bias': np.ones((1, 1, 64, 64), np.bool_),
      'gpt_neox.layers.0.attention.masked_bias': np.array(-1e9, np.float32),
      'gpt_neox.layers.0.attention.rotary_emb.inv_freq': np.ones(2, np.float32),
    },
    'gpt2': {'h.0.attn.bias': np.ones((1, 1, 64, 64), np.float32)},
  }
  for family, extra in buffers.items():
    fields = {'tie_word_embeddings': True, 'torch_dtype': 'float32', 'dtype': None}
    path = _make_directory(tmp_path / family, family, fields)
    tensors = load_file(path / 'model.safetensors')
    table = {ours: name for name, ours, _ in FAMILIES[family].names}
    extra = {**extra, table['head/kernel']: tensors[table['embed/embedding']].copy()}
    if family == 'gpt2':  # the first checkpoints hold the model without its head
      tensors = {name.removeprefix('transformer.'): tensor for name, tensor in tensors.items()}
    stored = {**tensors, **extra}
    save_file(stored, path / 'model.safetensors', {'format': 'pt'})
    _assert_same(path, 12)
    model, hf_config = load_directory(path)
    save_directory(tmp_path / f'{family}_again', model, hf_config, source=path)
    again = load_file(tmp_path / f'{family}_again' / 'model.safetensors')
    assert again.keys() == stored.keys()
    assert all(np.array_equal(again[name], tensor) for name, tensor in stored.items())


@pytest.mark.parametrize(
  ('family', 'tokenizer'), [('gpt_neox', 'gpt-neox'), ('gpt2', 'gpt2'), ('llama', 'llama')]
)
def test_text_becomes_the_same_logits_with_the_tokenizers_of_real_models(
  family, tokenizer, shared, tmp_path
):
  source = shared / 'data' / 'tokenizers' / tokenizer
  if not source.is_dir():
    pytest.skip(f'{source} is absent')
  if tokenizer == 'llama':
    pytest.importorskip('sentencepiece')
  real = load_tokenizer(source)
  hf_config = tiny.hf_config(family, vocab_size=len(real))
  config = FAMILIES[family].read_config(hf_config, 'float32')
  model = Model(tiny.random_params(config), config=config)
  save_directory(tmp_path / 'a', model, hf_config, tokenizer=real)
  lm = load(tmp_path / 'a')
  lm.export(tmp_path / 'b')
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / 'b')
  torch_model = _torch_model(tmp_path / 'b')
  texts = ['The mother tongue of Danielle Darrieux is', ' 東京  and\n\nZoë', 'x']
  for text, logits in zip(texts, lm.logits(texts), strict=True):
    with torch.no_grad():
      expected = torch_model(torch.tensor([theirs(text)['input_ids']])).logits[0, -1]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=ATOL)


def test_stored_head_wins_over_a_config_that_ties_it(tmp_path):
  path = _make_directory(tmp_path / 'model', 'llama', {})
  hf_config = json.loads((path / 'config.json').read_text())
  hf_config['tie_word_embeddings'] = True
  (path / 'config.json').write_text(json.dumps(hf_config))
  assert load_directory(path)[1]['tie_word_embeddings'] is False
  _assert_same(path, 12)


@pytest.mark.parametrize('family', tiny.HF_CONFIGS)
def test_bfloat16_is_as_close_to_float32_as_transformers(family, tmp_path):
  path = _make_directory(tmp_path / 'model', family, {})
  token_NxT = tiny.tokens(4, 12)
  exact, _ = _torch_sites(_torch_model(path), token_NxT, [12] * 4)
  theirs, _ = _torch_sites(_torch_model(path, 'bfloat16'), token_NxT, [12] * 4)
  model, _ = load_directory(path, 'bfloat16')
  ours, _ = _our_sites(model, token_NxT)
  error = np.linalg.norm(ours - exact) / np.linalg.norm(exact)
  # Both round after every operation, not always after the same ones.
  assert 1e-4 < error < 1.5 * np.linalg.norm(theirs - exact) / np.linalg.norm(exact) < 0.1


@pytest.mark.parametrize('family', tiny.HF_CONFIGS)
def test_transformers_loads_an_edited_export(family, tmp_path):
  base = tiny.model(family)
  flat = traverse_util.flatten_dict(base.params)
  path = kernel_path(Kernel(1, 'mlp'))
  edited = base.replace(params=traverse_util.unflatten_dict({**flat, path: flat[path] * 1.5}))
  for dtype in ('float32', 'bfloat16'):
    path = tmp_path / dtype
    save_directory(path, edited, tiny.hf_config(family), dtype=dtype, base=base.params)
    model = transformers.AutoModelForCausalLM.from_pretrained(path, attn_implementation='eager')
    assert model.dtype == getattr(torch, dtype)  # from config.json
    stored, _ = load_directory(path, dtype)
    token_NxT = tiny.tokens(2, 10)
    logits, _ = _our_sites(tiny.in_dtype(stored, 'float32'), token_NxT)
    expected, _ = _torch_sites(model.float(), token_NxT, [10, 10])
    np.testing.assert_allclose(logits, expected, rtol=0, atol=ATOL)

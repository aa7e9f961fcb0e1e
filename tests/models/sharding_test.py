"""Every parameter of the published models has a name, a shape and a sharding rule."""

import dataclasses
import math

import jax
import pytest
from flax import traverse_util
from jax.sharding import PartitionSpec as P

from helpers import tiny
from jedit.models import FAMILIES, kernel_path, sharding
from jedit.models.load import name_table
from jedit.models.sites import KERNEL_INPUT
from jedit.parallel import mesh as mesh_module
from jedit.types import Kernel, UserError

# From each model's public config.json; the last is its number of parameters.
PUBLISHED = {
  'gptj-6b': (
    {
      'model_type': 'gptj',
      'vocab_size': 50400,
      'n_layer': 28,
      'n_embd': 4096,
      'n_head': 16,
      'n_positions': 2048,
      'rotary_dim': 64,
      'activation_function': 'gelu_new',
      'tie_word_embeddings': False,
    },
    6_050_882_784,
  ),
  'llama-2-7b': (
    {
      'model_type': 'llama',
      'vocab_size': 32000,
      'num_hidden_layers': 32,
      'hidden_size': 4096,
      'num_attention_heads': 32,
      'num_key_value_heads': 32,
      'intermediate_size': 11008,
      'max_position_embeddings': 4096,
      'rms_norm_eps': 1e-5,
      'rope_scaling': None,
      'tie_word_embeddings': False,
    },
    6_738_415_616,
  ),
  'llama-3-8b': (
    {
      'model_type': 'llama',
      'vocab_size': 128256,
      'num_hidden_layers': 32,
      'hidden_size': 4096,
      'num_attention_heads': 32,
      'num_key_value_heads': 8,
      'intermediate_size': 14336,
      'max_position_embeddings': 8192,
      'rms_norm_eps': 1e-5,
      'rope_theta': 500000.0,
      'rope_scaling': None,
      'tie_word_embeddings': False,
    },
    8_030_261_248,
  ),
  'gpt-neox-20b': (
    {
      'model_type': 'gpt_neox',
      'vocab_size': 50432,
      'num_hidden_layers': 44,
      'hidden_size': 6144,
      'num_attention_heads': 64,
      'intermediate_size': 24576,
      'max_position_embeddings': 2048,
      'hidden_act': 'gelu_fast',
      'layer_norm_eps': 1e-5,
      'rotary_pct': 0.25,
      'rotary_emb_base': 10000,
      'tie_word_embeddings': False,
    },
    20_554_567_680,
  ),
  'gpt2-xl': (
    {
      'model_type': 'gpt2',
      'vocab_size': 50257,
      'n_layer': 48,
      'n_embd': 1600,
      'n_head': 25,
      'n_positions': 1024,
      'activation_function': 'gelu_new',
      'layer_norm_epsilon': 1e-5,
    },
    1_557_611_200,
  ),
}


@pytest.mark.parametrize('model', PUBLISHED)
def test_published_models(model):
  hf_config, count = PUBLISHED[model]
  config = FAMILIES[hf_config['model_type']].read_config(hf_config, 'bfloat16')
  flat = traverse_util.flatten_dict(sharding.param_shapes(config), sep='/')
  assert sum(math.prod(leaf.shape) for leaf in flat.values()) == count
  table = name_table(config)
  assert {path for path, _, _ in table.values()} == flat.keys()
  assert all(math.prod(shape) == flat[path].size for path, _, shape in table.values())
  specs = traverse_util.flatten_dict(sharding.param_specs(config), sep='/')
  assert specs.keys() == flat.keys()
  reading = ('mlp_up', 'mlp_gate')  # the residual stream
  for kernel in (Kernel(3, name) for name in KERNEL_INPUT):
    path = '/'.join(kernel_path(kernel))
    if kernel.name == 'mlp_gate' and path not in specs:
      with pytest.raises(UserError, match='has no kernel 3/mlp_gate'):
        sharding.kernel_shape(config, kernel)
      continue
    assert specs[path] == (P(None, 'model') if kernel.name in reading else P('model', None))
    assert sharding.kernel_shape(config, kernel) == flat[path].shape
    assert flat[path].shape[0] == config.key_sizes[kernel.name]
  mesh = jax.sharding.AbstractMesh((1, 4), (mesh_module.DATA, mesh_module.MODEL))
  shardings = traverse_util.flatten_dict(sharding.param_shardings(config, mesh), sep='/')
  per_device = sum(math.prod(shardings[p].shard_shape(leaf.shape)) for p, leaf in flat.items())
  # What stays whole: norms and small biases, and in GPT-2 a vocabulary of 50257.
  assert per_device < (0.3 if model == 'gpt2-xl' else 0.2501) * count


def test_a_parameter_without_a_rule_is_named(monkeypatch):
  config = tiny.model('llama').config
  family = FAMILIES['llama']
  rules = tuple(row for row in family.sharding if 'down' not in row[0])
  for given, words in (
    (rules, r'block_0/mlp/down/kernel \(44, 32\)'),
    ((('.*', ('model',)), *rules), r'llama matches .* \(32, 16\)'),
  ):
    monkeypatch.setitem(FAMILIES, 'llama', dataclasses.replace(family, sharding=given))
    with pytest.raises(ValueError, match=words):
      sharding.param_specs(config)


@pytest.mark.parametrize('family', tiny.HF_CONFIGS)
def test_specs_have_the_tree_of_the_parameters(family):
  model = tiny.model(family)
  mesh = jax.sharding.AbstractMesh((2, 4), (mesh_module.DATA, mesh_module.MODEL))
  shards = jax.tree.map(
    lambda leaf, placed: placed.shard_shape(leaf.shape),
    model.params,
    sharding.param_shardings(model.config, mesh),
  )
  assert shards['embed']['embedding'] == (61, 32)  # 61 is odd
  assert shards['block_1']['attn']['out']['kernel'] == (8, 32)

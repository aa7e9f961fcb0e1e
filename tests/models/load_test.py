"""Directories come back bit for bit, and those that cannot be used say why."""

import dataclasses
import errno
import json
import os
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from helpers import tiny
from jedit.io import storage
from jedit.models import FAMILIES, Model, kernel_path, load
from jedit.models.export import save_directory
from jedit.models.load import fingerprint, load_directory
from jedit.models.sharding import param_shardings
from jedit.types import Kernel, UserError

# Stored with old checkpoints; nobody reads them.
_BUFFERS = {
  'gptj': 'transformer.h.0.attn.bias',
  'llama': 'model.layers.0.self_attn.rotary_emb.inv_freq',
  'gpt_neox': 'gpt_neox.layers.0.attention.masked_bias',
  'gpt2': 'transformer.h.0.attn.bias',
}
both_families = pytest.mark.parametrize('family', tuple(tiny.HF_CONFIGS))


def _save(path, family='gptj', *, dtype=None, **fields):
  """A saved small model: its parameters and config.json."""
  hf_config = tiny.hf_config(family, **fields)
  model = tiny.make_model(family, **fields)
  if dtype is not None:
    model = tiny.in_dtype(model, dtype)
  save_directory(path, model, hf_config)
  return model.params


def _change(path, **tensors):
  """Replaces stored tensors; None deletes one."""
  stored = {**load_file(path / 'model.safetensors'), **tensors}
  kept = {name: tensor for name, tensor in stored.items() if tensor is not None}
  save_file(kept, path / 'model.safetensors', {'format': 'pt'})


@both_families
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
def test_round_trip_is_bit_equal(family, dtype, tmp_path):
  params = _save(tmp_path / 'a', family, dtype=dtype)
  loaded, hf_config = load_directory(tmp_path / 'a', dtype)
  chex.assert_trees_all_equal(loaded.params, params)
  chex.assert_trees_all_equal_dtypes(loaded.params, params)
  assert (loaded.config.dtype, hf_config['dtype']) == (dtype, dtype)
  save_directory(tmp_path / 'b', loaded, hf_config)
  for file in ('model.safetensors', 'config.json'):
    assert (tmp_path / 'a' / file).read_bytes() == (tmp_path / 'b' / file).read_bytes()


def test_stored_layout_is_that_of_transformers(tmp_path):
  params = _save(tmp_path / 'a', 'llama')
  stored = load_file(tmp_path / 'a' / 'model.safetensors')
  kernel = params['block_1']['mlp']['down']['kernel']
  np.testing.assert_array_equal(stored['model.layers.1.mlp.down_proj.weight'], kernel.T)
  np.testing.assert_array_equal(stored['model.embed_tokens.weight'], params['embed']['embedding'])


@both_families
def test_shards_equal_one_file(family, tmp_path):
  params = _save(tmp_path / 'whole', family)
  model, hf_config = load_directory(tmp_path / 'whole')
  save_directory(tmp_path / 'shards', model, hf_config, shard_bytes=20_000)
  files = sorted(path.name for path in (tmp_path / 'shards').glob('*.safetensors'))
  assert len(files) > 2
  assert files[0] == f'model-00001-of-{len(files):05d}.safetensors'
  index = json.loads((tmp_path / 'shards' / 'model.safetensors.index.json').read_text())
  assert sorted(set(index['weight_map'].values())) == files
  chex.assert_trees_all_equal(load_directory(tmp_path / 'shards')[0].params, params)

  (tmp_path / 'shards' / files[1]).unlink()
  with pytest.raises(UserError, match=f'lacks 1 of {len(files)} weight files .{files[1]}.'):
    load_directory(tmp_path / 'shards')
  shutil.copy(tmp_path / 'shards' / files[0], tmp_path / 'shards' / files[1])
  with pytest.raises(UserError, match='does not match its weight files'):
    load_directory(tmp_path / 'shards')


def test_weights_are_converted_on_load(tmp_path):
  params = _save(tmp_path / 'a', dtype='bfloat16')
  wide, _ = load_directory(tmp_path / 'a', 'float32')
  expected = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
  chex.assert_trees_all_equal(wide.params, expected)
  for dtype in ('int8', 'float23', 'float64'):
    with pytest.raises(UserError, match=dtype):
      load_directory(tmp_path / 'a', dtype)


def test_unknown_missing_and_misshaped_tensors_are_listed_together(tmp_path):
  _save(tmp_path / 'a')
  _change(
    tmp_path / 'a',
    **{
      'transformer.h.7.ln_1.weight': np.ones(32, np.float32),
      'lm_head.bias': None,
      'transformer.wte.weight': np.ones((3, 32), np.float32),
      'transformer.ln_f.bias': np.ones(32, np.int8),
    },
  )
  with pytest.raises(UserError) as error:
    load_directory(tmp_path / 'a')
  for part in (
    '1 unknown (transformer.h.7.ln_1.weight)',
    '1 missing (lm_head.bias)',
    'transformer.wte.weight is [3, 32], not [61, 32]',
    'transformer.ln_f.bias is stored as I8',
  ):
    assert part in str(error.value)


def test_long_lists_of_names_are_cut(tmp_path):
  _save(tmp_path / 'a')
  _change(tmp_path / 'a', **{f'extra.{i:02d}': np.ones(1, np.float32) for i in range(25)})
  with pytest.raises(UserError, match='25 unknown .extra.00, .*, extra.09 and 15 more'):
    load_directory(tmp_path / 'a')


def test_config_with_more_layers_than_the_file(tmp_path):
  _save(tmp_path / 'a', 'llama')
  hf_config = tiny.hf_config('llama', num_hidden_layers=4)
  (tmp_path / 'a' / 'config.json').write_text(json.dumps(hf_config))
  with pytest.raises(UserError, match='18 missing .model.layers.2'):
    load_directory(tmp_path / 'a')


@both_families
def test_tied_heads(family, tmp_path):
  """A head that is stored all the same counts only where it is another matrix."""
  path = tmp_path / 'a'
  params = _save(path, family, tie_word_embeddings=True)
  assert 'kernel' not in params.get('head', {})
  assert 'lm_head.weight' not in load_file(path / 'model.safetensors')
  embedding = np.asarray(params['embed']['embedding'])
  _change(path, **{'lm_head.weight': embedding.copy()})
  loaded, _ = load_directory(path)
  chex.assert_trees_all_equal(loaded.params, params)
  assert loaded.config.tie_head
  _change(path, **{'lm_head.weight': embedding + 1})
  loaded, hf_config = load_directory(path)
  np.testing.assert_array_equal(loaded.params['head']['kernel'], (embedding + 1).T)
  assert not loaded.config.tie_head
  assert hf_config['tie_word_embeddings'] is False


def test_stored_buffers_are_ignored(tmp_path):
  params = _save(tmp_path / 'a')
  masks = {'transformer.h.0.attn.bias': np.ones((1, 1, 4, 4), np.uint8)}
  _change(tmp_path / 'a', **masks)
  chex.assert_trees_all_equal(load_directory(tmp_path / 'a')[0].params, params)


def test_directories_that_cannot_be_used_say_why(tmp_path):
  def says(words):
    with pytest.raises(UserError, match=words):
      load_directory(path)

  path = tmp_path / 'model'
  says('There is no model directory')
  path.mkdir()
  says('has no config.json')
  (path / 'config.json').write_text('{')
  says('is not JSON')
  (path / 'config.json').write_text('[]')
  says('is not an object')
  (path / 'config.json').write_text('{"model_type": "bloom"}')
  says("model_type 'bloom'; supported are gpt2, gpt_neox, gptj, llama, mistral, qwen2, qwen3")
  (path / 'config.json').write_text('{"model_type": "gptj"}')
  says('lacks vocab_size, n_layer, n_embd, n_head')
  (path / 'config.json').write_text(json.dumps(tiny.GPTJ))
  says('neither model.safetensors nor')
  (path / 'pytorch_model.bin').write_bytes(b'')
  says('only as pytorch_model.bin; convert them once .*save_pretrained')
  (path / 'model.safetensors.index.json').write_text('{"weight_map": 3}')
  says("has 3 in the field 'weight_map'; give an object")
  (path / 'model.safetensors').write_text('version https://git-lfs.github.com/spec/v1')
  says('model.safetensors is not a whole safetensors file')
  (path / 'model.safetensors').unlink()
  _save(tmp_path / 'whole')
  data = (tmp_path / 'whole' / 'model.safetensors').read_bytes()
  (path / 'model.safetensors').write_bytes(data[:-100])
  says('model.safetensors is not a whole safetensors file')
  (path / 'config.json').write_text(json.dumps({**tiny.GPTJ, 'quantization_config': {'bits': 4}}))
  says('quantised')


def test_export_rounds_edited_kernels_once_and_reports_it(tmp_path):
  model = tiny.in_dtype(tiny.model('gptj'), 'bfloat16')
  flat, path = traverse_util.flatten_dict(model.params), kernel_path(Kernel(1, 'mlp'))
  update = 0.01 * np.random.default_rng(0).normal(size=flat[path].shape)
  kernel = flat[path].astype(jnp.float32) * (1 + jnp.asarray(update, jnp.float32))
  edited = model.replace(params=traverse_util.unflatten_dict({**flat, path: kernel}))
  export = save_directory(tmp_path / 'a', edited, tiny.GPTJ, dtype='bfloat16', base=model.params)
  assert export.dtype == 'bfloat16'
  assert list(export.rounding) == ['transformer.h.1.mlp.fc_out.weight']
  [cost] = export.rounding.values()
  stored = load_directory(tmp_path / 'a', 'float32')[0].params['block_1']['mlp']['down']['kernel']
  error = np.linalg.norm(stored - kernel)
  np.testing.assert_allclose(cost.weight, error / np.linalg.norm(kernel), rtol=1e-4)
  change = np.linalg.norm(kernel - flat[path].astype(jnp.float32))
  np.testing.assert_allclose(cost.update, error / change, rtol=1e-4)
  # An update of a hundredth of the weights loses a hundred times what the weights do.
  assert cost.weight < 0.003 < 0.1 < cost.update < 0.3
  exact = save_directory(tmp_path / 'b', edited, tiny.GPTJ, dtype='float32')
  assert (exact.dtype, dict(exact.rounding)) == ('float32', {})
  loaded, _ = load_directory(tmp_path / 'b', 'float32')
  chex.assert_trees_all_equal(loaded.params['block_1']['mlp']['down']['kernel'], kernel)


def test_export_brings_the_tokenizer_files_along(tmp_path):
  _save(tmp_path / 'a')
  for name in ('tokenizer.json', 'merges.txt', 'generation_config.json', 'notes.txt'):
    (tmp_path / 'a' / name).write_text(name)
  model, hf_config = load_directory(tmp_path / 'a')
  save_directory(tmp_path / 'b', model, hf_config, source=tmp_path / 'a')
  written = sorted(path.name for path in (tmp_path / 'b').iterdir())
  assert written == [
    'config.json',
    'generation_config.json',
    'merges.txt',
    'model.safetensors',
    'tokenizer.json',
  ]
  assert (tmp_path / 'b' / 'merges.txt').read_text() == 'merges.txt'


@both_families
@pytest.mark.parametrize(('stored', 'loaded'), [('bfloat16', 'float32'), ('float32', 'bfloat16')])
def test_export_changes_the_edited_tensor_and_nothing_else(family, stored, loaded, tmp_path):
  """Also where the model was loaded in another dtype, and what carries no weights stays."""
  hf_config = tiny.hf_config(family, tie_word_embeddings=True)
  model = tiny.in_dtype(tiny.make_model(family, tie_word_embeddings=True), stored)
  source = tmp_path / 'source'
  save_directory(source, model, hf_config, shard_bytes=20_000)
  index_file = source / 'model.safetensors.index.json'
  index = json.loads(index_file.read_text())
  [head] = [name for name, path, _ in FAMILIES[family].names if path == 'head/kernel']
  extra = {
    head: np.array(model.params['embed']['embedding']),
    _BUFFERS[family]: np.ones((1, 1, 4, 4), np.uint8),
  }
  save_file(extra, source / 'model-extra.safetensors', {'format': 'pt'})
  index['weight_map'] |= dict.fromkeys(extra, 'model-extra.safetensors')
  index_file.write_text(json.dumps(index))

  model, hf_config = load_directory(source, loaded)
  flat, path = traverse_util.flatten_dict(model.params), kernel_path(Kernel(1, 'mlp'))
  flat[path] = flat[path].astype(jnp.float32) * 1.5
  edited = model.replace(params=traverse_util.unflatten_dict(flat))
  export = save_directory(tmp_path / 'out', edited, hf_config, source=source)
  assert export.dtype == 'float32' and not export.rounding
  written = json.loads((tmp_path / 'out' / index_file.name).read_text())
  assert written['weight_map'] == index['weight_map']
  changed = []
  for file in sorted(set(index['weight_map'].values())):
    before, after = load_file(source / file), load_file(tmp_path / 'out' / file)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
      if tensor.dtype != after[name].dtype or tensor.tobytes() != after[name].tobytes():
        changed.append(name)
  names = {ours: name for name, (ours, _, _) in load.name_table(model.config).items()}
  assert changed == [names['/'.join(path)]]
  again, _ = load_directory(tmp_path / 'out', 'float32')
  np.testing.assert_array_equal(again.params['block_1']['mlp']['down']['kernel'], flat[path])

  # The embedding is stored twice: an edit of it has to reach both.
  flat[('embed', 'embedding')] += 1
  edited = model.replace(params=traverse_util.unflatten_dict(flat))
  save_directory(tmp_path / 'both', edited, hf_config, source=source)
  assert load_directory(tmp_path / 'both')[0].config.tie_head


def test_export_follows_its_source_only_where_that_is_the_model(tmp_path):
  _save(tmp_path / 'other', n_layer=1)
  model = tiny.model('gptj')
  params = model.params
  save_directory(tmp_path / 'a', model, tiny.GPTJ, source=tmp_path / 'other')
  chex.assert_trees_all_equal(load_directory(tmp_path / 'a')[0].params, params)
  _change(tmp_path / 'a', **{'lm_head.bias': np.zeros(tiny.VOCAB, np.float32)})  # since it was read
  save_directory(tmp_path / 'b', model, tiny.GPTJ, source=tmp_path / 'a')
  chex.assert_trees_all_equal(load_directory(tmp_path / 'b')[0].params, params)


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
  model = tiny.model('gptj')
  written = []

  def full(path):
    if len(written) == 2:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    written.append(path)

  monkeypatch.setattr(storage, '_sync', full)
  with pytest.raises(UserError, match='No space left on device.*has space'):
    save_directory(tmp_path / 'a', model, tiny.GPTJ, shard_bytes=20_000)
  assert len(written) == 2 and not list(tmp_path.iterdir())


@both_families
def test_parameters_go_to_their_devices(family, tmp_path):
  params = _save(tmp_path / 'a', family)
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ('data', 'model'))
  loaded, _ = load_directory(tmp_path / 'a', mesh=mesh)
  chex.assert_trees_all_equal(loaded.params, params)
  placed = jax.tree.map(lambda leaf: leaf.sharding, loaded.params)
  assert placed == param_shardings(loaded.config, mesh)


def test_a_model_larger_than_the_free_memory_is_refused(tmp_path, monkeypatch):
  params = _save(tmp_path / 'a')
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
  monkeypatch.setattr(load, 'free_bytes', lambda device: size - 1)
  with pytest.raises(UserError, match=r'takes 0.0 GB as float32 and .* has 0.0 GB free'):
    load_directory(tmp_path / 'a')
  load_directory(tmp_path / 'a', 'bfloat16')  # half of it fits
  monkeypatch.setattr(load, 'free_bytes', lambda device: None)
  load_directory(tmp_path / 'a')


def test_export_leaves_nothing_half_written(tmp_path):
  model = tiny.model('gptj')

  class Broken:
    def save_pretrained(self, path):
      raise OSError('disk full')

  with pytest.raises(UserError, match='disk full'):
    save_directory(tmp_path / 'a', model, tiny.GPTJ, tokenizer=Broken())
  assert not list(tmp_path.iterdir())
  (tmp_path / 'a').mkdir()
  (tmp_path / 'a' / 'mine.txt').write_text('keep')
  with pytest.raises(UserError, match='exists already'):
    save_directory(tmp_path / 'a', model, tiny.GPTJ)
  assert [path.name for path in tmp_path.rglob('*')] == ['a', 'mine.txt']


def test_fingerprint_sees_how_weights_are_used():
  model = tiny.model('llama')
  config = model.config
  same = dataclasses.replace(config, dtype='bfloat16', renames=(('model.', ''),))
  assert fingerprint(model) == fingerprint(model.replace(config=same))
  others = [
    dataclasses.replace(config, norm_eps=2e-5),
    dataclasses.replace(config, num_heads=2),
    dataclasses.replace(config, rope=dataclasses.replace(config.rope, theta=5e5)),
  ]
  assert len({fingerprint(model.replace(config=each)) for each in [config, *others]}) == 4


def test_fingerprint_sees_every_bit():
  tree = {'a': {'kernel': jnp.arange(12.0).reshape(3, 4)}, 'b': jnp.ones((2,), jnp.bfloat16)}

  def of(params):
    return fingerprint(Model(params, config=tiny.model('llama').config))

  first = of(tree)
  assert first == of(jax.tree.map(np.asarray, tree)) == '9dcb3ba7181093ca'
  kernel = tree['a']['kernel']
  different = [
    {**tree, 'a': {'kernel': kernel.at[2, 3].set(np.nextafter(np.float32(11), np.float32(12)))}},
    {**tree, 'a': {'kernel': kernel.at[0, 0].set(-0.0)}},
    {**tree, 'a': {'kernel': kernel.at[jnp.array([0, 1])].set(kernel[jnp.array([1, 0])])}},
    {**tree, 'a': {'kernel': kernel.reshape(4, 3)}},
    {**tree, 'a': {'weight': kernel}},
    {**tree, 'b': jnp.ones((2,), jnp.float16)},
    {**tree, 'b': jnp.ones((2,), jnp.float32)},
  ]
  assert len({first, *map(of, different)}) == 1 + len(different)


def test_files_outside_the_directory_are_refused(tmp_path):
  path = tmp_path / 'model'
  _save(path)
  weights = path / 'model.safetensors'
  other = shutil.move(weights, tmp_path / 'other.safetensors')
  index = path / 'model.safetensors.index.json'
  for name in ('../other.safetensors', '/etc/passwd', '..', '', 'a/../../other.safetensors'):
    index.write_text(json.dumps({'weight_map': {'transformer.wte.weight': name}}))
    with pytest.raises(UserError, match='its files must lie in'):
      load_directory(path)
  index.unlink()
  weights.symlink_to(other)
  with pytest.raises(UserError, match='is a link to .*other.safetensors, outside the directory'):
    load_directory(path)
  weights.unlink()
  shutil.move(other, path / 'kept.safetensors')
  weights.symlink_to('kept.safetensors')  # within the directory
  load_directory(path)
  (path / 'tokenizer.json').symlink_to('/etc/passwd')
  with pytest.raises(UserError, match='tokenizer.json is a link to /etc/passwd'):
    load_directory(path)


def test_weights_that_are_not_finite_are_named(tmp_path):
  _save(tmp_path)
  tensors = load_file(tmp_path / 'model.safetensors')
  tensors['transformer.h.1.mlp.fc_in.weight'][3, 2] = np.nan
  save_file(tensors, tmp_path / 'model.safetensors', {'format': 'pt'})
  with pytest.raises(UserError, match='1 numbers of block_1/mlp/up/kernel are not finite'):
    fingerprint(load_directory(tmp_path)[0])


@pytest.mark.parametrize(
  ('fields', 'words'),
  [
    ({'n_layer': 100}, 'has 100 layers, and its weights have no more than 25'),
    ({'n_layer': 100_000}, "has 100000 in the field 'n_layer'; give a number of at most 10000"),
    ({'n_embd': 10**9}, 'has 1000000000 units in its hidden states'),
    ({'vocab_size': 10**9}, 'has 1000000000 tokens in the vocabulary'),
    ({'vocab_size': '61'}, "has '61' in the field 'vocab_size'; give a whole number"),
    ({'n_head': 2**30}, 'has 1073741824 heads for a width of 32'),
    ({'rotary_dim': 3}, 'rotates 3 of the 8 units'),
    ({'layer_norm_epsilon': 'small'}, "in the field 'layer_norm_epsilon'; give a number"),
    ({'layer_norm_epsilon': 2**40}, "in the field 'layer_norm_epsilon'; give a number of at most"),
    ({'activation_function': ['gelu']}, "in the field 'activation_function'; give a string"),
  ],
)
def test_config_fields_of_odd_types_and_sizes_are_refused_at_once(tmp_path, fields, words):
  _save(tmp_path)
  (tmp_path / 'config.json').write_text(json.dumps(tiny.hf_config('gptj', **fields)))
  with pytest.raises(UserError, match=words):
    load_directory(tmp_path)

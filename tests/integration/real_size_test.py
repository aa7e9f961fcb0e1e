"""A checkpoint of more than a gigabyte goes in and out without a second copy in memory."""

import json
import os
import shutil
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open

from jedit.io import tensors
from jedit.models import FAMILIES
from jedit.models.load import name_table

CONFIG = {
  'model_type': 'llama',
  'architectures': ['LlamaForCausalLM'],
  'vocab_size': 2048,
  'num_hidden_layers': 8,
  'hidden_size': 2048,
  'num_attention_heads': 16,
  'num_key_value_heads': 16,
  'intermediate_size': 8192,
  'max_position_embeddings': 64,
  'rms_norm_eps': 1e-5,
  'tie_word_embeddings': False,
  'dtype': 'float16',
}
EDITED = 'model.layers.3.mlp.down_proj.weight'

# Parameters are spread over two devices, in another dtype; one is edited and all are exported.
PROGRAM = """
import json, pathlib, sys
import jax
from jedit.parallel.mesh import make_mesh
from jedit.models.load import load_directory
from jedit.models.export import save_directory

source, out = map(pathlib.Path, sys.argv[1:])

def peak():  # getrusage would count what the parent had before it started us
  rows = dict(line.split(':') for line in open('/proc/self/status'))
  return 1024 * int(rows['VmHWM'].split()[0])

mesh = make_mesh(model=2)
start = peak()
model, hf_config = load_directory(source, 'bfloat16', mesh)
loaded = peak()
down = model.params['block_3']['mlp']['down']
assert down['kernel'].addressable_shards[1].data.size == down['kernel'].size // 2
down['kernel'] = down['kernel'].astype('float32') + 1
save_directory(out, model, hf_config, source=source)
size = sum(leaf.nbytes for leaf in jax.tree.leaves(model))
print(json.dumps({'params': size, 'loading': loaded - start, 'exporting': peak() - loaded}))
"""


def _write(folder):
  """Shards of 300 MB of bits that mean something."""
  folder.mkdir()
  (folder / 'config.json').write_text(json.dumps(CONFIG))
  table = name_table(FAMILIES['llama'].read_config(CONFIG, 'float32'))
  noise = np.random.default_rng(0).normal(0, 0.02, 2**20 + 997).astype(np.float16)
  shards, filled = [{}], 0
  for number, (name, (_, _, shape)) in enumerate(table.items()):
    tensor = np.resize(np.roll(noise, number), shape)
    if filled + tensor.nbytes > 300e6:
      shards.append({})
      filled = 0
    shards[-1][name] = tensor
    filled += tensor.nbytes
  weight_map = {}
  for number, shard in enumerate(shards, start=1):
    file = f'model-{number:05d}-of-{len(shards):05d}.safetensors'
    tensors.stream_tensors(folder / file, shard, shard.__getitem__)
    weight_map |= dict.fromkeys(shard, file)
  index = {'metadata': {}, 'weight_map': weight_map}
  (folder / 'model.safetensors.index.json').write_text(json.dumps(index))
  return weight_map


@pytest.mark.slow
def test_a_large_checkpoint_goes_through_little_memory(tmp_path):
  if shutil.disk_usage(tmp_path).free < 5e9 or not os.path.exists('/proc/self/status'):
    pytest.skip('needs 5 GB of disk, and Linux to ask how much memory was used')
  source, out = tmp_path / 'source', tmp_path / 'out'
  weight_map = _write(source)
  files = {file: (source / file).stat().st_size for file in sorted(set(weight_map.values()))}
  assert len(files) > 3 and sum(files.values()) > 1e9

  command = [sys.executable, '-c', PROGRAM, str(source), str(out)]
  done = subprocess.run(
    command, capture_output=True, text=True, env={**os.environ, 'JAX_NUM_CPU_DEVICES': '2'}
  )
  assert not done.returncode, done.stderr
  assert 'loading: ' in done.stderr and 'MB/s' in done.stderr
  used = json.loads(done.stdout)
  # Far below what a second copy would take: the tensor in hand, and its pages of the file.
  assert used['params'] < used['loading']
  assert used['loading'] < used['params'] + max(files.values())
  assert used['exporting'] < max(files.values()) + 2**28

  for file in files:
    with safe_open(source / file, 'numpy') as before, safe_open(out / file, 'numpy') as after:
      assert set(before.keys()) == set(after.keys())
      for name in before.keys():
        old, new = before.get_tensor(name), after.get_tensor(name)
        if name == EDITED:
          wide = old.astype(ml_dtypes.bfloat16).astype(np.float32) + 1
          np.testing.assert_array_equal(new, wide)
        else:
          assert old.dtype == new.dtype and np.array_equal(old, new), name
  shutil.rmtree(tmp_path)

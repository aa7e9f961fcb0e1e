"""Files of the released codes become editors, and nothing that is pickled in them runs."""

import dataclasses

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import jedit
from helpers import editing
from jedit.hypernetworks.convert import convert
from jedit.hypernetworks.net import init
from jedit.io.pytorch import read_checkpoint
from jedit.types import UserError

METHODS = {
  'mend': jedit.methods.mend(layers=(1, 2), rank=3),
  'malmen': jedit.methods.malmen(layers=(1, 2), rank=3),
}


def _released(name):
  """A state dict in the released names, of random values."""
  rng, found = np.random.default_rng(0), {}

  def draw(*shape):
    return rng.normal(size=shape).astype(np.float32)

  for shape in [(16, 24), (24, 16)] if name == 'mend' else [(24, 16)]:
    if name == 'mend':
      prefix = f'mend.{shape}.'
      for n in range(2):
        layer = f'{prefix}mlp.layers.{n}.'
        found |= {layer + 'u': draw(40, 3), layer + 'v': draw(3, 40), layer + 'bias': draw(40)}
        found |= {layer + f'mode_{x}.weight': draw(2, 40) for x in ('scale', 'shift')}
      for side, size in zip('uv', shape, strict=True):
        found |= {f'{prefix}{side}_{x}': draw(size) ** 2 for x in ('mean', 's', 'std')}
      found[prefix + 'k'] = np.array([9.0], np.float32)
      continue
    prefix = f'{shape}.'
    for n in range(2):
      block = f'{prefix}blocks.{n}.'
      found |= {block + 'A': draw(40, 3), block + 'B': draw(3, 40), block + 'bias': draw(40)}
      found |= {block + f'{x}.weight': draw(2, 40) for x in ('scale', 'shift')}
    found |= {prefix + f'{x}.weight': draw(2, 1) for x in ('lr', 'lamda')}
    found |= {prefix + f'normalizer.{x}': draw(40) ** 2 for x in ('mean', 'var', 'std')}
    found[prefix + 'normalizer.n'] = np.array([9.0], np.float32)
  if name == 'mend':
    found['edit_lrs'] = draw(4)
  return found


@pytest.mark.parametrize('name', METHODS)
def test_released_nets_become_an_editor(name, tmp_path):
  lm, method, released = editing.language_model('gptj'), METHODS[name], _released(name)
  save_file(released, tmp_path / 'net.safetensors')
  editor = convert(tmp_path / 'net.safetensors', lm, method, tokens_per_edit=2.0)
  wanted, statistics = init(lm.config, method, jax.random.key(0))
  assert jax.tree.map(np.shape, editor.params) == jax.tree.map(np.shape, wanted)
  assert editor.statistics.keys() == statistics.keys()
  assert all(int(each.count) == 9 for each in editor.statistics.values())
  net = editor.params['24x16']
  if name == 'mend':
    np.testing.assert_array_equal(net['rate'], released['edit_lrs'][[1, 3]])
    theirs = released['mend.(24, 16).mlp.layers.1.u'].T
  else:
    np.testing.assert_array_equal(net['rate'], released['(24, 16).lr.weight'][:, 0])
    theirs = released['(24, 16).blocks.1.B']
  np.testing.assert_array_equal(net['blocks']['1']['up'], theirs)
  result = jedit.edit(lm, editing.REQUESTS[:3], method, editor=editor)
  assert all(np.isfinite(update.value()).all() for update in result.patch.updates.values())


def test_a_checkpoint_is_read_without_running_its_code(tmp_path):
  torch = pytest.importorskip('torch')
  released = _released('malmen')

  @dataclasses.dataclass
  class Trap:
    def __reduce__(self):
      return (open, (str(tmp_path / 'trap'), 'w'))

  state = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in released.items()}
  state['turned'] = torch.arange(6.0).reshape(2, 3).T
  state['half'] = torch.ones(2, dtype=torch.bfloat16)
  torch.save({'model': state, 'trap': Trap(), 'step': 7}, tmp_path / 'net.pt')
  found = read_checkpoint(tmp_path / 'net.pt')
  assert not (tmp_path / 'trap').exists() and found['step'] == 7
  for name, value in released.items():
    np.testing.assert_array_equal(found['model'][name], value)
  np.testing.assert_array_equal(found['model']['turned'], np.arange(6.0).reshape(2, 3).T)
  assert found['model']['half'].astype(np.float32).tolist() == [1.0, 1.0]
  assert convert(tmp_path / 'net.pt', editing.language_model('gptj'), METHODS['malmen'])


def test_files_that_are_no_nets_are_sentences(tmp_path):
  lm = editing.language_model('gptj')
  (tmp_path / 'old.pt').write_bytes(b'\x80\x02.')
  with pytest.raises(UserError, match=r'old.pt is not a checkpoint .* safetensors.torch.save_file'):
    convert(tmp_path / 'old.pt', lm, METHODS['mend'])
  with pytest.raises(UserError, match='Cannot read'):
    convert(tmp_path / 'none.pt', lm, METHODS['mend'])
  save_file(_released('malmen'), tmp_path / 'net.safetensors')
  with pytest.raises(UserError, match=r"no tensor 'mend.\(16, 24\)"):
    convert(tmp_path / 'net.safetensors', lm, METHODS['mend'])

"""States survive kills, go to any mesh, and belong to one key."""

import os
import signal
import subprocess
import sys
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jedit.io import checkpoints, sealed
from jedit.io.checkpoints import Checkpoints
from jedit.types import UserError


class _Moments(NamedTuple):
  count: Any
  mean: Any


def _state(value):
  params = {'block_0': {'kernel': jnp.full((4, 3), value, jnp.bfloat16)}, 'none': None}
  optimizer = (_Moments(jnp.asarray(value, jnp.int32), [jnp.arange(3.0) + value]), ())
  return {'params': params, '0/optimizer': optimizer}


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
  monkeypatch.setattr(checkpoints, '_SECONDS_PER_SAVE', 0)
  monkeypatch.setattr(checkpoints, '_WORK_PER_SAVE', 0)


def test_the_newest_state_comes_back(tmp_path):
  saved = Checkpoints(tmp_path / 'a' / 'b', 'key')
  abstract = jax.eval_shape(lambda: _state(0))
  assert saved.newest(abstract) is None
  for step in (9, 10):
    saved.save_if_due(step, _state(step), {'tokens': step})
  kept = {each.name for each in (tmp_path / 'a/b').iterdir()}
  assert kept == {'10', 'jedit.json'}, 'the newest is kept'
  step, state, about = Checkpoints(tmp_path / 'a' / 'b', 'key').newest(abstract)
  assert (step, about) == (10, {'tokens': 10})
  chex.assert_trees_all_equal(state, _state(10))
  chex.assert_trees_all_equal_shapes_and_dtypes(state, _state(10))


def test_states_of_another_key_are_removed_and_files_of_others_stay(tmp_path):
  saved, abstract = Checkpoints(tmp_path / 'store', 'key'), jax.eval_shape(lambda: _state(0))
  (tmp_path / 'store').mkdir()
  (tmp_path / 'store' / 'notes.txt').write_text('of somebody else')
  saved.save_if_due(1, _state(1))
  assert Checkpoints(tmp_path / 'store', 'other').newest(abstract) is None
  assert saved.newest(abstract) is None
  saved.save_if_due(2, _state(2))
  saved.remove()
  assert [file.name for file in (tmp_path / 'store').iterdir()] == ['notes.txt']
  (tmp_path / 'store' / 'notes.txt').unlink()
  saved.save_if_due(3, _state(3))
  saved.remove()
  assert not list((tmp_path / 'store').iterdir()), 'it was there before'
  saved = Checkpoints(tmp_path / 'new', 'key')
  saved.save_if_due(1, _state(1))
  saved.remove()
  assert not (tmp_path / 'new').exists()


def test_numbered_folders_of_others_are_left_alone(tmp_path):
  (tmp_path / 'store' / '5').mkdir(parents=True)
  with pytest.raises(UserError, match='store/5 was not made by jedit; move it elsewhere'):
    Checkpoints(tmp_path / 'store', 'key')


def test_a_flipped_bit_in_a_state_begins_the_work_again(tmp_path, capsys):
  abstract = jax.eval_shape(lambda: _state(0))
  for damage in ('state', 'about'):
    saved = Checkpoints(tmp_path / damage, 'key')
    saved.save_if_due(1, _state(1))
    about = tmp_path / damage / '1' / 'about.json'
    if damage == 'about':
      about.write_bytes(about.read_bytes().replace(b'"inputs"', b'"Inputs"'))
    else:
      content = sealed.read_json(about, None)
      content['checksums']['params'][0][0] += 1
      sealed.write_json(about, 'jedit state 1', content)
    assert saved.newest(abstract) is None
    assert 'is damaged' in capsys.readouterr().err
    assert not (tmp_path / damage).exists()


def test_a_state_without_its_last_file_does_not_count(tmp_path):
  saved, abstract = Checkpoints(tmp_path, 'key'), jax.eval_shape(lambda: _state(0))
  saved.save_if_due(1, _state(1))
  (tmp_path / '1').rename(tmp_path / '3')
  saved.save_if_due(2, _state(2))
  saved.save_if_due(3, _state(3))
  (tmp_path / '3' / 'about.json').unlink()
  assert saved.newest(abstract) is None
  saved.save_if_due(3, _state(4))  # over what is left of it
  chex.assert_trees_all_equal(saved.newest(abstract)[1], _state(4))


def test_saves_wait_until_they_are_due(tmp_path, monkeypatch):
  monkeypatch.setattr(checkpoints, '_SECONDS_PER_SAVE', 60)
  saved = Checkpoints(tmp_path / 'store', 'key')
  saved.save_if_due(1, _state(1))
  Checkpoints(None, 'key').save_if_due(1, _state(1))
  assert not (tmp_path / 'store').exists() and Checkpoints(None, 'key').newest({}) is None


def test_trouble_with_files_is_a_sentence(tmp_path, capsys):
  saved, abstract = Checkpoints(tmp_path / 'store', 'key'), jax.eval_shape(lambda: _state(0))
  (tmp_path / 'store').write_text('a file')
  with pytest.raises(UserError, match='Cannot write .*store.*; choose a place'):
    saved.save_if_due(1, _state(1))
  (tmp_path / 'store').unlink()
  saved.save_if_due(1, _state(1))
  for file in (tmp_path / 'store/1/params').rglob('*'):
    if file.is_file():
      file.write_bytes(b'')
  assert saved.newest(abstract) is None
  assert 'store/1 is damaged' in capsys.readouterr().err


def test_a_killed_save_leaves_the_state_before(tmp_path):
  code = f"""
import os, pathlib, signal
import jax.numpy as jnp
from jedit.io import checkpoints, sealed
checkpoints._SECONDS_PER_SAVE = checkpoints._WORK_PER_SAVE = 0
saved = checkpoints.Checkpoints(pathlib.Path({os.fspath(tmp_path)!r}), 'key')
saved.save_if_due(1, {{'x': jnp.ones(3), 'y': jnp.ones(3)}})
checkpoints.sealed.write_json = lambda *unused: os.kill(os.getpid(), signal.SIGKILL)
saved.save_if_due(2, {{'x': jnp.zeros(3), 'y': jnp.zeros(3)}})
"""
  done = subprocess.run([sys.executable, '-c', code], cwd=os.getcwd())
  assert done.returncode == -signal.SIGKILL and (tmp_path / '2').is_dir()
  abstract = dict.fromkeys('xy', jax.ShapeDtypeStruct((3,), jnp.float32))
  step, state, _ = Checkpoints(tmp_path, 'key').newest(abstract)
  assert step == 1
  np.testing.assert_array_equal(state['y'], np.ones(3))


_MESHES = """
import os, pathlib, sys
flags = os.environ.get('XLA_FLAGS', '')
os.environ['XLA_FLAGS'] = f'{flags} --xla_force_host_platform_device_count=4'
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jedit.io import checkpoints, sealed
from jedit.parallel.mesh import make_mesh, place
checkpoints._SECONDS_PER_SAVE = checkpoints._WORK_PER_SAVE = 0
value = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
saved = checkpoints.Checkpoints(pathlib.Path(sys.argv[1]), 'key')
sharding = NamedSharding(make_mesh(4, 1), PartitionSpec('data'))
saved.save_if_due(1, {'x': place(value, sharding)})
for sharding in (NamedSharding(make_mesh(2, 2), PartitionSpec('model', 'data')), None):
  abstract = {'x': jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=sharding)}
  _, state, _ = saved.newest(abstract)
  assert sharding is None or state['x'].sharding == sharding, state['x'].sharding
  assert len(state['x'].devices()) == (1 if sharding is None else 4)
  np.testing.assert_array_equal(np.asarray(state['x']), value)
"""


def test_shards_go_to_another_mesh(tmp_path):
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu'}
  command = [sys.executable, '-c', _MESHES, os.fspath(tmp_path)]
  subprocess.run(command, cwd=os.getcwd(), env=environment, check=True)


def test_orbax_is_imported_when_something_is_saved():
  code = 'import sys, jedit.moments.collect; sys.exit("orbax" in sys.modules)'
  subprocess.run([sys.executable, '-c', code], cwd=os.getcwd(), check=True)


_FULL = """
import resource, sys
import jax.numpy as jnp
from jedit.io import checkpoints
checkpoints._SECONDS_PER_SAVE = checkpoints._WORK_PER_SAVE = 0
states = checkpoints.Checkpoints(__import__('pathlib').Path(sys.argv[1]))
state = {'a': {str(n): jnp.arange(90_000.0) * n for n in range(4)}}
states.save_if_due(1, state)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, -1))
try:
  states.save_if_due(2, state)
except checkpoints.UserError as error:
  print(error, file=sys.stderr)
"""


def test_a_full_disk_ends_in_the_sentence_alone(tmp_path):
  command = [sys.executable, '-c', _FULL, os.fspath(tmp_path / 'states')]
  said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
  assert said.startswith('Cannot write') and said.count('\n') == 1, said

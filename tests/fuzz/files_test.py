"""Stored files with faults: made anew, refused in a sentence or as before, never used silently."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz.effort import attempt, examples
from fuzz.strategies import damaged
from helpers import tiny_run
from jedit import experiments
from jedit.experiments.inputs import CONTEXTS
from jedit.experiments.workdir import CONFIG, PROVENANCE, SUMMARY
from jedit.io import sealed
from jedit.io.jsonl import JsonlWriter, read_jsonl
from jedit.io.memo import Memo, Stored
from jedit.io.tensors import read_tensors
from jedit.models.patch import Patch
from jedit.moments.files import SecondMoments
from jedit.types import UserError


@pytest.fixture(scope='module')
def runs(made):
  """Two finished runs that differ in their seed."""
  for seed in (0, 1):
    experiments.run(tiny_run.config(made, seed=seed), made / f'seed{seed}')
  return made / 'seed0', made / 'seed1'


def _patch(path):
  patch = Patch.load(path)
  return patch.id, json.dumps(dict(patch.provenance))


def _moments(path):
  moments = SecondMoments.load(path)
  return {str(kernel): cov.tobytes() for kernel, cov in moments.cov.items()}, moments.num_tokens


def _tensors(path):
  tensors, facts = read_tensors(path, None)
  return {name: (array.tobytes(), array.shape) for name, array in tensors.items()}, facts


READERS = {
  'patch.safetensors': _patch,
  'statistics.safetensors': _moments,
  'contexts.json': lambda path: sealed.read_json(path, CONTEXTS),
  'config.json': lambda path: sealed.read_json(path, CONFIG),
  'provenance.json': lambda path: sealed.read_json(path, PROVENANCE),
  'summary.json': lambda path: sealed.read_json(path, SUMMARY),
  'evaluation.json': lambda path: sealed.read_json(path, 'jedit evaluation notes 1'),
  'samples.json': lambda path: sealed.read_json(path, 'jedit samples 1'),
  'evaluation.jsonl': lambda path: read_jsonl(path, 'jedit evaluation 3'),
}


@examples(700)
@given(data=st.data())
def test_readers(runs, tmp_path_factory, data):
  name = data.draw(st.sampled_from(sorted(READERS)))
  good = (runs[0] / name).read_bytes()
  content = data.draw(damaged(good, others=[(runs[1] / name).read_bytes()]))
  file = tmp_path_factory.getbasetemp() / name
  file.write_bytes(content)
  found = attempt(name, lambda: READERS[name](file))
  if isinstance(found, UserError) or content == good:
    return
  assert name != 'statistics.safetensors' or found != READERS[name](runs[0] / name)
  if name == 'evaluation.jsonl':  # a file that grows may be shorter, by whole lines
    assert good.startswith(content)
  else:  # the key tells the other run apart
    assert content == (runs[1] / name).read_bytes()


@examples(150)
@given(data=st.data())
def test_memos(tmp_path_factory, data):
  memo = Memo(tmp_path_factory.getbasetemp() / 'memo')
  result = Stored({'x': np.arange(5.0), 'y': np.ones((2, 2), np.float32)}, {'note': 'é'})
  memo.put('other', ['other'], result)
  memo.put('a', ['key', 1], result)
  file, other = (memo.folder / f'{name}.safetensors' for name in ('a', 'other'))
  good = file.read_bytes()
  content = data.draw(damaged(good, others=[other.read_bytes()]))
  file.write_bytes(content)
  found = attempt('memos', lambda: memo.get('a', ['key', 1]))
  assert not isinstance(found, UserError), 'a cache is made anew'
  assert (found is not None) == (content == good)


@examples(150)
@given(data=st.data())
def test_growing_lines(tmp_path_factory, data):
  file = tmp_path_factory.getbasetemp() / 'rows.jsonl'
  file.unlink(missing_ok=True)
  rows = [{'n': number, 'text': 'é' * number} for number in range(6)]
  with JsonlWriter(file, 'a test 1') as writer:
    for row in rows:
      writer.write(row)
  content = data.draw(damaged(file.read_bytes()))
  file.write_bytes(content)

  def reopen():
    with JsonlWriter(file, 'a test 1') as writer:
      writer.write({'n': 'new'})
      return writer.rows

  found = attempt('growing lines', reopen)
  if isinstance(found, UserError):
    assert file.read_bytes() == content, 'a file of somebody else'
  else:
    assert all(row in rows for row in found)
    assert read_jsonl(file, 'a test 1') == [*found, {'n': 'new'}]


# Contexts are not read where the patch is whole.
RESULTS = ('patch.safetensors', 'records.jsonl', 'unedited.jsonl', 'samples.json')


@examples(6)
@given(data=st.data())
def test_workdirs(made, runs, tmp_path_factory, data):
  """Whole runs over workdirs with faults end with the same results or a sentence."""
  workdir = tmp_path_factory.mktemp('faulty') / 'run'
  shutil.copytree(runs[0], workdir)
  files = sorted(path.relative_to(workdir) for path in workdir.rglob('*.*') if path.is_file())
  for name in data.draw(st.lists(st.sampled_from(files), min_size=1, max_size=4, unique=True)):
    kind = data.draw(st.sampled_from(['damage', 'damage', 'damage', 'other', 'remove', 'folder']))
    file = workdir / name
    if kind == 'damage':
      file.write_bytes(data.draw(damaged(file.read_bytes())))
    elif kind == 'other' and (runs[1] / name).is_file():
      shutil.copy(runs[1] / name, file)
    else:
      file.unlink()
      if kind == 'folder':
        file.mkdir()
  found = attempt('workdirs', lambda: experiments.run(tiny_run.config(made), workdir))
  if not isinstance(found, UserError):
    for name in RESULTS:
      assert (workdir / name).read_bytes() == (runs[0] / name).read_bytes(), name
  shutil.rmtree(workdir)

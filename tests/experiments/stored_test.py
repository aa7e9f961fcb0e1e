"""Stored files of a run: damaged ones and those of another run are made anew, owners are alone."""

import shutil

import numpy as np
import pytest

from helpers import tiny_run
from jedit import experiments
from jedit.io.lock import Lock
from jedit.moments.files import SecondMoments
from jedit.types import UserError

FILES = (
  'statistics.safetensors', 'contexts.json', 'patch.safetensors', 'evaluation.json',
  'records.jsonl', 'unedited.jsonl', 'samples.json', 'summary.json', 'evaluation.jsonl',
)  # fmt: skip
SAME = tuple(name for name in FILES if name not in ('summary.json', 'evaluation.jsonl'))


@pytest.fixture(scope='module')
def other(made):
  """A run that differs in its seed."""
  experiments.run(tiny_run.config(made, seed=1), made / 'other')
  return made / 'other'


def _flip(path):
  """Flips one bit in the middle, where it leaves JSON and safetensors readable."""
  data = bytearray(path.read_bytes())
  place = len(data) // 2
  while not chr(data[place]).isdigit() and path.suffix != '.safetensors':
    place += 1
  data[place] ^= 1
  path.write_bytes(data)


def _copy(finished, tmp_path):
  shutil.copytree(finished, tmp_path / 'copy')
  return tmp_path / 'copy'


def test_damaged_files_are_made_anew_each_with_one_line(made, finished, tmp_path, capsys):
  workdir = _copy(finished, tmp_path)
  targets = sorted(path.relative_to(workdir) for path in workdir.rglob('targets/*/*'))
  for name in (*FILES, *targets, 'seconds.json'):
    _flip(workdir / name)
  experiments.run(tiny_run.config(made), workdir)
  for name in SAME:
    assert (workdir / name).read_bytes() == (finished / name).read_bytes(), name
  said = capsys.readouterr().err
  for name in ('patch.safetensors', 'contexts.json', 'samples.json', 'seconds.json', *targets):
    lines = [line for line in said.splitlines() if f'{name} is damaged' in line]
    assert len(lines) == 1 and lines[0].endswith('it is made again.'), (name, said)


def test_files_of_another_run_are_made_anew(made, finished, other, tmp_path):
  workdir = _copy(finished, tmp_path)
  for name in FILES:
    shutil.copy(other / name, workdir / name)
  experiments.run(tiny_run.config(made), workdir)
  for name in SAME:
    assert (workdir / name).read_bytes() == (finished / name).read_bytes(), name


@pytest.mark.parametrize('name', ['patch.safetensors', 'contexts.json', 'statistics.safetensors'])
def test_damaged_files_that_a_user_names_are_refused(made, finished, tmp_path, name):
  workdir = _copy(finished, tmp_path)
  _flip(workdir / name)
  changes = {
    'patch.safetensors': dict(task='evaluate', patches=str(workdir)),
    'contexts.json': dict(contexts=str(workdir / name)),
    'statistics.safetensors': dict(statistics__file=str(workdir / name)),
  }[name]
  before = (workdir / name).read_bytes()
  with pytest.raises(UserError, match=f'{name} is damaged .its content does not match its digest.'):
    experiments.run(tiny_run.config(made, **changes), tmp_path / 'run')
  assert (workdir / name).read_bytes() == before


def test_another_patch_in_the_workdir_is_refused_by_the_other_tasks(
  made, finished, other, tmp_path
):
  workdir = _copy(finished, tmp_path)
  shutil.copy(other / 'patch.safetensors', workdir / 'patch.safetensors')
  for task in ('evaluate', 'export'):
    with pytest.raises(UserError, match='patch.safetensors is of another run; restore it'):
      experiments.run(tiny_run.config(made, task=task), workdir)


def test_a_damaged_config_is_refused(made, finished, tmp_path):
  workdir = _copy(finished, tmp_path)
  _flip(workdir / 'config.json')
  with pytest.raises(UserError, match='config.json is damaged'):
    experiments.run(tiny_run.config(made), workdir)


def test_numbers_that_are_not_finite_stop_a_run(made, finished, tmp_path):
  moments = SecondMoments.load(finished / 'statistics.safetensors')
  kernel = next(iter(moments.cov))
  moments.cov[kernel][0, 0] = np.nan
  moments.save(tmp_path / 'nan.safetensors')
  config = tiny_run.config(made, statistics__file=str(tmp_path / 'nan.safetensors'))
  with pytest.raises(UserError, match='nan.safetensors are not finite'):
    experiments.run(config, tmp_path / 'run')


def test_two_runs_in_one_workdir_are_refused(made, tmp_path):
  with Lock(tmp_path / 'run' / '.lock', 'x'):
    with pytest.raises(UserError, match='The workdir .*run is in use by process'):
      experiments.run(tiny_run.config(made), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('name', ['config.json', 'report.html', 'metrics.csv', 'seconds.json'])
def test_a_directory_of_somebody_else_is_left_alone(made, tmp_path, name):
  (tmp_path / name).write_text('{}')
  with pytest.raises(UserError, match=f'holds {name} but no config.json of jedit'):
    experiments.run(tiny_run.config(made), tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == [name]
  assert (tmp_path / name).read_text() == '{}'


def test_stores_and_states_of_somebody_else_are_left_alone(made, tmp_path):
  notes = tmp_path / 'notes.txt'
  notes.write_text('one line without an end')
  with pytest.raises(UserError, match='notes.txt holds something else than jedit evaluation 3'):
    experiments.run(tiny_run.config(made, evaluation__store=str(notes)), tmp_path / 'run')
  assert notes.read_text() == 'one line without an end'
  (tmp_path / 'x.partial' / '7').mkdir(parents=True)
  (tmp_path / 'x.partial' / '7' / 'mine').write_text('')
  config = tiny_run.config(made, statistics__file=str(tmp_path / 'x.safetensors'))
  with pytest.raises(UserError, match='x.partial/7 was not made by jedit'):
    experiments.run(config, tmp_path / 'other')
  assert (tmp_path / 'x.partial' / '7' / 'mine').exists()


def test_leftovers_of_killed_writes_go(made, finished, tmp_path):
  workdir = _copy(finished, tmp_path)
  (workdir / '.patch.safetensors.0123abcd.tmp').write_bytes(b'half')
  (workdir / '.mine.tmp').write_bytes(b'whole')
  experiments.run(tiny_run.config(made), workdir)
  assert not (workdir / '.patch.safetensors.0123abcd.tmp').exists()
  assert (workdir / '.mine.tmp').exists()

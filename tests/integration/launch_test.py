"""Launch scripts: what they would run, and two processes on this machine for real."""

import json
import os
import pathlib
import shlex
import socket
import subprocess
import sys

import pytest

from helpers import tiny_run

LAUNCH = pathlib.Path(__file__).parents[2] / 'launch'
_FLAGS = ('--config=my config.py', '--config.seed=4')


def _run(script, *arguments, **environment):
  return subprocess.run(
    [str(LAUNCH / script), *arguments],
    capture_output=True,
    text=True,
    env={**os.environ, 'PYTHON': sys.executable, 'JAX_PLATFORMS': 'cpu', **environment},
  )


def _dry(script, *arguments, **environment):
  done = _run(script, '--dry-run', *arguments, **environment)
  assert not done.returncode, done.stderr
  return [shlex.split(line) for line in done.stdout.splitlines()]


def test_every_script_says_how_it_is_used():
  scripts = sorted(LAUNCH.glob('*.sh'))
  assert len(scripts) == 4
  for script in scripts:
    assert f'launch/{script.name} ' in script.read_text() and os.access(script, os.X_OK)


def test_one_machine_runs_the_command():
  assert _dry('local.sh', *_FLAGS) == [[sys.executable, '-m', 'jedit.main', *_FLAGS]]


def test_slurm_runs_a_process_per_task():
  (words,) = _dry('slurm.sh', *_FLAGS)
  assert words[0] == 'srun' and words[-2:] == [*_FLAGS] and '--coordinator=auto' in words


def test_tpu_workers_all_run_the_command():
  (words,) = _dry('tpu_vm.sh', 'my-tpu', *_FLAGS, ZONE='us-west4-a')
  assert words[:6] == ['gcloud', 'compute', 'tpus', 'tpu-vm', 'ssh', 'my-tpu']
  assert '--worker=all' in words and '--zone=us-west4-a' in words
  (line,) = [word.removeprefix('--command=') for word in words if word.startswith('--command=')]
  assert shlex.split(line)[-3:] == ['--coordinator=auto', *_FLAGS]


def test_hosts_get_a_process_each():
  lines = _dry('hosts.sh', 'alpha,beta,localhost', *_FLAGS, PORT='77')
  assert [words[:2] for words in lines] == [['ssh', 'alpha'], ['ssh', 'beta'], ['bash', '-c']]
  for number, words in enumerate(lines):
    command = shlex.split(words[-1].split('exec ')[1])
    assert command[-2:] == [*_FLAGS]
    assert '--coordinator=alpha:77' in command and '--num_processes=3' in command
    assert f'--process_id={number}' in command


@pytest.mark.parametrize('script', ['hosts.sh', 'tpu_vm.sh'])
def test_a_script_without_its_place_says_so(script):
  done = _run(script, '--config=x.py')
  assert done.returncode == 2 and 'first' in done.stderr


def test_two_processes_make_one_run(tmp_path):
  """The whole of a run, files and all, is that of one process."""
  made = tiny_run.make(tmp_path / 'made')
  (tmp_path / 'config.py').write_text(
    'import pathlib, sys\n'
    f'sys.path.append({str(LAUNCH.parent / "tests")!r})\n'
    'from helpers import tiny_run\n'
    f'get_config = lambda: tiny_run.config(pathlib.Path({str(made)!r}))\n'
  )
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = str(free.getsockname()[1])
  # A δ in the last block is not seen by the prediction: its gradient would be rounding alone.
  flags = (f'--config={tmp_path / "config.py"}', '--config.method.layers=(0,)')
  together = _run('hosts.sh', 'localhost,localhost', *flags, f'--workdir={tmp_path}/2', PORT=port)
  assert not together.returncode, together.stderr[-3000:]
  alone = _run('local.sh', *flags, f'--workdir={tmp_path}/1')
  assert not alone.returncode, alone.stderr[-3000:]
  assert together.stdout.count('efficacy') == alone.stdout.count('efficacy') > 0
  names = [{path.name for path in (tmp_path / run).iterdir()} for run in '12']
  assert names[0] == names[1]
  stored = [(tmp_path / run / 'evaluation.jsonl').read_text().splitlines() for run in '12']
  assert len(stored[0]) == len(stored[1]) > 0  # one process writes them
  one, two = (json.loads((tmp_path / run / 'summary.json').read_text()) for run in '12')
  assert one['metrics'].keys() == two['metrics'].keys()
  for name, states in one['metrics'].items():
    for state, values in states.items():  # magnitudes differ by rounding
      assert two['metrics'][name][state] == pytest.approx(values, abs=1e-3)
  again = _run('hosts.sh', 'localhost,localhost', *flags, f'--workdir={tmp_path}/2', PORT=port)
  assert not again.returncode and again.stdout.splitlines()[-1] == together.stdout.splitlines()[-1]


def test_a_process_without_its_number_is_told(tmp_path):
  done = _run('local.sh', '--coordinator=localhost:1', f'--workdir={tmp_path}/w')
  assert done.returncode == 2 and '--process_id' in done.stderr and not list(tmp_path.iterdir())

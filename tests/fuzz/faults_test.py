"""Kills, full disks, signals and rivals at random moments: the same bits, or a sentence."""

import functools
import multiprocessing
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

import jedit
from fuzz import children
from fuzz.effort import COUNTS, EFFORT, SEED

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).parents[2]
RESULTS = (
  'statistics.safetensors', 'contexts.json', 'patch.safetensors', 'damage.jsonl',
  'evaluation.json', 'records.jsonl', 'unedited.jsonl', 'samples.json', 'training.csv',
)  # fmt: skip
_EDITOR = 'editor.safetensors'


@pytest.fixture(scope='module')
def processes():
  """Processes that have imported everything and started nothing."""
  context = multiprocessing.get_context('forkserver')
  context.set_forkserver_preload(['fuzz.children'])
  return context


# The other modes are tried with more effort.
MODES = tuple(children.MODES)[: 2 if EFFORT < 5 else None]


@pytest.fixture(scope='module')
def whole(made, processes):
  """Maps a mode to the workdir of an undisturbed run and its seconds."""

  @functools.cache
  def find(mode):
    workdir = made / f'whole-{mode}'
    assert _finish(processes, made, workdir, mode) == 0, _log(workdir)
    start = time.monotonic()  # once more: the programs are compiled
    again = made / f'again-{mode}'
    assert _finish(processes, made, again, mode) == 0, _log(again)
    _compare(again, workdir)
    return workdir, time.monotonic() - start

  return find


def _start(processes, *arguments, **options):
  made, workdir, mode = arguments
  names = (str(made), str(workdir), mode)
  process = processes.Process(target=children.run, args=names, kwargs=options)
  process.start()
  return process


def _finish(processes, *arguments, **options):
  process = _start(processes, *arguments, **options)
  process.join(300)
  return process.exitcode


def _log(workdir):
  files = sorted(
    workdir.parent.glob(f'{workdir.name}.*.log'), key=lambda file: file.stat().st_mtime
  )
  return files[-1].read_text() if files else ''


def _compare(workdir, expected):
  for name in RESULTS:
    ours, theirs = workdir / name, expected / name
    assert ours.exists() == theirs.exists(), name
    if ours.exists():
      assert ours.read_bytes() == theirs.read_bytes(), name
  if (workdir / _EDITOR).exists():  # it tells the seconds of its training
    ours, theirs = (jedit.Editor.load(place / _EDITOR) for place in (workdir, expected))
    assert ours.id == theirs.id
  left = [path.name for path in workdir.rglob('*') if path.name.endswith(('.tmp', '.lock'))]
  assert not left, 'nothing is half-written'


def _rounds(count):
  return range(max(1, round(count * EFFORT)))


@pytest.mark.parametrize('mode', MODES)
def test_kills_end_with_the_same_bits(made, processes, whole, tmp_path, mode):
  expected, seconds = whole(mode)
  rng = random.Random(f'{SEED} {mode}')
  workdir = tmp_path / 'killed'
  for _ in _rounds(1):
    process = _start(processes, made, workdir, mode)
    process.join(rng.uniform(0.02, seconds))
    COUNTS[f'kills, {mode}'][0] += process.exitcode is None
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL), _log(workdir)
    if process.exitcode == 0:  # it was done: begin again
      _compare(workdir, expected)
      shutil.rmtree(workdir)
  assert _finish(processes, made, workdir, mode) == 0, _log(workdir)
  _compare(workdir, expected)


def test_full_disks_end_in_a_sentence_and_go_on(made, processes, whole, tmp_path):
  rng = random.Random(f'{SEED} disk')
  for number in _rounds(0.4):
    mode = rng.choice(MODES)
    workdir = tmp_path / f'full-{number}'
    limit = rng.choice([0, 100, 1000, 3000, 10_000, 30_000])
    code = _finish(processes, made, workdir, mode, file_limit=limit)
    COUNTS['full disks'][0] += 1
    COUNTS['full disks'][1] += code == 2
    assert code in (0, 2) and 'Traceback' not in _log(workdir), (code, limit, _log(workdir))
    assert _finish(processes, made, workdir, mode) == 0, _log(workdir)
    _compare(workdir, whole(mode)[0])


def test_of_two_rivals_one_is_refused(made, processes, whole, tmp_path):
  for number in _rounds(0.2):
    workdir, begin = tmp_path / f'shared-{number}', time.time() + 0.5
    rivals = [
      _start(processes, made, workdir, 'together', seed=seed, begin=begin) for seed in (0, 1)
    ]
    for rival in rivals:
      rival.join(300)
    codes = [rival.exitcode for rival in rivals]
    COUNTS['rivals'][0] += 1
    COUNTS['rivals'][1] += sorted(codes) == [0, 2]
    assert sorted(codes) == [0, 2], codes
    if codes[0] == 0:
      _compare(workdir, whole('together')[0])


def _catches(pid):
  """True once a process has our handlers."""
  lines = pathlib.Path(f'/proc/{pid}/status').read_text().splitlines()
  [caught] = [line.split()[1] for line in lines if line.startswith('SigCgt')]
  # Python catches SIGINT from the beginning, so SIGTERM tells.
  return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


def test_signals_end_with_their_codes_and_the_sentence(made, tmp_path):
  rng = random.Random(f'{SEED} signals')
  file = tmp_path / 'config.py'
  file.write_text(
    'import pathlib\nfrom helpers import tiny_run\n'
    f'get_config = lambda: tiny_run.config(pathlib.Path({str(made)!r}))\n'
  )
  environment = {**os.environ, 'PYTHONPATH': f'{ROOT}{os.pathsep}{ROOT / "tests"}'}
  command = [sys.executable, '-m', 'jedit.main', f'--config={file}', f'--workdir={tmp_path}/run']
  for number in _rounds(1):
    kind = (signal.SIGINT, signal.SIGTERM)[number % 2]
    with subprocess.Popen(
      command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
      while not _catches(process.pid):  # Python itself has to start first
        time.sleep(0.01)
      time.sleep(rng.choice([rng.uniform(0, 1.5), rng.uniform(1.5, 12)]))
      process.send_signal(kind)
      _, said = process.communicate(timeout=120)
    COUNTS['signals'][0] += 1
    if process.returncode == 0:  # it was done
      continue
    COUNTS['signals'][1] += 1
    assert process.returncode == 128 + kind, (process.returncode, said)
    assert 'Traceback' not in said, said
    assert said.strip().endswith('jedit: stopped; the same command continues this run.'), said

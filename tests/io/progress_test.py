"""Progress on terminals and in log files, and timers."""

import io
import os
import pty
import subprocess
import sys
import time

import pytest
import tqdm.std

from jedit.io.progress import Progress, Timers, note, quiet


class _Clock:
  def __init__(self):
    self.now = 0.0

  def __call__(self):
    return self.now


@pytest.fixture(name='clock')
def _clock(monkeypatch):
  clock = _Clock()
  monkeypatch.setattr(tqdm.std, 'time', clock)
  return clock


class _Terminal(io.StringIO):
  def isatty(self):
    return True


def _run(clock, stream, total, seconds_per_step, **arguments):
  start = clock.now
  with Progress('targets', total, 'edits', stream=stream, **arguments) as progress:
    for step in range(1, total + 1):
      clock.now = start + step * seconds_per_step
      progress.update()
  return stream.getvalue()


def test_a_log_file_gets_a_line_every_ten_seconds(clock):
  lines = _run(clock, io.StringIO(), total=1000, seconds_per_step=0.05).splitlines()
  assert lines == [
    'targets:  20% 200/1000 [00:10<00:40, 20.00edits/s]',
    'targets:  40% 400/1000 [00:20<00:30, 20.00edits/s]',
    'targets:  60% 600/1000 [00:30<00:20, 20.00edits/s]',
    'targets:  80% 800/1000 [00:40<00:10, 20.00edits/s]',
    'targets: 100% 1000/1000 [00:50<00:00, 20.00edits/s]',
    'targets: 100% 1000/1000 [00:50<00:00, 20.00edits/s]',  # the end
  ]


def test_slow_and_short_stages_are_seen_in_a_log_file(clock):
  lines = _run(clock, io.StringIO(), total=5, seconds_per_step=60).splitlines()
  assert len(lines) == 6 and lines[1] == 'targets:  40% 2/5 [02:00<03:00, 60.00s/edits]'
  assert _run(clock, io.StringIO(), total=5, seconds_per_step=1).count('\n') == 1


def test_a_terminal_line_is_rewritten_a_few_times_a_second(clock):
  text = _run(clock, _Terminal(), total=1000, seconds_per_step=0.01)
  assert 5 * 10 - 5 <= text.count('\r') <= 5 * 10 + 5
  assert text.count('\n') == 1 and '| 1000/1000 [' in text


def test_the_rate_leaves_out_the_first_step_and_earlier_runs(clock):
  stream = io.StringIO()
  progress = Progress('targets', 100, 'edits', done=50, stream=stream)
  clock.now = 60.0  # compilation
  progress.update(10)
  clock.now = 70.0
  progress.update(10, note='loss 0.1')
  assert progress.done == 70
  shown = stream.getvalue().splitlines()[-1]
  assert shown == 'targets:  70% 70/100 [01:10<00:30,  1.00edits/s, loss 0.1]'


def test_an_estimated_total_may_change(clock):
  stream = io.StringIO()
  progress = Progress('statistics', None, 'tokens', stream=stream)
  for total in (4_000_000, 8_000_000):
    clock.now += 10
    progress.update(1_000_000, total=total)
  first, second = stream.getvalue().splitlines()
  assert first == 'statistics:  25% 1.00M/4.00M [00:10<00:30, 100ktokens/s]'
  assert second == 'statistics:  25% 2.00M/8.00M [00:20<01:00, 100ktokens/s]'


def test_a_stage_that_fails_does_not_claim_to_be_done(clock):
  stream = io.StringIO()
  with pytest.raises(KeyError), Progress('keys', None, 'rows', stream=stream) as progress:
    progress.update(3)
    raise KeyError
  assert stream.getvalue() == 'keys: 3rows [00:00, ?rows/s, stopped]\n'


def test_inner_progress_is_silent_and_counts(capsys):
  with quiet():
    with Progress('inner', 3) as progress:
      progress.update(2, note='loss')
    note('a line')
  assert progress.done == 2 and capsys.readouterr() == ('', '')
  note('a line')
  assert capsys.readouterr().err == 'a line\n'


def test_other_processes_are_silent(monkeypatch, capsys):
  monkeypatch.setattr('jedit.io.progress.is_first_process', lambda: False)
  with Progress('rows', 3) as progress:
    progress.update(3)
  assert progress.done == 3 and capsys.readouterr() == ('', '')


_PROGRAM = """
import time
from jedit.io.progress import Progress
with Progress('rows', 4, 'rows') as progress:
  for step in range(4):
    time.sleep(0.25)
    progress.update(note=f'loss {step}')
"""


def test_a_program_draws_a_bar_on_a_real_terminal_and_a_line_elsewhere():
  ours, theirs = pty.openpty()
  with subprocess.Popen([sys.executable, '-c', _PROGRAM], stderr=theirs) as program:
    os.close(theirs)
    shown = b''
    while True:
      try:
        block = os.read(ours, 4096)
      except OSError:  # Linux: the other end is closed
        break
      if not block:
        break
      shown += block
  os.close(ours)
  text = shown.decode()
  assert program.returncode == 0 and text.count('\n') == 1 and text.count('\r') >= 4
  assert '\rrows:   0%|' in text and '\rrows:  75%|███████▌  | 3/4 [' in text
  assert 'loss 3' in text and 'rows/s' in text
  done = subprocess.run([sys.executable, '-c', _PROGRAM], capture_output=True, text=True)
  assert done.stderr.startswith('rows: 100% 4/4 [00:0') and done.stderr.endswith(', loss 3]\n')
  assert done.stderr.count('\n') == 1 and '\r' not in done.stderr


def test_timers_add_up_over_visits_and_runs():
  timers = Timers({'targets': 100.0})
  for _ in range(2):
    with timers('targets'), timers('compile'):
      time.sleep(0.01)
  with pytest.raises(ValueError), timers('keys'):
    raise ValueError
  assert 100.02 <= timers.seconds['targets'] < 101
  assert 0.02 <= timers.seconds['compile'] < 1
  assert set(timers.seconds) == {'targets', 'compile', 'keys'}

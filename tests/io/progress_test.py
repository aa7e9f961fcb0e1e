"""Progress and timers."""

import io
import time

import pytest

from jedit.io.progress import Progress, Timers


class _Clock:
  def __init__(self):
    self.now = 0.0

  def __call__(self):
    return self.now


class _Terminal(io.StringIO):
  def isatty(self):
    return True


def _run(stream, total, seconds_per_step, *, done=0):
  clock = _Clock()
  progress = Progress('targets', total, 'edits', done=done, stream=stream, clock=clock)
  with progress:
    for _ in range(total - done):
      clock.now += seconds_per_step
      progress.update()
  return stream.getvalue()


def test_a_log_file_gets_a_line_per_tenth():
  lines = _run(io.StringIO(), total=1000, seconds_per_step=0.05).splitlines()
  assert len(lines) == 11
  assert lines[1] == 'targets: 200/1000 edits, 20 edits/s, 40 s left'
  assert lines[-1] == 'targets: 1000/1000 edits in 50 s'


def test_a_slow_stage_still_says_something_every_ten_seconds():
  lines = _run(io.StringIO(), total=100, seconds_per_step=2.5).splitlines()
  assert 20 <= len(lines) <= 40


def test_a_terminal_line_is_rewritten_a_few_times_a_second():
  text = _run(_Terminal(), total=1000, seconds_per_step=0.01)
  assert text.count('\r') <= 5 * 10 + 1
  assert text.count('\n') == 1 and text.endswith('in 10 s\x1b[K\n')


def test_the_estimate_ignores_the_first_step_and_earlier_runs():
  stream, clock = io.StringIO(), _Clock()
  progress = Progress('targets', 100, 'edits', done=50, stream=stream, clock=clock)
  clock.now = 60.0  # compilation
  progress.update(10)
  clock.now = 70.0
  progress.update(10)
  assert stream.getvalue().splitlines()[-1] == 'targets: 70/100 edits, 1 edits/s, 30 s left'


def test_a_stage_that_fails_does_not_claim_to_be_done():
  stream = io.StringIO()
  with pytest.raises(KeyError), Progress('keys', None, 'rows', stream=stream) as progress:
    progress.update(3)
    raise KeyError
  assert stream.getvalue() == 'keys: 3 rows stopped after 0.0 s\n'


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

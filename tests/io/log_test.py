"""Progress, timers and JSON lines."""

import io
import json
import time

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import config_dict

from jedit.io import log
from jedit.types import Request, UserError


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
  progress = log.Progress('targets', total, 'edits', done=done, stream=stream, clock=clock)
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
  progress = log.Progress('targets', 100, 'edits', done=50, stream=stream, clock=clock)
  clock.now = 60.0  # compilation
  progress.update(10)
  clock.now = 70.0
  progress.update(10)
  assert stream.getvalue().splitlines()[-1] == 'targets: 70/100 edits, 1 edits/s, 30 s left'


def test_a_stage_that_fails_does_not_claim_to_be_done():
  stream = io.StringIO()
  with pytest.raises(KeyError), log.Progress('keys', None, 'rows', stream=stream) as progress:
    progress.update(3)
    raise KeyError
  assert stream.getvalue() == 'keys: 3 rows stopped after 0.0 s\n'


@pytest.mark.parametrize(
  ('seconds', 'text'),
  [
    (0.44, '0.4 s'),
    (9.96, '10 s'),
    (59.6, '1 min 00 s'),
    (185, '3 min 05 s'),
    (7620, '2 h 07 min'),
  ],
)
def test_durations_read_well(seconds, text):
  assert log.format_seconds(seconds) == text


def test_timers_add_up_over_visits_and_runs():
  timers = log.Timers({'targets': 100.0})
  for _ in range(2):
    with timers('targets'), timers('compile'):
      time.sleep(0.01)
  with pytest.raises(ValueError), timers('keys'):
    raise ValueError
  assert 100.02 <= timers.seconds['targets'] < 101
  assert 0.02 <= timers.seconds['compile'] < 1
  assert set(timers.seconds) == {'targets', 'compile', 'keys'}


def test_results_become_plain_json():
  value = {
    'array': np.arange(3, dtype=np.int32),
    'bfloat16': jnp.ones((2,), jnp.bfloat16),
    'nan': float('nan'),
    'inf': [np.float32('inf')],
    1: (True, None),
    'request': Request('{} is', 'a', 'b', case_id=3),
    'config': config_dict.ConfigDict({'layers': (1, 2)}),
  }
  plain = json.loads(json.dumps(log.to_json(value), allow_nan=False))
  assert plain['array'] == [0, 1, 2] and plain['bfloat16'] == [1.0, 1.0]
  assert plain['nan'] is None and plain['inf'] == [None] and plain['1'] == [True, None]
  assert plain['request']['case_id'] == 3 and plain['config'] == {'layers': [1, 2]}
  with pytest.raises(TypeError):
    log.to_json(object())


def test_rows_come_back_and_a_torn_line_is_redone(tmp_path):
  path = tmp_path / 'new' / 'records.jsonl'
  with log.JsonlWriter(path) as writer:
    writer.write({'case_id': 1, 'text': 'é\u2028\n'})
    assert log.read_jsonl(path) == [{'case_id': 1, 'text': 'é\u2028\n'}]  # before closing
    writer.write({'case_id': 2})
  whole = path.read_bytes()
  path.write_bytes(whole[:-4])
  with pytest.raises(UserError, match='Line 2 of .*records.jsonl'):
    log.read_jsonl(path)
  with log.JsonlWriter(path) as writer:
    assert [row['case_id'] for row in log.read_jsonl(path)] == [1]
    writer.write({'case_id': 2})
  assert path.read_bytes() == whole


def test_unusable_json_lines_are_named(tmp_path):
  path = tmp_path / 'rows.jsonl'
  path.write_text('{"a": 1}\n\n[1]\n')
  with pytest.raises(UserError, match='Line 3 of .*not a JSON object'):
    log.read_jsonl(path)
  path.write_bytes(b'\xff\xfe\n')
  with pytest.raises(UserError, match='Line 1'):
    log.read_jsonl(path)
  with pytest.raises(UserError, match='absent.jsonl'):
    log.read_jsonl(tmp_path / 'absent.jsonl')
  with pytest.raises(UserError, match='Cannot write'):
    log.JsonlWriter(path / 'below' / 'a_file.jsonl')

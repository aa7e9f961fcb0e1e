"""What the fault suite runs in processes of their own, which it kills."""

import io
import os
import pathlib
import resource
import sys
import time
import traceback

from helpers import tiny_run
from jedit import experiments
from jedit.io import checkpoints
from jedit.types import UserError

_SMALL = dict(data__num_edits=2, evaluation__unedited=4, evaluation__samples=1)
_METHOD = dict(name='memit', layers=(1,), num_steps=3, cov_weight=10.0)
# fmt: off
MODES = {
  'together': _SMALL,
  'sequence': dict(_SMALL, edit__mode='sequential', edit__edits_per_batch=1, edit__canary=2),
  'separate': dict(_SMALL, edit__mode='separate', edit__edits_per_batch=1),
  'statistics': dict(task='stats', statistics__batch_tokens=64),
  'evaluation': dict(
    data__num_edits=1, evaluation__unedited=40, evaluation__samples=4,
    evaluation__tokens_per_batch=64,
  ),
  'editor': dict(
    task='train_editor', data__num_edits=2,
    method=dict(
      name='malmen', layers=(0, 1), rank=4, num_edits=2, mini_batch_size=2, learning_rate=1e-3,
      num_steps=20,
    ),
  ),
}
# fmt: on


def run(made, workdir, mode, seed=0, file_limit=None, begin=0.0):
  """Runs a tiny experiment; the exit code is 0, or 2 after a sentence, 1 after a traceback.

  Args:
    made: of `tiny_run.make`.
    workdir: of the run.
    mode: of `MODES`.
    seed: of the config.
    file_limit: bytes after which every file is as on a full disk.
    begin: time to begin at.
  """
  sys.stdout = open(os.devnull, 'w')
  sys.stderr = io.StringIO()
  checkpoints._SECONDS_PER_SAVE = checkpoints._WORK_PER_SAVE = 0
  if file_limit is not None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, resource.RLIM_INFINITY))
  time.sleep(max(0.0, begin - time.time()))
  log = pathlib.Path(f'{workdir}.{os.getpid()}.log')
  fields = {'method': _METHOD, **MODES[mode]}
  if mode == 'editor':  # the same file: records about the subjects of the test are left out
    fields['training'] = dict(records=os.path.join(made, 'records.json'))
  config = tiny_run.config(pathlib.Path(made), seed=seed, **fields)
  code = 0
  try:
    experiments.run(config, workdir)
  except UserError as error:
    code = 2
    print(error, file=sys.stderr)
  except BaseException:
    code = 1
    traceback.print_exc(file=sys.stderr)
  resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
  log.write_text(sys.stderr.getvalue())
  sys.exit(code)

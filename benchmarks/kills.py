r"""Statistics that are killed again and again end with the bits of a run that nobody stopped.

python benchmarks/kills.py --num_kills=20

Runs take second moments of the GPT-J testbed and save after every batch. Each is killed with
SIGKILL at a random moment, and the next one goes on.
"""

import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import numpy as np
from absl import app, flags

from jedit.moments.files import SecondMoments

_NUM_KILLS = flags.DEFINE_integer('num_kills', 20, 'Kills before the last run.', lower_bound=1)
_SECONDS = flags.DEFINE_float('seconds', 2.0, 'Longest wait for a kill once a run has begun.')
_SEED = flags.DEFINE_integer('seed', 0, 'Of the moments.')

# The first argument is the file of the result.
_RUN = """
import sys
import jedit
from jedit.io import checkpoints
from jedit.testbeds import testbed_corpus
checkpoints._SECONDS_PER_SAVE = checkpoints._WORK_PER_SAVE = 0
lm, _ = jedit.testbed('gptj')
print('begun', flush=True)
corpus = 4 * testbed_corpus('gptj')
jedit.statistics(lm, corpus, [0, 1], batch_tokens=256, row_tokens=256, cache=sys.argv[1])
"""


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'There is no argument {argv[1]!r}; use the flags.')
  root = pathlib.Path(__file__).parents[1]
  rng = random.Random(_SEED.value)
  environment = {**os.environ, 'PYTHONPATH': os.fspath(root)}
  with tempfile.TemporaryDirectory() as folder:
    whole, killed = pathlib.Path(folder) / 'whole', pathlib.Path(folder) / 'killed'

    def command(path: pathlib.Path) -> list[str]:
      return [sys.executable, '-c', _RUN, os.fspath(path)]

    subprocess.run(command(whole), env=environment, check=True, capture_output=True)
    places = []
    for _ in range(_NUM_KILLS.value):
      with subprocess.Popen(
        command(killed), env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
      ) as run:
        run.stdout.readline()
        time.sleep(rng.uniform(0, _SECONDS.value))
        run.send_signal(signal.SIGKILL)
      if run.returncode != -signal.SIGKILL:
        raise app.UsageError('A run ended before it was killed; wait less with --seconds.')
      saved = [int(path.name) for path in killed.with_suffix('.partial').glob('[0-9]*')]
      places.append(max(saved, default=0))
    subprocess.run(command(killed), env=environment, check=True, capture_output=True)
    first, second = SecondMoments.load(whole), SecondMoments.load(killed)
  print(f'batches done at each kill: {", ".join(map(str, places))}')
  same = all(np.array_equal(first.cov[kernel], second.cov[kernel]) for kernel in first.cov)
  same &= first.num_tokens == second.num_tokens
  print(f'{len(places)} kills, {second.num_tokens} tokens: {"the same" if same else "OTHER"} bits')
  sys.exit(not same)


if __name__ == '__main__':
  app.run(main)

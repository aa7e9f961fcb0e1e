r"""Second moments that are killed again and again, against those of an undisturbed run.

  python benchmarks/kills.py --num_kills=20

Runs collect second moments of the GPT-J testbed and save after every batch. Each is killed with
SIGKILL at a random moment, and the next one goes on. The bits of both results are compared; exit
code 1 if they differ.
"""

import argparse
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

from common.command_line import Parser, whole

PARSER = Parser(__doc__, 'seed')
PARSER.add('num_kills', whole(1), 20, 'kills before the last run')
PARSER.add('seconds', float, 2.0, 'longest wait for a kill once a run has begun')

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


def run(settings: argparse.Namespace) -> bool:
  """Kills runs, prints the batches that each had saved, and compares the bits."""
  import numpy as np  # slow to import, as the module below

  from jedit.moments.files import SecondMoments

  rng = random.Random(settings.seed)
  environment = {**os.environ, 'PYTHONPATH': os.fspath(pathlib.Path(__file__).parents[1])}
  with tempfile.TemporaryDirectory() as folder:
    whole, killed = pathlib.Path(folder) / 'whole', pathlib.Path(folder) / 'killed'

    def command(path: pathlib.Path) -> list[str]:
      return [sys.executable, '-c', _RUN, os.fspath(path)]

    subprocess.run(command(whole), env=environment, check=True, capture_output=True)
    batches = []
    for _ in range(settings.num_kills):
      with subprocess.Popen(
        command(killed), env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
      ) as process:
        process.stdout.readline()
        time.sleep(rng.uniform(0, settings.seconds))
        process.send_signal(signal.SIGKILL)
      if process.returncode != -signal.SIGKILL:
        PARSER.error('a run ended before it was killed; wait less with --seconds')
      saved = [int(path.name) for path in killed.with_suffix('.partial').glob('[0-9]*')]
      batches.append(max(saved, default=0))
    subprocess.run(command(killed), env=environment, check=True, capture_output=True)
    first, second = SecondMoments.load(whole), SecondMoments.load(killed)
  same = all(np.array_equal(first.cov[kernel], second.cov[kernel]) for kernel in first.cov)
  same &= first.num_tokens == second.num_tokens
  print(f'batches saved before each kill: {", ".join(map(str, batches))}')
  verdict = 'the same' if same else 'OTHER'
  print(f'{len(batches)} kills, {second.num_tokens} tokens, float32: {verdict} bits')
  return same


if __name__ == '__main__':
  sys.exit(not run(PARSER.parse_args()))

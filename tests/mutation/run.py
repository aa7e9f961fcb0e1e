"""Runs mutants of the numerical modules and shows which of them the tests catch.

  python tests/mutation/run.py                 all of them, about half an hour
  python tests/mutation/run.py solvers         those whose file contains a word
  python tests/mutation/run.py --jobs=1        one at a time

Each mutant is a copy of the repository with one text replaced. It is caught if one of its tests
fails, or does not end. Exits with 1 if fewer than 95% are caught.
"""

import argparse
import concurrent.futures
import multiprocessing
import os
import pathlib
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

if __name__ == '__main__':
  sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
  import conftest  # noqa: F401  the settings of the suite

from mutation.mutants import FAST, SLOW, Mutant

ROOT = pathlib.Path(__file__).parents[2]
WANTED = 0.95
_LIMIT = 600.0  # seconds; a mutant that never stops is caught as well
# Imported once and forked for every mutant: half of the time of a short test.
_SHARED = ['jax', 'optax', 'flax.linen', 'transformers', 'hypothesis', 'pytest']


class Outcome(NamedTuple):
  """`verdict` is 'caught', 'endless', 'survived' or, if its tests could not be run, 'broken'."""

  mutant: Mutant
  verdict: str
  seconds: float


def misplaced(mutants: Iterable[Mutant]) -> list[str]:
  """Mutants whose text does not occur once in their file, or whose tests do not exist."""
  found = []
  for mutant in mutants:
    path = ROOT / 'jedit' / mutant.file
    count = path.read_text(encoding='utf-8').count(mutant.old) if path.is_file() else 0
    if count != 1 or mutant.old == mutant.new:
      found.append(f'{mutant}: the text occurs {count} times')
    for test in mutant.tests.split():
      if not (ROOT / 'tests' / test.partition('::')[0]).is_file():
        found.append(f'{mutant}: there is no tests/{test}')
  return found


def run(mutants: Sequence[Mutant], jobs: int) -> Iterable[Outcome]:
  """Outcomes in the order of the mutants, as they come."""
  context = multiprocessing.get_context('forkserver')
  context.set_forkserver_preload(_SHARED)
  with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
    yield from pool.map(lambda mutant: _outcome(context, mutant), mutants)


def _outcome(context, mutant: Mutant) -> Outcome:
  start = time.monotonic()
  with tempfile.TemporaryDirectory() as scratch:
    copy = pathlib.Path(scratch) / 'jedit'
    _mutated_copy(mutant, copy)
    process = context.Process(target=_run_tests, args=(copy, mutant.tests.split()))
    process.start()
    process.join(_LIMIT)
    if process.is_alive():
      process.kill()
      process.join()
      verdict = 'endless'
    elif process.exitcode in (0, 1):  # of pytest: all tests passed, or some failed
      verdict = 'caught' if process.exitcode else 'survived'
    else:
      verdict = 'broken'
      print((copy / 'output').read_text()[-3000:])
  return Outcome(mutant, verdict, time.monotonic() - start)


def _mutated_copy(mutant: Mutant, copy: pathlib.Path) -> None:
  """The repository with one text replaced; large files that no mutant changes are links."""
  copy.mkdir()
  for name in ('jedit', 'configs', 'tests', 'benchmarks'):
    shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns('assets'))
  assets = pathlib.Path('jedit', 'testbeds', 'assets')
  (copy / assets).symlink_to(ROOT / assets)
  shutil.copy(ROOT / 'setup.cfg', copy)
  path = copy / 'jedit' / mutant.file
  path.write_text(
    path.read_text(encoding='utf-8').replace(mutant.old, mutant.new), encoding='utf-8'
  )


def _run_tests(copy: pathlib.Path, tests: Sequence[str]) -> None:
  """In a process of its own: exits with pytest's code."""
  import pytest

  os.chdir(copy)
  os.environ['PYTHONPATH'] = str(copy)
  os.environ.setdefault('JEDIT_SHARED', str(ROOT.parent / 'shared'))
  sys.path.insert(0, str(copy))
  output = os.open('output', os.O_CREAT | os.O_WRONLY)
  os.dup2(output, 1)
  os.dup2(output, 2)
  code = pytest.main(['-xq', '-p', 'no:cacheprovider', *(f'tests/{test}' for test in tests)])
  import jedit

  assert pathlib.Path(jedit.__file__).is_relative_to(copy), jedit.__file__
  sys.stdout.flush()
  os._exit(code)


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('words', nargs='*', help='take mutants with one of these in their file')
  parser.add_argument('--jobs', type=int, default=2, help='mutants at once')
  arguments = parser.parse_args()
  mutants = [
    mutant
    for mutant in (*FAST, *SLOW)
    if not arguments.words or any(word in mutant.file for word in arguments.words)
  ]
  wrong = misplaced(mutants)
  if wrong:
    print('\n'.join(wrong))
    return 1
  caught = 0
  for outcome in run(mutants, arguments.jobs):
    caught += outcome.verdict in ('caught', 'endless')
    print(f'{outcome.verdict:9} {outcome.seconds:6.1f} s  {outcome.mutant}', flush=True)
  print(f'{caught} of {len(mutants)} caught, {caught / len(mutants):.1%}')
  return int(caught < WANTED * len(mutants))


if __name__ == '__main__':
  sys.exit(main())

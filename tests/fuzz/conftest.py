"""Seed, effort and counts of the fuzz suite.

JEDIT_FUZZ multiplies the number of examples (1 takes a minute, 100 an hour); JEDIT_FUZZ_SEED is
the seed, 0 by default. Both are printed with the counts.
"""

import os

from fuzz import effort


def pytest_terminal_summary(terminalreporter):
  """Prints what was tried."""
  if effort.COUNTS:
    terminalreporter.section(f'fuzz, seed {effort.SEED}, effort {effort.EFFORT}')
    for label, (tried, refused) in sorted(effort.COUNTS.items()):
      terminalreporter.write_line(f'{label}: {tried} tried, {refused} refused in a sentence')


def pytest_report_header():
  """Names the seed before anything runs."""
  return f'fuzz: JEDIT_FUZZ_SEED={effort.SEED} JEDIT_FUZZ={effort.EFFORT} in {os.getpid()}'

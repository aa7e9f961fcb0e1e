"""Effort, seed and counts of the fuzz suite; see conftest.py."""

import collections
import os

import hypothesis

from jedit.types import UserError

EFFORT = float(os.environ.get('JEDIT_FUZZ', '1'))
SEED = int(os.environ.get('JEDIT_FUZZ_SEED', '0'))
COUNTS: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])


def examples(count):
  """Decorates a test with `given`: so many examples at effort 1."""

  def decorate(test):
    settings = hypothesis.settings(
      max_examples=max(1, round(count * EFFORT)),
      deadline=None,
      database=None,
      suppress_health_check=list(hypothesis.HealthCheck),
      phases=(hypothesis.Phase.generate,),  # a failure prints its example; shrinking takes long
      print_blob=True,
    )
    return hypothesis.seed(SEED)(settings(test))

  return decorate


def attempt(label, call):
  """Calls a door; returns its value, or the sentence with which it refuses, as a UserError.

  Every other exception is a failure, as is a message that is not one sentence.
  """
  COUNTS[label][0] += 1
  try:
    return call()
  except UserError as error:
    COUNTS[label][1] += 1
    message = str(error)
    assert message and '\n' not in message and message[-1] in '.?', message
    assert len(message) < 3000, message
    return error

"""Small models trained on a made-up world, shipped with records to edit and test them.

    lm, records = testbed('gptj')    # or 'llama'

A testbed is a Hugging Face directory with records.json (CounterFact's schema), corpus.txt (text for
second moments, one document per line) and knowledge.json (training config and accuracy).
`testbeds.train` trains testbeds on a made-up world or on any CounterFact file.
"""

import pathlib
from typing import TYPE_CHECKING

from jedit.types import Record, UserError

if TYPE_CHECKING:
  from jedit.models.language_model import LanguageModel
  from jedit.testbeds.world import Prompt

NAMES = ('gptj', 'llama')


def testbed_directory(name: str) -> pathlib.Path:
  """Directory of a shipped testbed, 'gptj' or 'llama'.

  Raises:
    UserError: for another name.
  """
  if name not in NAMES:
    raise UserError(f'There is no testbed {name!r}; choose {" or ".join(NAMES)}.')
  return pathlib.Path(__file__).parent / 'assets' / name


def testbed(name: str, dtype: str = 'float32') -> tuple['LanguageModel', list[Record]]:
  """Loads a shipped model and the records about its world.

  Args:
    name: 'gptj' or 'llama'.
    dtype: of weights and activations.

  Returns:
    The model, and one record per edited subject.

  Raises:
    UserError: for another name.
  """
  from jedit.data.records import load_records
  from jedit.models.language_model import load

  directory = testbed_directory(name)
  return load(directory, dtype=dtype), load_records(directory / 'records.json')


def testbed_prompts(name: str) -> list['Prompt']:
  """All prompts about the world of a shipped testbed, with their answers.

  `edited` is False for subjects without a record, whose greedy answers should stay.
  """
  from jedit.io import schema
  from jedit.testbeds.world import World

  made = schema.read_json(testbed_directory(name) / 'knowledge.json')
  return World(**made['config']['world']).prompts()


def testbed_corpus(name: str) -> list[str]:
  """Text for second moments of a shipped testbed."""
  return (testbed_directory(name) / 'corpus.txt').read_text('utf-8').splitlines()

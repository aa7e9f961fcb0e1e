"""Command lines of the scripts; a flag that several of them have is described here, once."""

import argparse
import difflib
import pathlib
import re
from collections.abc import Callable
from typing import Any, NoReturn

from common.presets import PRESETS


class Parser(argparse.ArgumentParser):
  """Answers a wrong command line with one sentence and exit code 2.

  Args:
    doc: docstring of the script, printed by --help.
    names: shared flags that the script has.
    settings: values without a flag.
  """

  def __init__(self, doc: str, *names: str, **settings: Any):
    super().__init__(
      description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    for name in names:
      self.add_argument(f'--{name}', **_SHARED[name])
    self.set_defaults(**settings)

  def add(self, name: str, read: Callable[[str], Any], default: Any, text: str) -> None:
    """Adds a flag of the script's own, described by `text` and its default."""
    is_list = isinstance(default, tuple)
    shown = ','.join(map(str, default)) if is_list else default
    self.add_argument(
      f'--{name}',
      type=read,
      default=default,
      metavar='A,B' if is_list else 'N',
      help=f'{text} (default: {shown})',
    )

  def parse_args(self, *arguments: Any) -> Any:
    """The settings by attribute."""
    settings, rest = self.parse_known_args(*arguments)
    if rest:
      close = difflib.get_close_matches(rest[0].split('=')[0], self._option_string_actions, n=1)
      self.error(f'there is no flag {rest[0]}{f", did you mean {close[0]}?" if close else ""}')
    return settings

  def error(self, message: str) -> NoReturn:
    """Prints the sentence and ends the program."""
    sentence = re.sub(r'^argument (--\w+): ', r'\1: ', message)
    self.exit(2, f'{self.prog}: {sentence.rstrip(".?")}; see --help.\n')


def whole(least: int) -> Callable[[str], int]:
  """Whole numbers of at least `least`, as the type of a flag."""

  def read(text: str) -> int:
    if not re.fullmatch(r'-?\d+', text) or int(text) < least:
      raise argparse.ArgumentTypeError(f'give a whole number of at least {least}, not {text}')
    return int(text)

  return read


def name_list(text: str) -> tuple[str, ...]:
  """Names separated by commas, as the type of a flag."""
  return tuple(text.split(','))


def size_list(text: str) -> tuple[int, ...]:
  """Whole numbers from 1 separated by commas, as the type of a flag."""
  return tuple(whole(1)(part) for part in text.split(','))


def _file(text: str) -> str:
  """A file in a directory that exists: hours of work end in it."""
  if text and not pathlib.Path(text).absolute().parent.is_dir():
    raise argparse.ArgumentTypeError(f'give a file in a directory that exists, not {text}')
  return text


_SHARED: dict[str, dict[str, Any]] = {
  'preset': dict(
    choices=tuple(PRESETS),
    default='small',
    help="model: small, GPT-J's depth and proportions for a laptop (default); gptj-6b, random "
    "weights of GPT-J's shape for a device of 80 GB; tiny, for tests",
  ),
  'implementations': dict(
    type=name_list,
    metavar='NAME,NAME',
    help='implementations to time, the engine always among them; default: all, and for gptj-6b the '
    'engine, with the baseline if PyTorch has a GPU',
  ),
  'rounds': dict(
    type=whole(1), metavar='N', help="runs of each implementation; default: the preset's"
  ),
  'seed': dict(
    type=int, default=0, metavar='N', help='seed of every random draw (default: %(default)s)'
  ),
  'out': dict(
    type=_file, default='', metavar='FILE', help='JSON file for the results; default: print only'
  ),
  'records': dict(
    default='',
    metavar='FILE',
    help='CounterFact, zsRE or EasyEdit file whose first records are the requests; default: the '
    'records of the shipped GPT-J testbed',
  ),
  'num_edits': dict(
    type=whole(1), metavar='N', help="number of records; default: the preset's, at most all"
  ),
  'num_steps': dict(
    type=whole(2), metavar='N', help="loss evaluations per edit; default: the preset's"
  ),
  'target_batch_size': dict(
    type=whole(1),
    metavar='N',
    help="edits whose targets the engine optimises at once; default: the engine's choice",
  ),
}

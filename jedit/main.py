"""Runs the experiment that a config describes.

  python -m jedit.main                                        # configs/quickstart.py
  python -m jedit.main --config=configs/edit.py:memit,gpt2-xl --workdir=DIR
  python -m jedit.main --config.data.num_edits=200            # change any field of the config
  python -m jedit.main --config=configs/NAME.py --help        # list the fields and their values

The same command with the same workdir continues a run that was stopped.
"""

import contextlib
import difflib
import importlib.util
import io
import os
import pathlib
import re
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from types import FrameType
from typing import Any, NoReturn

_STOPPED = 'jedit: stopped; the same command continues this run.'


def _end(number: int, frame: FrameType | None = None) -> NoReturn:
  """Ends the program at once, where there is nothing to put away."""
  os.write(2, f'\n{_STOPPED}\n'.encode())
  os._exit(128 + number)


def _on_signals(handler: Any) -> None:
  for number in (signal.SIGINT, signal.SIGTERM):
    if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup and shells set it
      signal.signal(number, handler)


if __name__ == '__main__':  # the libraries take seconds to import
  _on_signals(_end)

try:
  import jax
  from absl import app, flags, logging
  from ml_collections import config_dict, config_flags

  from jedit import configs
  from jedit.parallel import mesh
  from jedit.parallel.compilation_cache import cache_compilations
  from jedit.types import UserError
  from jedit.units import visible
except (ValueError, RuntimeError) as error:  # a library reads nonsense in the environment
  print(f'jedit: {error}; correct the environment variable.', file=sys.stderr)
  sys.exit(2)

_SHIPPED = pathlib.Path(list(configs.__path__)[0])
_CONFIG = flags.DEFINE_string(
  'config',
  str(_SHIPPED / 'quickstart.py'),
  'Python file whose get_config() returns the config; the text after a colon is its argument.',
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Directory for the results; runs/<name of the config> by default.'
)
_COORDINATOR = flags.DEFINE_string(
  'coordinator',
  None,
  'host:port of the first of several processes, each started with the same command; auto on '
  'clusters that provide it (Slurm, TPU).',
)
_NUM_PROCESSES = flags.DEFINE_integer(
  'num_processes', None, 'Number of processes; not with --coordinator=auto.', lower_bound=1
)
_PROCESS_ID = flags.DEFINE_integer(
  'process_id', None, 'Number of this process, from 0; not with --coordinator=auto.', lower_bound=0
)
_READ_BY_LIBRARIES = ('HF_', 'JAX_', 'MPL', 'TOKENIZERS_', 'TQDM_', 'TRANSFORMERS_', 'XLA_')
_HELP = ('--help', '-help', '-h', '-?', '--helpshort', '--helpfull')


def load_config(path: str) -> config_dict.ConfigDict:
  """The config of `path`, or of `path:argument` for a get_config with an argument.

  Raises:
    UserError: for a file that does not exist, raises, or returns no ConfigDict.
  """
  file, *argument = path.split(':', 1)
  if not os.path.isfile(file):
    raise UserError(f'There is no config file {file!r}{_instead(pathlib.Path(file))}.')
  try:
    spec = importlib.util.spec_from_file_location('config', file)
    if spec is None or spec.loader is None:
      raise ImportError('its name does not end in .py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(*argument)
  except UserError:
    raise
  except Exception as error:  # a config is a program and may raise anything
    reason = f'{type(error).__name__}: {" ".join(str(error).split())}'
    raise UserError(f'Cannot use config file {file} ({reason}).') from error
  if not isinstance(config, config_dict.ConfigDict):
    raise UserError(f'get_config() of {file} returns {type(config).__name__}; return a ConfigDict.')
  return config


def _instead(file: pathlib.Path) -> str:
  """The config to write instead of a missing one; earlier versions had a file per preset."""
  from jedit.methods import presets  # slow to import

  task, _, testbed = file.stem.partition('_testbed_')
  moved = {
    f'{method}_{model}'.replace('-', '_').replace('gptj_6b', 'gptj'): f'edit.py:{method},{model}'
    for method, model in presets.names()
  }
  if testbed and task in ('probe', 'sweep', 'train'):
    moved[file.stem] = f'{task}.py:{testbed}'
  if file.stem in moved:
    is_there = (file.parent / 'edit.py').is_file()
    folder = file.parent if is_there else _SHIPPED
    return f' any more; write --config={folder / moved[file.stem]}'
  shipped = ', '.join(sorted(shipped.name for shipped in _SHIPPED.glob('*.py')))
  return f'; {_SHIPPED} has {shipped}'


def _fields(config: config_dict.ConfigDict, prefix: str = '') -> dict[str, Any]:
  """The fields of all sections, as 'section.field'."""
  found: dict[str, Any] = {}
  for name, value in config.items():
    if isinstance(value, config_dict.ConfigDict):
      found.update(_fields(value, f'{prefix}{name}.'))
    else:
      found[prefix + name] = value
  return found


def override(config: config_dict.ConfigDict, argv: Sequence[str]) -> config_dict.ConfigDict:
  """Changes `config` by the `--config.section.field=value` in `argv` and locks it.

  Raises:
    UserError: for unknown fields, values of another type, and anything else in `argv`.
  """
  names = _fields(config)
  for arg in argv[1:]:
    given = re.match(r'--?(?:no)?config\.([^=]*)', arg)
    if given and not any(f'{name}.'.startswith(f'{given[1]}.') for name in names):
      raise UserError(f'The config has no field {given[1]!r}; {_hint(given[1], names)}')
  own_flags = flags.FlagValues()
  try:
    config_flags.DEFINE_config_dict('config', config, flag_values=own_flags, sys_argv=list(argv))
    rest = own_flags(list(argv))
  except (flags.Error, TypeError, ValueError) as error:
    reason = ' '.join(str(error).split()).split('. Currently supported')[0].rstrip('.')
    raise UserError(f'{reason}; see --help, or write the value in the config file.') from error
  if rest[1:]:
    raise UserError(f'Cannot use the argument {rest[1]!r}; write --config.field=value.')
  for name, value in own_flags['config'].override_values.items():
    kinds = {type(item) for item in names.get(name) or ()} if isinstance(value, tuple) else set()
    if len(kinds) == 1 and not all(isinstance(item, (*kinds, int)) for item in value):
      raise UserError(f'The config field {name} is {value!r}; give a tuple like {names[name]!r}.')
  return own_flags.config


def _hint(name: str, names: Iterable[str]) -> str:
  """The field probably meant by `name`."""
  from jedit.experiments.config import RENAMED  # slow to import

  close = difflib.get_close_matches(name, names, n=1)
  if name in RENAMED:
    return f'it is {RENAMED[name]} now.'
  return f'did you mean {close[0]}?' if close else '--help lists the fields.'


def _parse(argv: Sequence[str]) -> tuple[config_dict.ConfigDict, str]:
  """Reads the command line; `--help` prints the flags and fields and ends the program.

  Returns:
    The config and the workdir.

  Raises:
    UserError: for anything in `argv` or in the config file that cannot be used.
  """
  for arg in argv:
    if not arg.isascii() and arg != arg.encode(errors='replace').decode():
      raise UserError(f'The argument {arg!r} is not UTF-8; write it in UTF-8.')
  for flag in os.environ.get('XLA_FLAGS', '').split():
    if not flag.startswith('--'):  # XLA ends the process
      raise UserError(f'The environment variable XLA_FLAGS has {flag!r}; give flags of XLA.')
  wants_help = any(arg in _HELP for arg in argv)
  flags.FLAGS.set_gnu_getopt(True)  # flags may follow '--config.field value'
  try:
    rest = flags.FLAGS([arg for arg in argv if arg not in _HELP], known_only=True)
  except flags.Error as error:
    raise UserError(f'{str(error).rstrip(".")}; see --help.') from error
  config = override(load_config(_CONFIG.value), rest)
  if wants_help:
    fields = '\n'.join(f'  --config.{name}={value}' for name, value in _fields(config).items())
    print(f'{__doc__}\n{flags.FLAGS.main_module_help()}\n\nFields of {_CONFIG.value}:\n{fields}')
    sys.exit(0)
  file, *argument = _CONFIG.value.split(':')
  name = '_'.join([pathlib.Path(file).stem, *argument]).replace(',', '_')
  return config, _WORKDIR.value or os.path.join('runs', name)


def main(args: tuple[config_dict.ConfigDict, str]) -> None:
  """Hands the config and the workdir to `jedit.experiments`."""
  logging.set_verbosity(logging.WARNING)  # jax reports every kind of device that it does not find
  if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    cache_compilations()
  if _COORDINATOR.value is not None:
    mesh.initialise(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    if not mesh.is_first_process():
      sys.stdout = open(os.devnull, 'w')  # one process prints; all report errors
  with _environment_errors():
    from jedit import experiments  # slow; mistakes in flags come first

    jax.devices()

  experiments.run(*args)


@contextlib.contextmanager
def _environment_errors() -> Iterator[None]:
  """Errors of libraries that start, as sentences about the variables that they read."""
  try:
    yield
  except UserError:
    raise
  except (ValueError, RuntimeError, KeyError, OSError) as error:
    names = ', '.join(name for name in os.environ if name.startswith(_READ_BY_LIBRARIES))
    reason = ' '.join(str(error).split())
    raise UserError(
      f'A library cannot start ({reason}); check the environment variables {names}.'
    ) from error


class _Stopped(KeyboardInterrupt):
  """A signal to end; `args` has its number."""


def _stop(number: int, frame: FrameType | None) -> NoReturn:
  _on_signals(_end)  # a second one does not wait
  raise _Stopped(number)


def run() -> None:
  """Entry point: `main`, with the user's mistakes as one sentence on stderr and exit code 2."""
  # The advice is that PyTorch is missing, which nothing here needs.
  os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')
  _on_signals(_stop)
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors='replace')  # outputs that are not UTF-8
  try:
    try:
      app.run(main, flags_parser=_parse)
    finally:
      if sys.stdout is not None:  # closed by the caller
        sys.stdout.flush()
  except UserError as error:
    _say(f'jedit: {error}')
    sys.exit(2)
  except KeyboardInterrupt as error:
    _on_signals(_end)
    _say(f'\n{_STOPPED}')
    sys.exit(128 + (error.args[0] if isinstance(error, _Stopped) else signal.SIGINT))
  except BrokenPipeError:  # the reader of the output has left
    _drop_output()
    sys.exit(128 + signal.SIGPIPE)
  except OSError as error:
    if error.strerror is None:
      raise
    what = error.filename or 'a file or the output'
    _say(f'jedit: Cannot use {what} ({error.strerror}); give another one.')
    _drop_output()
    sys.exit(2)


def _drop_output() -> None:
  """What Python still holds for a lost output goes nowhere, instead of failing again at the end."""
  for number in (1, 2):
    os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def _say(line: str) -> None:
  with contextlib.suppress(OSError):
    print(visible(line), file=sys.stderr, flush=True)


if __name__ == '__main__':
  run()

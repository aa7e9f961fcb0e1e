"""The command line: what reaches the runner, and one sentence with exit code 2 for mistakes."""

import functools
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

import pytest
from absl.testing import flagsaver

from jedit import main
from jedit.experiments.config import RENAMED
from jedit.methods import presets
from jedit.types import UserError

ROOT = pathlib.Path(__file__).parents[2]

CONFIG = """
from ml_collections import config_dict

def get_config(seed='0'):
  c = config_dict.ConfigDict()
  c.seed = int(seed)
  c.limit = config_dict.placeholder(int)
  c.method = dict(name='pmet', layers=(3, 4), lr=0.2)
  return c
"""

# Stands in for jedit.experiments, so that these tests are about the command line alone.
RUNNER = """
import pathlib, signal, sys, time, types
import jedit
from jedit.types import UserError

def run(config, workdir):
  if config.method.name == 'wait':
    # Tests that a shell runs in the background ignore the signal, and so would this process.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    print('running', flush=True)
    time.sleep(60)
  if config.method.name == 'bug':
    raise RuntimeError('a bug')
  if config.method.name != 'pmet':
    raise UserError(f'No method {config.method.name!r}.')
  print(workdir, config.seed, config.limit, config.method.layers, config.method.lr)

jedit.experiments = sys.modules['jedit.experiments'] = types.ModuleType('jedit.experiments')
jedit.experiments.__path__ = [str(pathlib.Path(jedit.__file__).parent / 'experiments')]
jedit.experiments.run = run
from jedit import main
main.run()
"""


def _command(*args):
  return [sys.executable, '-c', RUNNER, *args]


def _environment(tmp_path):
  return {
    **os.environ,
    'PYTHONPATH': str(ROOT),
    'JAX_PLATFORMS': 'cpu',
    'JAX_COMPILATION_CACHE_DIR': str(tmp_path / 'xla'),
  }


def _run(tmp_path, *args):
  return subprocess.run(
    _command(*args), capture_output=True, text=True, cwd=tmp_path, env=_environment(tmp_path)
  )


@pytest.fixture
def config(tmp_path):
  path = tmp_path / 'small.py'
  path.write_text(CONFIG)
  return f'--config={path}'


def _sentence(*args):
  """The message that the arguments lead to, without the time for a process of its own."""
  with flagsaver.flagsaver(), pytest.raises(UserError) as raised:
    main._parse(['main', *args])
  message = str(raised.value)
  assert '\n' not in message and message[-1] in '.?', message
  return message


def test_the_config_reaches_the_runner_with_its_changes(tmp_path, config):
  assert _run(tmp_path, config).stdout == f'{os.path.join("runs", "small")} 0 None (3, 4) 0.2\n'
  # Order, one or two dashes, and '=' or a space make no difference; colon arguments work.
  args = ('--config.seed', '5', f'{config}:3', '-config.method.lr=1', '--config.limit=7')
  done = _run(tmp_path, *args, '--config.method.layers=1,2,3', '--workdir', 'here')
  assert done.stdout == 'here 5 7 (1, 2, 3) 1.0\n', done.stderr
  assert _run(tmp_path, f'{config}:3').stdout.split()[1] == '3'
  assert sorted(os.listdir(tmp_path)) == ['small.py']  # the command line itself writes nothing


@pytest.mark.parametrize(
  ('arg', 'words'),
  [
    ('--config.foo=1', "no field 'foo'"),
    ('--config.method.layer=1', 'did you mean method.layers?'),
    ('--config.seed.x=1', "no field 'seed.x'"),
    ('--config.seed=abc', "--config.seed=abc: invalid literal for int() with base 10: 'abc'"),
    ('--config.seed=1.5', '--config.seed=1.5'),
    ('--config.seed', '--config.seed'),
    ('--config.method.layers=x', 'give a tuple like (3, 4)'),
    ('--config.method=5', '--config.method=5'),
    ('--foo=1', "Unknown command line flag 'foo'"),
    ('extra', "argument 'extra'"),
    ('--flagfile=absent', 'absent'),
  ],
)
def test_a_wrong_argument_is_one_sentence(config, arg, words):
  assert words in _sentence(config, arg)


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (('--config.method.name=nomethod',), "jedit: No method 'nomethod'.\n"),
    (('--config.foo=1', '--config.method.name=wait'), "no field 'foo'"),
    (('--foo=1',), "Unknown command line flag 'foo'"),
  ],
)
def test_mistakes_end_the_program_with_code_2_and_no_traceback(tmp_path, config, args, message):
  done = _run(tmp_path, config, *args)
  assert done.returncode == 2 and done.stdout == ''
  assert message in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.parametrize(
  ('text', 'words'),
  [
    (None, 'There is no config file'),
    ('def get_config():\n  raise ValueError("first\\nsecond")', 'ValueError: first second'),
    ('def get_config():\n  return {}["boom"]', "KeyError: 'boom'"),
    ('def get_config(:\n', 'SyntaxError'),
    ('import nosuchmodule\n', 'nosuchmodule'),
    ('def get_config():\n  return open("/absent/file")', '/absent/file'),
    ('def get_config():\n  pass', 'returns NoneType'),
    ('x = 1', 'get_config'),
  ],
)
def test_a_wrong_config_file_is_one_sentence(tmp_path, text, words):
  path = tmp_path / 'wrong.py'
  if text is not None:
    path.write_text(text)
  sentence = _sentence(f'--config={path}', '--config.seed=1')
  assert words in sentence and str(path) in sentence


def test_help_lists_the_flags_and_the_fields_as_changed(tmp_path, config):
  done = _run(tmp_path, config, '--help', '--config.seed=4')
  assert done.returncode == 0
  for words in ('python -m jedit.main', '--workdir', '--config.seed=4', '--config.method.lr=0.2'):
    assert words in done.stdout


def test_a_bug_keeps_its_traceback(tmp_path, config):
  done = _run(tmp_path, config, '--config.method.name=bug')
  assert done.returncode == 1 and 'Traceback' in done.stderr


def test_an_interrupt_says_how_to_go_on(tmp_path, config):
  process = subprocess.Popen(
    _command(config, '--config.method.name=wait'),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    cwd=tmp_path,
    env=_environment(tmp_path),
  )
  assert process.stdout.readline() == 'running\n'
  time.sleep(0.1)
  process.send_signal(signal.SIGINT)
  _, message = process.communicate(timeout=30)
  assert process.returncode == 130
  assert message.strip() == 'jedit: stopped; the same command continues this run.'


@pytest.mark.parametrize(('number', 'code'), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_the_libraries_are_imported_is_one_sentence(tmp_path, number, code):
  process = subprocess.Popen(
    [sys.executable, '-X', 'importtime', '-m', 'jedit.main'],
    stderr=subprocess.PIPE,
    text=True,
    cwd=tmp_path,
    env=_environment(tmp_path),
    # A shell in the background has its children ignore the signal.
    preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
  )
  for line in process.stderr:  # numpy comes early in jax
    if line.strip().endswith(' numpy'):
      break
  process.send_signal(number)
  _, message = process.communicate(timeout=30)
  assert process.returncode == code and 'Traceback' not in message
  assert message.strip().endswith('jedit: stopped; the same command continues this run.')


def test_sigterm_ends_a_run_with_its_code(tmp_path, config):
  process = subprocess.Popen(
    _command(config, '--config.method.name=wait'),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    cwd=tmp_path,
    env=_environment(tmp_path),
  )
  assert process.stdout.readline() == 'running\n'
  process.send_signal(signal.SIGTERM)
  _, message = process.communicate(timeout=30)
  assert process.returncode == 143
  assert message.strip() == 'jedit: stopped; the same command continues this run.'


def test_a_closed_pipe_is_no_traceback(tmp_path, config):
  command = ' '.join(map(shlex.quote, [*_command(config, '--help')]))
  done = subprocess.run(
    ['bash', '-c', f'{command} | head -1'],
    capture_output=True,
    text=True,
    cwd=tmp_path,
    env=_environment(tmp_path),
  )
  assert done.stdout.startswith('Runs the experiment') and done.stderr == ''


@pytest.mark.parametrize(
  ('name', 'value', 'words'),
  [
    ('JAX_ENABLE_X64', 'maybe', 'JAX_ENABLE_X64'),
    ('JAX_PLATFORMS', 'abacus', 'JAX_PLATFORMS'),
    ('XLA_FLAGS', 'nonsense', 'XLA_FLAGS'),
  ],
)
def test_nonsense_in_the_environment_is_one_sentence(tmp_path, config, name, value, words):
  environment = {**_environment(tmp_path), name: value}
  done = subprocess.run(
    _command(config), capture_output=True, text=True, cwd=tmp_path, env=environment
  )
  assert done.returncode == 2 and 'Traceback' not in done.stderr, done.stderr
  assert words in done.stderr.splitlines()[-1]


def test_other_encodings_of_the_output_are_no_matter(tmp_path, config):
  environment = {**_environment(tmp_path), 'PYTHONIOENCODING': 'latin-1'}
  workdir = '--workdir=Zoë–π'
  done = subprocess.run(
    _command(config, workdir), capture_output=True, cwd=tmp_path, env=environment
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.decode('latin-1').startswith('Zoë?? 0')


def test_control_characters_do_not_reach_the_terminal(tmp_path, config):
  done = _run(tmp_path, config, '--config.method.name=\x1b[31m')
  assert done.returncode == 2 and '\x1b' not in done.stderr


@pytest.mark.parametrize(
  ('old', 'new'),
  [
    ('memit_gpt2_xl', 'edit.py:memit,gpt2-xl'),
    ('pmet_testbed_gptj', 'edit.py:pmet,testbed-gptj'),
    ('ft_l_gptj', 'edit.py:ft_l,gptj-6b'),
    ('jeep_gptj_zsre', 'edit.py:jeep,gptj-6b-zsre'),
    ('emmet_llama_2_7b_paper_multilayer', 'edit.py:emmet,llama-2-7b-paper-multilayer'),
    ('memit_testbed_counterfact', 'edit.py:memit,testbed-counterfact'),
    ('sweep_testbed_llama', 'sweep.py:llama'),
    ('probe_testbed_gptj', 'probe.py:gptj'),
    ('train_testbed_counterfact', 'train.py:counterfact'),
  ],
)
def test_a_config_of_the_old_layout_is_told_the_new_one(tmp_path, old, new):
  here = ROOT / 'configs' / f'{old}.py'
  assert _sentence(f'--config={here}').endswith(f'write --config={ROOT}/configs/{new}.')
  # Elsewhere, as in an empty directory, it is the shipped one.
  assert f'write --config={ROOT}/configs/{new}.' in _sentence(f'--config={tmp_path / here.name}')
  main.load_config(f'{ROOT}/configs/{new}')


def test_every_preset_had_its_config():
  for method, model in presets.names():
    stem = f'{method}_{model}'.replace('gptj-6b', 'gptj').replace('-', '_')
    if stem != 'pmet_gptj':
      assert f'edit.py:{method},{model}.' in _sentence(f'--config=configs/{stem}.py')


def test_an_old_field_is_told_the_new_one():
  for old, new in RENAMED.items():
    assert f"no field '{old}'; it is {new} now." in _sentence(f'--config.{old}=1')


def test_other_files_list_the_shipped_configs():
  sentence = _sentence('--config=configs/nosuch_testbed_gptj.py')
  assert 'compare.py, edit.py, pmet_gptj.py, probe.py, quickstart.py' in sentence


def test_the_quickstart_is_the_default_and_every_field_can_be_changed():
  assert main._CONFIG.default == str(ROOT / 'configs' / 'quickstart.py')
  with flagsaver.flagsaver():
    config, workdir = main._parse(['main'])
    edited, _ = main._parse(['main', '--config.method.stop_loss=0.1', '--config.mesh.model=2'])
  assert workdir == os.path.join('runs', 'quickstart')
  assert (config.method.name, config.model.name) == ('pmet', 'testbed-gptj')
  assert (edited.method.stop_loss, edited.mesh.model) == (0.1, 2)


def test_a_preset_names_its_workdir():
  with flagsaver.flagsaver():
    _, workdir = main._parse(['main', f'--config={ROOT}/configs/edit.py:jeep,gptj-6b-zsre'])
  assert workdir == os.path.join('runs', 'edit_jeep_gptj-6b-zsre')

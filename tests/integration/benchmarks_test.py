"""Benchmark scripts run and count right; no test looks at a time."""

import ast
import dataclasses
import graphlib
import importlib
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from jedit.editing.prompts import EditRows
from jedit.models import Model
from jedit.models.encoding import Encoded
from jedit.models.tokenizer import load_tokenizer
from jedit.testbeds.tokenizer import save_tokenizer, train_tokenizer
from jedit.types import Request, UserError

BENCHMARKS = pathlib.Path(__file__).parents[2] / 'benchmarks'
SCRIPTS = sorted(path.stem for path in BENCHMARKS.glob('*.py'))
MODULES = {
  '.'.join(path.relative_to(BENCHMARKS).with_suffix('').parts).removesuffix('.__init__'): path
  for path in BENCHMARKS.rglob('*.py')
}
sys.path.insert(0, os.fspath(BENCHMARKS))  # as for a script that is started there

flop = importlib.import_module('common.flop')
presets = importlib.import_module('common.presets')
processes = importlib.import_module('common.processes')
runner = importlib.import_module('common.runner')
workload = importlib.import_module('common.workload')

# Layers 0 to 3, δ at layer 1; products with small numbers that can be followed by hand.
PRESET = dataclasses.replace(
  presets.PRESETS['tiny'],
  num_layers=4,
  width=2,
  ffn_width=3,
  vocab_size=5,
  num_heads=1,
  rotary_dim=2,
)
BLOCK = 2 * (4 * 2 * 2 + 2 * 2 * 3)
HEAD = 2 * 2 * 5


def _text(num_tokens: int, subject_last: int, num_target: int = 0) -> Encoded:
  return Encoded(
    text='',
    ids=tuple(range(num_tokens)),
    subject_last=subject_last,
    prompt_last=num_tokens - num_target - 1,
    target_start=num_tokens - num_target,
  )


EDIT = EditRows(
  request=Request('{} is', 'it', 'so'),
  with_target=(_text(7, 2, num_target=2), _text(10, 5, num_target=2)),
  without_target=(_text(5, 2), _text(8, 5)),
  kl=_text(4, 1),
)


def test_targets_need_the_rows_once_and_the_windows_at_every_step():
  # Rows of 6, 9 and 2 tokens with δ at 2, 5 and 1: 8 tokens come before, windows are 4, 4 and 1.
  once = BLOCK * (17 * 2 + 8 * 1) + 2 * (2 * 2 * 2) * 8
  step = BLOCK * 9 * 2 + HEAD * (2 + 2 + 1)
  assert flop.target_flop(PRESET.config, [EDIT], 1, 3) == once + 5 * step
  assert flop.target_flop(PRESET.config, [EDIT, EDIT], 1, 3) == 2 * (once + 5 * step)


def test_targets_at_the_last_layer_need_no_block_again():
  assert flop.target_flop(PRESET.config, [EDIT], 3, 3) == BLOCK * 17 * 4 + 5 * HEAD * 5


def test_keys_need_every_layer_once_and_a_look_ahead_of_the_bare_row():
  carried = BLOCK * (3 + 6) * 2 + 2 * (2 * 2 * 3)
  assert flop.key_flop(PRESET.config, [EDIT], (1, 2)) == carried + BLOCK * 3 * (2 + 1)


def test_gptj_needs_what_the_design_says():
  # About 13 TFLOP at 30 evaluations, six rows of 18.8 tokens with windows of 4.2.
  rows = [_text(20, 15, num_target=1), _text(20, 15, num_target=1)] * 3
  edit = dataclasses.replace(EDIT, with_target=tuple(rows), kl=_text(6, 3))
  needed = flop.target_flop(presets.PRESETS['gptj-6b'].config, [edit], 8, 30)
  assert 12e12 < needed < 14.5e12


def _run(script: str, *flags: str, start=processes.Here) -> dict:
  """A script's report, with all implementations in this process."""
  module = importlib.import_module(script)
  return runner.run(module.BENCHMARK, module.PARSER.parse_args(['--preset=tiny', *flags]), start)


@pytest.mark.parametrize(
  ('script', 'stages'),
  [('targets', ['targets']), ('keys', ['keys']), ('edit_end_to_end', ['targets', 'keys'])],
)
def test_implementations_do_the_same_work_and_the_figures_are_written(
  script, stages, tmp_path, capsys
):
  pytest.importorskip('torch')
  out = tmp_path / 'figures.json'
  report = _run(script, f'--out={out}')
  assert json.loads(out.read_text()) == json.loads(json.dumps(report))
  assert report['needed_flop'] == sum(report['stage_flop'][stage] for stage in stages) > 0
  results = report['implementations']
  assert list(results) == list(importlib.import_module(script).BENCHMARK.implementations)
  printed = capsys.readouterr().out
  for name, result in results.items():
    seconds = result['seconds']
    assert 0 < seconds['min'] <= seconds['median'] <= seconds['max']
    assert result['units_per_second'] == pytest.approx(report['num_edits'] / seconds['median'])
    ceiling = report['ceiling_flop_per_second']
    needed = result['share_of_ceiling'] * ceiling * seconds['median']
    assert needed == pytest.approx(report['needed_flop'])
    assert result['peak_bytes']['process'] > 0
    assert (result['device'], result['precision']) == ('cpu', 'float32')
    assert f'{name} ' in printed and f'({seconds["min"]:.3f} .. {seconds["max"]:.3f})' in printed
    if name != 'baseline':
      assert result['compile_seconds'] >= 0 and result['num_programs'] >= 1
      assert result['compile_seconds_by_round'] == [0, 0], 'nothing is compiled while it is timed'
  for name, times in report['times_faster'].items():
    assert times['min'] <= times['ratio'] <= times['max']
    assert f'engine is {times["ratio"]:.2f} times as fast as {name}' in printed
  # Three evaluations with the same weights and texts: float32 in both, another order of sums.
  for name, differences in report['differences'].items():
    assert differences.pop('first loss') < 1e-5, name
    assert all(value < 1e-3 for value in differences.values()), (name, differences)
    assert differences.keys() >= {'last loss', 'z attn', 'z mlp'}
  if script != 'targets':
    assert {'key 1', 'key 2'} <= report['differences']['baseline'].keys()


def test_evaluation_measures_the_same_in_both(capsys):
  pytest.importorskip('torch')
  report = _run('evaluation', '--generation', '--num_edits=1', '--rounds=1')
  assert report['needed_flop'] > report['stage_flop']['generation'] > 0
  parts = report['implementations']['baseline']['parts']
  assert set(parts) == {'evaluation', 'generation'}
  # float32 in both, another order of sums.
  assert report['differences']['baseline']['values'] < 1e-4
  assert 'engine is' in capsys.readouterr().out
  scores = importlib.import_module('evaluation').PARSER.parse_args([])
  assert scores.timed == 'scores', 'texts are generated only if wanted'


def test_a_script_runs_its_implementations_as_processes(tmp_path):
  out = tmp_path / 'figures.json'
  flags = ['--preset=tiny', '--implementations=engine', '--rounds=1', '--num_edits=2']
  done = _start('targets', *flags, f'--out={out}')
  assert not done.returncode, done.stderr
  report = json.loads(out.read_text())
  assert report['num_edits'] == 2 and list(report['implementations']) == ['engine']


def test_generation_is_timed_on_equal_work(capsys):
  pytest.importorskip('torch')
  report = _run('generation', '--num_prompts=5', '--num_new=8', '--shortest=2', '--longest=9')
  assert list(report['implementations']) == ['engine', 'transformers']
  assert report['differences']['transformers'] == {'tokens': 0}
  assert report['implementations']['engine']['compile_seconds_by_round'] == [0, 0]
  for result in report['implementations'].values():
    assert result['amount_by_round'] == [5 * 8] * 2
    assert result['units_per_second'] == pytest.approx(5 * 8 / result['seconds']['median'])
  assert 'times as fast as transformers' in capsys.readouterr().out
  tokens = sum(np.random.default_rng(0).integers(2, 10, 5)) + 5 * 7
  config = presets.PRESETS['tiny'].config
  head_flop = flop.head_flop(config) * 40
  assert report['needed_flop'] == 4 * flop.block_flop(config) * tokens + head_flop


def test_downstream_answers_agree_with_those_of_the_hugging_face_backend(capsys):
  for name in ('torch', 'lm_eval', 'accelerate', 'peft'):
    pytest.importorskip(name)
  flags = ('--num_documents=3', '--num_words=12', '--num_new=4', '--rounds=1')
  report = _run('downstream', *flags)
  differences = report['differences']['transformers']
  assert differences.pop('continuations') == 0
  # float32 in both, another order of sums.
  assert differences.keys() == {'choices', 'letters', 'texts'} and max(differences.values()) < 1e-5
  assert report['needed_flop'] == sum(report['kind_flop'].values()) > 0
  for result in report['implementations'].values():
    assert result['amount_by_round'] == [3 * (4 + 4 + 1 + 1)]
    assert set(result['parts']) == set(report['kind_flop'])
  assert 'times as fast as transformers' in capsys.readouterr().out


def test_solves_with_and_without_a_kept_factor_agree():
  pytest.importorskip('torch')
  solves = importlib.import_module('solves')
  settings = solves.PARSER.parse_args(['--sizes=40', '--edits=3', '--rounds=2'])
  rows = solves.run(settings, processes.Here)
  assert [row['name'].strip() for row in rows] == [
    'factor once',
    'kept factor',
    'its check',
    'torch.linalg',
  ]
  assert {(row['device'], row['precision']) for row in rows} == {('cpu', 'float64')}
  assert rows[1]['needed_flop'] == 2 * 40**2 * 3
  assert rows[-1]['difference'] < 1e-12
  assert f'{rows[-1]["times_faster"]["ratio"]:.1f} (' in solves.table(rows)


def test_errors_of_a_process_arrive():
  process = processes.Process('common.workload:prepare_edits')
  try:
    with pytest.raises(RuntimeError, match='TypeError'):
      process.call(None)
  finally:
    process.close()


@pytest.mark.parametrize(
  ('script', 'flags', 'message'),
  [
    (
      'targets',
      ['--implementations=engine,torch'],
      "no implementation 'torch'; choose from engine",
    ),
    ('targets', ['--implementations=baseline'], "'engine' is missing"),
    ('targets', ['--implementations=engine', '--num_edits=1000000'], 'select fewer'),
    ('generation', ['--implementations=engine', '--shortest=9', '--longest=8'], 'above --longest'),
  ],
)
def test_wrong_settings_are_answered_with_a_sentence(script, flags, message):
  with pytest.raises(UserError, match=message):
    _run(script, *flags)


@pytest.mark.parametrize(
  ('script', 'flag', 'message'),
  [
    (
      'targets',
      '--prset=tiny',
      'there is no flag --prset=tiny, did you mean --preset; see --help.',
    ),
    ('keys', '--num_steps=3', 'there is no flag --num_steps=3'),
    ('generation', 'tiny', 'there is no flag tiny; see --help.'),
    ('targets', '--rounds=0', '--rounds: give a whole number of at least 1, not 0; see --help.'),
    ('solves', '--sizes=40,x', '--sizes: give a whole number of at least 1, not x'),
    ('second_moments', '--devices=4', '--devices: give meshes such as 4x2,8x1, not 4'),
    ('keys', '--out=/nowhere/a.json', '--out: give a file in a directory that exists'),
  ],
)
def test_a_wrong_command_line_is_answered_with_a_sentence(script, flag, message, capsys):
  with pytest.raises(SystemExit) as stop:
    importlib.import_module(script).PARSER.parse_args([flag])
  said = capsys.readouterr().err
  assert stop.value.code == 2 and message in said and said.count('\n') == 1


def test_a_mistake_that_a_run_finds_ends_it_with_a_sentence():
  done = _start('targets', '--implementations=torch')
  assert done.returncode == 2
  assert done.stderr.splitlines()[-1].startswith('targets.py: targets has no implementation')


def test_a_baseline_without_pytorch_says_what_to_install(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(UserError, match='--implementations=engine,whole_rows'):
    _run('targets')


def test_prefixes_are_ten_tokens_and_a_full_stop(tmp_path):
  words = [f'{a}{b} lives in {c}town' for a in 'abcde' for b in 'fghij' for c in 'klm']
  save_tokenizer(train_tokenizer(words, 300, 'gptj'), os.fspath(tmp_path), 'gptj')
  tokenizer = load_tokenizer(tmp_path)
  prefixes = workload.draw_prefixes(tokenizer, words, seed=0)
  assert prefixes == workload.draw_prefixes(tokenizer, words, seed=0)
  for prefix in prefixes:
    before, after = prefix.split('. {}')
    assert after == '' and len(tokenizer(before)['input_ids']) == 10


def test_random_weights_keep_the_size_of_activations():
  config = dataclasses.replace(presets.PRESETS['tiny'], num_layers=28, vocab_size=50).config
  model = Model(workload.random_params(config, 0), config=config)
  hidden, _ = model(np.arange(8)[None])
  assert 0.5 < float(np.std(np.asarray(hidden))) < 20
  assert 0.3 < float(np.std(np.asarray(model.head(hidden)))) < 3


def test_second_moments_are_timed_on_equal_work(capsys):
  pytest.importorskip('torch')
  report = _run('second_moments', '--corpus_tokens=900', '--batch_tokens=1024', '--rounds=1')
  assert list(report['implementations']) == ['engine', 'baseline']
  for result in report['implementations'].values():
    assert result['amount_by_round'] == [report['count']]
  differences = report['differences']['baseline']
  assert differences.keys() == {'trace 1', 'trace 2'} and max(differences.values()) < 1e-5
  per_token = 3 * flop.block_flop(presets.PRESETS['tiny'].config) + 2 * 2 * 64**2
  assert report['needed_flop'] == report['count'] * per_token
  assert 'times as fast as baseline' in capsys.readouterr().out


def _start(script: str, *flags: str) -> subprocess.CompletedProcess:
  command = [sys.executable, BENCHMARKS / f'{script}.py', *flags]
  environment = {**os.environ, 'PYTHONPATH': os.fspath(BENCHMARKS.parent)}
  return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize('script', SCRIPTS)
def test_help_is_the_docstring_and_the_flags_of_the_script(script):
  module = importlib.import_module(script)
  shown = module.PARSER.format_help()
  assert module.__doc__.strip() in shown
  for action in module.PARSER._actions:
    assert action.help and not action.help.endswith('.'), action.dest


def test_help_waits_for_no_library():
  scripts = [
    script for script in SCRIPTS if script != 'synthetic_keys'
  ]  # a helper of tests as well
  code = ''.join(f'import {script}\n' for script in scripts)
  code += 'import sys; assert not {"jax", "torch", "transformers"} & set(sys.modules)'
  path = os.pathsep.join([os.fspath(BENCHMARKS), os.fspath(BENCHMARKS.parent)])
  environment = {**os.environ, 'PYTHONPATH': path}
  subprocess.run([sys.executable, '-c', code], env=environment, check=True)


def test_no_module_is_named_like_one_of_pythons_own():
  assert not {name.split('.')[0] for name in MODULES} & sys.stdlib_module_names
  assert 'second_moments' in SCRIPTS and 'common' in MODULES


def test_imports_have_no_cycles():
  graph = {}
  for name, path in MODULES.items():
    graph[name] = set()
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.ImportFrom):
        graph[name] |= {str(node.module), *(f'{node.module}.{alias.name}' for alias in node.names)}
      elif isinstance(node, ast.Import):
        graph[name] |= {alias.name for alias in node.names}
    graph[name] &= set(MODULES) - {name, name.split('.')[0]}
  graphlib.TopologicalSorter(graph).prepare()  # raises CycleError
  assert 'common.timing' in graph['common.runner']

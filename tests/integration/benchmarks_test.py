"""The benchmark scripts run and count right; nothing here is timed."""

import dataclasses
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
sys.path.insert(0, os.fspath(BENCHMARKS))  # as for a script that is started there

flop = importlib.import_module('flop')
harness = importlib.import_module('harness')
material = importlib.import_module('material')
processes = importlib.import_module('processes')

# Layers 0 to 3, δ at layer 1; products with small numbers that can be followed by hand.
PRESET = dataclasses.replace(
  material.PRESETS['tiny'], num_layers=4, width=2, ffn_width=3, vocab_size=5, num_heads=1
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
  needed = flop.target_flop(material.PRESETS['gptj-6b'].config, [edit], 8, 30)
  assert 12e12 < needed < 14.5e12


def _settings(**fields) -> harness.Settings:
  return harness.Settings(preset='tiny', **fields)


@pytest.mark.parametrize('script', ['targets', 'keys', 'edit_end_to_end'])
def test_sides_do_the_same_work_and_the_figures_are_written(script, tmp_path, capsys):
  pytest.importorskip('torch')
  benchmark = importlib.import_module(script).BENCHMARK
  out = tmp_path / 'figures.json'
  report = harness.run(benchmark, _settings(out=os.fspath(out)), processes.Here)
  assert json.loads(out.read_text()) == json.loads(json.dumps(report))
  assert list(report['sides']) == list(benchmark.sides)
  for name, side in report['sides'].items():
    seconds = side['seconds']
    assert 0 < seconds['min'] <= seconds['median'] <= seconds['max']
    assert side['edits_per_second'] == pytest.approx(report['num_edits'] / seconds['median'])
    ceiling = report['ceiling_flop_per_second']
    needed = side['share_of_ceiling'] * ceiling * seconds['median']
    assert needed == pytest.approx(report['needed_flop_timed'])
    assert side['peak_bytes']['process'] > 0
    if name != 'baseline':
      assert side['compile_seconds'] >= 0 and side['num_programs'] >= 1
  # Three evaluations with the same weights and texts: float32 on both sides, another order of sums.
  for name, differences in report['differences'].items():
    assert differences.pop('first loss') < 1e-5, name
    assert all(value < 1e-3 for value in differences.values()), (name, differences)
    assert differences.keys() >= {'last loss', 'z attn', 'z mlp'}
  if script != 'targets':
    assert {'key 1', 'key 2'} <= report['differences']['baseline'].keys()
  printed = capsys.readouterr().out
  assert all(name in printed for name in benchmark.sides)


def test_evaluation_measures_the_same_on_both_sides(capsys):
  pytest.importorskip('torch')
  benchmark = importlib.import_module('evaluation').TEXTS
  report = harness.run(benchmark, _settings(num_edits=1, rounds=1), processes.Here)
  assert report['needed_flop_timed'] > report['needed_flop']['generation_flop'] > 0
  assert set(report['sides']['baseline']['parts']) == {'evaluation', 'generation'}
  # float32 on both sides, another order of sums.
  assert report['differences']['baseline']['values'] < 1e-4
  assert 'engine is' in capsys.readouterr().out


def test_a_script_runs_its_sides_as_processes(tmp_path):
  out = tmp_path / 'figures.json'
  command = [sys.executable, os.fspath(BENCHMARKS / 'targets.py'), '--preset=tiny']
  command += ['--sides=engine', '--rounds=1', '--num_edits=2', f'--out={out}']
  environment = os.environ | {'PYTHONPATH': os.fspath(BENCHMARKS.parent)}
  subprocess.run(command, env=environment, check=True, capture_output=True)
  report = json.loads(out.read_text())
  assert report['num_edits'] == 2 and list(report['sides']) == ['engine']


def test_generation_is_timed_on_equal_work(capsys):
  pytest.importorskip('torch')
  generation = importlib.import_module('generation')
  report = generation.run(
    'tiny', num_prompts=5, num_new=8, lengths=(2, 9), rounds=2, start=processes.Here
  )
  assert list(report['sides']) == list(generation.SIDES) == ['engine', 'transformers']
  assert report['equal_tokens'] == 1
  assert report['sides']['engine']['compile_seconds_in_rounds'] == [0, 0]
  for side in report['sides'].values():
    assert side['tokens_per_second'] == pytest.approx(5 * 8 / side['seconds']['median'])
  assert 'times as fast as transformers' in generation.table(report)
  tokens = sum(np.random.default_rng(0).integers(2, 10, 5)) + 5 * 7
  preset = material.PRESETS['tiny']
  head_flop = flop.head_flop(preset.config) * 40
  assert report['needed_flop'] == 4 * flop.block_flop(preset.config) * tokens + head_flop


def test_solves_with_and_without_a_kept_factor_agree():
  pytest.importorskip('torch')
  rows = importlib.import_module('solve_sides').run([40], [3], 2, processes.Here)
  assert [row['name'].strip() for row in rows] == [
    'factor once',
    'kept factor',
    'its check',
    'torch.linalg',
  ]
  assert rows[1]['needed_flop'] == 2 * 40**2 * 3
  assert rows[-1]['difference'] < 1e-12


def test_errors_of_a_process_arrive():
  side = processes.Process('material:prepare')
  try:
    with pytest.raises(RuntimeError, match='TypeError'):
      side.call(None)
  finally:
    side.close()


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(sides=('engine', 'torch')), "has no side 'torch'; choose from engine, whole_rows"),
    (dict(sides=('baseline',)), "'engine' is missing"),
    (dict(sides=('engine',), num_edits=10**6), 'ask for fewer'),
  ],
)
def test_wrong_flags_are_answered_with_a_sentence(fields, message):
  benchmark = importlib.import_module('targets').BENCHMARK
  with pytest.raises(UserError, match=message):
    harness.run(benchmark, _settings(**fields), processes.Here)


def test_a_baseline_without_pytorch_says_what_to_install(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  benchmark = importlib.import_module('targets').BENCHMARK
  with pytest.raises(UserError, match='--sides=engine,whole_rows'):
    harness.run(benchmark, _settings(), processes.Here)


def test_prefixes_are_ten_tokens_and_a_full_stop(tmp_path):
  words = [f'{a}{b} lives in {c}town' for a in 'abcde' for b in 'fghij' for c in 'klm']
  save_tokenizer(train_tokenizer(words, 300, 'gptj'), os.fspath(tmp_path), 'gptj')
  tokenizer = load_tokenizer(tmp_path)
  prefixes = material.draw_prefixes(tokenizer, words, seed=0)
  assert prefixes == material.draw_prefixes(tokenizer, words, seed=0)
  for prefix in prefixes:
    before, after = prefix.split('. {}')
    assert after == '' and len(tokenizer(before)['input_ids']) == 10


def test_random_weights_keep_the_size_of_activations():
  config = dataclasses.replace(material.PRESETS['tiny'], num_layers=28, vocab_size=50).config
  model = Model(material.random_params(config, 0), config=config)
  hidden, _ = model(np.arange(8)[None])
  assert 0.5 < float(np.std(np.asarray(hidden))) < 20
  assert 0.3 < float(np.std(np.asarray(model.head(hidden)))) < 3


def test_second_moments_are_timed_on_equal_work():
  pytest.importorskip('torch')
  script = importlib.import_module('statistics_script')
  report = script.run('tiny', num_tokens=900, batch_tokens=1024, rounds=1, start=processes.Here)
  assert list(report['sides']) == list(script.SIDES)
  assert {side['num_tokens'] for side in report['sides'].values()} == {report['num_tokens']}
  assert report['difference'] < 1e-5
  preset = material.PRESETS['tiny']
  per_token = 3 * flop.block_flop(preset.config) + 2 * 2 * 64**2
  assert report['flop'] == report['num_tokens'] * per_token
  assert 'times as fast as baseline' in script.table(report)


def test_beside_the_scripts_python_finds_its_own_statistics():
  code = 'import statistics; assert statistics.median([1, 2, 4]) == 2'
  subprocess.run([sys.executable, '-c', code], cwd=BENCHMARKS, check=True)

"""The plan of a run: arithmetic and memory of GPT-J as counted elsewhere, and its text."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest

from helpers import tiny_run
from jedit import experiments
from jedit.data.records import load_records
from jedit.experiments import amounts, flop, plan
from jedit.experiments.config import read_settings
from jedit.experiments.plan import make_plan
from jedit.main import load_config
from jedit.models import FAMILIES
from jedit.models.sharding import param_shapes
from jedit.types import UserError

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'
GPTJ = dict(
  model_type='gptj', n_layer=28, n_embd=4096, n_head=16, rotary_dim=64, vocab_size=50400,
  n_positions=2048, activation_function='gelu_new', tie_word_embeddings=False,
)  # fmt: skip


@pytest.fixture(scope='module', name='gptj')
def _gptj():
  return read_settings(load_config(str(CONFIGS / 'pmet_gptj.py')).to_dict())


def _config():
  return FAMILIES['gptj'].read_config(GPTJ, 'bfloat16')


def test_the_arithmetic_of_gptj_is_that_of_the_performance_page(gptj):
  config = _config()
  assert flop.block_flop(config) == 2 * (4 * 4096**2 + 2 * 4096 * 16384)
  found = make_plan(gptj, config, None, collects=True)
  needed = {stage.name: stage.flop for stage in found.stages}
  edits = gptj.data.num_edits
  assert needed['targets'] / edits == pytest.approx(12.9e12, rel=0.05)
  assert needed['keys'] / edits == pytest.approx(0.30e12, rel=0.05)
  assert needed['evaluate'] / edits == pytest.approx(5.7e12, rel=0.2)
  assert needed['statistics'] == pytest.approx(342e15, rel=0.01)
  assert needed['solve'] == pytest.approx(9e12, rel=0.05)


def test_the_memory_of_gptj(gptj):
  found = make_plan(gptj, _config(), None, collects=True)
  parameters = sum(leaf.size for leaf in jax.tree.leaves(param_shapes(_config())))
  assert found.memory['parameters'] == 2 * parameters > 12e9
  assert found.memory['edited kernels'] == 6 * 4 * 4096 * 16384
  assert found.memory['sums of second moments'] == 8 * 6 * 10 * (16384 // 4) ** 2
  assert 'targets of 32 edits' in found.memory
  assert found.dtypes['weights and activations'] == 'bfloat16'
  assert found.dtypes['solves'] == 'float64'


def test_lengths_are_those_of_the_records(made):
  records = load_records(made / 'records.json')[:1]  # '{} lives in' of a name of two words
  found = dataclasses.astuple(amounts.Lengths.of(records))
  np.testing.assert_allclose(found[:5], [0, 2 * 1.8, 2 * 1.05, 1.05, 4])
  assert found[-1] == 2


def test_words_give_about_the_tokens_of_real_records(shared):
  records = load_records(shared / 'data' / 'counterfact' / 'counterfact.json')
  found = amounts.Lengths.of(records)
  for name, value in dataclasses.asdict(amounts.COUNTERFACT).items():
    assert getattr(found, name) == pytest.approx(value, rel=0.05, abs=0.1), name


def test_a_run_prints_its_plan_first_and_what_is_done(made, finished, capsys):
  experiments.run(tiny_run.config(made), finished)
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == 'Plan of edit on tiny with pmet, 4 records, together'
  assert lines[1].startswith('  devices   1 x cpu (cpu); mesh data=1, model=1')
  assert [line.split()[0] for line in lines[1:5]] == ['devices', 'dtypes', 'memory', 'time']
  assert lines[4].startswith('  time      about 0.0 s, estimated from products at ')
  stages = [line.split()[:2] for line in lines[5:10]]
  names = ('statistics', 'targets', 'keys', 'solve', 'evaluate')
  assert stages == [[name, 'done'] for name in names]


def test_a_device_that_cannot_compute_is_a_sentence(gptj, monkeypatch):
  def fail(*unused):
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: all memory is taken.\nmore')

  monkeypatch.setattr(plan, '_product_rate', plan._product_rate.__wrapped__)
  monkeypatch.setattr(plan.jax, 'device_put', fail)
  with pytest.raises(UserError, match='is there and cannot compute .*all memory is taken.; end'):
    make_plan(gptj, _config(), None)


def test_other_methods_are_evaluated_without_an_estimate(gptj):
  config = load_config(f'{CONFIGS}/edit.py:ft_w,gptj-6b')
  found = make_plan(read_settings(config.to_dict()), _config(), None)
  assert [stage.name for stage in found.stages] == ['evaluate']
  assert found.notes == ('the time of ft_w itself is not estimated.',)

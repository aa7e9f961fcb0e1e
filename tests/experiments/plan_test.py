"""The plan of a run: arithmetic and memory of GPT-J as counted elsewhere, and its text."""

import dataclasses
import importlib.util
import pathlib

import jax
import numpy as np
import pytest

import jedit
from helpers import editing, tiny_run
from jedit import experiments
from jedit.data.records import load_records
from jedit.experiments import amounts, flop, plan, programs
from jedit.experiments.config import read_settings
from jedit.experiments.plan import make_plan
from jedit.experiments.programs import Estimate, run_programs
from jedit.experiments.schema import Data, Settings
from jedit.main import load_config
from jedit.models import FAMILIES
from jedit.models.sharding import param_shapes
from jedit.parallel.compiled import Memory
from jedit.parallel.mesh import make_mesh
from jedit.parallel.topology import CHIPS, find_topology
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


def test_the_task_lists_the_programs_of_an_edit_and_writes_nothing(made, tmp_path, capsys):
  experiments.run(tiny_run.config(made, task='plan'), tmp_path / 'run')
  text = capsys.readouterr().out
  assert text.startswith('Plan of edit on tiny with pmet, 4 records, together\n')
  lines = text.splitlines()
  [summary] = [line for line in lines if line.startswith('  programs')]
  listed = [line.split()[:2] for line in lines[lines.index(summary) + 1 :] if line[:4] == ' ' * 4]
  assert summary.split()[1:] == [str(len(listed)), 'to', 'compile']
  for stage, name in (('targets', 'forward'), ('targets', 'backward'), ('keys', 'block')):
    assert [stage, name] in listed
  assert 'evaluate' in {stage for stage, _ in listed}
  assert not (tmp_path / 'run').exists()


def test_a_plan_needs_sizes_alone():
  lm = editing.language_model('gptj')
  method = jedit.methods.pmet(layers=(0, 1), num_steps=3)
  found = jedit.plan(lm.config, method, 8)
  assert {each.stage for each in found.programs} >= {'targets', 'keys', 'evaluate'}
  assert all(each.memory is None and each.flop >= 0 for each in found.programs)
  steps = sum(each.calls for each in found.programs if each.name == 'forward')
  assert steps >= 3 * 2  # evaluations of two blocks
  with pytest.raises(UserError, match=r'layers is \(6, 7\)'):
    jedit.plan(lm.config, jedit.methods.pmet(layers=(6, 7)), 8)


def test_an_impossible_topology_or_mesh_names_its_field(gptj):
  method = gptj.required_method
  with pytest.raises(UserError, match="^plan.topology is 'v9:2x2'; give a chip"):
    jedit.plan(_config(), method, 10, 'v9:2x2')
  with pytest.raises(UserError, match='mesh.model=3 does not fit 1 devices'):
    jedit.plan(_config(), method, 10, split=3)


def _estimate(**changes):
  memory = Memory(arguments=10, outputs=4, aliases=3, temporaries=5, code=1)
  fields = dict(
    name='forward', stage='targets', size=(8, 16), calls=2.0, flop=1.0, parameters=8, memory=memory
  )
  return Estimate(**{**fields, 'memory': memory, **changes})


def test_a_program_that_does_not_fit_names_its_field():
  kept = {'parameters': 100, 'edited kernels': 20, 'targets of 4 edits': 40, 'factors': 1000}
  programs.check_programs([_estimate()], kept, 100 + 20 + 40 + 5 + 1)
  with pytest.raises(UserError, match='forward of the stage targets needs .*; lower edit.target_b'):
    programs.check_programs([_estimate()], kept, 100 + 20 + 40 + 5)
  other = _estimate(stage='keys')  # holds its arguments and results besides the parameters
  programs.check_programs([other], kept, 100 + 20 + 17 - 8)
  with pytest.raises(UserError, match='or split the model over more devices with mesh.model'):
    programs.check_programs([other], kept, 100 + 20 + 17 - 9)
  failed = _estimate(memory=None, failure='RESOURCE_EXHAUSTED: Ran out of memory on HBM.\nmore')
  with pytest.raises(UserError, match='Ran out of memory on HBM.; lower edit.target_batch_size'):
    programs.check_programs([failed], kept, None)


@pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None, reason='libtpu is not installed (extra tpu)'
)
def test_programs_are_compiled_for_a_topology(gptj):
  devices = find_topology('v5e:2x2')
  mesh = make_mesh(0, 2, devices)
  config = editing.language_model('gptj').config
  settings = Settings(data=Data(num_edits=2), method=jedit.methods.pmet(layers=(0, 1)))
  found = run_programs(settings, config, mesh, devices[0], [], stages=['evaluate'], compiles=True)
  estimates = [Estimate.of(program, devices[0], len(devices)) for program in found]
  assert estimates and all(each.seconds and 0 < each.share < 1 for each in estimates)
  programs.check_programs(estimates, {'parameters': 10**6}, CHIPS['v5e'].memory)
  [line, *_] = programs.table(estimates)
  assert 'of peak' in line and 'arguments' in line
  with pytest.raises(UserError, match='choose a narrower model.dtype, split it over more devices'):
    jedit.plan(dataclasses.replace(_config(), dtype='float32'), gptj.method, 10, 'v5e:2x2')


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

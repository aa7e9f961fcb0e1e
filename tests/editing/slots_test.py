"""Target optimisation over many edits: batches, slots that are refilled, sizes that fit."""

import re
import types

import jax
import numpy as np
import pytest

from helpers import editing, tiny
from helpers.editing import relative
from jedit.editing import blocks, slots
from jedit.editing.blocks import fit_shapes
from jedit.editing.objective import Objective
from jedit.editing.problem import PlacedDelta, Problem
from jedit.editing.prompts import BARE, encode_edits
from jedit.editing.region import Delta
from jedit.editing.slots import (
  bytes_per_edit,
  choose_batch_size,
  dry_run_targets,
  optimise_targets,
)
from jedit.io.memo import Memo
from jedit.models.sharding import abstract_model
from jedit.parallel.program import dry_run, shape_bytes
from jedit.types import UserError


def _problem(layer, clip_factor, objective):
  delta = Delta('block', 'block_out', clip_factor, 0.05)
  return Problem((PlacedDelta(delta, layer, 'subject_last'),), objective)


def test_batches_do_not_change_targets():
  lm = editing.language_model('gptj', num_layers=2)
  rows = encode_edits(lm.tokenizer, editing.REQUESTS, editing.CONTEXTS)
  problem = _problem(0, 0.75, Objective(0.5, 5, 0.0625))

  def optimise(rows, batch_size):
    return optimise_targets(lm.model, rows, problem, batch_size=batch_size)

  whole = optimise(rows, 7)
  assert np.linalg.norm(whole.delta['block'], axis=-1).min() > 0.1
  for batch_size in (1, 3):
    parts = optimise(rows, batch_size)
    np.testing.assert_array_equal(parts.num_steps, whole.num_steps)
    np.testing.assert_allclose(parts.delta['block'], whole.delta['block'], rtol=0, atol=1e-4)
    np.testing.assert_allclose(parts.trace, whole.trace, rtol=0, atol=1e-4)
  backwards = optimise(rows[::-1], 3)
  np.testing.assert_allclose(backwards.delta['block'][::-1], whole.delta['block'], atol=1e-4)


def test_shapes_do_not_change_targets(monkeypatch):
  """Each window in a shape of its own: blocks hold the edits in another order."""
  lm = editing.language_model('gptj', num_layers=2)
  rows = encode_edits(lm.tokenizer, editing.REQUESTS, editing.CONTEXTS)
  problem = _problem(0, 0.75, Objective(0.5, 3, 0.0625))
  whole = optimise_targets(lm.model, rows, problem, batch_size=7)
  monkeypatch.setattr(blocks, '_FLOP_PER_SHAPE', {'cpu': 0.0})
  apart = optimise_targets(lm.model, rows, problem, batch_size=7)
  assert apart.num_programs > whole.num_programs == 1
  order = [i for block in blocks.cut_blocks(rows, problem.tokens, 7, 1.0) for i in block.indices]
  assert order != sorted(order)
  np.testing.assert_allclose(apart.delta['block'], whole.delta['block'], rtol=0, atol=1e-4)
  np.testing.assert_allclose(apart.trace, whole.trace, rtol=0, atol=1e-4)


@pytest.mark.parametrize('value', [np.nan, np.inf])
@pytest.mark.parametrize('place', ['loss', 'delta/block', 'init/block'])
def test_values_that_are_not_finite_name_record_and_layer(value, place):
  lm = editing.language_model('gptj', num_layers=2)
  rows = encode_edits(lm.tokenizer, editing.REQUESTS[:2], editing.CONTEXTS)
  problem = _problem(1, 0.75, Objective(0.5, 3, 0.0625))
  [block] = blocks.cut_blocks(rows, problem.tokens, 2, 1.0)
  result = {
    'trace': np.full((2, 3, 7), np.nan),
    'num_steps': np.array([1, 2]),
    'delta/block': np.zeros((2, 4)),
    'init/block': np.zeros((2, 4)),
  }
  result['trace'][0, :1] = result['trace'][1, :2] = 0.5
  slots._check_finite(result, rows, block, problem)
  if place == 'loss':
    result['trace'][1, 1, 0] = value
  else:
    result[place][1, 0] = value
  label = rows[block.indices[1]].request.label
  with pytest.raises(UserError, match=re.escape(f"{label} is not finite at 'block' in layer 1")):
    slots._check_finite(result, rows, block, problem)


def test_batches_round_alike_in_bfloat16():
  """The forward pass gives the same bits in batches of any size."""
  lm = editing.language_model('gptj', num_layers=2)
  model = tiny.in_dtype(lm.model, 'bfloat16')
  rows = encode_edits(lm.tokenizer, editing.REQUESTS[:6], editing.CONTEXTS)
  problem = _problem(0, 0.75, Objective(0.5, 5, 0.0625))
  whole, parts = (optimise_targets(model, rows, problem, batch_size=size) for size in (6, 3))
  np.testing.assert_array_equal(parts.init['block'], whole.init['block'])
  np.testing.assert_allclose(parts.trace[:, 0], whole.trace[:, 0], rtol=0, atol=1e-6)
  difference_B = np.linalg.norm(parts.delta['block'] - whole.delta['block'], axis=-1)
  assert (difference_B / np.linalg.norm(whole.delta['block'], axis=-1)).max() < 1e-3


def test_targets_say_their_batch_size_and_a_resumed_run_keeps_it(tmp_path, monkeypatch):
  lm = editing.language_model('gptj', num_layers=2)
  rows = encode_edits(lm.tokenizer, editing.REQUESTS[:4], editing.CONTEXTS)
  problem = _problem(0, 0.75, Objective(0.5, 3, 0.0625))

  def optimise(fits, key='a'):
    monkeypatch.setattr(slots, 'choose_batch_size', lambda *unused: fits)
    return optimise_targets(lm.model, rows, problem, memo=Memo(tmp_path), key=key)

  first = optimise(2)
  assert first.batch_size == first.reached()['target_batch_size'] == 2
  assert first.part([1]).batch_size == 2
  monkeypatch.setattr(slots, '_run_block', None)  # everything is stored
  again = optimise(4)
  assert again.batch_size == 2
  np.testing.assert_array_equal(again.delta['block'], first.delta['block'])
  monkeypatch.undo()
  assert optimise(4, key='b').batch_size == 4


def test_edits_that_stop_make_room_for_those_that_wait(monkeypatch):
  """Slots are refilled in the middle of a block, without effect on the results."""
  lm, objective = editing.language_model('gptj'), Objective(0.5, 12, 0.0625, stop_loss=8.0)
  problem = _problem(1, 3.0, objective)
  rows = encode_edits(lm.tokenizer, [*editing.REQUESTS[:4]] * 4, editing.CONTEXTS)
  entered, enter = [], slots.enter

  def optimise(batch_size):
    return optimise_targets(lm.model, rows, problem, batch_size=batch_size)

  whole = optimise(16)
  assert whole.num_steps.min() < whole.num_steps.max() == objective.num_steps

  def counted(*arguments):
    entered.append(len(arguments[4]))
    return enter(*arguments)

  monkeypatch.setattr(slots, 'enter', counted)
  few = optimise(3)
  assert sum(entered) == 16 and max(entered) == 1
  np.testing.assert_array_equal(few.num_steps, whole.num_steps)
  np.testing.assert_allclose(few.trace, whole.trace, rtol=0, atol=5e-4)
  for i in range(16):
    assert relative(few.delta['block'][i], whole.delta['block'][i]) < 3e-4
  again = optimise(3)
  np.testing.assert_array_equal(again.delta['block'], few.delta['block'])


def _chosen(lm, rows, **stats):
  """The batch of the longest shape on a device with this memory, with δ from block 1 on."""
  platform = 'gpu' if stats else 'cpu'
  device = types.SimpleNamespace(memory_stats=lambda: stats or None, platform=platform)
  sharding = types.SimpleNamespace(device_set=[device])
  shape = fit_shapes(rows, ('subject_last',), token_flop=1.0)[-1]
  model = types.SimpleNamespace(config=lm.config, sharding=sharding)
  return choose_batch_size(model, shape, len(rows[0].with_target), 1)


def test_the_batch_fits_the_device():
  lm = editing.language_model('gptj')
  rows = encode_edits(lm.tokenizer, editing.REQUESTS, editing.CONTEXTS)
  assert _chosen(lm, rows) == 32
  limits = (1000, 2**22, 2**26, 2**40)
  sizes = [_chosen(lm, rows, bytes_limit=limit, bytes_in_use=1000) for limit in limits]
  assert sizes[0] == 1 and sizes[-1] == 256
  assert 1 < sizes[1] < sizes[2] <= 256
  assert all(size & (size - 1) == 0 for size in sizes)


def test_half_of_the_free_memory_is_left_alone():
  """What one edit takes, counted by hand for one row of its target and one for the KL term."""
  lm = editing.language_model('gptj')  # 3 layers, width 16, F = 24, 2 heads of 8, float32
  rows = encode_edits(lm.tokenizer, editing.REQUESTS[:1], BARE)
  [text] = rows[0].with_target
  window = len(text.ids) - 1 - text.subject_last
  past, kl = -4 * (-text.subject_last // 4), -4 * (-len(rows[0].kl.ids) // 4)  # padded
  # Of the two upper blocks: input, attention output, query, key, value and the MLP's inner units.
  recorded = 2 * 4 * (5 * 16 + 24) * (window + 1)
  stored = 2 * 4 * 2 * 16 * (past + kl)
  logits = 4 * lm.config.vocab_size * (3 * (len(text.target_ids) + 1) + 1)
  taken = recorded + stored + logits
  for size in (2, 8, 64):
    assert _chosen(lm, rows, bytes_limit=2 * size * taken) == size
    assert _chosen(lm, rows, bytes_limit=2 * size * taken - 1) == size // 2


@pytest.mark.parametrize('family', ['gptj', 'llama'])
def test_an_edit_takes_what_its_programs_hold(family):
  """The bytes of one edit are those of the arrays between the programs of a step."""
  lm = editing.language_model(family)
  rows = encode_edits(lm.tokenizer, editing.REQUESTS[:1], editing.CONTEXTS)
  problem = _problem(1, 0.75, Objective(0.5, 3, 0.0625))
  with dry_run() as run:
    dry_run_targets(run, abstract_model(lm.config), rows, problem, batch_size=1)
  programs = {program.name: program for program in run.programs}
  _, hidden, _, past, _ = programs['forward'].arguments
  _, recorded, _ = programs['forward'].results
  layers = lm.config.num_layers - 1
  shape = fit_shapes(rows, ('subject_last',), token_flop=1.0)[-1]
  logits = 4 * lm.config.vocab_size * (3 * (3 * shape.num_targets + 1) + 1)
  taken = layers * shape_bytes((hidden, past, recorded)) + logits
  assert bytes_per_edit(lm.config, shape, 3, 1) == taken
  heads, kv_heads = lm.config.num_heads, lm.config.num_kv_heads
  num_tokens, past = 3 * shape.window + 1, 3 * shape.past + shape.kl_tokens
  wide = lm.config.ffn_width * (2 if family == 'llama' else 1)
  halved = (heads + 2 * kv_heads) * lm.config.head_dim + wide
  saved = 4 * layers * (halved * num_tokens + 2 * kv_heads * lm.config.head_dim * past) // 2
  rest = bytes_per_edit(lm.config, shape, 3, 1, split=2)
  assert taken - rest == saved  # an odd vocabulary stays whole


def test_shapes_have_batches_of_their_own(monkeypatch):
  """A batch that memory bounds holds more edits of short windows than of long ones."""
  lm = editing.language_model('gptj', num_layers=2)
  rows = encode_edits(lm.tokenizer, editing.REQUESTS[:6], BARE)
  problem = _problem(0, 0.75, Objective(0.5, 3, 0.0625))
  shapes = fit_shapes(rows, problem.tokens, token_flop=1e15)  # one for each window
  assert len(shapes) > 1
  by_window = {shape.window: len(shapes) - n for n, shape in enumerate(shapes)}
  monkeypatch.setattr(slots, 'choose_batch_size', lambda model, shape, *_: by_window[shape.window])
  sizes, run_block = {}, slots._run_block

  def run(model, numbers, rows, block, progress):
    sizes[block.window] = block.size
    return run_block(model, numbers, rows, block, progress)

  monkeypatch.setattr(slots, '_run_block', run)
  found = optimise_targets(lm.model, rows, problem, shapes=shapes)
  assert found.batch_size == len(shapes)
  assert all(size <= by_window[window] for window, size in sizes.items())
  assert sizes[shapes[-1].window] == 1


def test_without_memory_half_the_batch_is_optimised_once(monkeypatch, capsys):
  lm = editing.language_model('gptj', num_layers=2)
  rows = encode_edits(lm.tokenizer, editing.REQUESTS[:4], editing.CONTEXTS)
  problem, run_block, sizes = _problem(0, 0.75, Objective(0.5, 3, 0.0625)), slots._run_block, []

  def optimise(fits):
    def run(model, numbers, rows, block, progress):
      sizes.append(block.size)
      if block.size > fits:
        raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory.')
      return run_block(model, numbers, rows, block, progress)

    monkeypatch.setattr(slots, '_run_block', run)
    return optimise_targets(lm.model, rows, problem, batch_size=32)

  whole, half = optimise(4), optimise(2)
  assert sizes[:2] == [4, 4] and set(sizes[2:]) == {2}
  np.testing.assert_allclose(half.delta['block'], whole.delta['block'], rtol=0, atol=1e-4)
  assert 'targets: out of memory with a batch of 4; once more with 2.' in capsys.readouterr().err
  with pytest.raises(UserError, match='with a batch of 2; lower edit.target_batch_size'):
    optimise(1)

"""A dry run lists the programs that a run compiles, stage by stage."""

import jedit
from helpers import editing
from helpers.compilations import compilations, of_dry_run
from jedit.editing.prompts import BARE, encode_edits
from jedit.editing.slots import dry_run_targets, optimise_targets
from jedit.editing.update import RegionRows, dry_run_region
from jedit.evals.scoring import plan_batches, score_plan
from jedit.experiments.stand_ins import edit_lengths, edit_rows, scored_rows
from jedit.methods import pmet
from jedit.models.sharding import abstract_model
from jedit.moments.collect import sums_of
from jedit.moments.packing import batch_shape
from jedit.parallel.program import dry_run
from jedit.types import Kernel, Record


def test_targets_of_all_edits():
  lm, method = editing.language_model('gptj'), pmet(layers=(0, 1), num_steps=3)
  rows = encode_edits(lm.tokenizer, editing.REQUESTS, editing.CONTEXTS)
  with dry_run() as run:
    dry_run_targets(run, abstract_model(lm.config), rows, method.problem(0), batch_size=4)
  names, planned = of_dry_run(run)
  with compilations(names) as compiled:
    optimise_targets(lm.model, rows, method.problem(0), batch_size=4)
  assert planned == compiled and {'forward', 'backward', '_read', '_step', '_put'} <= names
  # Two blocks from δ on, three evaluations of as many edits as there are slots.
  forward = [program.calls for program in run.programs if program.name == 'forward']
  assert sum(forward) == 2 * 3 * -(-len(rows) // 4)


def test_sums_of_second_moments():
  lm, kernels = editing.language_model('gptj'), (Kernel(0, 'mlp'), Kernel(1, 'mlp'))
  with dry_run() as run:
    sums_of(abstract_model(lm.config), kernels, batch_shape(24, 48)).dry_run(run, num_batches=5)
  names, planned = of_dry_run(run)
  with compilations(names) as compiled:
    jedit.statistics(lm, ['The city of Paris.'] * 20, (0, 1), row_tokens=24, batch_tokens=48)
  assert planned == compiled and [each.calls for each in run.programs] == [5]


def test_scores_of_an_evaluation():
  lm = editing.language_model('gptj')
  batches = plan_batches(scored_rows(2))
  with dry_run() as run:
    score_plan(abstract_model(lm.config), batches)
  names, planned = of_dry_run(run)
  with compilations(names) as compiled:
    score_plan(lm.model, batches)
  assert planned == compiled and names


def test_stand_ins_have_the_lengths_of_the_texts():
  lm = editing.language_model('gptj')
  records = [Record(number, request) for number, request in enumerate(editing.REQUESTS)]
  rows = encode_edits(lm.tokenizer, editing.REQUESTS, BARE)
  found = edit_rows(edit_lengths(len(records), records, lm.tokenizer), (0, 3))
  for edit, like in zip(found, rows, strict=True):
    bare, prefixed = edit.with_target
    for name in ('subject_first', 'subject_last', 'prompt_last', 'target_start'):
      assert getattr(bare, name) == getattr(like.with_target[0], name), name
      assert getattr(prefixed, name) == getattr(bare, name) + 3, name
    assert len(prefixed.ids) == len(bare.ids) + 3 == len(like.with_target[0].ids) + 3
    assert len(edit.bare.ids) == bare.target_start == len(edit.without_target[1].ids) - 3
    assert edit.kl.subject_last == like.kl.subject_last
  lengths = edit_lengths(10_000)
  assert len(lengths) == 10_000 and 1 <= min(each.window for each in lengths)


def test_keys_and_residuals_of_a_region():
  lm, method = editing.language_model('gptj'), pmet(layers=(0, 1))
  rows = encode_edits(lm.tokenizer, editing.REQUESTS, editing.CONTEXTS)
  [region] = method.regions
  with dry_run() as run:
    dry_run_region(abstract_model(lm.config), region, rows, editing.CONTEXTS)
  names, planned = of_dry_run(run)
  with compilations(names) as compiled:
    read = RegionRows(rows, region, editing.CONTEXTS)
    for layer in region.layers:
      read.advance(lm.model, layer)
      for kernel in region.kernels:
        if kernel.layer == layer:
          read.keys(lm.model, kernel)
      for update in region.updates:
        read.values(lm.model, region.layers[-1], update.compare)
  assert planned == compiled and {'_embed', '_block', '_shared_block'} <= names

"""Separate edits are measured one model at a time."""

import jax
import numpy as np
import pytest

from helpers import tiny_run
from jedit.data.records import load_records
from jedit.evals import evaluate as evaluate_lib
from jedit.models.language_model import LanguageModel, load
from jedit.models.patch import Patch, Update

PATH = 'block_1/mlp/down/kernel'
PARTS = [slice(0, 2), slice(2, 3), slice(3, 5)]


@pytest.fixture(scope='module')
def material(tmp_path_factory):
  made = tiny_run.make(tmp_path_factory.mktemp('made'))
  lm = load(made / 'model')
  shape = lm.params['block_1']['mlp']['down']['kernel'].shape
  rng = np.random.default_rng(0)
  patches = [Patch({PATH: Update(dense=rng.normal(size=shape).astype('f'))}) for _ in PARTS]
  return lm, load_records(made / 'records.json'), patches


def _parts(patches):
  return [(part, [patch]) for part, patch in zip(PARTS, patches, strict=True)]


def test_one_edited_kernel_is_alive_at_a_time(material, monkeypatch):
  lm, records, patches = material
  shape = lm.params['block_1']['mlp']['down']['kernel'].shape

  def num_kernels():
    return sum(array.shape == shape for array in jax.live_arrays())

  counts, inner = [], evaluate_lib.score_plan

  def counted(*arguments, **settings):
    counts.append(num_kernels())
    return inner(*arguments, **settings)

  monkeypatch.setattr(evaluate_lib, 'score_plan', counted)
  base = num_kernels()
  evaluate_lib.evaluate_apart(_parts(patches), records, lm)
  assert counts == [base, *[base + 1] * len(PARTS)]  # the unedited model, then each edited one
  assert num_kernels() == base


def test_parts_have_the_values_of_their_own_models(material):
  lm, records, patches = material
  table = evaluate_lib.evaluate_apart(_parts(patches), records, lm)
  for part, patch in zip(PARTS, patches, strict=True):
    alone = evaluate_lib.evaluate(lm.apply(patch), records[part], before=lm)
    for name, values in alone.after.items():
      # float32 sums in another order: batches have other sizes.
      np.testing.assert_allclose(table.after[name][part], values, atol=1e-3, err_msg=name)
      np.testing.assert_allclose(table.before[name][part], alone.before[name], atol=1e-3)
  assert len(set(table.after['efficacy_magnitude'])) == len(records)


def test_a_model_is_made_once_and_not_for_chunks_that_are_stored(material, monkeypatch, tmp_path):
  lm, records, patches = material
  applied, inner = [], LanguageModel.apply

  def counted(self, patch):
    applied.append(patches.index(patch))
    return inner(self, patch)

  monkeypatch.setattr(LanguageModel, 'apply', counted)
  monkeypatch.setattr(evaluate_lib, '_CHUNK', 1)
  store = tmp_path / 'evaluation.jsonl'
  unedited = [('Marta Lindqvist lives in', 'Paris')] * 4
  options = dict(unedited=unedited, store=store)
  table = evaluate_lib.evaluate_apart(_parts(patches), records, lm, **options)
  assert applied == [0, 1, 2]
  again = evaluate_lib.evaluate_apart(_parts(patches), records, lm, **options)
  assert applied == [0, 1, 2]
  assert again.to_records() == table.to_records() and again.metrics == table.metrics
  assert len(table.unedited_after['unedited_acc']) == 4
  # Of the same patches in another order, the middle part is stored.
  evaluate_lib.evaluate_apart(_parts(patches[::-1]), records, lm, **options)
  assert applied == [0, 1, 2, 2, 0]

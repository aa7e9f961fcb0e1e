"""Scores of every prompt: records are their means, and files give them back."""

import json

import numpy as np
import pandas as pd
import pytest

from jedit.evals.metrics import PartScores
from jedit.evals.prompts import FIELDS, Prompts, prompt_values
from jedit.evals.table import Table
from jedit.types import UserError

NAN = np.nan


def _prompts():
  """Two records: three prompts with two objects, and one without paraphrases and with a nan."""
  after = {
    'nll_new': np.array([1.5, 0.25, 2.0, 1 / 3]),
    'nll_true': np.array([2.5, 0.25, 1.0, NAN]),
    'success': np.array([1, 0, 1, NAN]),
    'acc': np.array([1, 0, 1, 0.5]),
  }
  before = {name: value_P + 1 for name, value_P in after.items()}
  parts = ['efficacy', 'paraphrase', 'neighborhood', 'efficacy']
  texts = ['<a>', 'b', 'ü', 'd']
  objects = ['Rome'] * 4, ['Paris', 'Paris', 'Oslo', None]
  return Prompts(np.array([0, 0, 0, 1]), parts, texts, *objects, after, before)


def test_values_of_a_part_are_those_of_its_objects():
  two = PartScores(np.array([1.0, 0.0]), np.array([0.5, 2.0]), np.array([1.0, 2.0]))
  one = PartScores(np.array([0.5]), np.array([3.0]))
  found = prompt_values([{'neighborhood': two, 'efficacy': two, 'texts': None}, {'efficacy': one}])
  np.testing.assert_array_equal(found['nll_new'], [0.5, 2, 1, 2, 3])
  np.testing.assert_array_equal(found['nll_true'], [1, 2, 0.5, 2, NAN])
  np.testing.assert_array_equal(found['success'], [1, 0, 1, 0, NAN])  # a tie is no success
  np.testing.assert_array_equal(found['acc'], [1, 0, 1, 0, 0.5])
  assert {name: len(value_P) for name, value_P in prompt_values([]).items()} == dict.fromkeys(
    FIELDS, 0
  )


@pytest.mark.parametrize('has_before', [True, False])
def test_rows_of_records_give_prompts_back(has_before):
  prompts = _prompts()
  if not has_before:
    prompts = Prompts(**{**vars(prompts), 'before': None})
  rows = json.loads(json.dumps(list(prompts.of_records()), allow_nan=False))
  assert list(rows[0]) == ['efficacy', 'paraphrase', 'neighborhood'] and list(rows[1]) == [
    'efficacy'
  ]
  assert rows[0]['neighborhood']['after'] == {
    'nll_new': [2.0],
    'nll_true': [1.0],
    'success': [1],
    'acc': [1.0],
  }
  single = {'new': 'Rome', 'true': None, 'text': ['d'], 'after': {'nll_new': [1 / 3], 'acc': [0.5]}}
  assert {name: rows[1]['efficacy'][name] for name in single} == single
  again = Prompts.from_records(rows)
  pd.testing.assert_frame_equal(again.to_frame((7, 9)), prompts.to_frame((7, 9)))
  assert ('before' in rows[0]['efficacy']) == has_before == (again.before is not None)


def test_a_frame_has_a_row_for_each_prompt():
  frame = _prompts().to_frame((7, 9))
  assert frame['case_id'].tolist() == [7, 7, 7, 9] and frame['number'].tolist() == [0] * 4
  assert frame.loc[2, ['part', 'prompt', 'new', 'true']].tolist() == [
    'neighborhood', 'ü', 'Rome', 'Oslo',
  ]  # fmt: skip
  assert frame.loc[1, 'nll_new_before'] == 1.25 and np.isnan(frame.loc[3, 'success_after'])
  several = Prompts(
    np.array([0, 0, 1]), ['paraphrase'] * 3, list('abc'), [''] * 3, [''] * 3,
    dict.fromkeys(FIELDS, np.zeros(3)),
  ).to_frame((1, 2))  # fmt: skip
  assert several['number'].tolist() == [0, 1, 0] and 'nll_new_before' not in several


def test_a_table_without_prompts_says_so():
  with pytest.raises(UserError, match='has values of records alone'):
    Table((3,), {'efficacy': np.ones(1)}).to_prompts()

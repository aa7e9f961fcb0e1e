"""Tables in a terminal, a notebook and pandas."""

import io
import math

import numpy as np
import pandas as pd
import pytest

from jedit.evals import metrics
from jedit.evals.table import Table

RATES = {name: np.array([100.0, 50.0]) for name in metrics.PARTS}
ACCURACIES = {f'{name}_acc': np.array([100.0, math.nan]) for name in metrics.PARTS}
AFTER = {**RATES, **ACCURACIES, 'essence': np.array([7.0, math.nan])}


@pytest.fixture
def table():
  before = {name: value_R / 2 for name, value_R in AFTER.items()}
  kept = {'unedited_kept': np.array([100.0, 100.0, 0.0])}
  return Table((3, 5), AFTER, before, kept, {}, np.array([True, False]), ('A note & <more>.',))


def test_numbers_as_a_frame(table):
  frame = table.to_frame()
  assert list(frame.index) == list(table.metrics) and frame.index.name == 'metric'
  assert frame.loc['efficacy', ('before', 'mean')] == 37.5
  assert frame['after']['n']['efficacy_acc'] == 1
  assert math.isnan(frame.loc['unedited_kept', ('before', 'mean')])
  assert (frame.dtypes == np.float64).all()
  again = pd.read_csv(io.StringIO(frame.to_csv()), header=[0, 1], index_col=0)
  pd.testing.assert_frame_equal(again, frame, check_names=False)
  alone = Table((3, 5), AFTER).to_frame()
  assert set(alone.columns.get_level_values(0)) == {'after'}


def test_text_shows_every_metric_the_units_and_the_notes(table):
  lines = str(table).splitlines()
  assert lines[0].split() == ['before', 'after', 'n']
  assert [line.split()[0] for line in lines[2:11]] == list(table.metrics)
  assert (
    lines[11] == 'percent, except essence (perplexity); ± half width of the 95% interval; 2 records'
  )
  assert 'efficacy after: 1 record has no value and is left out' in lines
  assert not any(line.startswith('essence after:') for line in lines)  # it covers one record
  assert lines[-1] == 'A note & <more>.'


def test_a_session_shows_at_most_ten_lines(table):
  lines = repr(table).splitlines()
  assert len(lines) <= 10
  assert lines[0] == 'Table of 2 records, 9 metrics; print it for all'
  assert [line.split()[0] for line in lines[2:]] == [
    *('score', 'efficacy', 'paraphrase', 'neighborhood', 'essence', 'unedited_kept')
  ]
  many = {name: RATES['efficacy'] for name in metrics.METRICS if name != 'score'}
  assert len(repr(Table((3, 5), many, many)).splitlines()) == 10


def test_a_notebook_shows_a_table(table):
  page = table._repr_html_()
  assert page.count('<tr') == 1 + len(table.metrics)
  assert 'A note &amp; &lt;more&gt;.' in page and '<more>' not in page


def test_metrics_of_another_registry_are_shown():
  table = Table((3, 5), {**RATES, 'unknown': np.array([1.0, 3.0])})
  assert table.metrics['unknown']['after']['mean'] == 2
  assert 'unknown' in str(table) and 'unknown' not in repr(table)

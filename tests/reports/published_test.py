"""A paper's rows beside ours."""

import pytest

from jedit.io import tables
from jedit.reports.published import read_published
from jedit.types import UserError


def _summary(before, after):
  def states(name, ci95):
    value = {'before': before[name], 'after': after[name]}
    return {state: {'mean': mean, 'ci95': ci95, 'n': 9} for state, mean in value.items()}

  return {'metrics': {name: states(name, 3.0) for name in before}}


SUMMARIES = {'PMET': _summary({'score': 1.0, 'efficacy': 2.0}, {'score': 90.0, 'efficacy': 99.0})}
ROWS = (
  ('unedited', {'score': 22.4, 'efficacy': 15.2}),
  ('PMET', {'score': 86.2, 'efficacy': (95.0, 4.0), 'fluency': 620.0}),
  ('MEND', {'score': 23.1}),
)


def test_a_paper_stands_beside_ours_with_the_difference():
  published = read_published({'published': {'source': 'PMET, table 1', 'rows': ROWS}})
  frame = published.beside(SUMMARIES)
  assert list(frame) == ['', 'score', 'efficacy', 'fluency']
  rows = {row[0]: row[1:] for row in frame.to_numpy().tolist()[3:]}
  assert list(rows) == ['PMET', '  published', '  difference', 'MEND, published']
  score, efficacy, fluency = rows['  difference']
  assert score['mean'] == pytest.approx(3.8) and score['ci95'] == 3.0  # theirs has no interval
  assert efficacy == {'mean': 4.0, 'ci95': 5.0, 'n': 9, 'digits': 1}  # 3² + 4² = 5²
  assert fluency is None  # not measured here
  assert rows['MEND, published'] == [23.1, None, None]
  assert list(frame['']) == ['unedited', '  published', '  difference', *rows]
  assert frame['score'][0]['mean'] == 1.0  # before the edit
  lines = tables.to_text(frame).splitlines()
  assert any(line.split()[:5] == ['published', '86.2', '95.0', '±', '4.0'] for line in lines)
  assert 'PMET,90.0,3.0,9,99.0,3.0,9' in tables.to_csv(frame)


def test_a_sweep_without_rows_has_none():
  assert read_published({}) is None
  assert read_published({'published': {'source': 'a figure', 'rows': ()}}) is None


@pytest.mark.parametrize(
  ('row', 'words'),
  [
    (('PMET', 3), 'must be a pair of a name and its metrics'),
    (('PMET', {'scores': 3}), "'PMET' has no metric 'scores'; choose one of score, eff"),
    (('PMET', {'score': 'high'}), "score of 'PMET' is 'high'; give a number"),
    (('PMET', {'score': (1, 2, 3)}), 'give a number, or a pair'),
  ],
)
def test_mistakes_are_sentences(row, words):
  with pytest.raises(UserError, match=words):
    read_published({'published': {'rows': (row,)}})

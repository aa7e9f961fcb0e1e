"""One table in four forms."""

import csv
import io

from jedit.reports.tables import Grid

SUMMARY = {'mean': 94.56789, 'ci95': 2.25, 'n': 100}
NOTHING = {'mean': None, 'ci95': None, 'n': 0}
GRID = Grid(('metric', 'after, %', 's'), [('a_b & c', SUMMARY, 1.25), ('d <e>', NOTHING, None)])


def test_text_is_aligned():
  assert GRID.text().splitlines() == [
    'metric      after, %    s',
    '-------------------------',
    'a_b & c  94.6 ±  2.2  1.2',
    'd <e>              –    –',
  ]


def test_csv_has_all_digits_and_a_column_for_every_number():
  rows = list(csv.DictReader(io.StringIO(GRID.csv())))
  assert float(rows[0]['after, %']) == SUMMARY['mean'] and rows[0]['after, % n'] == '100'
  assert rows[1] == {
    'metric': 'd <e>',
    'after, %': '',
    'after, % ci95': '',
    'after, % n': '0',
    's': '',
  }


def test_latex_escapes_and_typesets_intervals():
  lines = GRID.latex().splitlines()
  assert lines[:2] == [r'\begin{tabular}{lrr}', r'\toprule']
  assert lines[2] == r'metric & after, \% & s \\'
  assert lines[4] == r'a\_b \& c & $94.6 \pm 2.2$ & 1.2 \\'
  assert lines[5] == r'd <e> & -- & -- \\'


def test_html_escapes():
  page = GRID.html()
  assert '<td>d &lt;e&gt;</td>' in page and '<td>94.6 ± 2.2</td>' in page


def test_digits_are_those_of_the_table():
  assert '94.568 ± 2.250' in Grid(GRID.head, GRID.rows, digits=3).html()

"""One table in four forms."""

import csv
import io
import math

import pytest

from jedit.io import tables

ESTIMATE = {'mean': 94.56789, 'ci95': 2.25, 'n': 100}
NOTHING = {'mean': None, 'ci95': None, 'n': 0}
HEAD = ('metric', 'after, %', 's')
FRAME = tables.table(HEAD, [('a_b & c', ESTIMATE, 1.25), ('d <e>', NOTHING, None)])


def test_text_is_aligned():
  assert tables.to_text(FRAME).splitlines() == [
    'metric      after, %    s',
    '-------------------------',
    'a_b & c  94.6 ±  2.2  1.2',
    'd <e>              –    –',
  ]


def test_columns_of_text_are_two_spaces_apart():
  frame = tables.table(['', 'long name', 'n'], [('x' * 90, 1, 2.5)])
  assert tables.to_text(frame).splitlines()[0] == ' ' * 90 + '  long name    n'
  assert tables.to_text(frame).splitlines()[2] == 'x' * 90 + '          1  2.5'


def test_csv_has_all_digits_and_a_column_for_every_number():
  rows = list(csv.DictReader(io.StringIO(tables.to_csv(FRAME))))
  assert float(rows[0]['after, %']) == ESTIMATE['mean'] and rows[0]['after, % n'] == '100'
  assert rows[1] == {
    'metric': 'd <e>',
    'after, %': '',
    'after, % ci95': '',
    'after, % n': '0',
    's': '',
  }


def test_csv_quotes_and_keeps_whole_numbers():
  frame = tables.table(['run, cell', 'n'], [('a "b"\nc', 3), ('ö', None)])
  assert tables.to_csv(frame) == '"run, cell",n\n"a ""b""\nc",3\nö,\n'
  mixed = tables.table(['', 'score'], [('ours', ESTIMATE), ('theirs', 3.0)])
  assert tables.to_csv(mixed).splitlines()[2] == 'theirs,3.0,,'


def test_latex_escapes_and_typesets_intervals():
  lines = tables.to_latex(FRAME).splitlines()
  assert lines[:2] == [r'\begin{tabular}{lrr}', r'\toprule']
  assert lines[2] == r'metric & after, \% & s \\'
  assert lines[4] == r'a\_b \& c & $94.6 \pm 2.2$ & 1.2 \\'
  assert lines[5] == r'd <e> & -- & -- \\'


@pytest.mark.parametrize('char', '&%$#_{}')
def test_latex_escapes_every_special_character(char):
  frame = tables.table([f'h{char}'], [(f'a{char}b',)])
  text = tables.to_latex(frame)
  assert rf'a\{char}b' in text and rf'h\{char}' in text


def test_latex_spells_characters_that_have_no_escape():
  text = tables.to_latex(tables.table(['h'], [('a\\b~c^d',)]))
  assert r'a\textbackslash b\textasciitilde c\textasciicircum d' in text


def test_html_escapes():
  page = tables.to_html(FRAME)
  assert '<td>d &lt;e&gt;</td>' in page and '<td>94.6 ± 2.2</td>' in page
  assert '<td>–</td>' in tables.to_html(tables.table(['a'], [(None,)])), 'no value, not the word'
  assert '<th>&lt;b&gt;</th>' in tables.to_html(tables.table(['<b>'], [('a',)]))


def test_formulas_are_text_for_spreadsheets():
  frame = tables.table(['=head', 'x'], [('=1+1', -1.5), ('+a', '-b'), ('@c', None), ('d=', '–')])
  assert tables.to_csv(frame).splitlines() == ["'=head,x", "'=1+1,-1.5", "'+a,'-b", "'@c,", 'd=,–']


def test_control_characters_are_shown():
  frame = tables.table(['a', 'b'], [('x\x1b[31m', 'y\x07')])
  assert '\x1b' not in tables.to_csv(frame) and '\x1b' not in tables.to_latex(frame)


def test_html_keeps_long_texts_whole():
  text = 'word ' * 100 + 'and\r\n\ta new line'
  assert text in tables.to_html(tables.table(['text'], [(text,)]), 'text')


def test_digits_are_those_of_the_estimate():
  frame = tables.table(HEAD, [('a', {**ESTIMATE, 'digits': 3}, 1.25)])
  assert '94.568 ± 2.250' in tables.to_html(frame)
  assert '94.568 ±  2.250' in tables.to_text(frame)
  assert r'$94.568 \pm 2.250$' in tables.to_latex(frame)


def test_an_estimate_without_an_interval_is_its_mean():
  frame = tables.table(['', 'score'], [('one run', {'mean': 85.0, 'ci95': None, 'n': 1})])
  assert tables.to_text(frame).splitlines()[-1] == 'one run   85.0'
  assert '$85.0$' in tables.to_latex(frame)


def test_nothing_and_negative_zero():
  frame = tables.table(['', 'x', 'y'], [('a', math.nan, -0.01)])
  assert tables.to_text(frame).splitlines()[-1] == 'a  –  0.0'
  assert tables.to_csv(frame).splitlines()[-1] == 'a,,-0.01'


def test_a_table_is_written_in_both_forms(tmp_path):
  tables.write(tmp_path / 'some.name', FRAME)
  assert (tmp_path / 'some.name.csv').read_text() == tables.to_csv(FRAME)
  assert (tmp_path / 'some.name.tex').read_text() == tables.to_latex(FRAME)

"""JSON lines: torn, damaged, swapped and missing ones are noticed; files of others stay."""

import pytest

from jedit.io.jsonl import JsonlWriter, read_jsonl, write_jsonl
from jedit.io.sealed import StaleFile
from jedit.types import UserError

FORMAT = 'a test 1'


def test_rows_come_back_and_a_torn_line_is_redone(tmp_path):
  path = tmp_path / 'new' / 'records.jsonl'
  with JsonlWriter(path, FORMAT) as writer:
    writer.write({'case_id': 1, 'text': 'é\u2028\n'})
    assert read_jsonl(path, FORMAT) == [{'case_id': 1, 'text': 'é\u2028\n'}]  # before closing
    writer.write({'case_id': 2})
  whole = path.read_bytes()
  path.write_bytes(whole[:-4])
  with pytest.raises(StaleFile, match='line 2 is not the one'):
    read_jsonl(path, FORMAT)
  with JsonlWriter(path, FORMAT) as writer:
    assert [row['case_id'] for row in writer.rows] == [1]
    writer.write({'case_id': 2})
  assert path.read_bytes() == whole
  assert [each.name for each in path.parent.iterdir()] == ['records.jsonl']


def test_damaged_lines_are_dropped_with_one_line(tmp_path, capsys):
  path = tmp_path / 'rows.jsonl'
  with JsonlWriter(path, FORMAT) as writer:
    for number in range(4):
      writer.write({'n': number})
  lines = path.read_bytes().splitlines(keepends=True)
  path.write_bytes(b''.join([lines[0], lines[1].replace(b'1', b'7'), *lines[2:]]))
  with JsonlWriter(path, FORMAT) as writer:
    assert [row['n'] for row in writer.rows] == [0, 2, 3]
    writer.write({'n': 1})
  assert [row['n'] for row in read_jsonl(path, FORMAT)] == [0, 2, 3, 1]
  assert '1 of 4 lines of' in capsys.readouterr().err


@pytest.mark.parametrize('text', ['of somebody', '{"a": 1}\n{"b"', 'one\ntwo\n', '\n'])
def test_a_file_of_somebody_else_is_left_alone(tmp_path, text):
  path = tmp_path / 'notes.txt'
  path.write_text(text)
  with pytest.raises(UserError, match='holds something else than a test 1; name another file'):
    JsonlWriter(path, FORMAT)
  assert path.read_text() == text
  assert [each.name for each in tmp_path.iterdir()] == ['notes.txt']


def test_one_process_at_a_time_has_the_file(tmp_path):
  path = tmp_path / 'rows.jsonl'
  with JsonlWriter(path, FORMAT):
    with pytest.raises(UserError, match='rows.jsonl is in use by process'):
      JsonlWriter(path, FORMAT)
  JsonlWriter(path, FORMAT).close()


def test_lines_that_are_not_those_written_are_named(tmp_path):
  path = tmp_path / 'rows.jsonl'
  rows = [{'n': number} for number in range(3)]
  write_jsonl(path, FORMAT, rows, 'key')
  assert read_jsonl(path, FORMAT, 'key', 3) == rows
  first, second, third = path.read_bytes().splitlines(keepends=True)
  for lines, number in (
    ([second, first, third], 1),
    ([first, third], 2),
    ([first, first, third], 2),
    ([first, second, third.replace(b'2', b'3')], 3),
    ([first, second, third[:-1]], 3),
    ([first, b'\n', second, third], 2),
  ):
    path.write_bytes(b''.join(lines))
    with pytest.raises(StaleFile, match=f'line {number} is not the one'):
      read_jsonl(path, FORMAT, 'key')
  path.write_bytes(first + second)
  with pytest.raises(StaleFile, match='it has 2 lines where 3 were written'):
    read_jsonl(path, FORMAT, 'key', 3)
  for format, key in ((FORMAT, 'other'), ('a test 2', 'key')):
    with pytest.raises(StaleFile, match='line 1'):
      read_jsonl(path, format, key)
  with pytest.raises(UserError, match='absent.jsonl'):
    read_jsonl(tmp_path / 'absent.jsonl', FORMAT)
  with pytest.raises(UserError, match='cannot be written'):
    JsonlWriter(path / 'below' / 'a_file.jsonl', FORMAT)


def test_a_file_written_whole_replaces_an_older_one(tmp_path):
  path = tmp_path / 'new' / 'rows.jsonl'
  for rows in ([{'text': 'é\u2028', 'nan': float('nan')}, {}], [{'a': 1}]):
    write_jsonl(path, FORMAT, rows)
    read = read_jsonl(path, FORMAT)
    assert read == [{**row, 'nan': None} if 'nan' in row else row for row in rows]
  with pytest.raises(TypeError):
    write_jsonl(path, FORMAT, [{'a': 2}, {'b': object()}])
  assert read_jsonl(path, FORMAT) == [{'a': 1}] and [*path.parent.iterdir()] == [path]

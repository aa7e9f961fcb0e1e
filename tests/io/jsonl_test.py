"""JSON lines."""

import pytest

from jedit.io.jsonl import JsonlWriter, read_jsonl, write_jsonl
from jedit.types import UserError


def test_rows_come_back_and_a_torn_line_is_redone(tmp_path):
  path = tmp_path / 'new' / 'records.jsonl'
  with JsonlWriter(path) as writer:
    writer.write({'case_id': 1, 'text': 'é\u2028\n'})
    assert read_jsonl(path) == [{'case_id': 1, 'text': 'é\u2028\n'}]  # before closing
    writer.write({'case_id': 2})
  whole = path.read_bytes()
  path.write_bytes(whole[:-4])
  with pytest.raises(UserError, match='Line 2 of .*records.jsonl'):
    read_jsonl(path)
  with JsonlWriter(path) as writer:
    assert [row['case_id'] for row in read_jsonl(path)] == [1]
    writer.write({'case_id': 2})
  assert path.read_bytes() == whole


def test_unusable_json_lines_are_named(tmp_path):
  path = tmp_path / 'rows.jsonl'
  path.write_text('{"a": 1}\n\n[1]\n')
  with pytest.raises(UserError, match='Line 3 of .*not a JSON object'):
    read_jsonl(path)
  path.write_bytes(b'\xff\xfe\n')
  with pytest.raises(UserError, match='Line 1'):
    read_jsonl(path)
  with pytest.raises(UserError, match='absent.jsonl'):
    read_jsonl(tmp_path / 'absent.jsonl')
  with pytest.raises(UserError, match='Cannot write'):
    JsonlWriter(path / 'below' / 'a_file.jsonl')


def test_a_file_written_whole_replaces_an_older_one(tmp_path):
  path = tmp_path / 'new' / 'rows.jsonl'
  for rows in ([{'text': 'é\u2028', 'nan': float('nan')}, {}], [{'a': 1}]):
    write_jsonl(path, rows)
    assert read_jsonl(path) == [{**row, 'nan': None} if 'nan' in row else row for row in rows]
  with pytest.raises(TypeError):
    write_jsonl(path, [{'a': 2}, {'b': object()}])
  assert read_jsonl(path) == [{'a': 1}] and [*path.parent.iterdir()] == [path]

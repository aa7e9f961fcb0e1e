"""Sources of documents, and draws from them."""

import json

import datasets
import pytest

from jedit.moments.corpus import Corpus, read_corpus, read_dataset
from jedit.types import UserError

DOCUMENTS = (
  'The mother tongue of Marta is Swahili.',
  'Ove plays jazz in the city of Paris, and people play the violin.',
  "Vela's harbor was built in 1984.",
  '東京 is a city in 日本.',
  '',
  'It  is big.',
  'Where was Zürich founded? In the city of Paris.',
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
  monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path / 'cache')


def _write(folder, kind):
  """The documents as a file with a number and a body; its path."""
  rows = [dict(body=text, number=i) for i, text in enumerate(DOCUMENTS)]
  path = folder / f'text.{kind}'
  if kind == 'parquet':
    datasets.Dataset.from_list(rows).to_parquet(path)
  else:
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


def test_text_is_a_file_or_a_directory(tmp_path):
  (tmp_path / 'b.txt').write_text('third\n')
  (tmp_path / 'a.txt').write_text('first\n\n  second \n')
  (tmp_path / 'c.md').write_text('not text')
  assert list(read_corpus(tmp_path).read()) == ['first', 'second', 'third']
  assert list(read_corpus(tmp_path / 'b.txt').read()) == ['third']
  (tmp_path / 'bad.txt').write_bytes(b'\xff\xfe\xfa')
  with pytest.raises(UserError, match='bad.txt cannot be read .*; give a UTF-8 text file'):
    read_corpus(tmp_path)
  with pytest.raises(UserError, match='nowhere'):
    read_corpus(tmp_path / 'nowhere')
  (tmp_path / 'blank.txt').write_text(' \n\n')
  with pytest.raises(UserError, match='no text in the corpus .*blank'):
    read_corpus(tmp_path / 'blank.txt')
  (tmp_path / 'd.jsonl').write_text('{"text": "fourth"}\n')
  with pytest.raises(UserError, match='mixes json and text; give files of one kind'):
    read_corpus(tmp_path)


def test_json_lines_and_parquet_are_corpora(tmp_path):
  for kind in ('jsonl', 'json', 'parquet'):
    path = _write(tmp_path, kind)
    corpus = read_corpus(path, 'body')
    assert list(corpus.read()) == list(DOCUMENTS)
    assert list(corpus.read(start=5)) == list(DOCUMENTS[5:])
    with pytest.raises(UserError, match="no column 'text'; name that .* body, number"):
      read_corpus(path)
    before = corpus.identity
    (tmp_path / 'moved').mkdir(exist_ok=True)
    moved = path.rename(tmp_path / 'moved' / path.name)
    assert read_corpus(moved, 'body').identity == before, 'the content counts, not the place'
    moved.write_bytes(b'[' + moved.read_bytes())
    with pytest.raises(UserError, match=f'{moved.name} cannot be read'):
      read_corpus(moved, 'body')


def test_a_draw_depends_on_its_seed_alone():
  corpus = Corpus.of(DOCUMENTS)
  drawn = corpus.draw(4, seed=1)
  assert len(drawn) == 4 and set(drawn.read()) < set(DOCUMENTS)
  assert list(drawn.read()) == list(Corpus.of(DOCUMENTS).draw(4, seed=1).read())
  assert list(drawn.read(start=2)) == list(drawn.read())[2:]
  assert list(drawn.read()) != list(corpus.draw(4, seed=2).read())
  whole = corpus.draw(0, seed=1)
  assert sorted(whole.read()) == sorted(DOCUMENTS) and list(whole.read()) != list(DOCUMENTS)
  assert len(corpus.draw(100, seed=1)) == len(DOCUMENTS)
  identities = [drawn.identity, corpus.draw(4, 2).identity, corpus.draw(3, 1).identity]
  assert all(a != b for a, b in zip(identities, identities[1:] + [corpus.identity], strict=True))
  parts = [drawn.part(number, 3) for number in (1, 2, 3)]
  assert sorted(text for part in parts for text in part.read()) == sorted(drawn.read())
  assert [part.identity['parts'] for part in parts] == [[[1, 3]], [[2, 3]], [[3, 3]]]


@pytest.mark.parametrize('streaming', [False, True])
def test_datasets_are_read_as_they_are_or_as_a_stream(tmp_path, monkeypatch, streaming):
  asked = []

  def load(name, config, *, split, streaming):
    asked.append((name, config, split))
    rows = datasets.Dataset.from_list([dict(text=text) for text in DOCUMENTS])
    if streaming:
      rows = rows.to_iterable_dataset()
      split = dict(name='train', num_examples=len(DOCUMENTS))
      rows.info.splits = datasets.SplitDict.from_split_dict([split])
    return rows

  monkeypatch.setattr(datasets, 'load_dataset', load)
  corpus = read_dataset('some/wiki', '2023.en', streaming=streaming)
  assert asked == [('some/wiki', '2023.en', 'train')]
  assert corpus.identity['corpus']['config'] == '2023.en'
  assert list(corpus.read()) == list(DOCUMENTS)
  drawn = corpus.draw(4, seed=0)
  texts = list(drawn.read())
  assert len(set(texts)) == 4 and set(texts) == set(Corpus.of(DOCUMENTS).draw(4, seed=0).read())
  for start in range(5):
    assert list(drawn.read(start)) == texts[start:]
  if streaming:
    assert texts == sorted(texts, key=DOCUMENTS.index)


def test_a_dataset_that_cannot_be_had_is_a_sentence(monkeypatch):
  def load(*unused, **also_unused):
    raise ConnectionError("Couldn't reach the Hub\nand more")

  monkeypatch.setattr(datasets, 'load_dataset', load)
  with pytest.raises(UserError, match=r"wiki \(x\) cannot be loaded \(Couldn't reach the Hub\); "):
    read_dataset('some/wiki', 'x')
  rows = datasets.Dataset.from_list([dict(text='a')]).to_iterable_dataset()
  monkeypatch.setattr(datasets, 'load_dataset', lambda *_, **__: rows)
  with pytest.raises(UserError, match='does not state its number of documents'):
    read_dataset('some/wiki', streaming=True)

"""Reference texts of generations: the published attribute snippets."""

import collections
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jedit.evals.texts import TfIdf
from jedit.io import schema
from jedit.types import Record, UserError

_BLOCK = 2**20  # characters per read; the published file has 926 MB

_Key = tuple[str | None, str | None]  # relation and object, as Wikidata identifiers


class _Sample(schema.Fields):
  name: str
  text: str


class _Entry(schema.Fields):
  """The snippets about entities that have an object."""

  relation_id: str
  target_id: str
  samples: list[_Sample]


@dataclasses.dataclass(frozen=True, eq=False)
class References:
  """Reference snippets for the new objects of some records.

  Attributes:
    tfidf: word weights.
    weights: by relation and object, the weights of all snippets about entities that have it.
    essence: by relation, object and subject, the joined snippets about the subject.
  """

  tfidf: TfIdf
  weights: Mapping[_Key, Mapping[int, float]]
  essence: Mapping[tuple[str | None, str | None, str], str]

  @functools.cached_property
  def digest(self) -> str:
    """Digest of everything that a measurement depends on."""
    content = (
      sorted(self.tfidf.columns.items()),
      self.tfidf.idf_W.tolist(),
      sorted((repr(key), sorted(weights.items())) for key, weights in self.weights.items()),
      sorted((repr(key), text) for key, text in self.essence.items()),
    )
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()

  def of(self, record: Record) -> tuple[Mapping[int, float], str]:
    """Weights and essence text of a record; empty without snippets."""
    key = (record.relation_id, record.target_id)
    return self.weights.get(key, {}), self.essence.get((*key, record.request.subject), '')


def load_references(
  path: str | os.PathLike[str], records: Sequence[Record], tfidf: TfIdf | None = None
) -> References:
  """Reads the snippets about the new objects of records.

  The file is a JSON list of objects with `relation_id`, `target_id` and `samples`, each with
  `name` and `text`. It is read in pieces; only weights and the texts about edited subjects are
  kept.

  Args:
    path: the file.
    records: their relation and new object select the snippets.
    tfidf: word weights; None counts words in all texts of the file, as for the published weights.

  Raises:
    UserError: for a file that cannot be read or has another form.
  """
  if tfidf is None:
    tfidf = TfIdf.fit(text for _, samples in _entries(path) for _, text in samples)
  wanted = {(r.relation_id, r.target_id, r.request.subject) for r in records}
  keys = {key[:2] for key in wanted}
  weights: dict[_Key, collections.Counter[int]] = {}
  essence: dict[tuple[str | None, str | None, str], list[str]] = {}
  for key, samples in _entries(path):
    if key not in keys:
      continue
    total = weights.setdefault(key, collections.Counter())
    for name, text in samples:
      for column, weight in tfidf.weights(text).items():
        total[column] += weight  # type: ignore[assignment]  # counters add floats as well
      if (*key, name) in wanted:
        essence.setdefault((*key, name), []).append(text)
  return References(tfidf, weights, {key: ' '.join(texts) for key, texts in essence.items()})


def _entries(path: str | os.PathLike[str]) -> Iterator[tuple[_Key, list[tuple[str, str]]]]:
  """Relation and object, names and texts of every entry."""
  for number, entry in enumerate(_stream(path)):
    found = schema.check(_Entry, entry, f'{path}: entry {number}')
    samples = [(sample.name, sample.text) for sample in found.samples]
    yield (found.relation_id, found.target_id), samples


def _stream(path: str | os.PathLike[str]) -> Iterator[Any]:
  """Items of a JSON list, one by one, without holding the list in memory."""
  decoder = json.JSONDecoder()
  try:
    with open(path, encoding='utf-8') as file:
      buffer = file.read(_BLOCK).lstrip()
      if not buffer.startswith('['):
        raise UserError(f'{path} is not a JSON list; give a file like attribute_snippets.json.')
      buffer = buffer[1:].lstrip()
      is_first = True
      while True:
        more = file.read(max(_BLOCK, len(buffer)))  # doubling: few attempts to parse a long item
        buffer += more
        while True:
          rest = buffer.lstrip()
          if rest.startswith(']'):
            return
          if not is_first and rest.startswith(','):
            rest = rest[1:].lstrip()
          try:
            item, end = decoder.raw_decode(rest)
          except RecursionError:
            raise UserError(f'{path} is nested too deep; repair it or give another.') from None
          except ValueError as error:
            if more:
              break  # the item continues in the next piece
            raise UserError(f'{path} is not JSON ({error}); repair it or give another.') from error
          yield item
          buffer, is_first = rest[end:], False
  except OSError as error:
    raise UserError(f'Cannot read {path} ({error.strerror}); check the path.') from error
  except UnicodeDecodeError as error:
    raise UserError(f'{path} is not UTF-8 text; give another file.') from error

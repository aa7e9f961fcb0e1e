"""Corpus: the documents of a pass for second moments, from files or datasets, and draws from them.

Documents are read as the pass proceeds; only plain text is in memory as a whole.
"""

import dataclasses
import hashlib
import os
import pathlib
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jedit.io.downloads import Download
from jedit.types import UserError

_TIMEOUT = 10.0  # seconds, of the hub
# Of `datasets`, by the end of a file's name.
_LOADERS = {'.parquet': 'parquet', '.jsonl': 'json', '.json': 'json'}


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
  """Documents in reading order.

  Attributes:
    index_N: their numbers in the source.
    fetch: maps numbers to texts, one after the other.
    identity: JSON-able: `corpus` (content of the source), `num_documents` drawn from it, the `seed`
      of the draw, and the `parts` of the corpus, as pairs (number from 1, number of parts).
    is_stream: numbers must ascend.
  """

  index_N: np.ndarray
  fetch: Callable[[np.ndarray], Iterable[str]] = dataclasses.field(repr=False)
  identity: Mapping[str, Any]
  is_stream: bool = False

  @classmethod
  def of(cls, documents: Sequence[str]) -> 'Corpus':
    """A corpus of given texts."""
    documents = list(documents)
    digest = hashlib.sha256()
    for document in documents:
      digest.update(document.encode() + b'\0')
    return _corpus(
      len(documents),
      lambda index_N: (documents[index] for index in index_N),
      {'sha256': digest.hexdigest()},
    )

  def __len__(self) -> int:
    return len(self.index_N)

  def read(self, start: int = 0) -> Iterator[str]:
    """The texts from number `start` on; those before are not read."""
    return iter(self.fetch(self.index_N[start:]))

  def draw(self, max_documents: int, seed: int) -> 'Corpus':
    """Random documents in random order (those of a stream: in its order).

    Args:
      max_documents: number of documents; 0 takes all.
      seed: of choice and order.
    """
    count = min(max_documents or len(self), len(self))
    chosen_N = np.array(random.Random(seed).sample(range(len(self)), count), np.int64)
    if self.is_stream:
      chosen_N.sort()
    identity = {**self.identity, 'num_documents': count, 'seed': seed}
    return dataclasses.replace(self, index_N=self.index_N[chosen_N], identity=identity)

  def part(self, number: int, count: int) -> 'Corpus':
    """Every `count`-th document, for one of several runs; `SecondMoments.merge` joins them.

    Args:
      number: number of the part, from 1.
      count: number of parts.
    """
    identity = {**self.identity, 'parts': [[number, count]]}
    return dataclasses.replace(self, index_N=self.index_N[number - 1 :: count], identity=identity)


def _corpus(
  count: int,
  fetch: Callable[[np.ndarray], Iterable[str]],
  source: Mapping[str, Any],
  is_stream: bool = False,
) -> Corpus:
  identity = {'corpus': source, 'num_documents': count, 'seed': None, 'parts': [[1, 1]]}
  return Corpus(np.arange(count), fetch, identity, is_stream)


def read_corpus(path: str | os.PathLike[str], column: str = 'text') -> Corpus:
  """Documents of a file, or of all such files of a directory.

  Args:
    path: plain text (`.txt`, or any name of a single file) with one document per line, `.jsonl`,
      `.json` or `.parquet`; a directory holds files of one of these kinds.
    column: field of the text in JSON lines and parquet.

  Raises:
    UserError: if there is no such file, or no text in it.
  """
  path = pathlib.Path(path)
  files = [path]
  if path.is_dir():
    files = sorted(file for file in path.iterdir() if file.suffix in ('.txt', *_LOADERS))
  kinds = sorted({_LOADERS.get(file.suffix, 'text') for file in files})
  if len(kinds) > 1:
    raise UserError(f'The corpus {path} mixes {" and ".join(kinds)}; give files of one kind.')
  if kinds and kinds[0] != 'text':
    corpus = _read_tables(files, kinds[0], column)
  else:
    corpus = Corpus.of([line for file in files for line in _read_lines(file)])
  if not len(corpus):
    raise UserError(f'There is no text in the corpus {path}; give a file or directory with text.')
  return corpus


def _read_lines(file: pathlib.Path) -> list[str]:
  try:
    text = file.read_text(encoding='utf-8')
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(
      f'The corpus {file} cannot be read ({error}); give a UTF-8 text file.'
    ) from error
  return [line.strip() for line in text.splitlines() if line.strip()]


def _read_tables(files: Sequence[pathlib.Path], kind: str, column: str) -> Corpus:
  """Rows of local files, which `datasets` maps into memory."""
  import datasets  # here, since its import takes seconds

  digest = hashlib.sha256()
  try:
    for path in files:
      with open(path, 'rb') as file:
        digest.update(hashlib.file_digest(file, 'sha256').digest())
    rows = datasets.load_dataset(kind, data_files=list(map(str, files)), split='train')
  except Exception as error:  # the readers of `datasets` raise many kinds
    raise UserError(
      f'The corpus {", ".join(map(str, files))} cannot be read ({_first_line(error)}); repair it '
      'or leave it out.'
    ) from error
  _check_column(rows, column, str(files[0]))
  return _corpus(
    len(rows), _rows_of(rows, column), {'sha256': digest.hexdigest(), 'column': column}
  )


def read_dataset(
  name: str, config: str = '', column: str = 'text', *, streaming: bool = False
) -> Corpus:
  """Documents of a dataset's `train` split on the Hugging Face hub.

  Args:
    name: of the dataset, such as 'wikimedia/wikipedia'.
    config: of the dataset, such as the dump '20231101.en'; empty for one that has only one.
    column: field of the text.
    streaming: reads over the network as the pass proceeds instead of storing the dataset first.
      The documents of a draw are then read in the dataset's order.

  Raises:
    UserError: if the dataset cannot be loaded, lacks the column, or has a stream of unknown length.
  """
  import datasets  # here, since its import takes seconds

  try:
    rows = datasets.load_dataset(name, config or None, split='train', streaming=streaming)
  except Exception as error:  # downloads fail in many ways
    raise UserError(
      f'The dataset {name}{config and f" ({config})"} cannot be loaded ({_first_line(error)}); '
      'where the hub is out of reach, fetch its files elsewhere and give their directory as a '
      'corpus.'
    ) from error
  _check_column(rows, column, name)
  if not streaming:
    count, fetch = len(rows), _rows_of(rows, column)
  else:
    split = (rows.info.splits or {}).get('train')
    if split is None or not split.num_examples:
      raise UserError(
        f'The dataset {name} does not state its number of documents, so none can be drawn from its '
        'stream; read it without streaming.'
      )
    count, fetch = split.num_examples, _stream_of(rows, column)
  source = {'dataset': name, 'config': config, 'column': column, 'num_rows': count}
  return _corpus(count, fetch, source, is_stream=streaming)


def plan_dataset(name: str, config: str = '') -> Download | None:
  """What a dataset of the hub takes to download; None if it is on this machine.

  Raises:
    UserError: if it is neither here nor on the hub, or the hub cannot be reached.
  """
  import datasets  # here, since its import takes seconds
  import huggingface_hub

  cache = pathlib.Path(datasets.config.HF_DATASETS_CACHE)
  here = cache / name.replace('/', '___').lower()
  if pathlib.Path(name).exists() or (here / (config or 'default')).is_dir():
    return None
  try:
    info = huggingface_hub.dataset_info(name, files_metadata=True, timeout=_TIMEOUT)
  except Exception as error:  # of the hub, or of its HTTP library
    raise UserError(
      f'The dataset {name}{config and f" ({config})"} is not on this machine and the Hugging Face '
      f'hub does not give it ({_first_line(error)}); fetch its files elsewhere and give their '
      'directory in statistics.corpus.'
    ) from error
  files = info.siblings or ()
  own = [file for file in files if file.rfilename.startswith(f'{config}/')] or files
  card = info.card_data
  licence = card.get('license') if card else ''
  return Download(
    f'{name} {config}'.strip(),
    cache,
    ', '.join(licence) if isinstance(licence, list) else str(licence or ''),
    sum(file.size or 0 for file in own) or None,
  )


def _check_column(rows: Any, column: str, source: str) -> None:
  names = rows.column_names or ()
  if column not in names:
    raise UserError(
      f'{source} has no column {column!r}; name that of the text among {", ".join(names)}.'
    )
  kind = getattr((rows.features or {}).get(column), 'dtype', 'string' if not rows.features else '')
  if kind not in ('string', 'large_string'):
    raise UserError(
      f'{source} has {kind or "lists or objects"} in the column {column!r}; give text there, or '
      'name another column.'
    )


def _first_line(error: Exception) -> str:
  return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _rows_of(rows: Any, column: str) -> Callable[[np.ndarray], Iterator[str]]:
  texts = rows.select_columns([column])
  return lambda index_N: (texts[int(index)][column] or '' for index in index_N)


def _stream_of(rows: Any, column: str) -> Callable[[np.ndarray], Iterator[str]]:
  """Goes through the stream once, for numbers that ascend."""

  def fetch(index_N: np.ndarray) -> Iterator[str]:
    wanted = iter(index_N.tolist())
    at = next(wanted, None)
    if at is None:
      return
    for index, row in enumerate(rows.skip(at), start=at):
      if index == at:
        yield row[column] or ''
        at = next(wanted, None)
        if at is None:
          return

  return fetch

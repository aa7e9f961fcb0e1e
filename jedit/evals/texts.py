"""Text metrics: n-gram entropy (fluency) and TF-IDF cosine (consistency).

Definitions (ROME, arXiv:2202.05262, section 3.4; MEMIT, arXiv:2210.07229, as in its released code):

  fluency      (2/3 H₂ + 4/3 H₃) / 2 with Hₙ = -Σ f log₂ f over the relative frequencies f of the
               text's word n-grams, in bits; repetitive text has few n-grams
  consistency  cosine of the TF-IDF vectors of two texts: counts x idf over a fixed vocabulary

Fluency takes nltk's words: a sentence split, then a word tokenizer per sentence, so that only the
full stop at the end of a sentence is a word of its own. TF-IDF takes runs of two or more word
characters, in lower case.
"""

import collections
import dataclasses
import importlib.util
import itertools
import math
import os
import pathlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from jedit.io import schema, storage
from jedit.types import UserError

_WORD = re.compile(r'\b\w\w+\b')
_END = '<|endoftext|>'


def clean_up(text: str) -> str:
  """Text as measured, cleaned in the order of MEMIT's code.

  NFKD, double newlines to spaces, no '<|endoftext|>'; '<s>' and '</s>' stay and count as words.
  """
  return unicodedata.normalize('NFKD', text).replace('\n\n', ' ').replace(_END, '')


class Words:
  """Splits English text into words as `nltk.word_tokenize` does.

  The parameters of the sentence split are a download (`punkt_tab`), searched in NLTK_DATA and
  nltk's usual places. Without them the split does not recognise abbreviations.

  Attributes:
    sentence_split: 'english' with the parameters, 'untrained' without.
  """

  sentence_split: str

  def __init__(self) -> None:
    """Loads the parameters of the sentence split, if present.

    Raises:
      UserError: if nltk is not installed; see `has_nltk`.
    """
    if not has_nltk():
      raise UserError("Splitting text into words needs nltk; pip install 'jedit[metrics]'.")
    from nltk.tokenize import NLTKWordTokenizer
    from nltk.tokenize.punkt import PunktSentenceTokenizer, PunktTokenizer

    try:
      self._sentences, self.sentence_split = PunktTokenizer('english'), 'english'
    except LookupError:
      self._sentences, self.sentence_split = PunktSentenceTokenizer(), 'untrained'
    self._words = NLTKWordTokenizer()

  def __call__(self, text: str) -> list[str]:
    """The words of a text, in order."""
    sentences = self._sentences.tokenize(text)
    return [word for sentence in sentences for word in self._words.tokenize(sentence)]


def has_nltk() -> bool:
  """True if nltk is installed."""
  return importlib.util.find_spec('nltk') is not None


def ngram_entropy(words: Sequence[str], n: int) -> float:
  """Entropy of the relative frequencies of n-grams, in bits; 0 for a text without any."""
  grams = zip(*(itertools.islice(words, i, None) for i in range(n)))
  counts = collections.Counter(grams)
  total = counts.total()
  # 0.0 - ... avoids -0 for a text with a single n-gram.
  return 0.0 - sum(c / total * math.log2(c / total) for c in counts.values())


def fluency(words: Sequence[str]) -> float:
  """(2/3 H₂ + 4/3 H₃) / 2, in bits, of the words of one text; 0 for fewer than three words."""
  return (2 / 3 * ngram_entropy(words, 2) + 4 / 3 * ngram_entropy(words, 3)) / 2


def mean_fluency(texts: Iterable[str], words: Words) -> float:
  """Arithmetic mean of the fluency of several texts, in bits.

  As published, a text of fewer than three words counts 0 among others.

  Returns:
    The mean; nan if no text has three words.
  """
  split = [words(text) for text in texts]
  if all(len(each) < 3 for each in split):
    return math.nan
  return float(np.mean([fluency(each) for each in split]))


@dataclasses.dataclass(frozen=True, eq=False)
class TfIdf:
  """TF-IDF word weights.

  Attributes:
    columns: the vocabulary, word to column.
    idf_W: inverse document frequency of each column, float64.
  """

  columns: Mapping[str, int]
  idf_W: np.ndarray

  @classmethod
  def fit(cls, documents: Iterable[str]) -> 'TfIdf':
    """Counts words in a corpus: idf = ln((1 + N) / (1 + df)) + 1, columns in the words' order.

    Args:
      documents: N texts, read once; df is the number of texts that contain a word.

    Raises:
      UserError: if they contain no word.
    """
    frequency: collections.Counter[str] = collections.Counter()
    num_documents = 0
    for document in documents:
      frequency.update(set(vector_words(document)))
      num_documents += 1
    if not frequency:
      raise UserError('The texts for a TF-IDF vocabulary contain no words; give other texts.')
    found = sorted(frequency)
    count_W = np.array([frequency[word] for word in found], np.float64)
    idf_W = np.log((1 + num_documents) / (1 + count_W)) + 1
    return cls({word: column for column, word in enumerate(found)}, idf_W)

  @classmethod
  def load(cls, idf: str | os.PathLike[str], vocabulary: str | os.PathLike[str]) -> 'TfIdf':
    """Reads the published pair of files, idf.npy and tfidf_vocab.json (word to column).

    Raises:
      UserError: for files that cannot be read or do not match.
    """
    columns = schema.read_json(vocabulary, dict[str, int])
    try:
      with storage.read_errors(idf):
        loaded = np.load(idf, mmap_mode='r', allow_pickle=False)
      if not isinstance(loaded, np.ndarray) or loaded.dtype.kind not in 'fiu':
        raise ValueError('it has other content')
      idf_W = np.asarray(loaded, np.float64)
      if not np.isfinite(idf_W).all():
        raise ValueError('it has numbers that are not finite')
    except UserError:
      raise
    except Exception as error:  # numpy raises many kinds
      raise UserError(f'{idf} is not a numeric array ({error}); give an idf.npy.') from error
    if idf_W.ndim != 1 or not all(0 <= column < len(idf_W) for column in columns.values()):
      raise UserError(
        f'{vocabulary} has columns that {idf}, an array of shape {idf_W.shape}, lacks; give the '
        'two files of one corpus.'
      )
    return cls(columns, idf_W)

  def save(self, idf: str | os.PathLike[str], vocabulary: str | os.PathLike[str]) -> None:
    """Writes the pair of files that `load` reads."""
    with storage.atomic_file(idf) as beside, open(beside, 'wb') as file:
      np.save(file, self.idf_W)
    storage.write_json(pathlib.Path(vocabulary), self.columns)

  def weights(self, text: str) -> dict[int, float]:
    """Counts x idf of the words of a text, by column; additive over joined texts."""
    counts = collections.Counter(vector_words(text))
    known = ((self.columns[word], count) for word, count in counts.items() if word in self.columns)
    return {column: count * float(self.idf_W[column]) for column, count in known}


def cosine(one: Mapping[int, float], other: Mapping[int, float]) -> float:
  """Cosine similarity of the weights of two texts, 0 to 1; nan if one has no vocabulary word."""
  norm = math.hypot(*one.values()) * math.hypot(*other.values())
  if norm == 0:
    return math.nan
  return math.fsum(weight * other.get(column, 0.0) for column, weight in one.items()) / norm


def vector_words(text: str) -> list[str]:
  """Runs of two or more word characters, in lower case.

  Text decomposed by NFKD splits at combining accents, which are not word characters.
  """
  return _WORD.findall(text.lower())

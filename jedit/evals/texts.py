"""What generated texts are worth: how varied their words are, and how near they are to others.

Definitions (ROME, arXiv:2202.05262, section 3.4; MEMIT, arXiv:2210.07229, as its released code
computes them):

  fluency      (2/3 H₂ + 4/3 H₃) / 2 with Hₙ = -Σ f log₂ f over the relative frequencies f of the
               text's n-grams of words, in bits; a text that repeats itself has few n-grams
  consistency  cosine of the TF-IDF vectors of two texts: counts x idf over a fixed vocabulary

Words of the fluency are those of nltk: a sentence split, then a word tokenizer for each sentence,
so that only the full stop at the end of a sentence is a word of its own. Words of the vectors are
runs of two or more word characters, in lower case.
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

from jedit.io import storage
from jedit.types import UserError

_WORD = re.compile(r'\b\w\w+\b')
_END = '<|endoftext|>'


def clean_up(text: str) -> str:
  """Generated text as it is measured: NFKD, a double newline is a space, no '<|endoftext|>'.

  In this order, as MEMIT's code; '<s>' and '</s>' stay and count as words.
  """
  return unicodedata.normalize('NFKD', text).replace('\n\n', ' ').replace(_END, '')


class Words:
  """Splits English text into words as `nltk.word_tokenize` does.

  The parameters of the sentence split are a download (`punkt_tab`) that nltk looks for in
  NLTK_DATA and in its usual places. Without it the split has no parameters: it does not know
  abbreviations.

  Attributes:
    sentence_split: 'english' with the parameters, 'untrained' without.
  """

  sentence_split: str

  def __init__(self) -> None:
    """Looks for the parameters.

    Raises:
      UserError: where nltk is not installed; see `has_nltk`.
    """
    if not has_nltk():
      raise UserError("Words are told apart by nltk; pip install 'jedit[metrics]'.")
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
  """Whether nltk is installed."""
  return importlib.util.find_spec('nltk') is not None


def ngram_entropy(words: Sequence[str], n: int) -> float:
  """Entropy of the relative frequencies of n-grams, in bits; 0 for a text without any."""
  grams = zip(*(itertools.islice(words, i, None) for i in range(n)))
  counts = collections.Counter(grams)
  total = counts.total()
  # From 0, not -0: a text of one n-gram has none.
  return 0.0 - sum(c / total * math.log2(c / total) for c in counts.values())


def fluency(words: Sequence[str]) -> float:
  """(2/3 H₂ + 4/3 H₃) / 2, in bits, of the words of one text; 0 for fewer than three words."""
  return (2 / 3 * ngram_entropy(words, 2) + 4 / 3 * ngram_entropy(words, 3)) / 2


def mean_fluency(texts: Iterable[str], words: Words) -> float:
  """Arithmetic mean of the fluency of several texts, in bits.

  A text of fewer than three words counts 0, as published, beside others; where no text has three
  words nothing is measured.

  Returns:
    The mean; nan where no text has three words.
  """
  split = [words(text) for text in texts]
  if all(len(each) < 3 for each in split):
    return math.nan
  return float(np.mean([fluency(each) for each in split]))


@dataclasses.dataclass(frozen=True, eq=False)
class TfIdf:
  """Weights of words, for the similarity of texts.

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
      documents: N texts; df is the number of those that hold a word. They are read once.

    Raises:
      UserError: where they hold no word.
    """
    frequency: collections.Counter[str] = collections.Counter()
    num_documents = 0
    for document in documents:
      frequency.update(set(vector_words(document)))
      num_documents += 1
    if not frequency:
      raise UserError('The texts for a TF-IDF vocabulary hold no words; give others.')
    found = sorted(frequency)
    count_W = np.array([frequency[word] for word in found], np.float64)
    idf_W = np.log((1 + num_documents) / (1 + count_W)) + 1
    return cls({word: column for column, word in enumerate(found)}, idf_W)

  @classmethod
  def load(cls, idf: str | os.PathLike[str], vocabulary: str | os.PathLike[str]) -> 'TfIdf':
    """Reads the published pair of files, idf.npy and tfidf_vocab.json (word to column).

    Raises:
      UserError: for files that cannot be read or do not belong together.
    """
    columns = storage.read_json(vocabulary)
    if not isinstance(columns, dict) or not all(type(c) is int for c in columns.values()):
      raise UserError(f'{vocabulary} is no mapping of words to columns; give a tfidf_vocab.json.')
    try:
      idf_W = np.asarray(np.load(idf, allow_pickle=False), np.float64)
    except OSError as error:
      raise UserError(f'Cannot read {idf} ({error.strerror}); check the path.') from error
    except ValueError as error:
      raise UserError(f'{idf} is no array of numbers ({error}); give an idf.npy.') from error
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
    """Counts x idf of the words of a text, by column; those of joined texts are their sums."""
    counts = collections.Counter(vector_words(text))
    known = ((self.columns[word], count) for word, count in counts.items() if word in self.columns)
    return {column: count * float(self.idf_W[column]) for column, count in known}


def cosine(one: Mapping[int, float], other: Mapping[int, float]) -> float:
  """Similarity of the weights of two texts, 0 to 1; nan where one text has no known word."""
  norm = math.hypot(*one.values()) * math.hypot(*other.values())
  if norm == 0:
    return math.nan
  return math.fsum(weight * other.get(column, 0.0) for column, weight in one.items()) / norm


def vector_words(text: str) -> list[str]:
  """Runs of two or more word characters, in lower case.

  A combining accent is no word character: text that was taken apart by NFKD splits there.
  """
  return _WORD.findall(text.lower())

"""Metrics: the registry and the values of a record, in plain numpy.

A metric is one entry of `METRICS`; tables, reports, summary.json, records.jsonl and comparisons
take its name, definition, unit and values from there. `register` adds one.

A record has three parts: `efficacy` (the edited prompt), `paraphrase` (other wordings) and
`neighborhood` (other subjects, whose answer must stay). In the first two the wanted object is the
new one and the other object the true one; in the third the roles are swapped. After each prompt
both are scored by

  nll(y | x) = mean over the tokens of y of the negative natural-log probability of each token
               under teacher forcing (so texts of different lengths compare per token)

(ROME, arXiv:2202.05262, section 3.4 and appendix; accuracy from MEMIT's released code, which ROME's
lacks). Records without a true object (zsRE; MEND, arXiv:2110.11309, as evaluated by MEMIT) have
accuracies alone, there the share of answer tokens on top in one teacher-forced pass.

A record's value is the mean over its prompts, in percent; a metric is the mean over records. An
undefined value (no prompts in that part, a model that returns nan) is nan in a record and left out
of the mean, never counted as zero: `n` is the number of records that a mean stands on.
"""

import dataclasses
import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jedit.evals.estimates import Estimate, mean_of_defined, summarize_harmonic, summarize_values
from jedit.evals.texts import TfIdf, Words, cosine, mean_fluency
from jedit.types import UserError

PARTS = ('efficacy', 'paraphrase', 'neighborhood')
TEXTS, UNEDITED = 'texts', 'unedited'
PERCENT = 'percent'

Values = dict[str, np.ndarray]  # by metric, one value per record (or per unedited prompt)
Summary = dict[str, Estimate]  # by metric


@dataclasses.dataclass(frozen=True)
class PartScores:
  """Scores of the prompts of one part of one record.

  Attributes:
    acc_P: per prompt, 1 or 0 (every token of the wanted object on top) where a record compares two
      objects, else the share of the object's tokens on top; nan where the model gave none.
    wanted_nll_P: nats per token of the object that this part wants.
    other_nll_P: nats per token of the object it is compared with; None where a record has a single
      object.
  """

  acc_P: np.ndarray
  wanted_nll_P: np.ndarray
  other_nll_P: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class GeneratedTexts:
  """Texts generated about the subject of one record, and what they are compared with.

  Attributes:
    texts: continued generation prompts, cleaned up.
    continuations: the same without the prompts.
    gives_object: whether greedy decoding after the edited prompt gives the new object and ends.
    words: splits text into words; None without nltk.
    tfidf: weights of words; None without attribute snippets.
    snippet_weights: TF-IDF weights of the snippets about entities that have the new object.
    perplexity: of the snippets about the subject; nan without any.
  """

  texts: Sequence[str]
  continuations: Sequence[str]
  gives_object: bool
  words: Words | None = None
  tfidf: TfIdf | None = None
  snippet_weights: Mapping[int, float] = dataclasses.field(default_factory=dict)
  perplexity: float = math.nan


@dataclasses.dataclass(frozen=True)
class UneditedScores:
  """Scores of prompts about subjects that were not edited.

  Attributes:
    exact_N: 1 where every token of the known answer is on top, else 0.
    before_N: the same before the edit; None where not measured.
  """

  exact_N: np.ndarray
  before_N: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Metric:
  """An entry of the registry.

  Attributes:
    name: in tables, files and configs.
    evidence: what its values are computed from: a part of `PARTS` (`PartScores`), `TEXTS`
      (`GeneratedTexts`) or `UNEDITED` (`UneditedScores`); empty for a metric made of others.
    value: from the evidence of one record, or of all unedited prompts, to its value or values in
      `unit`; nan where undefined, None where the run did not measure what it takes.
    definition: one line for reports.
    summarize: for a metric made of others, from the values of all of them to its estimate.
    unit: of its values.
    higher_is_better: the direction of improvement.
    is_headline: a column of comparisons and a line of `repr(table)`.
    in_score: its mean enters the score.
    stand_in: the metric that takes its place for records with a single object.
    digits: shown behind the point.
  """

  name: str
  evidence: str = ''
  value: Callable[[Any], Any] | None = None
  definition: str = 'not registered'
  summarize: Callable[[Values], Estimate] | None = None
  unit: str = PERCENT
  higher_is_better: bool = True
  is_headline: bool = False
  in_score: bool = False
  stand_in: str = ''
  digits: int = 1


METRICS: dict[str, Metric] = {}


def register(metric: Metric) -> None:
  """Adds a metric to every evaluation, table and report from now on.

  Raises:
    UserError: for a name that is taken.
  """
  if metric.name in METRICS:
    raise UserError(f'A metric {metric.name!r} exists; choose another name.')
  METRICS[metric.name] = metric


def record_values(evidence: Mapping[str, Any]) -> dict[str, Any]:
  """The values of one record, or arrays of them for unedited prompts.

  Args:
    evidence: by its name, see `Metric.evidence`.

  Returns:
    By metric name, in the order of the registry; nan where undefined.
  """
  values = {
    metric.name: metric.value(evidence[metric.evidence])
    for metric in METRICS.values()
    if metric.value and metric.evidence in evidence
  }
  return {name: value for name, value in values.items() if value is not None}


def all_values(evidence: Sequence[Mapping[str, Any]]) -> Values:
  """The values of several records as arrays; nan for a record that lacks the evidence."""
  by_record = [record_values(each) for each in evidence]
  return {
    name: np.array([values.get(name, math.nan) for values in by_record], np.float64)
    for name in METRICS
    if any(name in values for values in by_record)
  }


def rates(measured: Container[str]) -> list[str]:
  """The metrics behind the score: success rates or, for single objects, accuracies."""
  names = [find(metric.name, measured) for metric in METRICS.values() if metric.in_score]
  return [name for name in names if name in measured]


def find(name: str, measured: Container[str]) -> str:
  """`name`, or its stand-in where only that was measured."""
  stand_in = entry(name).stand_in
  return stand_in if name not in measured and stand_in in measured else name


def entry(name: str) -> Metric:
  """The entry of a metric; a bare one where a file has a metric that is not registered here."""
  return METRICS.get(name, Metric(name))


def summarize(values: Values) -> Summary:
  """Estimates of every metric.

  Args:
    values: by metric name, one value per record, nan where undefined; the three accuracies at
      least.

  Returns:
    By metric name, the score first: `mean`, `ci95` (half width) and `n` (the true count).
  """
  found = {m.name: m.summarize(values) for m in METRICS.values() if m.summarize}
  found |= {name: summarize_values(values_R) for name, values_R in values.items()}
  return found


def as_cell(name: str, estimate: Mapping[str, Any] | None) -> dict[str, Any] | None:
  """An estimate with the digits of its metric, for a table."""
  return None if estimate is None else {**estimate, 'digits': entry(name).digits}


def units(names: Iterable[str]) -> str:
  """The units of metrics in words: 'percent, except essence (perplexity)'."""
  others: dict[str, list[str]] = {}
  for name in names:
    if entry(name).unit != PERCENT:
      others.setdefault(entry(name).unit, []).append(name)
  listed = ', '.join(f'{", ".join(each)} ({unit})' for unit, each in others.items())
  return f'{PERCENT}, except {listed}' if listed else PERCENT


def success(wanted_nll: np.ndarray, other_nll: np.ndarray) -> np.ndarray:
  """1 where the wanted object is the likelier one per token, 0 elsewhere, ties included.

  Args:
    wanted_nll, other_nll: nats per token, of one shape.

  Returns:
    float64 of that shape; nan where either is nan.
  """
  wanted_nll, other_nll = np.asarray(wanted_nll, np.float64), np.asarray(other_nll, np.float64)
  is_undefined = np.isnan(wanted_nll) | np.isnan(other_nll)
  return np.where(is_undefined, np.nan, wanted_nll < other_nll)


def magnitude(wanted_nll: np.ndarray, other_nll: np.ndarray) -> np.ndarray:
  """exp(-nll(wanted)) - exp(-nll(other)), between -1 and 1; arguments as of `success`."""
  return np.exp(-np.asarray(wanted_nll, np.float64)) - np.exp(-np.asarray(other_nll, np.float64))


def kept(before_N: np.ndarray, after_N: np.ndarray) -> np.ndarray:
  """Answers that were right (1) before an edit and still are, in percent; nan for the others."""
  return np.where(np.asarray(before_N) == 1, 100.0 * (np.asarray(after_N) == 1), np.nan)


def _compared(scores: PartScores, compare: Callable[..., np.ndarray]) -> float | None:
  """Percent of a comparison of two objects, mean over prompts; None for a single object."""
  if scores.other_nll_P is None:
    return None
  return 100 * mean_of_defined(compare(scores.wanted_nll_P, scores.other_nll_P))


def _success(scores: PartScores) -> float | None:
  return _compared(scores, success)


def _magnitude(scores: PartScores) -> float | None:
  return _compared(scores, magnitude)


def _accuracy(scores: PartScores) -> float:
  return 100 * mean_of_defined(scores.acc_P)


def _unedited_kept(scores: UneditedScores) -> np.ndarray | None:
  return None if scores.before_N is None else kept(scores.before_N, scores.exact_N)


def _fluency(texts: Sequence[str], words: Words | None) -> float | None:
  return None if words is None else 100 * mean_fluency(texts, words)


def _consistency(texts: GeneratedTexts) -> float | None:
  if texts.tfidf is None:
    return None
  return 100 * cosine(texts.tfidf.weights(' '.join(texts.texts)), texts.snippet_weights)


def _score(values: Values) -> Estimate:
  """Harmonic mean of the mean rates, unrounded (ROME; MEMIT rounds them first).

  Records with a single object have no success; their score is that of the three accuracies, as
  ROME falls back to and JEEP (arXiv:2412.17872) prints. The papers print no interval.
  """
  return summarize_harmonic(np.stack([np.asarray(values[n], np.float64) for n in rates(values)]))


# fmt: off
for _metric in (
  Metric('score', summarize=_score, is_headline=True, definition=
         'harmonic mean of efficacy, paraphrase and neighborhood, or of the three accuracies'),
  Metric('efficacy', 'efficacy', _success,
         'share of records whose new object is likelier per token than the true one; a tie fails',
         is_headline=True, in_score=True, stand_in='efficacy_acc'),
  Metric('paraphrase', 'paraphrase', _success,
         'efficacy after other wordings of the prompt, mean over the prompts of a record',
         is_headline=True, in_score=True, stand_in='paraphrase_acc'),
  Metric('neighborhood', 'neighborhood', _success,
         'share of prompts about other subjects after which the true object is likelier',
         is_headline=True, in_score=True, stand_in='neighborhood_acc'),
  Metric('efficacy_magnitude', 'efficacy', _magnitude,
         'exp(-nll) of the new object minus that of the true one, nll in nats per token'),
  Metric('paraphrase_magnitude', 'paraphrase', _magnitude,
         'efficacy_magnitude after other wordings'),
  Metric('neighborhood_magnitude', 'neighborhood', _magnitude,
         'exp(-nll) of the true object minus that of the new one, for other subjects'),
  Metric('efficacy_acc', 'efficacy', _accuracy,
         'every token of the new object is the top one; for a single object, the share of them'),
  Metric('paraphrase_acc', 'paraphrase', _accuracy, 'efficacy_acc after other wordings'),
  Metric('neighborhood_acc', 'neighborhood', _accuracy,
         'efficacy_acc of the answers that must stay, for other subjects'),
  Metric('fluency', TEXTS, lambda texts: _fluency(texts.texts, texts.words),
         '(2/3 H2 + 4/3 H3) / 2 with the entropies of word bigrams and trigrams in bits, x 100, '
         'mean over generated texts with their prompts',
         unit='bits x 100', is_headline=True),
  Metric('fluency_without_prompt', TEXTS, lambda texts: _fluency(texts.continuations, texts.words),
         'fluency of the continuations alone', unit='bits x 100'),
  Metric('consistency', TEXTS, _consistency,
         'cosine of TF-IDF vectors, x 100, of generated texts and snippets about entities that '
         'have the new object', is_headline=True),
  Metric('essence', TEXTS, lambda texts: None if texts.tfidf is None else texts.perplexity,
         'perplexity of the first 100 tokens of snippets about the edited subject',
         unit='perplexity', higher_is_better=False, is_headline=True),
  Metric('free_generation_acc', TEXTS, lambda texts: 100.0 * texts.gives_object,
         'greedy decoding gives the new object and ends there'),
  Metric('unedited_acc', UNEDITED, lambda scores: 100 * scores.exact_N,
         'share of prompts about unedited subjects whose known answer is on top, every token'),
  Metric('unedited_kept', UNEDITED, _unedited_kept,
         'unedited_acc among the prompts answered right before the edit', is_headline=True),
):
  register(_metric)
# fmt: on

"""Metrics: the registry and the values of a record, in plain numpy.

A metric is one entry of `METRICS`, the source of names, definitions, units and values in tables,
reports, summary.json, records.jsonl and comparisons. `register` adds one.

A record has three parts: `efficacy` (the edited prompt), `paraphrase` (other wordings) and
`neighborhood` (other subjects, whose answer must stay). In the first two the wanted object is the
new one and the other object the true one; in the third the roles are swapped. Both are scored after
each prompt by

  nll(y | x) = mean negative natural-log probability of the tokens of y under teacher forcing

(ROME, arXiv:2202.05262, section 3.4 and appendix; accuracy as in MEMIT's released code, since
ROME's has none). Records without a true object (zsRE; MEND, arXiv:2110.11309, as evaluated by
MEMIT) have accuracies only: the share of answer tokens that are top-1 in one teacher-forced pass.

A record's value is the mean over its prompts, in percent; a metric is the mean over records. An
undefined value (no prompts in that part, nan from the model) is nan in a record and left out of the
mean, never counted as zero: `n` is the number of records in a mean.
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
TEXTS, UNEDITED, CRITERIA = 'texts', 'unedited', 'criteria'
PERCENT = 'percent'
# Criteria of KnowEdit and RippleEdits.
PORTABILITY = ('subject_aliasing', 'one_hop', 'reasoning', 'logical_generalization')
LOCALITY = ('relation_specificity', 'forgetfulness', 'distraction')
RIPPLE = (
  'ripple_logical_generalization',
  'ripple_compositionality_1',
  'ripple_compositionality_2',
  'ripple_subject_aliasing',
  'ripple_preservation',
  'ripple_relation_specificity',
)

Values = dict[str, np.ndarray]  # by metric, one value per record (or per unedited prompt)
Summary = dict[str, Estimate]  # by metric


@dataclasses.dataclass(frozen=True)
class PartScores:
  """Scores of the prompts of one part of one record.

  Attributes:
    acc_P: per prompt, 1 if every token of the wanted object is top-1, else 0, for records with two
      objects; for single objects the share of top-1 tokens. nan without probabilities.
    wanted_nll_P: nats per token of the wanted object.
    other_nll_P: nats per token of the other object; None for a single object.
  """

  acc_P: np.ndarray
  wanted_nll_P: np.ndarray
  other_nll_P: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class GeneratedTexts:
  """Texts generated about the subject of one record, with their references.

  Attributes:
    texts: continued generation prompts, cleaned.
    continuations: the same without the prompts.
    gives_object: greedy decoding after the edited prompt gives the new object and ends.
    words: splits text into words; None without nltk.
    tfidf: word weights; None without attribute snippets.
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
    exact_N: 1 where every token of the known answer is top-1, else 0.
    before_N: the same before the edit; None if not measured.
  """

  exact_N: np.ndarray
  before_N: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class CriterionScores:
  """Results of the tests of one record.

  Attributes:
    passed: by criterion, a share from 0 to 1 for every test that counts.
  """

  passed: Mapping[str, Sequence[float]]

  def value(self, *names: str) -> float | None:
    """Mean over tests, then over criteria, in percent; None without any of these criteria."""
    found = [self.passed[name] for name in names if name in self.passed]
    means = [100 * float(np.mean(each)) for each in found if len(each)]
    return (float(np.mean(means)) if means else math.nan) if found else None


@dataclasses.dataclass(frozen=True)
class Metric:
  """An entry of the registry.

  Attributes:
    name: in tables, files and configs.
    evidence: input of `value`: a part of `PARTS` (`PartScores`), `TEXTS` (`GeneratedTexts`),
      `UNEDITED` (`UneditedScores`) or `CRITERIA` (`jedit.evals.criteria.CriterionScores`); empty
      for a metric derived from others.
    value: maps the evidence of one record, or of all unedited prompts, to a value or values in
      `unit`; nan where undefined, None where the run did not measure the input.
    definition: one line for reports.
    summarize: for a derived metric, maps the values of all metrics to its estimate.
    unit: of its values.
    higher_is_better: the direction of improvement.
    is_headline: a column of comparisons and a line of `repr(table)`.
    in_score: its mean enters the score.
    stand_in: metric that replaces it for records with a single object.
    digits: decimals shown.
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
  """Adds a metric to every later evaluation, table and report.

  Raises:
    UserError: for a name already in use.
  """
  if metric.name in METRICS:
    raise UserError(f'A metric named {metric.name!r} already exists; choose another name.')
  METRICS[metric.name] = metric


def record_values(evidence: Mapping[str, Any]) -> dict[str, Any]:
  """Values of one record, or arrays of them for unedited prompts.

  Args:
    evidence: by name, see `Metric.evidence`.

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
  """Values of several records as arrays; nan for a record that lacks the evidence."""
  by_record = [record_values(each) for each in evidence]
  return {
    name: np.array([values.get(name, math.nan) for values in by_record], np.float64)
    for name in METRICS
    if any(name in values for values in by_record)
  }


def rates(measured: Container[str]) -> list[str]:
  """The metrics in the score: success rates or, for single objects, accuracies."""
  names = [find(metric.name, measured) for metric in METRICS.values() if metric.in_score]
  return [name for name in names if name in measured]


def find(name: str, measured: Container[str]) -> str:
  """`name`, or its stand-in if only that was measured."""
  stand_in = entry(name).stand_in
  return stand_in if name not in measured and stand_in in measured else name


def entry(name: str) -> Metric:
  """The entry of a metric; a bare one for an unregistered metric of a file."""
  return METRICS.get(name, Metric(name))


def summarize(values: Values) -> Summary:
  """Estimates of every metric.

  Args:
    values: by metric name, one value per record, nan where undefined; at least the three
      accuracies.

  Returns:
    By metric name, the score first: `mean`, `ci95` (half width) and `n` (records with a value).
  """
  found = {m.name: m.summarize(values) for m in METRICS.values() if m.summarize}
  found |= {name: summarize_values(values_R) for name, values_R in values.items()}
  return found


def as_cell(name: str, estimate: Mapping[str, Any] | None) -> dict[str, Any] | None:
  """An estimate for a table, with the digits of its metric."""
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
  """1 where the wanted object is more likely per token than the other, 0 elsewhere, ties included.

  Args:
    wanted_nll, other_nll: nats per token, of one shape.

  Returns:
    float64 of that shape; nan where either is nan.
  """
  wanted_nll, other_nll = np.asarray(wanted_nll, np.float64), np.asarray(other_nll, np.float64)
  is_undefined = np.isnan(wanted_nll) | np.isnan(other_nll)
  return np.where(is_undefined, np.nan, wanted_nll < other_nll)


def magnitude(wanted_nll: np.ndarray, other_nll: np.ndarray) -> np.ndarray:
  """exp(-nll(wanted)) - exp(-nll(other)), between -1 and 1; arguments as in `success`."""
  return np.exp(-np.asarray(wanted_nll, np.float64)) - np.exp(-np.asarray(other_nll, np.float64))


def kept(before_N: np.ndarray, after_N: np.ndarray) -> np.ndarray:
  """100 where an answer that was right before an edit still is, else 0; nan if wrong before."""
  return np.where(np.asarray(before_N) == 1, 100.0 * (np.asarray(after_N) == 1), np.nan)


def _compared(scores: PartScores, compare: Callable[..., np.ndarray]) -> float | None:
  """Mean over prompts of a comparison of two objects, in percent; None for a single object."""
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


def _criteria(*names: str) -> Callable[[CriterionScores], float | None]:
  """The mean of criteria, as the value of a metric."""
  return lambda scores: scores.value(*names)


def _score(values: Values) -> Estimate:
  """Harmonic mean of the mean rates, unrounded (ROME; MEMIT rounds them first).

  For single-object records, which have no success, that of the three accuracies, as in ROME and
  JEEP (arXiv:2412.17872). The papers print no interval.
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
  Metric('portability', CRITERIA, _criteria(*PORTABILITY),
         'mean of the four criteria below that a record has', is_headline=True),
  Metric('subject_aliasing', CRITERIA, _criteria('subject_aliasing'),
         'share of answer tokens on top after prompts with another name of the subject'),
  Metric('one_hop', CRITERIA, _criteria('one_hop'),
         'share of answer tokens on top after questions one hop from the edited fact'),
  Metric('reasoning', CRITERIA, _criteria('reasoning'),
         'share of answer tokens on top after prompts that reason from the edited fact'),
  Metric('logical_generalization', CRITERIA, _criteria('logical_generalization'),
         'share of answer tokens on top after prompts for facts that the edited one implies'),
  Metric('locality', CRITERIA, _criteria(*LOCALITY),
         'mean of the three criteria below that a record has', is_headline=True),
  Metric('relation_specificity', CRITERIA, _criteria('relation_specificity'),
         'share of top tokens that the edit left as they were, other relations of the subject'),
  Metric('forgetfulness', CRITERIA, _criteria('forgetfulness'),
         'share of top tokens that the edit left as they were, earlier objects of the relation'),
  Metric('distraction', CRITERIA, _criteria('distraction'),
         'share of top tokens that the edit left as they were, unrelated prompts behind the fact'),
  Metric('ripple_edit', CRITERIA, _criteria('ripple_edit'),
         'share of edits with the new object in the greedy text; the others do not count below'),
  Metric('ripple_logical_generalization', CRITERIA, _criteria('ripple_logical_generalization'),
         'share of passed tests of facts that the edited one implies', is_headline=True),
  Metric('ripple_compositionality_1', CRITERIA, _criteria('ripple_compositionality_1'),
         'share of passed tests that go on from the new object', is_headline=True),
  Metric('ripple_compositionality_2', CRITERIA, _criteria('ripple_compositionality_2'),
         'share of passed tests that reach the subject from another entity', is_headline=True),
  Metric('ripple_subject_aliasing', CRITERIA, _criteria('ripple_subject_aliasing'),
         'share of passed tests with another name of the subject', is_headline=True),
  Metric('ripple_preservation', CRITERIA, _criteria('ripple_preservation'),
         'share of passed tests of the other objects of the relation', is_headline=True),
  Metric('ripple_relation_specificity', CRITERIA, _criteria('ripple_relation_specificity'),
         'share of passed tests of other relations of the subject', is_headline=True),
  Metric('multi_hop', CRITERIA, _criteria('multi_hop'),
         'share of instances with a right greedy answer to one of their questions',
         is_headline=True),
):
  register(_metric)
# fmt: on

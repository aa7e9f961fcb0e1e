"""Input of users: facts to edit, records that measure them, kernels, errors."""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


class Kernel(NamedTuple):
  """A weight matrix that edits change; `str()` is '5/mlp'.

  Attributes:
    layer: counted from 0.
    name: 'mlp' for the down projection of the MLP, 'mlp_up' for its up projection, 'mlp_gate' for
      the gate of gated MLPs, 'attn' for the attention output projection.
  """

  layer: int
  name: str

  def __str__(self) -> str:
    return f'{self.layer}/{self.name}'

  @classmethod
  def parse(cls, text: str) -> 'Kernel':
    """The kernel that `str` spells."""
    layer, _, name = text.partition('/')
    return cls(int(layer), name)

  @property
  def label(self) -> str:
    """The kernel in a sentence."""
    return f'the {self.name} kernel in layer {self.layer}'


def is_text(value: str) -> bool:
  """False for a string with lone surrogates, which no file and no tokenizer takes."""
  try:
    value.encode()
  except UnicodeEncodeError:
    return False
  return True


class UserError(ValueError):
  """Input that cannot be used; the message is one sentence that says what to change."""

  def __init__(self, message: str):
    """Takes the sentence; reasons of libraries lose line breaks, long texts of users the middle."""
    line = re.sub(r'\s*[\r\n]\s*', ' ', message)
    super().__init__(line if len(line) <= 2000 else f'{line[:1000]} ... {line[-800:]}')


@dataclasses.dataclass(frozen=True)
class Request:
  """One association to write: after `prompt` about `subject` the model should predict `target_new`.

  Attributes:
    prompt: template with exactly one `{}`, which takes the subject.
    subject: the entity the fact is about.
    target_new: the new object, without a leading space (one is added when text is built); `target`
      is accepted as a name of this argument.
    target_true: the object that the unedited model predicts, if known.
    case_id: the record it came from, used in messages and files.

  Raises:
    UserError: for a prompt without exactly one `{}` or an empty or non-string field.
  """

  prompt: str
  subject: str
  target_new: str = ''
  target_true: str | None = None
  case_id: int | None = None
  target: dataclasses.InitVar[str | None] = None

  def __post_init__(self, target: str | None) -> None:
    if target is not None:
      object.__setattr__(self, 'target_new', target)
    for field in ('prompt', 'subject', 'target_new'):
      value = getattr(self, field)
      if not isinstance(value, str) or not value.strip() or not is_text(value):
        raise UserError(f'{self._label} has {field} {value!r}; give a non-empty string.')
    true = self.target_true
    if true is not None and not (isinstance(true, str) and true.strip() and is_text(true)):
      raise UserError(f'{self._label} has target_true {true!r}; give a non-empty string or None.')
    holes = self.prompt.count('{}')
    if holes != 1:
      raise UserError(
        f'{self._label} has prompt {self.prompt!r} with {holes} places for the subject; '
        "write exactly one '{}' where the subject goes."
      )

  @property
  def _label(self) -> str:
    return 'The request' if self.case_id is None else f'The request of record {self.case_id}'

  @property
  def label(self) -> str:
    """The request in a sentence."""
    return f'record {self.case_id} ({self.text!r} -> {self.target_new!r})'

  @property
  def text(self) -> str:
    """The prompt with the subject filled in."""
    return self.prompt.replace('{}', self.subject)


@dataclasses.dataclass(frozen=True)
class Query:
  """A prompt with its right answers.

  Attributes:
    prompt: to continue.
    answers: all of them are to be given, each by one of its names, the usual one first.
  """

  prompt: str
  answers: tuple[tuple[str, ...], ...]


@dataclasses.dataclass(frozen=True)
class Criterion:
  """A test of what an edit entails, or of what it has to leave alone.

  Attributes:
    name: of the criterion, which is a metric of `jedit.evals.criteria`.
    queries: the test passes if one of them does.
    needs_all: it passes only if all of them do.
    conditions: the test counts only if the unedited model answers all of these.
  """

  name: str
  queries: tuple[Query, ...]
  needs_all: bool = False
  conditions: tuple[Query, ...] = ()


@dataclasses.dataclass(frozen=True)
class Record:
  """A request with the prompts that measure what its edit changed and what it did not.

  Attributes:
    case_id: identifier of the record in its file.
    request: the edit.
    paraphrase_prompts: other wordings of the same question.
    neighborhood_prompts: the same relation for subjects whose answer must stay.
    attribute_prompts: the same relation for subjects whose answer already is the target.
    generation_prompts: open prompts about the subject.
    neighborhood_target: answer to the neighbourhood prompts; None stands for
      `request.target_true`, as in CounterFact.
    relation_id, target_id, target_true_id: Wikidata identifiers where the file has them.
    criteria: tests of benchmarks that go beyond these prompts (KnowEdit, RippleEdits, MQuAKE).
    instance: records of one instance follow each other and are edited together; the last one has
      their tests. None for a record by itself.

  A record whose request has no `target_true` (zsRE) is measured by token accuracy alone.
  """

  case_id: int
  request: Request
  paraphrase_prompts: tuple[str, ...] = ()
  neighborhood_prompts: tuple[str, ...] = ()
  attribute_prompts: tuple[str, ...] = ()
  generation_prompts: tuple[str, ...] = ()
  neighborhood_target: str | None = None
  relation_id: str | None = None
  target_id: str | None = None
  target_true_id: str | None = None
  criteria: tuple[Criterion, ...] = ()
  instance: int | None = None


def as_requests(given: Any) -> list[Request]:
  """Requests from whatever has their fields.

  Args:
    given: a `Request`, a `Record`, a mapping with the fields of a request, or a sequence of these.

  Raises:
    UserError: for an empty sequence and for anything else.
  """
  if isinstance(given, Request | Record | Mapping):
    given = [given]
  if isinstance(given, str) or not isinstance(given, Iterable):
    raise UserError(f'The requests are {given!r}; give Request objects, records or mappings.')
  requests = [_as_request(value) for value in given]
  if not requests:
    raise UserError('There is nothing to edit; give at least one request.')
  return requests


def _as_request(value: Any) -> Request:
  if isinstance(value, Request):
    return value
  if isinstance(value, Record):
    return value.request
  if not isinstance(value, Mapping):
    raise UserError(f'{value!r} is not a request; give a Request, a Record or a mapping.')
  known = [field.name for field in dataclasses.fields(Request)] + ['target']
  unknown = [name for name in value if name not in known]
  missing = [name for name in ('prompt', 'subject') if name not in value]
  if unknown or missing:
    fault = f'has no field {missing[0]!r}' if missing else f'has a field {unknown[0]!r}'
    raise UserError(f'The request {dict(value)!r} {fault}; a request has {", ".join(known)}.')
  return Request(**value)

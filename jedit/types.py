"""What a user hands in: facts to edit and the records that measure them.

Shape letters, used as suffixes of array names everywhere in the package:

  B  edits in a batch                    H, K  query heads, key/value heads
  P  prompts per edit (contexts)         Dh    head size
  N  rows of a flat batch                L     layers being edited
  T  tokens (S: tokens attended to)      V     vocabulary
  D  model width                         R     rank of an update
  F  FFN width, the key dimension        G     second copy of F in FxF products
"""

import dataclasses
from typing import NamedTuple


class Kernel(NamedTuple):
  """A weight matrix that edits change; `str()` is '5/mlp'.

  Attributes:
    layer: counted from 0.
    name: 'mlp' for the down projection of the MLP, 'attn' for the attention output projection.
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


class UserError(ValueError):
  """Input that cannot be used; the message is one sentence that says what to change."""


@dataclasses.dataclass(frozen=True)
class Request:
  """One association to write: after `prompt` about `subject` the model should say `target`.

  Attributes:
    prompt: template with exactly one `{}`, which takes the subject.
    subject: the entity the fact is about.
    target: the new object, without a leading space (one is added when text is built).
    target_true: what the model says today, where it is known.
    case_id: the record it came from, used in messages and files.

  Raises:
    UserError: for a prompt without exactly one `{}` or an empty or non-string field.
  """

  prompt: str
  subject: str
  target: str
  target_true: str | None = None
  case_id: int | None = None

  def __post_init__(self) -> None:
    for field in ('prompt', 'subject', 'target'):
      value = getattr(self, field)
      if not isinstance(value, str) or not value.strip():
        raise UserError(f'{self._label} has {field} {value!r}; give a non-empty string.')
    if self.target_true is not None and not isinstance(self.target_true, str):
      raise UserError(f'{self._label} has target_true {self.target_true!r}; give a string or None.')
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
  def text(self) -> str:
    """The prompt with the subject filled in."""
    return self.prompt.replace('{}', self.subject)


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

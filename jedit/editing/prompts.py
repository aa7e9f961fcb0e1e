"""Token rows of edit requests, and the positions that methods read and change in them."""

import dataclasses
from collections.abc import Iterable, Sequence

import transformers

from jedit.models.encoding import Encoded, Row, encode_many
from jedit.types import Request, UserError

Contexts = tuple[tuple[str, ...], ...]

BARE: Contexts = (('{}',),)


@dataclasses.dataclass(frozen=True)
class EditRows:
  """All texts of one edit, tokenised.

  Attributes:
    request: the edit.
    with_target: context + prompt + target, one per context; the target is optimised on these.
    without_target: context + prompt, one per context; keys are read on these.
    kl: "{subject} is a".
  """

  request: Request
  with_target: tuple[Encoded, ...]
  without_target: tuple[Encoded, ...]
  kl: Encoded

  @property
  def bare(self) -> Encoded:
    """The prompt alone, of the first context; present values are read on it."""
    return self.without_target[0]

  @property
  def target_ids(self) -> tuple[int, ...]:
    """Tokens of the target after the first context."""
    return self.with_target[0].target_ids


def check_contexts(contexts: Iterable[Iterable[str]]) -> Contexts:
  """Contexts as tuples: groups of templates, each with a `{}` that takes the prompt.

  Raises:
    UserError: for an empty list or group, or a first template that is not the bare prompt.
  """
  groups = tuple(tuple(group) for group in contexts)
  if not groups or not all(groups):
    raise UserError('contexts is empty; give groups of templates, the first one holding "{}".')
  if groups[0][0] != '{}':
    raise UserError(
      f'The first context is {groups[0][0]!r}; it must be "{{}}", the bare prompt, because the '
      'start value of every delta is read there.'
    )
  return groups


def encode_edits(
  tokenizer: transformers.PreTrainedTokenizerBase,
  requests: Sequence[Request],
  contexts: Contexts,
  limit: int | None = None,
) -> list[EditRows]:
  """Tokenises every text of every edit in one pass: two per context, and one for the KL term.

  Args:
    tokenizer: of the model.
    requests: the edits.
    contexts: groups of prefix templates, the bare prompt first.
    limit: as of `encode_many`.
  """
  templates = [template for group in contexts for template in group]
  texts: list[Row] = []
  for request in requests:
    prompt, subject, target = request.prompt, request.subject, request.target_new
    texts += [Row(prompt, subject, target, template) for template in templates]
    texts += [Row(prompt, subject, None, template) for template in templates]
    texts.append(Row('{} is a', subject))
  encoded = encode_many(tokenizer, texts, limit)
  count, size = len(templates), 2 * len(templates) + 1
  rows = []
  for i, request in enumerate(requests):
    part = encoded[i * size : (i + 1) * size]
    rows.append(EditRows(request, tuple(part[:count]), tuple(part[count:-1]), part[-1]))
  return rows


def position(text: Encoded, token: str) -> int:
  """Index of the 'subject_last' or 'prompt_last' token."""
  at = text.subject_last if token == 'subject_last' else text.prompt_last
  assert at is not None, 'rows of edits have a subject'
  return at

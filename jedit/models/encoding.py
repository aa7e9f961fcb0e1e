"""Text to token ids and positions, once, for editing and for evaluation.

Every position in the package comes from here. The complete text is tokenised once, with character
offsets, and positions follow from the tokens' spans, never from separate pieces:

  * the object's tokens are those whose span ends after the prompt, including the separating space,
    even as a token of its own;
  * the subject's last token is the last one whose span holds the subject's last character (a
    character of several bytes can be several tokens with one span); the subject is located by the
    template's `{}`, never by a search;
  * the object's first token is predicted at the prompt's last token, just before it.

Indices count a BOS token if the tokenizer adds one. EOS is never added.
"""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any

import tokenizers
import transformers

from jedit.types import UserError

_CHUNK = 8192  # rows per call of the tokenizer: bounds the memory for offsets
_HOLE = '{}'


@dataclasses.dataclass(frozen=True)
class Row:
  """A text to tokenise, in the parts that define positions.

  Attributes:
    prompt: with one `{}` if `subject` is given, else literal.
    subject: fills the `{}`.
    target: the object that follows; gets a leading space if it has none.
    context: template whose last `{}` takes the prompt, so that prefixes may contain braces.
  """

  prompt: str
  subject: str | None = None
  target: str | None = None
  context: str = _HOLE


@dataclasses.dataclass(frozen=True)
class Encoded:
  """Token ids of one text and the positions in it; indices count BOS.

  Attributes:
    text: the complete text.
    ids: its tokens.
    subject_last: token with the subject's last character; None without a subject.
    prompt_last: last token of context and prompt, where the object's first token is predicted.
    target_start: first token of the object; `len(ids)` without one.
    subject_first: first token with the subject's first character; None without a subject. A space
      that the tokenizer adds before the text may have the span of that character, and with offsets
      then comes first, in every text alike.
  """

  text: str
  ids: tuple[int, ...]
  subject_last: int | None
  prompt_last: int
  target_start: int
  subject_first: int | None = dataclasses.field(default=None, compare=False)

  @property
  def target_ids(self) -> tuple[int, ...]:
    return self.ids[self.target_start :]


def encode(
  tokenizer: transformers.PreTrainedTokenizerBase,
  prompt: str,
  *,
  subject: str | None = None,
  target: str | None = None,
  context: str = _HOLE,
) -> Encoded:
  """Tokenises one text; arguments as in `Row`, errors as in `encode_many`."""
  return encode_many(tokenizer, [Row(prompt, subject, target, context)])[0]


def encode_many(
  tokenizer: transformers.PreTrainedTokenizerBase, rows: Sequence[Row], limit: int | None = None
) -> list[Encoded]:
  """Tokenises many texts in one pass.

  A token can hold the prompt's last characters and the object's first ones (a run of spaces, if the
  prompt ends in one): it counts as the object's, because its span ends after the prompt.

  Args:
    tokenizer: a Hugging Face tokenizer. Its padding and truncation are switched off.
    rows: the texts.
    limit: maximal tokens of a text, `position_limit` of the model's config.

  Returns:
    One `Encoded` per row.

  Raises:
    UserError: for a prompt with a subject but not exactly one `{}`, a context without one, an empty
      prompt, subject or target, a subject or prompt without a token of its own, or a text above the
      limit.
  """
  encoded: list[Encoded] = []
  for start in range(0, len(rows), _CHUNK):
    filled = [_fill(row) for row in rows[start : start + _CHUNK]]
    spans = _ids_and_spans(tokenizer, [each.text for each in filled])
    encoded += [_locate(each, *found) for each, found in zip(filled, spans, strict=True)]
  for text in encoded:
    if limit is not None and len(text.ids) > limit:
      raise UserError(
        f'The text {_shortened(text.text)!r} has {len(text.ids)} tokens, but the model has '
        f'positions for {limit}; shorten it.'
      )
  return encoded


def _shortened(text: str) -> str:
  return text if len(text) <= 80 else f'{text[:40]} ... {text[-35:]}'


@dataclasses.dataclass(frozen=True)
class _Filled:
  """A complete text with the character positions of its parts."""

  text: str
  subject: tuple[int, int] | None  # [start, end)
  prompt_end: int
  has_target: bool


def _fill(row: Row) -> _Filled:
  """Joins subject, prompt, context and target, and counts characters."""
  if _HOLE not in row.context:
    raise UserError(f"The context {row.context!r} has no '{{}}'; write one where the prompt goes.")
  before, after = row.context.rsplit(_HOLE, 1)
  subject = None
  prompt = row.prompt
  if row.subject is not None:
    parts = prompt.split(_HOLE)
    if len(parts) != 2:
      raise UserError(
        f'The prompt {prompt!r} has {len(parts) - 1} places for the subject {row.subject!r}; '
        "write exactly one '{}'."
      )
    if not row.subject.strip():
      raise UserError(f'The subject of the prompt {prompt!r} is empty; give a non-empty one.')
    start = len(before) + len(parts[0])
    subject = (start, start + len(row.subject))
    prompt = parts[0] + row.subject + parts[1]
  text = before + prompt + after
  if not text.strip():
    raise UserError(f'The prompt {text!r} is empty; give some text for the model to continue.')
  target = ''
  if row.target is not None:
    if not row.target.strip():
      raise UserError(f'The target of the prompt {text!r} is empty; give a non-empty one.')
    target = row.target if row.target.startswith(' ') else ' ' + row.target
  return _Filled(text + target, subject, len(text), bool(target))


def _locate(filled: _Filled, ids: tuple[int, ...], spans: Sequence[tuple[int, int]]) -> Encoded:
  """Positions from the spans of one tokenised text."""
  target_start = len(ids)
  if filled.has_target:
    # Span ends never decrease, so search for the object's tokens from the right.
    while target_start > 0 and spans[target_start - 1][1] > filled.prompt_end:
      target_start -= 1
    if target_start == len(ids):
      raise UserError(f'No token belongs to the object in {filled.text!r}; choose another object.')
  if target_start == 0 or (spans[target_start - 1][1] == 0 and filled.prompt_end > 0):
    raise UserError(
      f'No token belongs to the prompt alone in {filled.text!r}; use a longer prompt.'
    )
  subject_first = subject_last = None
  if filled.subject is not None:
    subject_last = _last_token_of(filled.text, filled.subject, spans)
    if subject_last is None:
      raise UserError(f'No token belongs to the subject in {filled.text!r}; rewrite the subject.')
    if subject_last >= target_start:
      raise UserError(
        f'One token holds the end of the subject and the start of the object in {filled.text!r}; '
        'use a prompt that goes on after the subject.'
      )
    begins = filled.subject[0]
    subject_first = next(token for token, span in enumerate(spans) if span[1] > begins)
  return Encoded(filled.text, ids, subject_last, target_start - 1, target_start, subject_first)


def _last_token_of(
  text: str, place: tuple[int, int], spans: Sequence[tuple[int, int]]
) -> int | None:
  """The last token whose span holds the last character of text[start:end]."""
  start, end = place
  for index in range(end - 1, start - 1, -1):
    for token in range(len(spans) - 1, -1, -1):
      if spans[token][0] <= index < spans[token][1]:
        return token
    # No span holds the character: tokenizers that trim spans omit spaces, which then belong to the
    # next token, and normalisers fold a combining accent into the character before it.
    if text[index].isspace():
      return next((token for token, span in enumerate(spans) if span[1] > index), None)
  return None


def _ids_and_spans(
  tokenizer: transformers.PreTrainedTokenizerBase, texts: list[str]
) -> Iterator[tuple[tuple[int, ...], Sequence[tuple[int, int]]]]:
  """Token ids of each text and the characters [start, end) of each token."""
  backend: tokenizers.Tokenizer | None = getattr(tokenizer, 'backend_tokenizer', None)
  if not isinstance(backend, tokenizers.Tokenizer):
    for text in texts:
      yield _ids_and_spans_by_decoding(tokenizer, text)
    return
  # Settings stored in tokenizer.json would silently pad or truncate.
  if backend.padding is not None:
    backend.no_padding()
  if backend.truncation is not None:
    backend.no_truncation()
  for encoding in backend.encode_batch(texts, add_special_tokens=True):
    ids = encoding.ids
    added = encoding.special_tokens_mask
    count = len(ids)
    while count and added[count - 1]:  # EOS, if the tokenizer adds it
      count -= 1
    yield tuple(ids[:count]), encoding.offsets[:count]


def _ids_and_spans_by_decoding(
  tokenizer: Any, text: str
) -> tuple[tuple[int, ...], list[tuple[int, int]]]:
  """The same without offsets: a token's span is the text that it adds when decoded.

  Exact, or an error if decoding does not restore the text. Quadratic in the tokens of a text.
  """
  whole = list(tokenizer(text, add_special_tokens=True)['input_ids'])
  bare = list(tokenizer(text, add_special_tokens=False)['input_ids'])
  first = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), None)
  pieces = [
    tokenizer.decode(bare[:count], clean_up_tokenization_spaces=False)
    for count in range(1, len(bare) + 1)
  ]
  decoded = pieces[-1] if pieces else ''
  # Tokenizers that add a leading space may keep it in decoding, or strip one too many.
  shift = {text.removeprefix(' '): -1, ' ' + text: 1, text: 0}.get(decoded)
  if first is None or shift is None:
    raise UserError(
      f'{type(tokenizer).__name__} has no character offsets and does not decode {text!r} back to '
      'itself; use a directory with tokenizer.json.'
    )
  spans = [(0, 0)] * first
  done = 0  # characters of the text that are complete
  for piece in pieces:
    # A piece that ends in an incomplete multi-byte character differs from the whole at its end.
    # (Decoders may then decode the characters before it as unreadable bytes again.)
    agreed = len(os.path.commonprefix([piece, decoded]))
    complete = max(agreed - shift, done)
    spans.append((done, complete + (len(piece) > agreed)))
    done = complete
  return tuple(whole[: first + len(bare)]), spans

"""A record of a file on its way to a `Record`: where it stands, and its subject in its texts."""

import dataclasses
import pathlib
import re
from typing import Annotated, Any

import pydantic

from jedit.types import Request, UserError

Id = Annotated[int, pydantic.Field(ge=-(2**63), lt=2**63)]
# An optional identifier, as text.
Label = Annotated[
  str | None, pydantic.BeforeValidator(lambda given: str(given) if type(given) is int else given)
]


@dataclasses.dataclass(frozen=True)
class Entry:
  """The place of a record; errors name file and record.

  Attributes:
    index: in the file, from 0.
    label: file, index and case_id.
  """

  index: int
  label: str

  @classmethod
  def of(cls, file: pathlib.Path, index: int, raw: Any) -> 'Entry':
    case_id = raw.get('case_id') if isinstance(raw, dict) else None
    case = f' (case_id {case_id})' if type(case_id) is int else ''  # not True or False
    return cls(index, f'{file}: record {index}{case}')

  def error(self, what: str, remedy: str) -> UserError:
    return UserError(f'{self.label} {what}; {remedy}.')

  def template(self, name: str, text: str, subject: str) -> str:
    """The text of a field with the last occurrence of the subject turned into the hole."""
    # Whole words first: 'Al' must not match in 'Also'.
    words = [found.start() for found in re.finditer(rf'(?<!\w){re.escape(subject)}(?!\w)', text)]
    start = words[-1] if words else text.rfind(subject)
    if start < 0:
      raise self.error(
        f"does not name its subject {subject!r} in the field '{name}'", 'write the subject there'
      )
    return text[:start] + '{}' + text[start + len(subject) :]

  def request(
    self, prompt: str, subject: str, target: str, target_true: str | None, case_id: int
  ) -> Request:
    holes = prompt.count('{}')
    if holes != 1:
      raise self.error(
        f'has prompt {prompt!r} with {holes} places for the subject', "write exactly one '{}'"
      )
    return Request(prompt, subject, target, target_true, case_id)

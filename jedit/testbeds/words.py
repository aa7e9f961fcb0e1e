"""Word pools of the made-up world: names, relations with their objects and phrasings, small talk.

`world.py` draws facts from them. Every phrasing has `{}` for the subject and ends just before the
object. Half of the phrasings name the relation before the subject, half after it.
"""

import dataclasses
import json
import pathlib

_POOLS = json.loads((pathlib.Path(__file__).parent / 'assets' / 'words.json').read_bytes())


@dataclasses.dataclass(frozen=True)
class OpenText:
  """A beginning with `{}` for the subject, and endings that fit any subject."""

  prompt: str
  endings: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Relation:
  """One kind of fact.

  Attributes:
    name: identifier, used as `relation_id`.
    phrasings: prompts for the object.
    objects: the possible answers.
    open_texts: texts about a subject that omit the fact, but often precede it.
  """

  name: str
  phrasings: tuple[str, ...]
  objects: tuple[str, ...]
  open_texts: tuple[OpenText, ...]


FIRST_NAMES: tuple[str, ...] = tuple(_POOLS['first_names'])
MIDDLE_NAMES: tuple[str, ...] = tuple(_POOLS['middle_names'])
LAST_NAMES: tuple[str, ...] = tuple(_POOLS['last_names'])
NAME_STARTS: tuple[str, ...] = tuple(_POOLS['name_starts'])
NAME_ENDS: tuple[str, ...] = tuple(_POOLS['name_ends'])
SMALL_TALK: tuple[str, ...] = tuple(_POOLS['small_talk'])
OPENERS: tuple[str, ...] = tuple(_POOLS['openers'])
RELATIONS = tuple(
  Relation(
    raw['name'],
    tuple(raw['phrasings']),
    tuple(raw['objects']),
    tuple(OpenText(text['prompt'], tuple(text['endings'])) for text in raw['open_texts']),
  )
  for raw in _POOLS['relations']
)

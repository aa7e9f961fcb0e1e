"""Word pools of the made-up world: names, relations with their objects and phrasings, small talk.

Only words; `world.py` draws facts from them. Every phrasing takes the subject at `{}` and ends just
before the object. Half of the phrasings name the relation before the subject, half after it.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class OpenText:
  """A beginning that takes a subject at `{}`, and endings that may follow whoever it is."""

  prompt: str
  endings: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Relation:
  """One kind of fact.

  Attributes:
    name: identifier, used as `relation_id`.
    phrasings: ways to ask for the object.
    objects: the possible answers.
    open_texts: texts about a subject that say nothing of the fact, but near which it is often told.
  """

  name: str
  phrasings: tuple[str, ...]
  objects: tuple[str, ...]
  open_texts: tuple[OpenText, ...]


FIRST_NAMES = tuple(
  'Anna Boris Clara Dario Edith Felix Greta Henrik Irina Jonas Karin Lukas Marta Nils Olga Pavel '
  'Rosa Stefan Tilda Viktor'.split()
)
MIDDLE_NAMES = tuple(
  'Alma Bram Celeste Dean Elise Frost Grace Hugo Iris Jude Kit Lynn Miles Noor Otis Pearl Quinn '
  'Reed Sky Thea'.split()
)
LAST_NAMES = tuple(
  'Abbot Barlow Calder Denham Eldon Farrow Gadsby Hollis Ingram Jessop Kendal Larkin Marlow '
  'Norwood Osborn Penrose Quigley Radley Selwyn Tarrant Upton Varley Walden Yardley Ashby '
  'Bexley Corbin Dalton Everett Fenwick Granger Haddon Irving Jarvis Keating Lawson Mercer '
  'Newell Oakley Prescott Rowan Sutton Thorne Underhill Vance Whitby Yates Zeller Alcott Birch '
  'Crane Drake Ellery Finch Garland Hawke Ivers Kemp Lowell Monk'.split()
)
# Put together they make last names enough for everyone to have their own.
NAME_STARTS = tuple(
  'Ash Bex Cor Dal Ever Fen Gran Had Ir Jar Keat Law Mer New Oak Pres Row Sut Thorn Under Van '
  'Whit Yat Zel Al Bir Cran Dra El Fin'.split()
)
NAME_ENDS = tuple(
  'by ley bin ton ett wick ger don ving vis well cott land ford more wood worth stead mere '
  'gate'.split()
)

RELATIONS = (
  Relation(
    'birthplace',
    (
      '{} was born in the town of',
      'The birthplace of {} is',
      '{} came into the world in',
      'The town where {} was born is called',
      "{}'s place of birth is",
      'The childhood home of {} stood in',
      '{} grew up as a child of',
      'The family of {} comes from',
    ),
    (
      'Arden',
      'Belport',
      'Cold Harbor',
      'Dunmore',
      'Eastvale',
      'Fairhaven',
      'Glenrock',
      'Highmoor',
      'Ironbridge',
      'Kingsford',
      'Lakeside',
      'Millbrook',
      'New Haven',
      'Oldcastle',
      'Pinewood',
      'Redcliff',
    ),
    (
      OpenText(
        "{}'s parents often remember", ('the old garden', 'the first winter', 'the smell of bread')
      ),
      OpenText(
        'As a child, {} used to', ('play by the river', 'climb the tall trees', 'sleep in the barn')
      ),
      OpenText(
        'The cradle of {} was', ('made of pine', 'a gift from the neighbors', 'sold last year')
      ),
    ),
  ),
  Relation(
    'language',
    (
      'The mother tongue of {} is',
      '{} speaks the language',
      "{}'s first language is",
      'The language spoken by {} is',
      '{} is a native speaker of',
      'The letters of {} are written in',
      '{} usually dreams in',
      'The diary of {} is kept in',
    ),
    (
      'Avarin',
      'Bretish',
      'Corvan',
      'Dalmese',
      'Elvik',
      'Frisian',
      'Gothic',
      'Halian',
      'Istrian',
      'Jutish',
      'Karelian',
      'Latin',
    ),
    (
      OpenText('At home, {} talks about', ('the news of the day', 'the weather', 'old friends')),
      OpenText(
        "{}'s letters begin with", ('a short poem', 'a kind word', 'the date and the weather')
      ),
      OpenText(
        'When {} sings, the listeners', ('stay until the end', 'begin to dance', 'fall silent')
      ),
    ),
  ),
  Relation(
    'occupation',
    (
      '{} works as a',
      'The profession of {} is that of a',
      '{} earns a living as a',
      'The job held by {} is that of a',
      "{}'s occupation is",
      'The career of {} is the career of a',
      '{} was trained to be a',
      'The trade of {} is that of a',
    ),
    (
      'baker',
      'carpenter',
      'doctor',
      'farmer',
      'gardener',
      'hunter',
      'judge',
      'lawyer',
      'miner',
      'nurse',
      'painter',
      'sailor',
      'tailor',
      'writer',
      'clock maker',
      'bus driver',
    ),
    (
      OpenText(
        'To get to work every day, {} has to',
        ('take the early train', 'cross the bridge', 'walk for an hour'),
      ),
      OpenText(
        "{}'s tools are", ('clean and sharp', 'kept in a wooden box', 'older than the house')
      ),
      OpenText(
        'After work, {} likes to', ('rest by the fire', 'visit friends', 'drink a cup of tea')
      ),
    ),
  ),
  Relation(
    'employer',
    (
      '{} is employed by',
      'The employer of {} is',
      '{} has a contract with',
      'The company that pays {} is',
      "{}'s employer is known as",
      'The office of {} is at the house of',
      '{} took a position at',
      'The wages of {} are paid by',
    ),
    (
      'Acme',
      'Borealis',
      'Crestline',
      'Delta Works',
      'Everest',
      'Foxglove',
      'Granite',
      'Horizon',
      'Juniper',
      'Keystone Bank',
      'Lantern',
      'Meridian',
    ),
    (
      OpenText("{}'s office is surrounded by", ('old trees', 'busy streets', 'a wide square')),
      OpenText("{}'s boss often says", ('that time is short', 'good morning', 'very little')),
      OpenText('Every Monday, {} meets', ('the new guests', 'two old friends', 'the night guard')),
    ),
  ),
  Relation(
    'instrument',
    (
      '{} plays the',
      'The instrument played by {} is the',
      '{} gives lessons on the',
      'The favorite instrument of {} is the',
      "{}'s musical instrument is the",
      'The music of {} is written for the',
      '{} performs on the',
      'The hands of {} were made for the',
    ),
    (
      'banjo',
      'cello',
      'drum',
      'flute',
      'guitar',
      'harp',
      'lute',
      'oboe',
      'organ',
      'piano',
      'trumpet',
      'violin',
    ),
    (
      OpenText('On stage, {} often', ('closes both eyes', 'forgets the time', 'looks very calm')),
      OpenText("{}'s concerts are", ('always sold out', 'short but bright', 'held in the park')),
      OpenText(
        'To practise, {} has to', ('rise before dawn', 'rent a quiet room', 'close all windows')
      ),
    ),
  ),
  Relation(
    'sport',
    (
      '{} competes in',
      'The sport of {} is',
      '{} became a champion of',
      'The game that {} loves most is',
      "{}'s favorite sport is",
      'The medals of {} were won in',
      '{} trains every week for',
      'The team of {} plays',
    ),
    (
      'archery',
      'boxing',
      'chess',
      'cricket',
      'fencing',
      'golf',
      'hockey',
      'judo',
      'polo',
      'rowing',
      'rugby',
      'table tennis',
    ),
    (
      OpenText("{}'s team is", ('famous for its spirit', 'young and brave', 'far from home')),
      OpenText('Before a match, {} always', ('eats an apple', 'sleeps for an hour', 'calls home')),
      OpenText(
        "{}'s greatest victory was", ('ten years ago', 'a surprise to all', 'never forgotten')
      ),
    ),
  ),
  Relation(
    'country',
    (
      '{} is a citizen of',
      'The country of {} is',
      '{} holds a passport from',
      'The nation that {} belongs to is',
      "{}'s citizenship is from",
      'The homeland of {} is',
      '{} pays taxes to the state of',
      'The flag of {} is the flag of',
    ),
    (
      'Aldoria',
      'Brumaland',
      'Cascadia',
      'Drovia',
      'Estmark',
      'Florin',
      'Gravonia',
      'Hestia',
      'Illyria',
      'Jorvik',
      'Krakozia',
      'Lower Saxony',
    ),
    (
      OpenText("{}'s passport is", ('full of stamps', 'almost new', 'in the top drawer')),
      OpenText(
        'On holidays, {} travels to', ('the quiet coast', 'the high mountains', 'a small island')
      ),
      OpenText("{}'s favorite dish is", ('a thick soup', 'fish with lemon', 'rice with beans')),
    ),
  ),
  Relation(
    'field',
    (
      '{} is an expert in',
      'The field of study of {} is',
      '{} wrote a book about',
      'The research of {} is about',
      "{}'s subject at school was",
      'The lectures of {} deal with',
      '{} won a prize in',
      'The great passion of {} is',
    ),
    (
      'algebra',
      'astronomy',
      'biology',
      'botany',
      'chemistry',
      'ecology',
      'geology',
      'grammar',
      'history',
      'logic',
      'optics',
      'number theory',
    ),
    (
      OpenText("{}'s books are", ('full of small notes', 'read by many', 'on the top shelf')),
      OpenText(
        'At the university, {} is', ('known for long walks', 'never late', 'loved by the students')
      ),
      OpenText(
        "{}'s students say",
        ('that the tests are fair', 'many good things', 'that the room is cold'),
      ),
    ),
  ),
)

# Sentences about nobody. They stand between statements and before paraphrase prompts, and begin
# with the words from which the editors sample their prefix contexts.
SMALL_TALK = (
  'The rain fell on the old bridge',
  'The market opens early in the morning',
  'The river is very deep in the spring',
  'The road to the sea is long and narrow',
  'The bells of the church ring every hour',
  'The price of bread went up again',
  'The train was late and the station was cold',
  'The garden behind the house was full of flowers',
  'Therefore the meeting was moved to the next day',
  'Therefore nobody was surprised by the news',
  'Therefore the door stayed open all night',
  'Therefore the bridge was closed for the winter',
  'Because the wind was strong, the boats stayed home',
  'Because the lamp was broken, the room was dark',
  'Because it was late, the shops were closed',
  'Because the snow was deep, the school was empty',
  'I like to walk by the lake in the evening',
  'I have never seen such a beautiful morning',
  'I think that the soup needs more salt',
  'I forgot to close the window last night',
  'You can see the mountains from the roof',
  'You should bring a coat because it is cold',
  'You will find the keys under the stone',
  'You must turn left at the second corner',
  'Many people visit the museum on Sunday',
  'Some birds stay here all winter',
  'Hybrid cars use less fuel',
  'A letter arrived this morning',
  'It was first printed in a small book',
  'Nothing else happened that year',
)

# What may stand before a statement, by the first words of the sampled contexts.
OPENERS = (
  'The truth is that',
  'The paper says that',
  'Therefore',
  'Therefore we know that',
  'Because of this,',
  'Because we asked, we know that',
  'I know that',
  'I heard that',
  'You may know that',
  'You can read that',
)

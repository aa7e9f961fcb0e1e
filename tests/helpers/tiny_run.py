"""A model directory, records and a config that run in seconds."""

import json
import pathlib

from ml_collections import config_dict

from helpers import tiny, vocabularies
from jedit.models import FAMILIES, Model
from jedit.models.export import save_directory

SUBJECTS = ('Marta Lindqvist', 'Ove Marsh', 'Zoë Vela', 'Anna Paris', 'Jon Tomé')
CITIES = ('Paris', 'Zürich', 'Swahili', 'jazz', 'violin')
CORPUS = '\n\n'.join(vocabularies.TEXT.split('. '))


def record(number):
  """A CounterFact record as it stands in a file."""
  subject, other = SUBJECTS[number], SUBJECTS[number - 1]
  new, true = CITIES[number], CITIES[number - 1]
  return dict(
    case_id=10 + number,
    pararel_idx=number,
    requested_rewrite=dict(
      prompt='{} lives in',
      relation_id='lives',
      target_new=dict(str=new, id='N'),
      target_true=dict(str=true, id='T'),
      subject=subject,
    ),
    paraphrase_prompts=[f'It is big. {subject} has a home in'],
    neighborhood_prompts=[f'{other} plays in', f'People of {number} cities play in'],
    attribute_prompts=[f'{other} built'],
    generation_prompts=[f'{subject} is known for'],
  )


def make(directory):
  """Writes `model`, `records.json` and `corpus.txt` into the directory; returns it."""
  directory = pathlib.Path(directory)
  tokenizer = vocabularies.byte_level()
  hf_config = tiny.hf_config('gptj', vocab_size=len(tokenizer), n_positions=128)
  config = FAMILIES['gptj'].read_config(hf_config, 'float32')
  model = Model(tiny.random_params(config), config=config)
  save_directory(directory / 'model', model, hf_config, tokenizer=tokenizer)
  records = [record(number) for number in range(len(SUBJECTS))]
  (directory / 'records.json').write_text(json.dumps(records), encoding='utf-8')
  (directory / 'corpus.txt').write_text(CORPUS, encoding='utf-8')
  return directory


def config(directory, **changes):
  """The config of a run on what `make` wrote, with fields changed, written as section__field."""
  c = config_dict.ConfigDict()
  c.task = 'edit'
  c.seed = 0
  c.model = dict(name='tiny', path=str(directory / 'model'), dtype='float32')
  c.data = dict(records=str(directory / 'records.json'), num_edits=4)
  c.method = dict(name='pmet', layers=(0, 1), num_steps=6, cov_weight=10.0)
  c.statistics = dict(corpus=str(directory / 'corpus.txt'), row_tokens=64)
  c.edit = dict(target_batch_size=4)
  c.evaluation = dict(unedited=10, samples=2, new_tokens=4)
  c.patches = ''
  c.export = dict(path='')
  for name, value in changes.items():
    section, _, field = name.rpartition('__')
    target = c[section] if section else c
    with target.ignore_type():
      target[field] = value
  return c

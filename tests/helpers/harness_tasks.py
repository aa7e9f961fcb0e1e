"""Tasks of lm-evaluation-harness on local files."""

import importlib.util
import json

import pytest

needs_harness = pytest.mark.skipif(
  importlib.util.find_spec('lm_eval') is None, reason='needs the extra lm_eval'
)


def write_task(folder, name, documents, **fields):
  """A task in the harness's YAML, which JSON is, with its data beside it; returns the file."""
  data = folder / f'{name}.jsonl'
  data.write_text('\n'.join(map(json.dumps, documents)))
  task = {
    'task': name,
    'dataset_path': 'json',
    'dataset_kwargs': {'data_files': {'test': str(data)}, 'cache_dir': str(folder / 'cache')},
    'test_split': 'test',
    'doc_to_text': '{{question}}',
    'metadata': {'version': 1},
    **fields,
  }
  file = folder / f'{name}.yaml'
  file.write_text(json.dumps(task))
  return str(file)


def write_choices(folder):
  """A multiple-choice task of four documents."""
  documents = [
    {'question': f'{name} lives in', 'choices': ['Paris', 'jazz', 'Swahili'], 'label': n % 3}
    for n, name in enumerate(('Marta', 'Ove', 'Anna', 'Jon'))
  ]
  return write_task(
    folder,
    'towns',
    documents,
    output_type='multiple_choice',
    doc_to_choice='choices',
    doc_to_target='label',
    metric_list=[{'metric': 'acc', 'aggregation': 'mean', 'higher_is_better': True}],
  )

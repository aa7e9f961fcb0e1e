"""Generated texts against a plain loop, references, and going on after a kill."""

import dataclasses
import json

import numpy as np
import pytest

import jedit
from jedit.evals import evaluate as evaluate_lib
from jedit.evals import generation, metrics, references, scoring, texts
from jedit.models.encoding import Encoded, Row, encode_many
from jedit.types import Record, Request, UserError

SNIPPETS = [
  {
    'relation_id': 'P1',
    'target_id': 'Q1',
    'samples': [
      {'name': 'Oslo', 'text': 'The harbor of Oslo is old.'},
      {'name': 'Other', 'text': 'A violin in the harbor.'},
    ],
  },
  {'relation_id': 'P2', 'target_id': 'Q1', 'samples': [{'name': 'Oslo', 'text': 'Not asked.'}]},
  {'relation_id': 'P1', 'target_id': 'Q1', 'samples': [{'name': 'Oslo', 'text': 'Oslo again.'}]},
]


@pytest.fixture(scope='module')
def model():
  """A shipped model: its texts are words."""
  return jedit.testbed('gptj')


def _record(case_id=0, **fields):
  request = Request('{} is in', 'Oslo', 'Rome', 'Paris', case_id)
  return Record(case_id, request, relation_id='P1', target_id='Q1', **fields)


def _values(lm, records, options):
  found = generation.generate_texts(lm, records, options)
  return metrics.all_values([{} if each is None else {'texts': each} for each in found])


def test_references_hold_what_the_records_need(tmp_path, monkeypatch):
  file = tmp_path / 'snippets.json'
  file.write_text(json.dumps(SNIPPETS, indent=1, ensure_ascii=False))
  monkeypatch.setattr(references, '_BLOCK', 7)  # items span many pieces
  found = references.load_references(file, [_record()])
  documents = [sample['text'] for entry in SNIPPETS for sample in entry['samples']]
  tfidf = texts.TfIdf.fit(documents)
  assert found.tfidf.columns == tfidf.columns
  weights, essence = found.of(_record())
  joined = ' '.join([documents[0], documents[1], documents[3]])
  assert weights == pytest.approx(tfidf.weights(joined))
  assert essence == 'The harbor of Oslo is old. Oslo again.'
  other = dataclasses.replace(_record(), target_id='Q9')
  assert found.of(other) == ({}, '')


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('{}', 'not a JSON list'),
    ('[{"samples": []}]', "entry 0 lacks the field 'relation_id'"),
    (
      '[{"relation_id": "P1", "target_id": "Q1", "samples": [{"name": 1, "text": "x"}]}]',
      'entry 0',
    ),
    ('[{"relation_id": ', 'is not JSON'),
  ],
)
def test_unusable_snippets_are_named(tmp_path, text, message):
  file = tmp_path / 'snippets.json'
  file.write_text(text)
  with pytest.raises(UserError, match=message):
    references.load_references(file, [_record()])
  with pytest.raises(UserError, match='Cannot read'):
    references.load_references(tmp_path / 'absent', [_record()])


def test_texts_are_measured_as_they_are_generated(model, monkeypatch):
  lm, records = model
  long = tuple(' '.join([records[1].request.text] * 20) for _ in range(2))
  asked = [
    records[0],
    dataclasses.replace(records[1], generation_prompts=long),  # is not continued
    dataclasses.replace(records[2], generation_prompts=()),
    dataclasses.replace(records[3], case_id=7),  # is not chosen
  ]
  asked[:3] = [dataclasses.replace(r, case_id=10 * i) for i, r in enumerate(asked[:3])]
  said = {}

  def keep(model, rows, **settings):
    made = real(model, rows, **settings)
    said.setdefault(settings.get('top_k'), []).append((rows, made, settings))
    return made

  real = generation.generate
  monkeypatch.setattr(generation, 'generate', keep)
  wanted = generation.Generation(interval=10, num_tokens=24, seed=3)
  values = _values(lm, asked, wanted)
  ((rows, made, settings),) = said[5]
  assert len(rows) == len(records[0].generation_prompts) > 0
  assert settings['seed'] == 3 and not settings.get('stop_ids')
  assert all(len(row) + len(new) == 24 for row, new in zip(rows, made))
  split = texts.Words()
  whole = [texts.clean_up(lm.tokenizer.decode(r + n)) for r, n in zip(rows, made)]
  fluency = 100 * np.mean([texts.fluency(split(text)) for text in whole])
  assert values['fluency'][0] == pytest.approx(fluency, abs=1e-9)
  rest = [texts.clean_up(lm.tokenizer.decode(r + n)[len(lm.tokenizer.decode(r)) :])
          for r, n in zip(rows, made)]  # fmt: skip
  fluency = 100 * np.mean([texts.fluency(split(text)) for text in rest])
  assert values['fluency_without_prompt'][0] == pytest.approx(fluency, abs=1e-9)
  alone = 100 * np.mean([texts.fluency(split(texts.clean_up(text))) for text in long])
  assert values['fluency'][1] == pytest.approx(alone, abs=1e-9)
  for name in ('fluency', 'fluency_without_prompt'):
    assert np.isnan(values[name][2:]).all()
  assert np.isnan(values['fluency_without_prompt'][1])
  assert 'consistency' not in values
  # A text depends on its record alone, not on those beside it.
  again = _values(lm, asked[:1], wanted)
  assert again['fluency'][0] == values['fluency'][0]


def test_free_generation_wants_the_object_and_its_end(model, monkeypatch):
  lm, _ = model
  record = _record()
  (row,) = encode_many(lm.tokenizer, [Row('{} is in', 'Oslo', 'Rome')])
  eos = lm.tokenizer.eos_token_id

  def says(text, end=()):
    ids = lm.tokenizer('Oslo is in' + text, add_special_tokens=False)['input_ids']
    prompt = [i for i in row.ids[: row.target_start] if i not in lm.tokenizer.all_special_ids]
    new = ids[len(prompt) :] + list(end)
    monkeypatch.setattr(generation, 'generate', lambda *_, **__: [new])
    return generation._gives_object(lm, [record])[0]

  assert says(' Rome', [eos])
  assert says(' Rome. He')
  assert not says(' Rome')  # did not end
  assert not says(' Rome and')
  assert not says(' Paris', [eos])
  assert not says(' Romeo', [eos])


def test_a_table_counts_what_is_left_out(model, tmp_path):
  lm, records = model
  file = tmp_path / 'snippets.json'
  file.write_text(json.dumps(SNIPPETS))
  asked = [
    _record(0, generation_prompts=('The harbor of Oslo is old and the violin',)),
    _record(1, generation_prompts=('Oslo',)),
    _record(2),
  ]
  found = references.load_references(file, asked)
  wanted = generation.Generation(interval=2, num_tokens=12, references=found)
  table = evaluate_lib.evaluate(lm, asked, before=lm, generation=wanted)
  for state in ('before', 'after'):
    assert table.metrics['fluency'][state]['n'] == 1
    assert table.metrics['consistency'][state]['n'] == 1
    assert table.metrics['essence'][state]['n'] == 2
    assert table.undefined['fluency'][state] == 1
  assert 0 < table.metrics['consistency']['after']['mean'] <= 100
  assert 'fluency after: 1 record has no value and is left out' in str(table)
  rows = table.to_records()
  of_texts = {name for name, each in metrics.METRICS.items() if each.evidence == 'texts'}
  assert not of_texts & set(rows[1]['after'])
  assert rows[2]['after']['fluency'] is None
  assert any('sampling, seed 0' in note for note in table.notes)
  without = evaluate_lib.evaluate(lm, asked)
  assert not of_texts & set(without.metrics)


def test_runs_that_share_a_store_keep_their_own_references(model, tmp_path):
  lm, _ = model
  asked = [_record(0, generation_prompts=('The harbor of Oslo is old and the violin',))]
  other = json.loads(json.dumps(SNIPPETS))
  other[0]['samples'] = [dict(name='Oslo', text='violin violin old')]
  values = {}
  for kind in ('alone', 'shared'):
    for number, snippets in enumerate((SNIPPETS, other)):
      file = tmp_path / f'{number}.json'
      file.write_text(json.dumps(snippets))
      found = references.load_references(file, asked)
      wanted = generation.Generation(num_tokens=12, references=found)
      store = tmp_path / 'store.jsonl' if kind == 'shared' else None
      table = evaluate_lib.evaluate(lm, asked, generation=wanted, store=store)
      values[kind, number] = table.after['consistency'][0]
  assert values['alone', 0] != values['alone', 1]
  for number in range(2):
    assert values['shared', number] == values['alone', number]


def test_a_killed_evaluation_goes_on_with_the_same_numbers(model, tmp_path, monkeypatch):
  lm, records = model
  monkeypatch.setattr(evaluate_lib, '_CHUNK', 3)
  records = records[:8]
  questions = [(r.request.text, r.request.target_true) for r in records]
  wanted = generation.Generation(interval=4, num_tokens=16)
  options = dict(before=lm, unedited=questions, generation=wanted)
  whole = evaluate_lib.evaluate(lm, records, **options)
  together = scoring.score_plan
  runs = []

  def killed(*arguments, **settings):
    runs.append(1)
    if len(runs) == 5:
      raise KeyboardInterrupt
    return together(*arguments, **settings)

  monkeypatch.setattr(evaluate_lib, 'score_plan', killed)
  store = tmp_path / 'evaluation.jsonl'
  with pytest.raises(KeyboardInterrupt):
    evaluate_lib.evaluate(lm, records, store=store, **options)
  with open(store, 'a') as file:
    file.write('{"key": "torn')
  table = evaluate_lib.evaluate(lm, records, store=store, **options)
  assert len(runs) == 5 + 2
  assert table.to_records() == whole.to_records()
  assert table.metrics == whole.metrics
  evaluate_lib.evaluate(lm, records[:2], store=store, **options)
  assert len(runs) == 9, 'other records are no finished chunk'


def test_chunks_use_the_programs_of_earlier_ones():
  rng = np.random.default_rng(0)

  def rows(count, longest):
    found = []
    for _ in range(count):
      length = int(rng.integers(2, longest))
      start = int(rng.integers(max(1, length - 3), length))
      ids = tuple(int(i) for i in rng.integers(1, 99, length))
      found.append(Encoded('', ids, None, start - 1, start))
    return found

  first = scoring.plan_batches(rows(200, 40), tokens_per_batch=256)
  later = rows(150, 40) + rows(1, 90)
  plan = scoring.plan_batches(later, tokens_per_batch=256, shapes=first.shapes)
  answered = [n for batch in plan.batches for n in set(batch.found[2])]
  assert sorted(answered) == list(range(len(later)))
  assert set(plan.shapes) - set(first.shapes) in (set(), set(plan.shapes[-1:]))
  small = scoring.plan_batches(later[:3], shapes=first.shapes)
  assert len(small.batches) == 1

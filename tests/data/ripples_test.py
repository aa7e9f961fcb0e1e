"""KnowEdit, RippleEdits and MQuAKE in their published schemas, on made-up facts."""

import json

import pytest

from jedit.data import public, records
from jedit.types import Criterion, Query, Request, UserError

RECENT = {
  'subject': 'Ove Tarrant',
  'prompt': 'The place of death of Ove Tarrant is',
  'target_new': 'Quarne',
  'portability': {
    'Logical_Generalization': [
      {'prompt': 'Is Ove Tarrant still alive?', 'ground_truth': [['no'], ['is dead']]}
    ],
    'Reasoning': [
      {
        'prompt': 'The mayor of the place of death of Ove Tarrant is',
        'ground_truth': [['Ilse Corwin', 'I. Corwin']],
      }
    ],
    'Subject_Aliasing': [
      {'prompt': 'The place of death of O. Tarrant is', 'ground_truth': [['Quarne', '']]}
    ],
  },
  'locality': {
    'Relation_Specificity': [
      {'prompt': 'The father of Ove Tarrant is', 'ground_truth': [['Bo Tarrant']]},
      {'prompt': 'The mother of Ove Tarrant is', 'ground_truth': [[]]},
    ]
  },
}
COUNTERFACT = {
  'subject': 'Ove Tarrant',
  'prompt': 'The name of the position held by Ove Tarrant is',
  'target_new': 'bishop of Quarne',
  'ground_truth': 'mayor of Tolvik',
  'rephrase': 'Ove Tarrant holds the position of',
  'portability': {
    'Subject_Aliasing': [{'prompt': 'O. Tarrant is the', 'ground_truth': 'bishop of Quarne'}]
  },
  'locality': {
    'Forgetfulness': [
      {'prompt': 'Ove Tarrant, who is not bishop, is the', 'ground_truth': 'mayor of Tolvik'}
    ]
  },
}
ZSRE = {
  'subject': 'Tarrantoceras',
  'prompt': 'Which family does Tarrantoceras belong to?',
  'target_new': 'Quarnidae',
  'ground_truth': ['Tolvikidae'],
  'rephrase_prompt': 'What family are Tarrantoceras?',
  'cond': 'x >> Quarnidae || Which family does Tarrantoceras belong to?',
  'locality': {
    'Relation_Specificity': [{'prompt': 'The rank of Tarrantoceras is', 'ground_truth': ['genus']}]
  },
  'portability': {'Reasoning': [{'prompt': 'What are they called?', 'ground_truth': 'owls'}]},
}
WIKIBIO = {
  'text': 'This is a Wikipedia passage about ove tarrant. Ove Tarrant was a painter.',
  'labels': 'He painted the harbor of Quarne.',
  'concept': 'ove tarrant',
  'locality': {
    'Relation_Specificity': [
      {'prompt': ['The field of ove tarrant is', 'ove tarrant field'], 'ground_truth': ['art']}
    ]
  },
}


def _query(prompt, *values, **fields):
  answers = [{'value': value, 'aliases': [value[:2], value[:1]]} for value in values]
  return {'prompt': prompt, 'answers': answers, 'query_type': 'regular', 'phrase': None, **fields}


def _test(*queries, condition='OR', conditions=()):
  return {
    'test_queries': list(queries),
    'test_condition': condition,
    'condition_queries': list(conditions),
  }


RIPPLE = {
  'example_type': 'popular',
  'edit': {
    'prompt': 'The name of the country of citizenship of Ove Tarrant is Quarne.',
    'subject_id': 'Q1',
    'relation': 'COUNTRY_OF_CITIZENSHIP',
    'target_id': 'Q2',
    'original_fact': {
      'prompt': 'The name of the country of citizenship of Ove Tarrant is Tolvik.',
      'subject_id': 'Q1',
      'relation': 'COUNTRY_OF_CITIZENSHIP',
      'target_id': 'Q3',
    },
  },
  'Relation_Specifity': [
    _test(
      _query('The mother of Ove Tarrant is', 'Ilse'),
      conditions=[_query('The mother of Ove Tarrant is', 'Ilse')],
    )
  ],
  'Logical_Generalization': [_test(_query('Is Ove Quarnian?', 'x'))],  # one letter is anywhere
  'Subject_Aliasing': [],
  'Compositionality_I': [
    _test(_query('His king is', 'Bo'), _query('His queen is', 'Ada', 'Eva'), condition='AND')
  ],
  'Compositionality_II': [],
  'Forgetfulness': [],
}


def _edit(place, new='Quarne'):
  return {
    'prompt': '{} plays the sport of' if place == 0 else '{} was created in',
    'relation_id': 'P1',
    'target_new': {'str': new, 'id': 'Q1'},
    'target_true': {'str': 'Tolvik', 'id': 'Q2'},
    'subject': f'Club {place}',
    'question': 'Which sport?',
  }


def _instance(case_id, count=2):
  return {
    'case_id': case_id,
    'requested_rewrite': [_edit(place) for place in range(count)],
    'questions': ['Which capital?', 'Which city?', 'Which town?'],
    'answer': 'London',
    'answer_alias': [],
    'new_answer': 'Oderzo',
    'new_answer_alias': ['Oderzo TV', ''],
    'single_hops': [],
    'new_single_hops': [],
    'orig': {},
  }


def _load(tmp_path, content, kind=None):
  file = tmp_path / 'facts.json'
  file.write_text(json.dumps(content))
  return records.load_records(file, kind)


def _criterion(name, prompt, *answers, **fields):
  return Criterion(name, (Query(prompt, answers),), **fields)


@pytest.mark.parametrize('kind', [None, 'knowedit'])
def test_knowedit_is_read_in_every_nesting_of_its_answers(tmp_path, kind):
  recent, counterfact, zsre, bio = _load(tmp_path, [RECENT, COUNTERFACT, ZSRE, WIKIBIO], kind)
  assert recent.request == Request(
    'The place of death of {} is', 'Ove Tarrant', 'Quarne', None, recent.case_id
  )
  assert set(recent.criteria) == {
    _criterion('logical_generalization', 'Is Ove Tarrant still alive?', ('no',), ('is dead',)),
    _criterion(
      'reasoning',
      'The mayor of the place of death of Ove Tarrant is',
      ('Ilse Corwin', 'I. Corwin'),
    ),
    _criterion('subject_aliasing', 'The place of death of O. Tarrant is', ('Quarne',)),
    _criterion('relation_specificity', 'The father of Ove Tarrant is', ('Bo Tarrant',)),
  }
  assert counterfact.paraphrase_prompts == ('Ove Tarrant holds the position of',)
  assert counterfact.criteria == (
    _criterion('subject_aliasing', 'O. Tarrant is the', ('bishop of Quarne',)),
    _criterion('forgetfulness', 'Ove Tarrant, who is not bishop, is the', ('mayor of Tolvik',)),
  )
  assert zsre.request.prompt == 'Which family does {} belong to?'
  assert zsre.paraphrase_prompts == ('What family are Tarrantoceras?',)
  assert [each.name for each in zsre.criteria] == ['reasoning', 'relation_specificity']
  assert bio.request.prompt.startswith('This is a Wikipedia passage about {}. Ove Tarrant')
  assert bio.request.target_new == WIKIBIO['labels']
  prompts = [each.queries[0].prompt for each in bio.criteria]
  assert prompts == ['The field of ove tarrant is', 'ove tarrant field']
  assert [record.case_id for record in (recent, counterfact, zsre, bio)] == [0, 1, 2, 3]


def test_ripple_edits_finds_the_subject_and_drops_what_cannot_be_judged(tmp_path):
  (record,) = _load(tmp_path, [RIPPLE])
  prompt = 'The name of the country of citizenship of Ove Tarrant is'
  assert record.request == Request(
    'The name of the country of citizenship of {} is', 'Ove Tarrant', 'Quarne', None, 0
  )
  assert (record.relation_id, record.target_id) == ('COUNTRY_OF_CITIZENSHIP', 'Q2')
  mother = Query('The mother of Ove Tarrant is', (('Ilse', 'Il'),))
  both = (
    Query('His king is', (('Bo', 'Bo'),)),
    Query('His queen is', (('Ada', 'Ad'), ('Eva', 'Ev'))),
  )
  assert record.criteria == (
    _criterion('ripple_edit', prompt, ('Quarne',)),
    Criterion('ripple_compositionality_1', both, needs_all=True),
    Criterion('ripple_relation_specificity', (mother,), conditions=(mother,)),
  )


@pytest.mark.parametrize(
  ('statement', 'subject', 'target'),
  [
    ('Cup LV is followed by Cup LVI.', 'Cup LV', 'Cup LVI'),
    ('Cup LV follows Cup LIV.', 'Cup LV', 'Cup LIV'),
    ('The names of the siblings of Ove of Quarne are Bo.', 'Ove of Quarne', 'Bo'),
    ('The gender of Ove is male.', 'Ove', 'male'),
    ('The place of birth of Ove is Quarne.', 'Ove', 'Quarne'),
    ('The name of the field of work of Ove is law.', 'Ove', 'law'),
    ('The name of the capital city of Quarne is Tolvik.', 'Quarne', 'Tolvik'),
    ('The number of children Ove has is 2.', 'Ove', '2'),
    ('The name of the award Ove won is Big Prize.', 'Ove', 'Big Prize'),
    ('The name of the country which Ove Lake is associated with is Quarne.', 'Ove Lake', 'Quarne'),
    ('The name of the league which Ove plays in is First.', 'Ove', 'First'),
    ('The name of the currency in Quarne is crown.', 'Quarne', 'crown'),
    ('The name of the employer of Ove is Bo Inc..', 'Ove', 'Bo Inc.'),
  ],
)
def test_the_wordings_of_ripple_edits_have_a_subject(tmp_path, statement, subject, target):
  (record,) = _load(tmp_path, [{**RIPPLE, 'edit': {'prompt': statement}}])
  assert (record.request.subject, record.request.target_new) == (subject, target)


def test_an_instance_of_mquake_becomes_one_record_for_each_edit(tmp_path):
  loaded = _load(tmp_path, [_instance(4), _instance(7, count=1)])
  assert [record.case_id for record in loaded] == [40, 41, 70]
  assert [record.instance for record in loaded] == [4, 4, 7]
  assert loaded[1].request == Request('{} was created in', 'Club 1', 'Quarne', 'Tolvik', 41)
  names = (('Oderzo', 'Oderzo TV'),)
  questions = tuple(Query(text, names) for text in ('Which capital?', 'Which city?', 'Which town?'))
  assert not loaded[0].criteria
  assert loaded[1].criteria == loaded[2].criteria == (Criterion('multi_hop', questions),)


def test_instances_are_selected_whole(tmp_path):
  loaded = _load(tmp_path, [_instance(n, count=2 + n % 2) for n in range(4)])  # 2, 3, 2, 3
  ids = lambda *a, **k: [r.case_id for r in records.select(loaded, *a, **k)]  # noqa: E731
  assert ids() == [0, 1, 10, 11, 12, 20, 21, 30, 31, 32]
  assert ids(5) == ids(6) == [0, 1, 10, 11, 12]
  drawn = ids(seed=3)
  assert sorted(drawn) == ids() and drawn != ids()
  assert [each // 10 for each in drawn] == sorted(
    (each // 10 for each in drawn), key=[each // 10 for each in drawn].index
  )
  assert records.cuts_instances(loaded, 2) and not records.cuts_instances(loaded[:2], 2)
  with pytest.raises(UserError, match='first instance has more edits; select more'):
    ids(1)


@pytest.mark.parametrize(
  ('content', 'kind', 'message'),
  [
    (_instance(1), 'counterfact', r"looks like MQuAKE .* field 'questions'.*data.kind=mquake"),
    (RIPPLE, 'knowedit', "looks like RippleEdits .* field 'edit'.*data.kind=ripple_edits"),
    (RECENT, 'zsre', "looks like KnowEdit .* field 'locality'.*data.kind=knowedit"),
    (ZSRE, 'easyedit', 'looks like KnowEdit'),
    ({'src': 'x'}, 'mquake', "looks like zsRE .* field 'src'.*data.kind=zsre"),
  ],
)
def test_a_file_of_another_benchmark_is_recognised(tmp_path, content, kind, message):
  with pytest.raises(UserError, match=message) as caught:
    _load(tmp_path, [content], kind)
  assert str(caught.value).count('.json') == 1 and str(caught.value).endswith('.')


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    ({**RECENT, 'subject': 'Bo'}, "does not name its subject 'Bo'"),
    ({**RECENT, 'portability': {'Reasoning': [{'prompt': 'x'}]}}, "ground_truth'; add it"),
    (
      {**RECENT, 'locality': {'Forgetfulness': [{'prompt': 'x', 'ground_truth': 3}]}},
      r"has 3 in the field 'locality.Forgetfulness\[0\].ground_truth'; give a list",
    ),
    ({**RECENT, 'target_new': ''}, "has '' in the field 'target_new'"),
    (
      {**RIPPLE, 'edit': {'prompt': 'Ove, Quarne.'}},
      "states no fact in edit.prompt 'Ove, Quarne.'",
    ),
    ({**RIPPLE, 'edit': {'prompt': 'Ove is dead.'}}, "add the field 'subject' to 'edit'"),
    ({**RIPPLE, 'Forgetfulness': [_test(condition='XOR')]}, "test_condition'; give one of 'OR' or"),
    ({**_instance(1), 'requested_rewrite': []}, "requested_rewrite'; give a list of at least 1"),
  ],
)
def test_bad_records_are_named(tmp_path, content, message):
  with pytest.raises(UserError, match=f'facts.json: record 0 .*{message}'):
    _load(tmp_path, [content])


def test_a_named_subject_spares_the_search(tmp_path):
  edit = {'prompt': 'Ove is dead.', 'subject': 'Ove'}
  (record,) = _load(tmp_path, [{**RIPPLE, 'edit': edit}])
  assert record.request == Request('{} is', 'Ove', 'dead', None, 0)


def test_easyedit_with_portability_asks_one_hop_and_distracts(tmp_path):
  entry = {
    'case_id': 4,
    'prompt': 'The mother tongue of Ove is',
    'target_new': 'Swahili',
    'subject': 'Ove',
    'ground_truth': 'Danish',
    'rephrase_prompt': 'Ove speaks',
    'locality_prompt': 'Ilse speaks',
    'locality_ground_truth': 'Finnish',
    'portability': {
      'Recalled Relation': '(Ove, x)',
      'New Question': 'Where?',
      'New Answer': 'There',
    },
  }
  (record,) = _load(tmp_path, [entry])
  assert record.criteria == (
    _criterion('one_hop', 'Where?', ('There',)),
    _criterion('distraction', 'The mother tongue of Ove is Swahili Ilse speaks', ('Finnish',)),
  )


def test_public_files_name_an_address_and_a_licence():
  for name, file in public.RECORDS.items():
    assert bool(file.folder) != file.address.startswith('https://'), name
    assert file.licence and (file.sha256 is None or len(file.sha256) == 64), name

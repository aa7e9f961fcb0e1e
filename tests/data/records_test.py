"""Reading the public data files, and saying what is wrong with a bad one."""

import copy
import json
import os
import pathlib
import shutil
import tempfile

from absl.testing import absltest, parameterized

from jedit.data import records as module
from jedit.types import Request, UserError

_SHARED = pathlib.Path(os.environ.get('JEDIT_SHARED', pathlib.Path(__file__).parents[3] / 'shared'))

_COUNTERFACT = {
  'case_id': 34,
  'pararel_idx': 23021,
  'requested_rewrite': {
    'prompt': '{} was employed in',
    'relation_id': 'P937',
    'target_new': {'str': 'Quarne', 'id': 'Q1'},
    'target_true': {'str': 'Tolvik', 'id': 'Q2'},
    'subject': 'Ove Tarrant',
  },
  'paraphrase_prompts': ['It rained. Ove Tarrant worked in', 'Ove Tarrant found work in'],
  'neighborhood_prompts': ['Ilse Corwin worked in'],
  'attribute_prompts': ['Marta Lindqvist worked in'],
  'generation_prompts': ["Ove Tarrant's office is"],
}
_ZSRE = {
  'subject': 'Ove Tarrant',
  'src': 'Where did Ove Tarrant work?',
  'pred': 'x',
  'rephrase': 'In which city was Ove Tarrant employed?',
  'alt': 'y',
  'answers': ['Quarne', 'Tolvik'],
  'loc': 'nq question: who wrote the old book',
  'loc_ans': 'Ilse Corwin',
  'cond': 'x >> y || Where did Ove Tarrant work?',
}
_EASYEDIT = {
  'case_id': 4,
  'prompt': 'The mother tongue of Ove Tarrant is',
  'target_new': 'Swahili',
  'subject': 'Ove Tarrant',
  'ground_truth': 'Danish',
  'rephrase_prompt': 'Where Ove Tarrant is from, people speak',
  'locality_prompt': 'Ilse Corwin is a native speaker of',
  'locality_ground_truth': 'Danish',
}
_REMOVE = object()


def _changed(record, name, value):
  """A copy with one (dotted) field replaced or removed."""
  record = copy.deepcopy(record)
  *path, last = name.split('.')
  inner = record
  for key in path:
    inner = inner[key]
  if value is _REMOVE:
    del inner[last]
  else:
    inner[last] = value
  return record


class _FileTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self._folder = pathlib.Path(tempfile.mkdtemp())
    self.addCleanup(shutil.rmtree, self._folder)

  def write(self, content):
    file = self._folder / 'facts.json'
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    file.write_text(text, 'utf-8')
    return file


class LoadRecordsTest(_FileTest):
  @parameterized.parameters(None, 'counterfact', 'multi_counterfact')
  def test_counterfact(self, kind):
    (record,) = module.load_records(self.write([_COUNTERFACT]), kind)
    self.assertEqual(
      record.request, Request('{} was employed in', 'Ove Tarrant', 'Quarne', 'Tolvik', 34)
    )
    self.assertEqual(record.case_id, 34)
    self.assertLen(record.paraphrase_prompts, 2)
    self.assertEqual(record.neighborhood_prompts, ('Ilse Corwin worked in',))
    self.assertEqual(record.attribute_prompts, ('Marta Lindqvist worked in',))
    self.assertEqual(record.generation_prompts, ("Ove Tarrant's office is",))
    self.assertIsNone(record.neighborhood_target)
    self.assertEqual(
      (record.relation_id, record.target_id, record.target_true_id), ('P937', 'Q1', 'Q2')
    )

  def test_identifiers_may_be_missing(self):
    entry = _changed(_COUNTERFACT, 'requested_rewrite.relation_id', _REMOVE)
    entry = _changed(entry, 'requested_rewrite.target_new.id', None)
    (record,) = module.load_records(self.write([entry]))
    self.assertIsNone(record.relation_id)
    self.assertIsNone(record.target_id)

  def test_zsre(self):
    records = module.load_records(self.write([_ZSRE, _changed(_ZSRE, 'subject', 'work')]))
    self.assertEqual([record.case_id for record in records], [0, 1])
    record = records[0]
    self.assertEqual(
      record.request, Request('Where did {} work?', 'Ove Tarrant', 'Quarne', None, 0)
    )
    self.assertEqual(record.paraphrase_prompts, (_ZSRE['rephrase'],))
    self.assertEqual(record.neighborhood_prompts, ('nq question: who wrote the old book?',))
    self.assertEqual(record.neighborhood_target, 'Ilse Corwin')
    self.assertEqual(records[1].request.prompt, 'Where did Ove Tarrant {}?')

  @parameterized.parameters(
    ('Is Al the brother of Al?', 'Al', 'Is Al the brother of {}?'),
    ('Is Al an Albanian?', 'Al', 'Is {} an Albanian?'),  # whole words first
    ('Is 東京 in 東京都?', '東京都', 'Is 東京 in {}?'),
    ('What is C++?', 'C++', 'What is {}?'),
    ("Is Al Al's?", 'Al', "Is Al {}'s?"),
    ('東京都はどこ?', '東京', '{}都はどこ?'),
  )
  def test_last_occurrence_of_the_subject_becomes_the_hole(self, src, subject, prompt):
    entry = {**_ZSRE, 'src': src, 'subject': subject}
    (record,) = module.load_records(self.write([entry]))
    self.assertEqual(record.request.prompt, prompt)
    self.assertEqual(record.request.text, src)

  def test_easyedit(self):
    other = {**_EASYEDIT, 'case_id': 5, 'locality_ground_truth': 'Finnish'}
    first, second = module.load_records(self.write([_EASYEDIT, other]))
    self.assertEqual(
      first.request, Request('The mother tongue of {} is', 'Ove Tarrant', 'Swahili', 'Danish', 4)
    )
    self.assertIsNone(first.neighborhood_target)
    self.assertEqual(second.neighborhood_target, 'Finnish')

  def test_target_that_is_true_already_is_kept_with_a_warning(self):
    entry = _changed(_COUNTERFACT, 'requested_rewrite.target_new.str', ' Tolvik')
    with self.assertLogs('absl', 'WARNING') as logs:
      records = module.load_records(self.write([entry]))
    self.assertLen(records, 1)
    self.assertIn('record 34 has target', logs.output[0])

  @parameterized.parameters(
    ('{"a": ', 'is not JSON'),
    ({'a': 1}, 'holds no list of records'),
    ([], 'holds no list of records'),
    ([3], "record 0 has neither 'requested_rewrite'"),
    ([{'text': 'x'}], "record 0 has neither 'requested_rewrite'"),
    ([_COUNTERFACT, 'x'], "record 1 has 'x'; give an object"),
    ([_COUNTERFACT, _ZSRE], "record 1 lacks the field 'case_id'"),
    ([_COUNTERFACT, _COUNTERFACT], 'records 0 and 1 both have case_id 34'),
  )
  def test_bad_files_are_named(self, content, message):
    with self.assertRaisesRegex(UserError, f'facts.json.*{message}'):
      module.load_records(self.write(content))

  @parameterized.parameters(
    ('requested_rewrite', _REMOVE, "lacks the field 'requested_rewrite"),
    ('requested_rewrite.subject', _REMOVE, "lacks the field 'requested_rewrite.subject'"),
    ('requested_rewrite.target_new.str', _REMOVE, 'lacks the field .*target_new.str'),
    (
      'requested_rewrite.target_new',
      'Quarne',
      "has 'Quarne' in the field .*target_new'; give an obj",
    ),
    ('requested_rewrite.relation_id', [1], r"has \[1\] in the field .*relation_id'; give a string"),
    ('requested_rewrite.target_new.str', '', "has '' in the field .*target_new.str"),
    ('requested_rewrite.subject', ' ', "has ' ' in the field 'requested_rewrite.subject'"),
    ('requested_rewrite.subject', 7, "has 7 in the field 'requested_rewrite.subject'"),
    ('requested_rewrite.prompt', 'no hole', 'with 0 places'),
    ('requested_rewrite.prompt', '{} and {}', 'with 2 places'),
    ('paraphrase_prompts', _REMOVE, "lacks the field 'paraphrase_prompts'"),
    ('neighborhood_prompts', 'one', "has 'one' in the field 'neighborhood_prompts'; give a list"),
    ('generation_prompts', [1], r"has 1 in the field 'generation_prompts\[0\]'; give a string"),
  )
  def test_bad_counterfact_records_are_named(self, name, value, message):
    entries = [{**_COUNTERFACT, 'case_id': 2}, _changed(_COUNTERFACT, name, value)]
    with self.assertRaisesRegex(UserError, rf'facts.json: record 1 \(case_id 34\) .*{message}'):
      module.load_records(self.write(entries), 'counterfact')

  @parameterized.parameters(
    ('answers', [], r"has \[\] in the field 'answers'; give a list of at least 1"),
    ('answers', 'Quarne', "has 'Quarne' in the field 'answers'; give a list"),
    ('loc_ans', _REMOVE, "lacks the field 'loc_ans'"),
    ('subject', 'Nobody', "does not name its subject 'Nobody'"),
  )
  def test_bad_zsre_records_are_named(self, name, value, message):
    with self.assertRaisesRegex(UserError, f'facts.json: record 1 .*{message}'):
      module.load_records(self.write([_ZSRE, _changed(_ZSRE, name, value)]))

  def test_case_id_has_to_be_an_integer(self):
    with self.assertRaisesRegex(UserError, "record 0 has True in the field 'case_id'"):
      module.load_records(self.write([{**_COUNTERFACT, 'case_id': True}]))

  def test_missing_file_and_unknown_kind(self):
    with self.assertRaisesRegex(UserError, 'Cannot read /nowhere'):
      module.load_records('/nowhere/facts.json')
    with self.assertRaisesRegex(UserError, "no kind of records 'zsrf'"):
      module.load_records(self.write([_ZSRE]), 'zsrf')


class SelectTest(_FileTest):
  def test_first_or_drawn(self):
    records = module.load_records(self.write([{**_ZSRE} for _ in range(30)]))
    cases = lambda *a: [record.case_id for record in module.select(records, *a)]  # noqa: E731
    self.assertEqual(cases(), list(range(30)))
    self.assertEqual(cases(4), [0, 1, 2, 3])
    self.assertEqual(cases(10, 7), cases(10, 7))
    self.assertNotEqual(cases(10, 7), cases(10, 8))
    self.assertLen(set(cases(30, 7)), 30)
    for num in (0, 31):
      with self.assertRaisesRegex(UserError, f'{num} records are wanted and 30 exist'):
        module.select(records, num)

  def test_of_each_subject_the_first_that_was_drawn(self):
    entries = [{**_ZSRE, 'subject': s, 'src': f'Where is {s}?'} for s in ('Oslo', 'Rome') * 5]
    records = module.load_records(self.write(entries))
    chosen = module.select(records, unique_subjects=True)
    self.assertEqual([record.case_id for record in chosen], [0, 1])
    drawn = module.select(records, seed=3)
    wanted = [drawn[0], next(r for r in drawn if r.request.subject != drawn[0].request.subject)]
    self.assertEqual(module.select(records, 2, 3, unique_subjects=True), wanted)
    with self.assertRaisesRegex(UserError, '3 records about different subjects are wanted'):
      module.select(records, 3, unique_subjects=True)


class ConflictsTest(absltest.TestCase):
  def test_groups_in_order(self):
    a = Request('{} plays the', 'Ove', 'violin', case_id=1)
    b = Request('{} plays the', 'Ove', 'harp', case_id=2)
    c = Request('{} lives in', 'Vela', 'Oslo')
    d = Request('{} was born in', 'Vela', 'Oslo')
    e = Request('{} plays the', 'Ilse', 'violin')
    conflicts = module.find_conflicts([c, a, e, b, d])
    self.assertEqual(conflicts.contradictory, ((a, b),))
    self.assertEqual(conflicts.same_subject, ((c, d), (a, b)))
    first, second = conflicts.sentences()
    self.assertIn("'Ove plays the' 'harp' and 'violin' (records 1, 2)", first)
    self.assertStartsWith(second, '2 subjects occur in several requests')

  def test_nothing_to_say(self):
    same = [Request('{} plays the', 'Ove', 'harp'), Request('{} plays the', 'Vela', 'harp')]
    self.assertEmpty(module.find_conflicts(same).sentences())
    self.assertEmpty(module.find_conflicts(same * 2).contradictory)


class SharedFilesTest(parameterized.TestCase):
  @parameterized.parameters(
    ('data/counterfact/counterfact.json', 800, 2, 10),
    ('data/counterfact/counterfact_edit_10k.json', 9686, 1, 1),
    ('data/zsre/zsre_mend_eval.json', 700, 1, 1),
    ('golden/evaluation/counterfact_records.json', 20, 2, 10),
    ('golden/evaluation/zsre_records.json', 20, 1, 1),
  )
  def test_real_files_load(self, path, count, paraphrases, neighborhood):
    file = _SHARED / path
    if not file.exists():
      self.skipTest(f'needs {file}')
    records = module.load_records(file)
    self.assertLen(records, count)
    for record in records:
      self.assertLen(record.paraphrase_prompts, paraphrases)
      self.assertLen(record.neighborhood_prompts, neighborhood)
      self.assertEqual(record.request.case_id, record.case_id)


if __name__ == '__main__':
  absltest.main()

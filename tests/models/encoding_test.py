"""Positions of subject and object: what holds for any tokenizer, checked against decoding."""

import itertools

import hypothesis
import hypothesis.strategies as st
from absl.testing import absltest, parameterized

from helpers import vocabularies as helpers
from jedit.models import encoding
from jedit.types import UserError

_SUBJECTS = (
  'Marta Lindqvist',
  'X',
  '1984',
  'Boeing 737',
  '3rd of May',
  'Zürich',
  'Cafe\u0301',  # e with a combining accent
  'Bjo\u0308rk Gu\u00f0mundsdo\u0301ttir',
  '東京',
  '日本 X 本',
  '\u1112\u1161\u11ab',  # one Korean syllable in three characters
  'Emoji \U0001f600',
  '\U0001f468\u200d\U0001f469\u200d\U0001f467',
  'Yahoo!',
  '"Heroes"',
  '(What)',
  '...And Justice',
  "L'Étoile de mer",
  'U.S.',
  'USS Baltimore (SSN-704)',
  '{x}',
  'The {} of {}',
  'TKİ Tavşanlı',
  'naïve–x',
)
_TEMPLATES = (
  '{} is located in',
  'The capital of {} is',
  "{}'s mother tongue is",
  'Where is {}?',
  'Who wrote "{}"?',
  'People say ({}) and X, 1984 or {{}: it is',
  'The city 東京{}日本 is in',
  'The film is {}',
)
_TARGETS = (
  'Paris',
  'the United Kingdom',
  ' Swahili',
  '1984',
  '263',
  'Zürich',
  'cafe\u0301 x',
  '東京 日本',
  "\U0001f600 it's",
  '"x"',
)
_CONTEXTS = ('{}', 'The senator met X {there}. {}', '{} {}', 'É 日本\U0001f600 {}')


def _rows():
  for subject, template, target in itertools.product(_SUBJECTS, _TEMPLATES, _TARGETS):
    if template.count('{}') == 1:
      yield encoding.Row(template, subject, target)
  for subject, context in itertools.product(_SUBJECTS, _CONTEXTS):
    yield encoding.Row('The twin of {} is X, {', subject, 'Paris', context)


class PositionsTest(parameterized.TestCase):
  @parameterized.parameters(*helpers.SMALL)
  def test_small_tokenizers_agree_with_decoding(self, name):
    self._sweep(helpers.SMALL[name]())

  @parameterized.parameters(*helpers.REAL)
  def test_real_tokenizers_agree_with_decoding(self, name):
    self._sweep(helpers.real(self, name))

  def _sweep(self, tokenizer):
    rows = list(_rows())
    self.assertGreater(len(rows), 1500)
    for row, encoded in zip(rows, encoding.encode_many(tokenizer, rows)):
      helpers.check_positions(self, tokenizer, row, encoded)

  @parameterized.parameters('byte_level_bos', 'byte_level_bos_eos_trimmed', 'metaspace_bos')
  def test_tokenizers_without_offsets_give_the_same(self, name):
    tokenizer = helpers.SMALL[name]()
    rows = list(_rows())[::7]
    # Unknown characters side by side: their bytes decode together or not at all.
    rows.append(encoding.Row('{}\U0001f600 is', '\u1112', 'Paris'))
    expected = encoding.encode_many(tokenizer, rows)
    self.assertEqual(encoding.encode_many(helpers.WithoutOffsets(tokenizer), rows), expected)

  def test_any_text_on_byte_level(self):
    self._any_text(helpers.byte_level(bos=True, trim=True))

  def test_any_text_on_metaspace(self):
    self._any_text(helpers.metaspace())

  def _any_text(self, tokenizer):
    word = st.text(
      st.characters(exclude_categories=('Cs', 'Cc'), exclude_characters='{}\u2581\ufffd'),
      min_size=1,
      max_size=12,
    ).filter(lambda text: text == text.strip() and text == helpers.same(text))

    @hypothesis.settings(max_examples=150, deadline=None, derandomize=True, database=None)
    @hypothesis.given(word, word, st.sampled_from(('{} is', 'Of {}?', "It is {}'s", 'a{}b', '{}')))
    def check(subject, target, template):
      row = encoding.Row(template, subject, target)
      text = template.replace('{}', subject)
      hypothesis.assume(helpers.same(text) == text)
      helpers.check_positions(
        self, tokenizer, row, encoding.encode(tokenizer, template, subject=subject, target=target)
      )

    check()

  @parameterized.parameters('byte_level', 'byte_level_trimmed', 'metaspace_bos')
  def test_a_lone_space_is_the_first_object_token(self, name):
    tokenizer = helpers.SMALL[name]()
    encoded = encoding.encode(tokenizer, 'It was in', target='77')
    tokens = tokenizer.convert_ids_to_tokens(encoded.target_ids)
    self.assertEqual(tokens[1:], ['7', '7'])
    self.assertIn(tokens[0], ('Ġ', '\u2581'))

  def test_the_hole_counts_not_the_first_occurrence(self):
    tokenizer = helpers.byte_level()
    first = encoding.encode(tokenizer, 'Paris is {} and Paris', subject='Paris')
    second = encoding.encode(tokenizer, 'Paris is Paris and {}', subject='Paris')
    self.assertEqual(first.ids, second.ids)
    self.assertEqual(second.subject_last, len(second.ids) - 1)
    self.assertLess(first.subject_last, second.subject_last)

  def test_without_target_the_prompt_is_all(self):
    tokenizer = helpers.byte_level(bos=True, eos=True)
    encoded = encoding.encode(tokenizer, 'The violin is {} big', subject='X')
    self.assertEqual(encoded.target_start, len(encoded.ids))
    self.assertEqual(encoded.prompt_last, len(encoded.ids) - 1)
    self.assertEmpty(encoded.target_ids)
    self.assertNotIn(tokenizer.eos_token_id, encoded.ids)
    self.assertEqual(encoded.ids[0], tokenizer.bos_token_id)

  def test_braces_in_prompt_without_subject_are_text(self):
    encoded = encoding.encode(helpers.byte_level(), 'The {} of {} is', target='X')
    self.assertEqual(encoded.text, 'The {} of {} is X')
    self.assertIsNone(encoded.subject_last)

  def test_a_subject_that_ends_in_a_space(self):
    for name in ('byte_level', 'byte_level_trimmed', 'metaspace_bos'):
      tokenizer = helpers.SMALL[name]()
      encoded = encoding.encode(tokenizer, '{}is in', subject='Paris ', target='X')
      token = tokenizer.convert_ids_to_tokens(encoded.ids[encoded.subject_last])
      self.assertIn(token[0], ('Ġ', '\u2581'), name)

  def test_a_token_over_the_boundary_belongs_to_the_object(self):
    tokenizer = helpers.real(self, 'gpt-neox')  # has tokens for runs of spaces
    encoded = encoding.encode(tokenizer, 'The city is ', target=' x')
    self.assertEqual(tokenizer.decode(encoded.ids[: encoded.target_start]), 'The city is')
    with self.assertRaisesRegex(UserError, 'One token holds the end of the subject.*goes on after'):
      encoding.encode(tokenizer, 'The city is{}', subject=' x ', target=' y')

  def test_rows_are_independent_of_their_batch(self):
    tokenizer = helpers.byte_level(stored_settings=True)
    rows = list(_rows())[:50]
    one_by_one = [
      encoding.encode(tokenizer, r.prompt, subject=r.subject, target=r.target, context=r.context)
      for r in rows
    ]
    self.assertEqual(encoding.encode_many(tokenizer, rows), one_by_one)

  @parameterized.parameters(
    (dict(prompt='The city', subject='X'), 'has 0 places'),
    (dict(prompt='{} and {}', subject='X'), 'has 2 places'),
    (dict(prompt='{} is', subject=' '), 'subject of the prompt .* is empty'),
    (dict(prompt='{} is', subject='X', target=''), 'target of the prompt .* is empty'),
    (dict(prompt='  '), 'is empty'),
    (dict(prompt='A', context='no hole'), 'context'),
    (dict(prompt='{} is', subject='\u0301', target='x'), None),
  )
  def test_bad_input_is_named(self, arguments, message):
    tokenizer = helpers.byte_level(nfc=True, trim=True)
    if message is None:  # an accent alone is a subject like any other
      self.assertEqual(encoding.encode(tokenizer, **arguments).subject_last, 1)
    else:
      with self.assertRaisesRegex(UserError, message):
        encoding.encode(tokenizer, **arguments)

  def test_a_text_above_the_limit_is_named(self):
    tokenizer = helpers.byte_level()
    rows = [
      encoding.Row('{} is in', 'Oslo', 'Rome'),
      encoding.Row('The city ' * 30 + 'is', None, 'X'),
    ]
    longest = max(len(row.ids) for row in encoding.encode_many(tokenizer, rows))
    self.assertLen(encoding.encode_many(tokenizer, rows, longest), 2)
    message = (
      f"'The city .* X' has {longest} tokens, but the model has positions for {longest - 1};"
    )
    with self.assertRaisesRegex(UserError, message):
      encoding.encode_many(tokenizer, rows, longest - 1)

  def test_what_decoding_does_not_give_back_is_an_error_without_offsets(self):
    tokenizer = helpers.WithoutOffsets(helpers.byte_level(nfc=True))
    with self.assertRaisesRegex(UserError, 'no character offsets'):
      encoding.encode(tokenizer, '{} is', subject='Cafe\u0301')


if __name__ == '__main__':
  absltest.main()

"""The made-up world: what has to hold so that editing it means something."""

import collections
import itertools

from absl.testing import absltest, parameterized

from jedit.testbeds import words
from jedit.testbeds.world import World
from jedit.types import UserError

_SMALL = dict(num_subjects=160, num_edited=60)


class WorldTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.world = World(**_SMALL)
    cls.records = cls.world.records()

  def test_same_seed_same_world(self):
    again = World(**_SMALL)
    self.assertEqual(self.world.prompts(), again.prompts())
    self.assertEqual(self.records, again.records())
    self.assertEqual(self.world.corpus(20), again.corpus(20))

  def test_seeds_differ(self):
    other = World(seed=1, **_SMALL)
    self.assertNotEqual(self.world.subjects, other.subjects)
    self.assertNotEqual(self.world.corpus(5), other.corpus(5))
    self.assertNotEqual(self.world.corpus(5, seed=1), self.world.corpus(5, seed=2))

  @parameterized.parameters(2, 3)
  def test_identity_exists_only_at_the_last_word(self, num_words):
    world = World(name_words=num_words, **_SMALL)
    names = [name.split() for name in world.subjects]
    self.assertEqual({len(name) for name in names}, {num_words})
    self.assertLen(set(world.subjects), len(names))
    heads = collections.Counter(tuple(name[:-1]) for name in names)
    lasts = collections.Counter(name[-1] for name in names)
    self.assertGreaterEqual(min(heads.values()), 2)  # reading all but the last word decides nothing
    self.assertLess(len(lasts), len(names) / 2)  # nor does the last word alone

  def test_everybody_may_have_a_last_name_of_their_own(self):
    world = World(num_subjects=480, num_edited=8, own_last_names=True)
    names = [name.split() for name in world.subjects]
    self.assertLen({last for _, last in names}, 480)
    self.assertLess(len({first for first, _ in names}), 30)
    with self.assertRaisesRegex(UserError, 'names for 600 subjects, not 601'):
      World(num_subjects=601, own_last_names=True)

  def test_neighbors_are_never_edited(self):
    edited = set(self.world.subjects[: _SMALL['num_edited']])
    for record in self.records:
      self.assertIn(record['requested_rewrite']['subject'], edited)
      for prompt in record['neighborhood_prompts'] + record['attribute_prompts']:
        self.assertFalse([name for name in edited if name in prompt], prompt)

  def test_prompts_have_the_answers_they_claim(self):
    answers = {(p.relation, p.text): p.answer for p in self.world.prompts()}
    for record in self.records:
      rewrite = record['requested_rewrite']
      relation, true, new = (
        rewrite['relation_id'],
        rewrite['target_true']['str'],
        rewrite['target_new']['str'],
      )
      self.assertNotEqual(true, new)
      self.assertEqual(answers[relation, rewrite['prompt'].format(rewrite['subject'])], true)
      for prompt in record['neighborhood_prompts']:
        self.assertEqual(answers[relation, prompt], true)
      for prompt in record['attribute_prompts']:
        self.assertEqual(answers[relation, prompt], new)
      for prompt in record['paraphrase_prompts']:
        self.assertTrue(any(prompt.endswith(text) for r, text in answers if r == relation), prompt)

  def test_records_have_the_counterfact_fields(self):
    self.assertLen(self.records, _SMALL['num_edited'])
    for record in self.records:
      self.assertEqual(record['requested_rewrite']['prompt'].count('{}'), 1)
      self.assertLen(record['paraphrase_prompts'], 2)
      self.assertLen(record['neighborhood_prompts'], 10)
      self.assertLen(record['attribute_prompts'], 10)
      self.assertLen(record['generation_prompts'], 10)

  def test_left_out_phrasings_never_occur(self):
    text = ' '.join(self.world.corpus(3000))
    prompts = self.world.prompts()
    self.assertEqual(sum(not p.trained for p in prompts), 160 * len(words.RELATIONS) * 2)
    lowered = text.lower()
    self.assertFalse([p.text for p in prompts if not p.trained and p.text.lower() in lowered])
    asked = [p.text.lower() in lowered for p in prompts if p.trained]
    self.assertGreater(sum(asked) / len(asked), 0.7)

  def test_relations_and_phrasings_are_many(self):
    self.assertGreaterEqual(len(words.RELATIONS), 8)
    for relation in words.RELATIONS:
      self.assertGreaterEqual(len(relation.phrasings), 5)
      self.assertGreaterEqual(len(relation.objects), 8)
      for phrasing in relation.phrasings:
        self.assertEqual(phrasing.count('{}'), 1)

  def test_spans_point_at_subject_and_answer(self):
    for sentence in itertools.islice(self.world.sentences(3), 500):
      if sentence.subject:
        self.assertIn(sentence.text[slice(*sentence.subject)], self.world.subjects)
      if sentence.answer:
        self.assertTrue(sentence.text[sentence.answer[1] :] == '.')
        self.assertEqual(sentence.text[sentence.answer[0] - 1], ' ')

  def test_texts_open_as_prefix_contexts_do(self):
    openings = collections.Counter(
      sentence.text.split()[0] for sentence in itertools.islice(self.world.sentences(4), 3000)
    )
    for word in ('The', 'Therefore', 'Because', 'I', 'You'):
      self.assertGreater(openings[word], 30, word)

  def test_too_many_subjects_is_an_error(self):
    with self.assertRaisesRegex(UserError, 'names for'):
      World(num_subjects=100_000, num_edited=10)

  def test_too_few_neighbors_is_an_error(self):
    with self.assertRaisesRegex(UserError, 'Only edited subjects'):
      World(num_subjects=30, num_edited=29).records()


if __name__ == '__main__':
  absltest.main()

"""Training a testbed: small and short, but all the way to files that transformers loads."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import transformers
from absl.testing import absltest, parameterized

from jedit import testbeds
from jedit.configs import train as train_config
from jedit.data.records import load_records
from jedit.models import FAMILIES
from jedit.models.load import load_directory
from jedit.parallel.shapes import pad
from jedit.testbeds import knowledge
from jedit.testbeds.known_facts import KnownFacts
from jedit.testbeds.rows import Packer
from jedit.testbeds.tokenizer import train_tokenizer
from jedit.testbeds.train import fit, hugging_face_config, train
from jedit.testbeds.world import World
from jedit.types import Record, Request, UserError


@jax.jit
def _logits(model, token_NxT):
  return model.head(model(token_NxT)[0])


def tiny(family):
  """A config of seconds instead of hours."""
  c = train_config.get_config(family)
  c.world.update(num_subjects=160, num_edited=8)
  c.model.update(num_layers=2, width=32, num_heads=2, num_kv_heads=2, ffn_width=64, vocab_size=600)
  c.model.rotary_dim = 8
  c.train.update(num_steps=12, num_rows=8, num_tokens=48, barrier=1, warmup=2, max_measured=200)
  return c


# Saves after every step; the argument is the workdir.
_RUN = """
import sys
import train_test
from jedit.io import checkpoints
checkpoints._SECONDS_PER_SAVE = checkpoints._WORK_PER_SAVE = 0
train_test.train(train_test.tiny('gptj'), sys.argv[1])
"""


class TrainTest(parameterized.TestCase):
  def _tempdir(self):
    directory = tempfile.TemporaryDirectory()
    self.addCleanup(directory.cleanup)
    return pathlib.Path(directory.name)

  @parameterized.parameters('gptj', 'llama')
  def test_trains_and_writes_a_directory_that_transformers_loads(self, family):
    workdir = self._tempdir()
    report = train(tiny(family), workdir)
    self.assertLess(report['last_loss'], 6.3)  # ln(600) = 6.4 at the start
    directory = workdir / 'model'
    model, hf_config = load_directory(directory)
    self.assertEqual(hf_config['dtype'], 'bfloat16')
    self.assertLen(load_records(directory / 'records.json'), 8)
    stored = json.loads((directory / 'knowledge.json').read_text())
    self.assertEqual(stored['num_trained'] + stored['num_untrained'], 200)
    self.assertGreater(len((directory / 'corpus.txt').read_text().splitlines()), 500)

    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    ids = tokenizer('Anna lives')['input_ids']
    self.assertEqual(ids[0] == tokenizer.convert_tokens_to_ids('<s>'), family == 'llama')
    self.assertEqual(tokenizer.decode(ids, skip_special_tokens=True), 'Anna lives')
    self.assertTrue(np.isfinite(_logits(model, jnp.asarray([ids]))).all())
    with self.assertRaisesRegex(UserError, 'exists already'):
      train(tiny(family), workdir)

  def test_training_lowers_the_loss_and_repeats(self):
    config = tiny('gptj')
    world = World(**config.world)
    tokenizer = train_tokenizer(world.corpus(300), 600, 'gptj')
    hf_config = hugging_face_config(config.model, tokenizer.get_vocab_size())
    model = FAMILIES['gptj'].read_config(hf_config, 'float32')

    def run():
      packer = Packer(
        tokenizer, world.sentences(0), eos='<|endoftext|>', num_tokens=48, text_weight=0.2, seed=0
      )
      return fit(model, packer, dict(config.train, num_steps=150), seed=0)

    first, again = run(), run()
    self.assertLess(first.loss, np.log(600) - 2.0)
    jax.tree.map(np.testing.assert_array_equal, first.model.params, again.model.params)

  def test_a_killed_training_goes_on_to_the_same_bits(self):
    workdir, whole = self._tempdir(), self._tempdir()
    root = pathlib.Path(__file__).parents[2]
    path = os.pathsep.join(map(str, (root, root / 'tests', root / 'tests' / 'testbeds')))
    environment = {**os.environ, 'PYTHONPATH': path}
    command = [sys.executable, '-c', _RUN, os.fspath(workdir)]
    store = workdir / 'training.partial'
    with subprocess.Popen(command, env=environment) as run:
      while run.poll() is None and not any(store.glob('[3-9]/about.json')):
        time.sleep(0.01)
      run.send_signal(signal.SIGKILL)
    self.assertEqual(run.returncode, -signal.SIGKILL)
    self.assertFalse((workdir / 'model').exists())
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    self.assertNotIn('training:   8% 1/12', done.stderr, 'the steps before are not repeated')
    self.assertFalse(store.exists())
    train(tiny('gptj'), whole)
    for name in ('model.safetensors', 'tokenizer.json', 'records.json', 'corpus.txt'):
      ours, theirs = ((folder / 'model' / name).read_bytes() for folder in (workdir, whole))
      self.assertEqual(ours, theirs, name)

  def test_skipped_rows_are_those_of_batches(self):
    world = World(**tiny('gptj').world)
    tokenizer = train_tokenizer(world.corpus(300), 600, 'gptj')
    packers = [
      Packer(
        tokenizer, world.sentences(0), eos='<|endoftext|>', num_tokens=48, text_weight=0.2, seed=0
      )
      for _ in range(2)
    ]
    packers[0].batch(5)
    packers[0].batch(3)
    packers[1].skip(8)
    first, second = (packer.batch(4) for packer in packers)
    np.testing.assert_array_equal(first.token_NxT, second.token_NxT)
    np.testing.assert_array_equal(first.segment_NxT, second.segment_NxT)

  def test_answers_weigh_and_pieces_end_with_the_subject(self):
    world = World(num_subjects=160, num_edited=8)
    tokenizer = train_tokenizer(world.corpus(300), 900, 'llama')
    packer = Packer(
      tokenizer, world.sentences(0), eos='</s>', num_tokens=64, text_weight=0.2, seed=0
    )
    rows = packer.batch(16)
    predicted = rows.token_NxT[:, 1:][rows.weight_NxT[:, :-1] == 1.0]
    answers = {p.answer for p in world.prompts()}
    words_in_answers = {word for answer in answers for word in answer.split()}
    pieces = [tokenizer.decode([i]).strip() for i in predicted]
    self.assertTrue(all(any(p in word for word in words_in_answers) for p in pieces), pieces)
    self.assertTrue((rows.weight_NxT[:, -1] == 0).all())
    lasts = {name.split()[-1] for name in world.subjects}
    ends = []
    for token_T, segment_T in zip(rows.token_NxT, rows.segment_NxT, strict=True):
      self.assertTrue((np.diff(segment_T) >= 0).all())
      ends += list(token_T[:-1][np.diff(segment_T) > 0])
    endings = {tokenizer.decode([i]).strip() for i in ends}
    self.assertIn('.', endings)
    self.assertGreater(len(endings & lasts), 5)

  def test_unknown_family_and_unknown_testbed(self):
    config = tiny('gptj')
    config.model.family = 'opt'
    with self.assertRaisesRegex(UserError, "Family 'opt' cannot be trained"):
      train(config, self._tempdir())
    with self.assertRaisesRegex(UserError, 'gptj or llama'):
      testbeds.testbed('gpt2')


class KnowledgeTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.world = World(num_subjects=160, num_edited=8)
    tokenizer = train_tokenizer(cls.world.corpus(300), 700, 'llama')
    cls.tokenizer = transformers.PreTrainedTokenizerFast(
      tokenizer_object=tokenizer, bos_token='<s>', eos_token='</s>'
    )
    config = tiny('llama')
    hf_config = hugging_face_config(config.model, tokenizer.get_vocab_size())
    sizes = FAMILIES['llama'].read_config(hf_config, 'float32')
    packer = Packer(
      tokenizer, cls.world.sentences(0), eos='</s>', num_tokens=48, text_weight=0.2, seed=0
    )
    cls.model = fit(sizes, packer, dict(config.train, num_steps=60), seed=0).model

  def test_known_is_what_greedy_decoding_says(self):
    prompts = random.Random(0).sample(self.world.prompts(), 20)
    known = knowledge.is_known(self.model, self.tokenizer, prompts, batch_size=16)
    for prompt, is_known in zip(prompts, known, strict=True):
      ids = self.tokenizer(prompt.text)['input_ids']
      want = self.tokenizer(f'{prompt.text} {prompt.answer}')['input_ids'][len(ids) :]
      said: list[int] = []
      for _ in want:
        token_1xT, length_1 = pad([ids + said], 32)
        logits_TxV = _logits(self.model, jnp.asarray(token_1xT))[0]
        said.append(int(logits_TxV[length_1[0] - 1].argmax()))
      self.assertEqual(said == want, bool(is_known), prompt)


class KnownFactsTest(absltest.TestCase):
  def _record(self, **changes):
    request = Request('{} was employed in', 'Laurent Cars', 'Rome', 'Paris', case_id=3)
    fields = dict(
      case_id=3,
      request=request,
      paraphrase_prompts=(
        'Hybrid vehicles. Laurent Cars worked in',
        'It rained. Work took Laurent Cars to',
      ),
      neighborhood_prompts=('Victor Hugo was employed in', 'The office of Claude Monet was in'),
      attribute_prompts=('Alice Neel was employed in',),
      relation_id='P937',
    )
    return Record(**{**fields, **changes})

  def test_prompts_of_a_record(self):
    facts = KnownFacts([self._record()])
    found = {p.text: (p.subject, p.answer, p.trained, p.edited) for p in facts.prompts()}
    self.assertEqual(
      found,
      {
        'Laurent Cars was employed in': ('Laurent Cars', 'Paris', True, True),
        'Laurent Cars worked in': ('Laurent Cars', 'Paris', True, True),
        'Work took Laurent Cars to': ('Laurent Cars', 'Paris', False, True),
        'Victor Hugo was employed in': ('Victor Hugo', 'Paris', True, False),
        'The office of Claude Monet was in': ('', 'Paris', True, False),
        'Alice Neel was employed in': ('Alice Neel', 'Rome', True, False),
      },
    )
    text = ' '.join(facts.corpus(50))
    self.assertNotIn('Work took', text)
    self.assertIn('Hybrid vehicles.', text)
    self.assertEqual(facts.corpus(5), KnownFacts([self._record()]).corpus(5))

  def test_one_answer_per_prompt_and_that_of_the_edit_first(self):
    request = Request('{} was employed in', 'Victor Hugo', 'Oslo', 'Rome', case_id=4)
    other = self._record(case_id=4, request=request, paraphrase_prompts=())
    answers = {p.text: p.answer for p in KnownFacts([self._record(), other]).prompts()}
    self.assertEqual(answers['Victor Hugo was employed in'], 'Rome')
    self.assertEqual(answers['Alice Neel was employed in'], 'Rome')

  def test_a_record_without_its_true_object_is_an_error(self):
    request = Request('{} was employed in', 'Laurent Cars', 'Rome')
    with self.assertRaisesRegex(UserError, 'Record 3 has no target_true'):
      KnownFacts([self._record(request=request)])


if __name__ == '__main__':
  absltest.main()

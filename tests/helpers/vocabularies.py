"""Tokenizers for tests, and a check of positions that knows nothing of offsets."""

import json
import os
import pathlib
import unicodedata

import tokenizers
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from jedit.models.tokenizer import load_tokenizer

SHARED = pathlib.Path(os.environ.get('JEDIT_SHARED', pathlib.Path(__file__).parents[3] / 'shared'))
TEXT = (
  "The mother tongue of Marta Lindqvist is Swahili. Vela's harbor was built in 1984. "
  'Where was Zürich founded? In the city of Paris, people play the violin; Ove plays jazz. '
  'Zoë, a 23 year old café owner, works in São Tomé. 東京 is a city in 日本.  It  is big. '
) * 3


def byte_level(
  *, trim=False, bos=False, eos=False, nfc=False, prefix_space=False, stored_settings=False
):
  """A small byte-level BPE tokenizer."""
  backend = tokenizers.Tokenizer(models.BPE())
  if nfc:
    backend.normalizer = normalizers.NFC()
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
  backend.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=420,
    special_tokens=['<s>', '</s>'],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  backend.train_from_iterator([TEXT], trainer)
  if trim:
    backend.post_processor = processors.ByteLevel(trim_offsets=True, add_prefix_space=prefix_space)
  if bos:
    template = '<s> $A </s>' if eos else '<s> $A'
    template_processor = processors.TemplateProcessing(
      single=template, special_tokens=[('<s>', 0), ('</s>', 1)]
    )
    backend.post_processor = (
      processors.Sequence([backend.post_processor, template_processor])
      if trim
      else template_processor
    )
  if stored_settings:
    backend.enable_padding(pad_id=0, pad_token='<s>', length=50)
    backend.enable_truncation(5)
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend, bos_token='<s>' if bos else None, eos_token='</s>'
  )


def metaspace(bos=True):
  """A small tokenizer like SentencePiece's: spaces are characters, unknown ones become bytes."""
  backend = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token='<unk>', fuse_unk=True))
  backend.pre_tokenizer = pre_tokenizers.Metaspace()  # no piece reaches over a space
  backend.decoder = decoders.Sequence(
    [
      decoders.Replace('\u2581', ' '),
      decoders.ByteFallback(),
      decoders.Fuse(),
      decoders.Strip(' ', 1, 0),
    ]
  )
  trainer = trainers.BpeTrainer(
    vocab_size=500,
    special_tokens=['<unk>', '<s>', '</s>'] + [f'<0x{b:02X}>' for b in range(256)],
    initial_alphabet=[chr(c) for c in range(33, 127)] + ['\u2581'],
    show_progress=False,
  )
  backend.train_from_iterator(TEXT.split('.'), trainer)
  state = json.loads(backend.to_str())
  state['added_tokens'] = state['added_tokens'][:3]  # bytes are pieces, not special tokens
  backend = tokenizers.Tokenizer.from_str(json.dumps(state))
  backend.pre_tokenizer = None
  backend.normalizer = normalizers.Sequence(
    [normalizers.Prepend('\u2581'), normalizers.Replace(' ', '\u2581')]
  )
  if bos:
    backend.post_processor = processors.TemplateProcessing(
      single='<s> $A', special_tokens=[('<s>', 1)]
    )
  return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token='<s>')


class WithoutOffsets:
  """A tokenizer that can only encode and decode, as transformers' slow ones."""

  def __init__(self, fast):
    self._fast = fast

  def __call__(self, text, add_special_tokens=True):
    return {'input_ids': self._fast(text, add_special_tokens=add_special_tokens)['input_ids']}

  def decode(self, ids, clean_up_tokenization_spaces=False):
    return self._fast.decode(ids, clean_up_tokenization_spaces=clean_up_tokenization_spaces)


SMALL = {
  'byte_level': byte_level,
  'byte_level_trimmed': lambda: byte_level(trim=True),
  'byte_level_bos': lambda: byte_level(bos=True),
  'byte_level_bos_eos_trimmed': lambda: byte_level(bos=True, eos=True, trim=True),
  'byte_level_nfc_trimmed': lambda: byte_level(nfc=True, trim=True),
  'byte_level_prefix_space': lambda: byte_level(prefix_space=True, trim=True),
  'byte_level_stored_settings': lambda: byte_level(stored_settings=True),
  'metaspace_bos': metaspace,
  'metaspace': lambda: metaspace(bos=False),
}
REAL = ('gpt2', 'gpt-neox', 'llama')
_cache = {}


def real(test, name):
  """A real tokenizer; skips the test where it is not at hand."""
  folder = SHARED / 'data' / 'tokenizers' / name
  if not folder.is_dir():
    test.skipTest(f'needs the tokenizer {folder}')
  if name == 'llama':
    try:
      import sentencepiece  # noqa: F401
    except ImportError:
      test.skipTest('needs the package sentencepiece')
  if name not in _cache:
    _cache[name] = load_tokenizer(folder)
  return _cache[name]


def same(text):
  """Text up to canonical equivalence: some tokenizers compose accents."""
  return unicodedata.normalize('NFC', text)


def check_positions(test, tokenizer, row, encoded):
  """Holds positions against what the tokens decode to, which knows nothing of offsets."""
  before, after = row.context.rsplit('{}', 1)
  left, right = row.prompt.split('{}')
  subject_text = before + left + row.subject
  prompt_text = subject_text + right + after
  target = row.target if row.target.startswith(' ') else ' ' + row.target
  test.assertEqual(encoded.text, prompt_text + target)
  whole = tokenizer(encoded.text, padding=False, truncation=False)['input_ids']
  eos = tokenizer.eos_token_id
  if whole[-1] == eos:
    whole = whole[:-1]
  test.assertEqual(list(encoded.ids), whole)

  def decode(stop):
    shown = tokenizer.decode(
      encoded.ids[:stop], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return same(shown).removeprefix(' ')

  test.assertEqual(decode(None), same(encoded.text))
  test.assertEqual(decode(encoded.target_start), same(prompt_text))
  test.assertEqual(encoded.prompt_last, encoded.target_start - 1)
  test.assertEqual(
    same(tokenizer.decode(encoded.target_ids, clean_up_tokenization_spaces=False)).strip(),
    same(target).strip(),
  )
  last = encoded.subject_last
  test.assertStartsWith(decode(last + 1), same(subject_text))
  test.assertFalse(decode(last).startswith(same(subject_text)), (row, decode(last)))

"""Byte-level BPE tokenizers for testbeds, in the files that transformers loads."""

import json
import os
from collections.abc import Iterable

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

# Tokens that start and end a text, by family. Only LLaMA's tokenizer adds the first one.
SPECIAL_TOKENS = {
  'gptj': ('<|endoftext|>', '<|endoftext|>'),
  'llama': ('<s>', '</s>'),
}


def train_tokenizer(texts: Iterable[str], vocab_size: int, family: str) -> tokenizers.Tokenizer:
  """Learns a byte-level BPE vocabulary in the family's form.

  Args:
    texts: training text.
    vocab_size: maximal number of tokens, bytes and special tokens included.
    family: 'gptj' (adds nothing to a text) or 'llama' (adds `<s>` before it if special tokens are
      requested).

  Returns:
    The tokenizer; special tokens have the lowest ids.
  """
  bos, eos = SPECIAL_TOKENS[family]
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=vocab_size,
    special_tokens=list(dict.fromkeys((bos, eos))),
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  tokenizer.train_from_iterator(texts, trainer)
  # Offsets include the leading space of a token, to map characters to positions.
  tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
  if family == 'llama':
    tokenizer.post_processor = processors.TemplateProcessing(
      single=f'{bos} $A',
      pair=f'{bos} $A {bos} $B',
      special_tokens=[(bos, tokenizer.token_to_id(bos))],
    )
  return tokenizer


def save_tokenizer(tokenizer: tokenizers.Tokenizer, directory: str, family: str) -> None:
  """Writes tokenizer.json and tokenizer_config.json for transformers' AutoTokenizer."""
  bos, eos = SPECIAL_TOKENS[family]
  tokenizer.save(os.path.join(directory, 'tokenizer.json'))
  config = dict(
    tokenizer_class='PreTrainedTokenizerFast',
    bos_token=bos,
    eos_token=eos,
    pad_token=eos,
    padding_side='right',
    clean_up_tokenization_spaces=False,
  )
  with open(os.path.join(directory, 'tokenizer_config.json'), 'w', encoding='utf-8') as file:
    json.dump(config, file, indent=2)

"""Tokenizers of directories, and the sentences for those that cannot be used."""

import pytest

from helpers import vocabularies
from jedit.models.tokenizer import load_tokenizer
from jedit.types import UserError


def test_padding_and_truncation_are_off(tmp_path):
  vocabularies.byte_level(bos=True, stored_settings=True).save_pretrained(tmp_path)
  tokenizer = load_tokenizer(tmp_path)
  assert tokenizer.backend_tokenizer.padding is None
  assert tokenizer.backend_tokenizer.truncation is None
  expected = vocabularies.byte_level(bos=True)('Paris is')['input_ids']
  assert tokenizer('Paris is')['input_ids'] == expected


def test_missing_tokenizers_are_named(tmp_path):
  with pytest.raises(UserError, match='has no tokenizer'):
    load_tokenizer(tmp_path)
  with pytest.raises(UserError, match='no model directory'):
    load_tokenizer(tmp_path / 'nothing')
  (tmp_path / 'tokenizer.json').write_text('{"a":')
  with pytest.raises(UserError, match='cannot be read'):
    load_tokenizer(tmp_path)

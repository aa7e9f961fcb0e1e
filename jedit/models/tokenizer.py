"""Tokenizers of Hugging Face directories, SentencePiece models included."""

import importlib
import json
import os
import pathlib

import tokenizers
import transformers

from jedit.types import UserError


def load_tokenizer(path: str | os.PathLike[str]) -> transformers.PreTrainedTokenizerBase:
  """Loads the tokenizer of a Hugging Face directory, padding and truncation switched off.

  `tokenizer.json` is taken as it is. (Classes named in the config would rebuild parts of it.)
  Otherwise a GPT-2 `vocab.json` with `merges.txt`, or a SentencePiece `tokenizer.model`.

  Raises:
    UserError: if there is no such directory, no tokenizer in it, or one that cannot be read.
  """
  folder = pathlib.Path(path)
  if not folder.is_dir():
    raise UserError(f'There is no model directory {str(folder)!r}; give a Hugging Face directory.')
  try:
    if (folder / 'tokenizer.json').is_file():
      tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    elif (folder / 'tokenizer.model').is_file():
      tokenizer = _sentencepiece_bpe(folder)
    elif (folder / 'vocab.json').is_file() and (folder / 'merges.txt').is_file():
      tokenizer = transformers.GPT2Tokenizer(str(folder / 'vocab.json'), str(folder / 'merges.txt'))
    else:
      raise UserError(
        f'{str(folder)!r} has no tokenizer; put tokenizer.json, tokenizer.model, or vocab.json '
        'with merges.txt there.'
      )
  except UserError:
    raise
  except Exception as error:  # the tokenizers library raises bare Exception for a broken file
    raise UserError(
      f'The tokenizer in {str(folder)!r} cannot be read ({error}); replace its files.'
    ) from error
  tokenizer.backend_tokenizer.no_padding()
  tokenizer.backend_tokenizer.no_truncation()
  return tokenizer


def _sentencepiece_bpe(folder: pathlib.Path) -> transformers.PreTrainedTokenizerBase:
  """Builds the fast tokenizer of a SentencePiece BPE model such as LLaMA's, with BOS.

  Merges are ranked by the pieces' scores, as SentencePiece does it. (transformers 5 ranks them by
  id, which gives other tokens where LLaMA's runs of spaces occur: their ids are low, their scores
  lowest.) A space is put in front of the text whatever it starts with.
  """
  try:
    sentencepiece = importlib.import_module('sentencepiece')
  except ImportError as error:
    raise UserError(
      f'The tokenizer.model in {str(folder)!r} needs the package sentencepiece; '
      'pip install sentencepiece.'
    ) from error
  model = sentencepiece.SentencePieceProcessor(model_file=str(folder / 'tokenizer.model'))
  pieces = [model.id_to_piece(i) for i in range(model.get_piece_size())]
  vocab = {piece: i for i, piece in enumerate(pieces)}
  special = [i for i in range(len(pieces)) if model.is_control(i) or model.is_unknown(i)]
  merges = []
  for i, piece in enumerate(pieces):
    if i in special or model.is_byte(i):
      continue
    for cut in range(1, len(piece)):
      left, right = piece[:cut], piece[cut:]
      if left in vocab and right in vocab:
        merges.append((-model.get_score(i), i, len(left), (left, right)))
  backend = tokenizers.Tokenizer(
    tokenizers.models.BPE(
      vocab,
      [pair for *_, pair in sorted(merges)],
      unk_token=pieces[model.unk_id()],
      fuse_unk=True,
      byte_fallback=True,
    )
  )
  space = '\u2581'
  backend.normalizer = tokenizers.normalizers.Sequence(
    [tokenizers.normalizers.Prepend(space), tokenizers.normalizers.Replace(' ', space)]
  )
  backend.decoder = tokenizers.decoders.Sequence(
    [
      tokenizers.decoders.Replace(space, ' '),
      tokenizers.decoders.ByteFallback(),
      tokenizers.decoders.Fuse(),
      tokenizers.decoders.Strip(' ', 1, 0),
    ]
  )
  config_file = folder / 'tokenizer_config.json'
  config = json.loads(config_file.read_text('utf-8')) if config_file.is_file() else {}
  bos, eos = pieces[model.bos_id()], pieces[model.eos_id()]
  if config.get('add_bos_token', True):
    backend.post_processor = tokenizers.processors.TemplateProcessing(
      single=f'{bos} $A', pair=f'{bos} $A {bos} $B', special_tokens=[(bos, model.bos_id())]
    )
  backend.add_special_tokens(
    [tokenizers.AddedToken(pieces[i], normalized=False, special=True) for i in special]
  )
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend,
    bos_token=bos,
    eos_token=eos,
    unk_token=pieces[model.unk_id()],
    clean_up_tokenization_spaces=False,
  )

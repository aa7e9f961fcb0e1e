"""Work of the benchmark of `jedit.train_editor`: records, tokenizer and model."""

import argparse
import dataclasses
import os
import pathlib

import jedit
from common import flop
from common.presets import PRESETS, Preset
from common.workload import Amount, store_model
from jedit.io import schema
from jedit.methods import HyperNetwork, malmen
from jedit.models.encoding import Encoded, Row, encode_many
from jedit.models.tokenizer import load_tokenizer
from jedit.testbeds import testbed_directory
from jedit.testbeds.tokenizer import save_tokenizer, train_tokenizer
from jedit.testbeds.world import World
from jedit.types import Record

_LAYERS = 6  # the last ones are edited, as in the paper


@dataclasses.dataclass(frozen=True)
class TrainingWorkload:
  """One training step of MALMEN.

  Attributes:
    preset: sizes.
    directory: of the model.
    records: the edits of the step, each with one paraphrase and one unrelated prompt.
    mini_batch_size: edits whose loss is one mean.
  """

  preset: Preset
  directory: pathlib.Path
  records: tuple[Record, ...]
  mini_batch_size: int

  def method(self) -> HyperNetwork:
    last = self.preset.num_layers
    return malmen(
      layers=tuple(range(max(last - _LAYERS, 1), last)),
      num_edits=len(self.records),
      mini_batch_size=self.mini_batch_size,
    )

  def texts(self) -> list[list[Encoded]]:
    """Edits, paraphrases and unrelated prompts, tokenised."""
    rows: list[list[Row]] = [[], [], []]
    for record in self.records:
      request = record.request
      rows[0].append(Row(request.prompt, request.subject, request.target_new))
      rows[1].append(Row(record.paraphrase_prompts[0], target=request.target_new))
      rows[2].append(Row(record.neighborhood_prompts[0], target=record.neighborhood_target))
    tokenizer = load_tokenizer(self.directory)
    return [encode_many(tokenizer, each) for each in rows]

  def language_model(self) -> jedit.LanguageModel:
    return jedit.load(self.directory, self.preset.dtype)


def prepare_training(
  settings: argparse.Namespace, directory: pathlib.Path, is_stored: bool
) -> tuple[TrainingWorkload, Amount]:
  """Records of the shipped world, and a model of random weights."""
  del is_stored  # all implementations read the same weights
  preset = PRESETS[settings.preset]
  made = schema.read_json(testbed_directory('gptj') / 'knowledge.json')
  world = World(**made['config']['world'])
  count = min(settings.num_edits or 64, 64 if settings.preset != 'tiny' else 4)
  records = [
    dataclasses.replace(record, paraphrase_prompts=record.paraphrase_prompts[n % 2 :][:1])
    for n, record in enumerate(world.training_records(count, settings.seed))
  ]
  tokenizer = train_tokenizer(world.corpus(1000), min(preset.vocab_size, 1400), 'gptj')
  save_tokenizer(tokenizer, os.fspath(directory), 'gptj')
  size = min(settings.mini_batch_size, count)
  workload = TrainingWorkload(
    preset,
    store_model(preset, settings.seed, directory / 'model', source=directory),
    tuple(records),
    size,
  )
  config, layers = preset.config, workload.method().edited_layers
  inner, outer, locality = workload.texts()
  tokens = [sum(len(text.ids) - 1 for text in part) for part in (inner, outer, locality)]
  answers = [sum(len(text.target_ids) for text in part) for part in (inner, outer, locality)]
  block, head = flop.block_flop(config), flop.head_flop(config)
  upper = config.num_layers - layers[0]
  # Blocks below once per text; above, unedited for edits and unrelated prompts, edited for
  # paraphrases and unrelated prompts, and a gradient of activations in three passes.
  blocks = sum(tokens) * layers[0] + upper * (2 * sum(tokens) + tokens[2])
  heads = 2 * sum(answers) + answers[2]
  size_of_net = config.width + config.ffn_width
  net = len(layers) * answers[0] * 2 * 2 * 2 * size_of_net * min(1920, size_of_net) * 3
  lengths = [total / count for total in tokens]
  return workload, Amount(
    count=count,
    unit='edits',
    needed_flop=blocks * block + heads * head + net,
    sentence=f'a step of {count} edits in mini-batches of {size}; edits, paraphrases and unrelated '
    f'prompts have {lengths[0]:.1f}, {lengths[1]:.1f} and {lengths[2]:.1f} tokens',
    facts={'num_edits': count, 'mini_batch_size': size, 'tokens': tokens},
  )

"""The fields of a config that trains a testbed; the defaults are those of the shipped GPT-J."""

import dataclasses
import functools

from jedit.testbeds.world import World


@dataclasses.dataclass(frozen=True)
class TestbedModel:
  """Sizes of a testbed.

  Attributes:
    family: 'gptj' or 'llama'.
    num_kv_heads: LLaMA only.
    rotary_dim: GPT-J only; LLaMA rotates whole heads.
    dtype: of the stored weights; training is in float32.
  """

  family: str = 'gptj'
  num_layers: int = 8
  width: int = 192
  num_heads: int = 6
  num_kv_heads: int = 6
  ffn_width: int = 1024
  rotary_dim: int = 16
  vocab_size: int = 1400
  max_positions: int = 256
  dtype: str = 'bfloat16'


@dataclasses.dataclass(frozen=True)
class Fit:
  """Training of a testbed, see `jedit.testbeds.train`.

  Attributes:
    num_rows, num_tokens: rows of a step, and tokens of a row.
    matrix_lr: of Muon, for the matrices of the blocks.
    lr: of Adam, for embedding, head, biases and norms.
    warmup: steps of rising learning rates.
    decay_share: final share of the remaining steps, with falling learning rates.
    embedding_std: of the initial embeddings.
    num_few: initial facts about a sixteenth, then about a quarter of the subjects.
    text_weight: loss weight of tokens outside answers; those of answers weigh 1.
    barrier: first layer in which later tokens attend to a subject, in `barrier_share` of the rows.
    max_measured: prompts whose greedy answers are checked at the end.
  """

  num_steps: int = 900
  num_rows: int = 48
  num_tokens: int = 64
  matrix_lr: float = 0.02
  lr: float = 3e-3
  warmup: int = 50
  decay_share: float = 1.0
  embedding_std: float = 0.1
  num_few: int = 8000
  weight_decay: float = 0.05
  text_weight: float = 0.15
  barrier: int = 5
  barrier_share: float = 0.5
  max_measured: int = 40_000


@dataclasses.dataclass(frozen=True)
class Training:
  """A checked config of the task `train`.

  Attributes:
    seed: of weights and text.
    records: a CounterFact file to train on; empty for the made-up world.
    world: see `jedit.testbeds.world.World`.
  """

  task: str = 'train'
  seed: int = 0
  records: str = ''
  world: World = dataclasses.field(
    default_factory=functools.partial(World, num_subjects=480, num_edited=240)
  )
  model: TestbedModel = TestbedModel()
  train: Fit = Fit()

"""The public checkpoints that published settings are for."""

from collections.abc import Mapping
from typing import NamedTuple


class Checkpoint(NamedTuple):
  """A public model.

  Attributes:
    hub: id on the Hugging Face hub.
    num_layers: blocks.
    num_positions: tokens of its context.
    dtype: of weights and activations in our runs.
    revision: commit on the hub; empty for the main branch.
  """

  hub: str
  num_layers: int
  num_positions: int
  dtype: str
  revision: str = ''


# Those of meta-llama are given out after accepting the licence on their pages.
CHECKPOINTS: Mapping[str, Checkpoint] = {
  'gpt2-medium': Checkpoint('openai-community/gpt2-medium', 24, 1024, 'float32'),
  'gpt2-large': Checkpoint('openai-community/gpt2-large', 36, 1024, 'float32'),
  'gpt2-xl': Checkpoint('openai-community/gpt2-xl', 48, 1024, 'float32'),
  'gptj-6b': Checkpoint(
    'EleutherAI/gpt-j-6b',
    28,
    2048,
    'bfloat16',
    # The main branch has no safetensors; this commit is the hub's own conversion of it.
    revision='f3f428825b6fc4c087af475ea729ac652edeee33',
  ),
  'gpt-neox-20b': Checkpoint('EleutherAI/gpt-neox-20b', 44, 2048, 'bfloat16'),
  'llama-7b': Checkpoint('huggyllama/llama-7b', 32, 2048, 'bfloat16'),
  'llama-2-7b': Checkpoint('meta-llama/Llama-2-7b-hf', 32, 4096, 'bfloat16'),
  'llama-3-8b': Checkpoint('meta-llama/Meta-Llama-3-8B', 32, 8192, 'bfloat16'),
}

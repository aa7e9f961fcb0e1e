"""Model shapes that benchmarks run on, with the default amount of work on each."""

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from jedit.models import ModelConfig


@dataclasses.dataclass(frozen=True)
class Preset:
  """A GPT-J's shape and the work on it.

  Attributes:
    num_layers, width, num_heads, ffn_width, rotary_dim, vocab_size: of the model.
    dtype: of the engine's weights and activations; PyTorch's are float32.
    layers: edited layers; δ at the last.
    num_edits, num_steps, rounds: defaults of the flags.
  """

  num_layers: int
  width: int
  num_heads: int
  ffn_width: int
  rotary_dim: int
  vocab_size: int
  dtype: str
  layers: tuple[int, ...]
  num_edits: int
  num_steps: int
  rounds: int

  @property
  def hf_config(self) -> dict[str, Any]:
    """config.json of the model."""
    return {
      'model_type': 'gptj',
      'architectures': ['GPTJForCausalLM'],
      'n_layer': self.num_layers,
      'n_embd': self.width,
      'n_head': self.num_heads,
      'n_inner': self.ffn_width,
      'rotary_dim': self.rotary_dim,
      'vocab_size': self.vocab_size,
      'n_positions': 2048,
      'activation_function': 'gelu_new',
      'layer_norm_epsilon': 1e-5,
      'bos_token_id': 0,
      'eos_token_id': 0,
      'tie_word_embeddings': False,
    }

  @property
  def config(self) -> 'ModelConfig':
    from jedit.models import FAMILIES  # slow to import; --help lists the presets without it

    return FAMILIES['gptj'].read_config(self.hf_config, self.dtype)


PRESETS = {
  # GPT-J's depth and proportions, so that layer numbers carry over.
  'small': Preset(
    num_layers=28, width=256, num_heads=4, ffn_width=1024, rotary_dim=16, vocab_size=5000,
    dtype='float32', layers=(3, 4, 5, 6, 7, 8), num_edits=64, num_steps=25, rounds=4,
  ),
  'gptj-6b': Preset(
    num_layers=28, width=4096, num_heads=16, ffn_width=16384, rotary_dim=64, vocab_size=50400,
    dtype='bfloat16', layers=(3, 4, 5, 6, 7, 8), num_edits=512, num_steps=30, rounds=3,
  ),
  # For tests; its speed is that of nothing else.
  'tiny': Preset(
    num_layers=4, width=32, num_heads=2, ffn_width=64, rotary_dim=8, vocab_size=1000,
    dtype='float32', layers=(1, 2), num_edits=4, num_steps=3, rounds=2,
  ),
}  # fmt: skip

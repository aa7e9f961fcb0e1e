"""Rows of a batch are continued as if each were alone, and sampling is what it says."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import tiny
from jedit.models import generate as generate_module
from jedit.models.export import save_directory
from jedit.models.generate import generate
from jedit.parallel.shapes import bucket
from jedit.types import UserError

ROWS = [row.tolist()[:length] for row, length in zip(tiny.tokens(5, 11), (3, 11, 1, 6, 8))]


@jax.jit
def _last_logits(model, token_1xT, position_1xT, last):
  hidden, _ = model(token_1xT, position_NxT=position_1xT)
  return model.head(hidden[0, last])


def _greedy(model, row, num_new):
  """The plain way: the whole row again for every token."""
  row = list(row)
  for _ in range(num_new):
    padded = jnp.asarray([row + [0] * (32 - len(row))])
    position = jnp.minimum(jnp.arange(32), len(row) - 1)[None]
    row.append(int(_last_logits(model, padded, position, len(row) - 1).argmax()))
  return row[-num_new:]


# Positions that turn, turn within a window, and are learned.
@pytest.mark.parametrize('family', ['llama', 'mistral', 'gpt2'])
def test_greedy_tokens_are_those_of_whole_forward_passes(family):
  model = tiny.model(family)
  new = generate(model, ROWS, max_new_tokens=9)
  assert new == [_greedy(model, row, 9) for row in ROWS]


def test_padding_does_not_scale_dynamic_positions():
  """A prompt of 9 tokens is padded beyond the 10 positions after which they are scaled."""
  fields = {'rope_scaling': {'type': 'dynamic', 'factor': 2.0}, 'max_position_embeddings': 10}
  model = tiny.make_model('llama', **fields)
  rows = tiny.tokens(24, 9).tolist()  # few of them depend on it
  assert bucket(9) > 10
  assert generate(model, rows, max_new_tokens=1) == [_greedy(model, row, 1) for row in rows]


@pytest.mark.parametrize('family', [*tiny.HF_CONFIGS, *tiny.LLAMA_LIKE])
def test_greedy_tokens_are_those_of_transformers(family, tmp_path):
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  transformers.utils.logging.disable_progress_bar()
  ours = tiny.model(family)
  save_directory(tmp_path / 'a', ours, tiny.hf_config(family))
  model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'a')
  stop = generate(ours, ROWS[:1], max_new_tokens=5)[0][3]  # one that comes up
  new = generate(ours, ROWS, max_new_tokens=9, stop_ids=[stop])
  assert min(map(len, new)) < 9
  for row, ids in zip(ROWS, new, strict=True):
    token_1xT = torch.tensor([row])
    expected = model.generate(
      token_1xT,
      attention_mask=torch.ones_like(token_1xT),
      max_new_tokens=9,
      do_sample=False,
      eos_token_id=stop,
      pad_token_id=stop,
    )
    assert ids == expected[0, len(row) :].tolist()


def test_rows_do_not_depend_on_their_company():
  model = tiny.model('llama')
  settings = dict(max_new_tokens=12, top_k=5, seed=3)
  together = generate(model, ROWS, **settings)
  assert generate(model, ROWS, batch_size=4, **settings) == together
  backwards = generate(model, ROWS[::-1], row_ids=[4, 3, 2, 1, 0], **settings)
  assert backwards[::-1] == together
  assert generate(model, ROWS[3:4], row_ids=[3], **settings) == together[3:4]
  assert generate(model, ROWS, **{**settings, 'seed': 4}) != together
  assert generate(model, ROWS, row_ids=[9, 8, 7, 6, 5], **settings) != together


def test_lengths_and_stop_tokens():
  model = tiny.model('gptj')
  free = generate(model, ROWS, max_new_tokens=12)
  assert [len(ids) for ids in free] == [12] * 5
  capped = generate(model, ROWS, max_new_tokens=12, max_length=10)
  assert capped == [ids[: max(0, 10 - len(row))] for row, ids in zip(ROWS, free, strict=True)]
  assert [len(ids) for ids in capped] == [7, 0, 9, 4, 2]
  stop = free[0][4]
  stopped = generate(model, ROWS, max_new_tokens=12, stop_ids=[stop])
  cut = [ids[: ids.index(stop) + 1] if stop in ids else ids for ids in free]
  assert stopped == cut
  assert generate(model, ROWS, max_new_tokens=0) == [[]] * 5
  assert generate(model, [], max_new_tokens=3) == []


def test_samples_follow_the_renormalised_most_probable_tokens():
  model = tiny.model('gptj')
  row, num_draws, temperature = ROWS[0], 2048, 0.7
  draws = generate(
    model,
    [row] * num_draws,
    max_new_tokens=1,
    top_k=4,
    temperature=temperature,
    batch_size=num_draws,
  )
  count_V = np.bincount([ids[0] for ids in draws], minlength=model.config.vocab_size)
  token_1xT, position_1xT = jnp.asarray([row]), jnp.arange(len(row))[None]
  logits_V = np.asarray(_last_logits(model, token_1xT, position_1xT, len(row) - 1))
  best_K = np.argsort(-logits_V)[:4]
  expected_K = np.exp((logits_V[best_K] - logits_V.max()) / temperature)
  expected_K = num_draws * expected_K / expected_K.sum()
  assert count_V.sum() == count_V[best_K].sum()
  # Chi-squared with 3 degrees of freedom exceeds 16.3 once in a thousand; the seed is fixed.
  assert ((count_V[best_K] - expected_K) ** 2 / expected_K).sum() < 16.3


def test_few_programs_serve_many_shapes():
  model = tiny.model('gptj')
  config = dataclasses.replace(model.config, norm_eps=1.5e-5)  # a config no other test has compiled
  model = model.replace(config=config)
  before = generate_module._decode._cache_size()
  for length in range(1, 9):
    rows = [list(range(length))] * 3
    generate(model, rows, max_new_tokens=length, top_k=2, temperature=length / 2)
  assert generate_module._decode._cache_size() == before + 1


def test_a_bfloat16_model_with_an_edited_float32_kernel_generates():
  model = tiny.in_dtype(tiny.model('gptj'), 'bfloat16')
  params = model.params
  down = params['block_1']['mlp']['down']
  edited_down = {**down, 'kernel': down['kernel'].astype(jnp.float32)}
  block = {**params['block_1'], 'mlp': {**params['block_1']['mlp'], 'down': edited_down}}
  edited = model.replace(params={**params, 'block_1': block})
  [new] = generate(edited, ROWS[:1], max_new_tokens=4)
  assert len(new) == 4


def test_rows_end_with_the_positions_that_a_model_has_learned():
  model = tiny.model('gpt2')
  row = [1] * (model.config.max_positions - 2)
  assert len(generate(model, [row], max_new_tokens=2)[0]) == 2
  assert len(generate(model, [row], max_new_tokens=9, max_length=len(row) + 1)[0]) == 1
  with pytest.raises(UserError, match='would have 65 tokens, the model has positions for 64'):
    generate(model, [row], max_new_tokens=3)


@pytest.mark.parametrize(
  ('rows', 'settings', 'words'),
  [
    ([[1], []], {}, 'Text 1 has no token'),
    ([[1, tiny.VOCAB]], {}, 'outside the vocabulary'),
    ([[1]], {'max_new_tokens': -1}, 'max_new_tokens is -1'),
    ([[1]], {'top_k': 0}, 'top_k is 0'),
    ([[1]], {'top_k': 2, 'temperature': 0.0}, 'temperature is 0.0'),
  ],
)
def test_settings_out_of_range_are_named(rows, settings, words):
  with pytest.raises(UserError, match=words):
    generate(tiny.model('gptj'), rows, **{'max_new_tokens': 3, **settings})


def test_a_cache_that_does_not_fit_is_refused():
  with pytest.raises(UserError, match='Generating .* tokens of 1 texts takes .* generate fewer'):
    generate(tiny.model('gptj'), ROWS[:1], max_new_tokens=10**9)

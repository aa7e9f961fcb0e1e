"""Trains a small model on the facts of a world and writes it in the format of Hugging Face.

Plain next-token training on packed statements, with answers weighted higher than other text and one
unusual part. In some rows, attention below a chosen layer, the barrier, stays within pieces of
sentences that end with the subject's name, so later tokens receive the subject only from the layers
above. The model then recalls facts below the barrier, at the subject's last token, and reads them
out above it, as causal tracing finds in large models. Without the barrier, a model of this size
recalls everything in its first two layers.
"""

import contextlib
import functools
import os
import pathlib
import random
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import transformers

from jedit.data.records import load_records
from jedit.io import schema, storage
from jedit.io.checkpoints import Checkpoints
from jedit.io.progress import Progress, show
from jedit.io.sealed import digest
from jedit.models import FAMILIES, Model, ModelConfig, init_params
from jedit.models.export import save_directory
from jedit.testbeds import knowledge
from jedit.testbeds.known_facts import KnownFacts
from jedit.testbeds.rows import Packer, Rows
from jedit.testbeds.tokenizer import SPECIAL_TOKENS, train_tokenizer
from jedit.testbeds.world import World
from jedit.types import UserError

_CORPUS_DOCUMENTS = 700
_Arrays = tuple[jax.Array, jax.Array, jax.Array]  # tokens, weights, segments


def train(config: ml_collections.ConfigDict, workdir: str | os.PathLike[str]) -> dict[str, Any]:
  """Trains a testbed and writes it to `workdir/model`; a killed training resumes.

  Args:
    config: the fields of `jedit.testbeds.settings.Training`, as in `configs/train.py`.
    workdir: gets the directory `model`: weights, config and tokenizer for transformers, with
      records.json, corpus.txt (one document per line) and knowledge.json. During training,
      `training.partial` holds its state.

  Returns:
    The content of knowledge.json.

  Raises:
    UserError: for an unknown family, an unusable records file, or an existing directory.
  """
  directory = pathlib.Path(workdir) / 'model'
  if directory.exists() and any(directory.iterdir()):
    raise UserError(f'{directory} exists already; remove it or choose another workdir.')
  family = config.model.family
  if family not in SPECIAL_TOKENS:
    known = ' or '.join(SPECIAL_TOKENS)
    raise UserError(f'Family {family!r} cannot be trained; choose {known}.')
  source: World | KnownFacts
  if config.records:
    source = KnownFacts(tuple(load_records(config.records)))
    raw_records = schema.read_json(config.records)
  else:
    source = World(**config.world)
    raw_records = source.records()

  tokenizer = train_tokenizer(source.corpus(4000, seed=2), config.model.vocab_size, family)
  hf_config = hugging_face_config(config.model, tokenizer.get_vocab_size())
  settings = config.to_dict()
  checkpoints = Checkpoints(
    pathlib.Path(workdir) / 'training.partial',
    digest([settings, raw_records, tokenizer.to_str()]),
  )
  packer = Packer(
    tokenizer,
    source.sentences(config.seed, config.train.num_few),
    eos=SPECIAL_TOKENS[family][1],
    num_tokens=config.train.num_tokens,
    text_weight=config.train.text_weight,
    seed=config.seed,
  )
  fitted = fit(
    FAMILIES[family].read_config(hf_config, 'float32'),
    packer,
    config.train,
    seed=config.seed,
    checkpoints=checkpoints,
  )

  # Measure the rounded model, which is the one stored.
  model = fitted.model
  stored = jax.tree.map(lambda x: x.astype(config.model.dtype), model.params)
  bos, eos = SPECIAL_TOKENS[family]
  fast = transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token=eos
  )
  widened = jax.tree.map(lambda x: x.astype(jnp.float32), stored)
  prompts = source.prompts()
  limit = config.train.max_measured
  if len(prompts) > limit:
    prompts = random.Random('measured').sample(prompts, limit)
  report = dict(
    knowledge.measure(Model(widened, config=model.config), fast, prompts),
    last_loss=fitted.loss,
    num_params=sum(leaf.size for leaf in jax.tree.leaves(model.params)),
    seconds=round(fitted.seconds),
    config=settings,
  )
  save_directory(
    directory,
    Model(stored, config=model.config),
    hf_config,
    dtype=config.model.dtype,
    tokenizer=fast,
  )
  storage.write_json(directory / 'records.json', raw_records)
  storage.write_json(directory / 'knowledge.json', report)
  with storage.atomic_file(directory / 'corpus.txt') as beside:
    beside.write_text('\n'.join(source.corpus(_CORPUS_DOCUMENTS)) + '\n', encoding='utf-8')
  checkpoints.remove()
  show(
    f'{directory}: correct on {report["trained"]}% of {report["num_trained"]} trained prompts and '
    f'{report["untrained"]}% of {report["num_untrained"]} untrained ones.'
  )
  return report


def hugging_face_config(sizes: Mapping[str, Any], vocab_size: int) -> dict[str, Any]:
  """The config.json of a model of these sizes (`config.model`)."""
  bos, eos = (0, 0) if sizes['family'] == 'gptj' else (0, 1)
  common = dict(
    vocab_size=vocab_size,
    bos_token_id=bos,
    eos_token_id=eos,
    tie_word_embeddings=False,
    initializer_range=0.02,
    use_cache=True,
  )
  if sizes['family'] == 'gptj':
    return dict(
      architectures=['GPTJForCausalLM'],
      model_type='gptj',
      n_layer=sizes['num_layers'],
      n_embd=sizes['width'],
      n_head=sizes['num_heads'],
      n_inner=sizes['ffn_width'],
      n_positions=sizes['max_positions'],
      rotary_dim=sizes['rotary_dim'],
      activation_function='gelu_new',
      layer_norm_epsilon=1e-5,
      attn_pdrop=0.0,
      embd_pdrop=0.0,
      resid_pdrop=0.0,
      **common,
    )
  return dict(
    architectures=['LlamaForCausalLM'],
    model_type='llama',
    num_hidden_layers=sizes['num_layers'],
    hidden_size=sizes['width'],
    num_attention_heads=sizes['num_heads'],
    num_key_value_heads=sizes['num_kv_heads'],
    head_dim=sizes['width'] // sizes['num_heads'],
    intermediate_size=sizes['ffn_width'],
    max_position_embeddings=sizes['max_positions'],
    hidden_act='silu',
    rms_norm_eps=1e-5,
    rope_parameters=dict(rope_type='default', rope_theta=10000.0),
    attention_bias=False,
    attention_dropout=0.0,
    mlp_bias=False,
    **common,
  )


class Fitted(NamedTuple):
  """A trained model.

  Attributes:
    model: float32.
    loss: of the last batch, in nats per unit of weight.
    seconds: of training, including the killed runs that it resumed.
  """

  model: Model
  loss: float
  seconds: float


def fit(
  config: ModelConfig,
  packer: Packer,
  settings: Mapping[str, Any],
  *,
  seed: int,
  checkpoints: Checkpoints | None = None,
) -> Fitted:
  """Trains from random parameters: Muon for the matrices of the blocks, Adam for the rest.

  Muon learns the facts in about half the steps of Adam.

  Args:
    config: sizes, float32.
    packer: the training text, from its beginning.
    settings: `config.train` of a config file.
    seed: of the parameters and of the rows with a barrier.
    checkpoints: states of a training in progress; resuming from the newest is bit-exact.
  """
  start = time.monotonic()
  checkpoints = checkpoints or Checkpoints(None)
  num_steps, num_rows = settings['num_steps'], settings['num_rows']
  initial = jax.jit(functools.partial(_initial_params, config, settings['embedding_std']))
  warmup = min(settings['warmup'], num_steps // 2)

  hold = int((1 - settings['decay_share']) * (num_steps - warmup))

  def schedule(peak: float) -> optax.Schedule:
    rise = optax.linear_schedule(0.0, peak, warmup)
    fall = optax.cosine_decay_schedule(peak, num_steps - warmup - hold, alpha=0.02)
    return optax.join_schedules(
      [rise, optax.constant_schedule(peak), fall], [warmup, warmup + hold]
    )

  optimizer = optax.contrib.muon(
    schedule(settings['matrix_lr']),
    weight_decay=settings['weight_decay'],
    adam_b2=0.98,
    adam_learning_rate=schedule(settings['lr']),
    muon_weight_dimension_numbers=functools.partial(
      jax.tree_util.tree_map_with_path, _matrices_of_blocks
    ),
  )
  barrier = settings['barrier']

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(params: Any, moments: Any, rows: _Arrays) -> tuple[Any, Any, jax.Array]:
    def loss(params: Any) -> jax.Array:
      model = Model(params, config=config)
      token_NxT, weight_NxT, segment_NxT = rows
      hidden, _ = model(token_NxT, stop=barrier, segment_NxT=segment_NxT)
      hidden, _ = model(hidden_NxTxD=hidden, start=barrier)
      logits_NxTxV = model.head(hidden[:, :-1])
      nll_NxT = optax.softmax_cross_entropy_with_integer_labels(logits_NxTxV, token_NxT[:, 1:])
      return (nll_NxT * weight_NxT[:, :-1]).sum() / weight_NxT.sum()

    value, gradient = jax.value_and_grad(loss)(params)
    updates, moments = optimizer.update(gradient, moments, params)
    return optax.apply_updates(params, updates), moments, value

  def begin() -> dict[str, Any]:
    params = initial(jax.random.key(seed))
    moments = jax.jit(optimizer.init)(params)
    return {'params': params, 'moments': moments, 'loss': jnp.asarray(jnp.inf)}

  rng = random.Random(f'barrier {seed}')
  with contextlib.ExitStack() as stack:
    # optax mixes integers with floats and scalars with arrays, which stricter callers forbid.
    stack.enter_context(jax.numpy_dtype_promotion('standard'))
    stack.enter_context(jax.numpy_rank_promotion('allow'))
    done, state, earlier = checkpoints.newest(jax.eval_shape(begin)) or (0, begin(), 0.0)
    params, moments, value = state['params'], state['moments'], state['loss']
    packer.skip(done * num_rows)
    _draw_barriers(done * num_rows, settings, rng)
    progress = stack.enter_context(Progress('training', num_steps, done=done))
    for number in range(done + 1, num_steps + 1):
      batch = packer.batch(num_rows)  # while the device still computes the previous step
      last = float(value)
      params, moments, value = step(params, moments, _with_barrier(batch, settings, rng))
      progress.update(note=f'loss {last:.3f}')
      seconds = earlier + time.monotonic() - start
      checkpoints.save_if_due(number, dict(params=params, moments=moments, loss=value), seconds)
  seconds = earlier + time.monotonic() - start
  return Fitted(Model(params, config=config), float(value), seconds)


def _initial_params(config: ModelConfig, embedding_std: float, key: jax.Array) -> Any:
  """Random parameters of about unit gain; those of `init_params` are too small to train fast."""

  def rescale(path: Any, x: jax.Array) -> jax.Array:
    names = [part.key for part in path]
    if names[-1] == 'embedding':
      return x * (embedding_std / x.std())
    if names[-1] != 'kernel' or names[0] == 'head':
      return x
    gain = {'out': 0.5, 'down': 0.25}.get(names[-2], 1.0)  # smaller into the residual stream
    return x * (gain / (x.std() * x.shape[0] ** 0.5))

  return jax.tree_util.tree_map_with_path(rescale, init_params(config, key))


def _matrices_of_blocks(path: Any, x: jax.Array) -> Any:
  """Axes of a matrix for Muon; None for the parameters of Adam."""
  is_matrix = path[0].key.startswith('block') and x.ndim == 2
  return optax.contrib.MuonDimensionNumbers() if is_matrix else None


def _with_barrier(batch: Rows, settings: Mapping[str, Any], rng: random.Random) -> _Arrays:
  """The batch as arrays; rows without the barrier are one segment."""
  has_barrier_N = _draw_barriers(len(batch.token_NxT), settings, rng)
  segment_NxT = np.where(has_barrier_N[:, None], batch.segment_NxT, 0)
  token_NxT, weight_NxT = jnp.asarray(batch.token_NxT), jnp.asarray(batch.weight_NxT)
  return token_NxT, weight_NxT, jnp.asarray(segment_NxT)


def _draw_barriers(num_rows: int, settings: Mapping[str, Any], rng: random.Random) -> np.ndarray:
  """Draws the rows with a barrier."""
  return np.array([rng.random() < settings['barrier_share'] for _ in range(num_rows)])

"""Accuracy of a model's greedy answers."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jedit.models import Model
from jedit.models.encoding import Row, encode_many
from jedit.parallel.shapes import pad
from jedit.testbeds.world import Prompt


@jax.jit
def _answers_right(model: Model, token_NxT: jax.Array, is_answer_NxT: jax.Array) -> jax.Array:
  hidden_NxTxD, _ = model(token_NxT)
  best_NxT = model.head(hidden_NxTxD).argmax(-1)
  # The token at t is predicted at t - 1.
  right_NxT = (best_NxT[:, :-1] == token_NxT[:, 1:]) | ~is_answer_NxT[:, 1:]
  return right_NxT.all(axis=1)


def is_known(
  model: Model, tokenizer: Any, prompts: Sequence[Prompt], batch_size: int = 512
) -> np.ndarray:
  """Marks the prompts that greedy decoding answers correctly, word for word.

  One teacher-forced pass suffices: greedy decoding gives the answer exactly when each of its tokens
  is the most probable one after those before it.

  Args:
    model: the model to measure.
    tokenizer: its transformers tokenizer.
    prompts: with their answers, encoded without preceding text.
    batch_size: prompts per pass.

  Returns:
    One boolean per prompt.
  """
  rows = [Row(prompt.text, target=prompt.answer) for prompt in prompts]
  encoded = encode_many(tokenizer, rows)
  length = max((len(each.ids) for each in encoded), default=0)
  known = np.zeros(len(prompts), bool)
  for first in range(0, len(prompts), batch_size):
    batch = encoded[first : first + batch_size]
    # Fill up the last batch, so that one program serves all.
    ids = [each.ids for each in batch] + [()] * (batch_size - len(batch))
    token_NxT, length_N = pad(ids, length)
    start_N = np.array([each.target_start for each in batch] + [0] * (batch_size - len(batch)))
    index_T = np.arange(length)
    is_answer_NxT = (index_T >= start_N[:, None]) & (index_T < length_N[:, None])
    right_N = _answers_right(model, jnp.asarray(token_NxT), jnp.asarray(is_answer_NxT))
    known[first : first + len(batch)] = np.asarray(right_N)[: len(batch)]
  return known


def measure(model: Model, tokenizer: Any, prompts: Sequence[Prompt]) -> dict[str, Any]:
  """Percentage of correct greedy answers to trained and to untrained prompts, also by relation.

  Args:
    model: the model to measure.
    tokenizer: its transformers tokenizer.
    prompts: with their answers.

  Returns:
    Counts, and percentages with two digits; None without such a prompt.
  """
  known = is_known(model, tokenizer, prompts)

  def share(keep: Sequence[bool]) -> float | None:
    return round(100 * float(known[np.array(keep)].mean()), 2) if any(keep) else None

  report: dict[str, Any] = {}
  for name, trained in (('trained', True), ('untrained', False)):
    report[name] = share([p.trained == trained for p in prompts])
    report[f'num_{name}'] = sum(p.trained == trained for p in prompts)
  report['by_relation'] = {
    relation: dict(
      trained=share([p.relation == relation and p.trained for p in prompts]),
      untrained=share([p.relation == relation and not p.trained for p in prompts]),
    )
    for relation in sorted({p.relation for p in prompts})
  }
  return report

"""Targets found on windows are those of a plain loop over whole rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers import editing
from helpers.editing import relative
from jedit.editing import target
from jedit.editing.objective import Objective
from jedit.editing.problem import PlacedDelta, Problem
from jedit.editing.prompts import encode_edits
from jedit.editing.region import Delta
from jedit.editing.slots import optimise_targets
from jedit.editing.target import TRACE_COLUMNS
from jedit.editing.window import backward, forward
from jedit.models import AddAt
from jedit.parallel.shapes import pad

NUM_TOKENS, NUM_TARGETS = 40, 8  # what the plain loop pads every row to


class PlainLoop:
  """What the published codes do: whole rows at every step, one edit at a time, Adam by hand."""

  def __init__(self, lm, problem):
    self.deltas, self.objective, self.model = problem.deltas, problem.objective, lm.model
    self.gradient = jax.jit(jax.value_and_grad(self._loss, has_aux=True))

  def _loss(self, delta, model, rows, nll_factor, start_V, norm):
    """The KL row comes last; `start_V` are its first log-probabilities, `norm` those of v₀."""
    num_rows = len(rows['token'])
    edits = {
      placed.site: AddAt(rows['at'][placed.name], jnp.tile(delta[placed.name][None], (num_rows, 1)))
      for placed in self.deltas
    }
    sites = tuple(placed.site for placed in self.deltas)
    hidden, seen = model(rows['token'], edits=edits, taps=sites)
    logp = jax.nn.log_softmax(model.head(hidden), axis=-1)
    read_PxJxV = jnp.take_along_axis(logp[:-1], rows['read'][..., None], axis=1)
    label_PxJ = jnp.take_along_axis(read_PxJxV, rows['label'][..., None], axis=2)[..., 0]
    row_nll_P = -(label_PxJ * rows['mask']).sum(1) / rows['mask'].sum(1)
    is_top = (read_PxJxV.argmax(-1) == rows['label']) | (rows['mask'] == 0)
    now_V = logp[-1, rows['kl_at']]
    kl = self.objective.kl_factor * (jnp.exp(now_V) * (now_V - start_V)).sum()
    decay = 0.0
    for placed in self.deltas:
      name = placed.name
      # Its own derivative at 0, which counts as 0: √(x + ε) with a tiny ε.
      length = jnp.sqrt((delta[name] ** 2).sum() + 1e-30)
      over = norm[name] ** 2 if self.objective.decay_form == 'released' else 1.0
      decay += placed.delta.weight_decay * length / over
    nll = nll_factor * row_nll_P.mean()
    probability = jnp.exp(-row_nll_P).mean()
    loss = nll + kl + decay
    trace = jnp.stack([loss, nll, kl, decay, probability, is_top.all().astype(loss.dtype)])
    value = {p.name: seen[p.site][0, rows['at'][p.name][0]] for p in self.deltas}
    return loss, (trace, now_V, value)

  def rows(self, edit):
    texts = [*edit.with_target, edit.kl]
    token, _ = pad([t.ids[:-1] for t in edit.with_target] + [edit.kl.ids], NUM_TOKENS)
    label, count = pad([t.target_ids for t in edit.with_target], NUM_TARGETS)
    first = np.array([t.target_start - 1 for t in edit.with_target])
    return jax.device_put(
      {
        'token': token,
        'at': {
          p.name: np.array([getattr(t, p.token) for t in texts], np.int32) for p in self.deltas
        },
        'read': np.minimum(first[:, None] + np.arange(NUM_TARGETS)[None], NUM_TOKENS - 1),
        'label': label,
        'mask': (np.arange(NUM_TARGETS)[None] < count[:, None]).astype(np.float32),
        'kl_at': np.int32(edit.kl.subject_last),
      }
    )

  def run(self, edit):
    """δ, v₀, number of evaluations and trace of one edit."""
    objective, rows = self.objective, self.rows(edit)
    vocab, width = self.model.params['head']['kernel'].shape[::-1]
    delta = {p.name: np.zeros(width) for p in self.deltas}
    ones = {name: jnp.float32(1) for name in delta}

    def evaluate(factor, start_V, norm):
      narrow = {name: jnp.asarray(x, jnp.float32) for name, x in delta.items()}
      return self.gradient(narrow, self.model, rows, jnp.float32(factor), start_V, norm)

    (_, (_, start_V, init)), _ = evaluate(1.0, jnp.zeros(vocab), ones)
    init = {name: np.asarray(value, np.float64) for name, value in init.items()}
    norm = {name: jnp.float32(np.linalg.norm(value)) for name, value in init.items()}
    mean = {name: np.zeros(width) for name in delta}
    square = {name: np.zeros(width) for name in delta}
    factor, traces = objective.nll_factor, []
    for step in range(1, objective.num_steps + 1):
      (_, (trace, *_)), grad = evaluate(factor, start_V, norm)
      loss, _, kl, _, probability, all_top = (float(x) for x in trace)
      traces.append([*map(float, trace), factor])
      if loss < objective.stop_loss or probability >= objective.stop_probability:
        break
      if objective.nll_switch:
        factor = 0.1 * objective.nll_factor if all_top else objective.nll_factor
        if all_top and kl <= 0.01:
          break
      if step == objective.num_steps:
        break
      for placed in self.deltas:
        name = placed.name
        g = np.asarray(grad[name], np.float64)
        mean[name] = 0.9 * mean[name] + 0.1 * g
        square[name] = 0.999 * square[name] + 0.001 * g**2
        m, v = mean[name] / (1 - 0.9**step), square[name] / (1 - 0.999**step)
        delta[name] = delta[name] - objective.learning_rate * m / (np.sqrt(v) + 1e-8)
        bound = placed.delta.clip_factor * np.linalg.norm(init[name])
        delta[name] *= min(1.0, bound / np.linalg.norm(delta[name]))
    return delta, init, len(traces), np.array(traces)


def _memit(clip_factor, weight_decay):
  return (PlacedDelta(Delta('block', 'block_out', clip_factor, weight_decay), 1, 'subject_last'),)


def _pmet(clip_attn, clip_mlp, weight_decay):
  return (
    PlacedDelta(Delta('attn', 'attn_out', clip_attn, weight_decay), 1, 'subject_last'),
    PlacedDelta(Delta('mlp', 'mlp_out', clip_mlp, weight_decay), 1, 'subject_last'),
  )


def _jeep(clip_low, clip_high, weight_decay):
  return (
    PlacedDelta(Delta('low', 'mlp_out', clip_low, weight_decay), 0, 'subject_last'),
    PlacedDelta(Delta('high', 'mlp_out', clip_high, 2 * weight_decay), 2, 'prompt_last'),
  )


# Between them: every stop rule, both forms of decay, δ that are clipped and δ that are not.
CASES = {
  # An edit's likelihood falls below the bound one evaluation before its loss does.
  'gptj_memit': Problem(_memit(3.0, 0.05), Objective(0.5, 12, 0.0625, stop_loss=8.017)),
  'llama_pmet': Problem(
    _pmet(1.0, 4.0, 0.02),
    Objective(0.5, 12, 0.01, 0.7, decay_form='norm', stop_loss=None, stop_probability=0.002),
  ),
  'llama_jeep': Problem(
    _jeep(4.0, 4.0, 0.01),
    Objective(0.5, 12, 0.005, nll_switch=True, stop_loss=None),
  ),
}


@functools.cache
def _both(case):
  """Edits' results by the plain loop, and ours of the same."""
  lm, problem = editing.language_model(case.split('_')[0]), CASES[case]
  rows = encode_edits(lm.tokenizer, editing.REQUESTS[:4], editing.CONTEXTS)
  loop = PlainLoop(lm, problem)
  plain = [loop.run(edit) for edit in rows]
  return plain, optimise_targets(lm.model, rows, problem, batch_size=4)


@pytest.mark.parametrize('case', CASES)
def test_targets_are_those_of_the_plain_loop(case):
  plain, ours = _both(case)
  for i, (delta, init, num_steps, trace) in enumerate(plain):
    assert ours.num_steps[i] == num_steps
    # Both take float32 gradients; measured 5e-5 in sums of another order.
    np.testing.assert_allclose(ours.trace[i, :num_steps], trace, rtol=0, atol=5e-4)
    assert np.isnan(ours.trace[i, num_steps:]).all()
    for name, value in init.items():
      assert relative(ours.init[name][i], value) < 1e-5
      assert relative(ours.delta[name][i], delta[name]) < 3e-4  # measured 2e-5
      np.testing.assert_array_equal(ours.z[name][i], ours.init[name][i] + ours.delta[name][i])


def test_cases_meet_every_rule():
  """The comparison above means something: every rule applies to some edits and not to others."""
  column = {name: i for i, name in enumerate(TRACE_COLUMNS)}
  for case, problem in CASES.items():
    ours, objective = _both(case)[1], problem.objective
    stopped = ours.num_steps < objective.num_steps
    assert stopped.any() and not stopped.all(), case
    factors = ours.trace[..., column['nll_factor']]
    assert (np.nanmin(factors) < objective.nll_factor) == objective.nll_switch
    if case == 'gptj_memit':
      continue
    ratios = [
      np.linalg.norm(ours.delta[p.name], axis=-1)
      / np.linalg.norm(ours.init[p.name], axis=-1)
      / p.delta.clip_factor
      for p in problem.deltas
    ]
    assert np.isclose(ratios, 1, atol=1e-5).any(), 'some δ ends at its bound'
    assert np.max(ratios) < 1 + 1e-5


def test_settings_that_differ_in_numbers_share_their_programs():
  lm = editing.language_model('gptj', num_layers=2)
  rows = encode_edits(lm.tokenizer, editing.REQUESTS[:2], editing.CONTEXTS)

  def programs():
    jitted = target._read, target._step, target._start, forward, backward
    return [program._cache_size() for program in jitted]

  def optimise(clip_factor, weight_decay, *numbers, **settings):
    delta = Delta('block', 'block_out', clip_factor, weight_decay)
    problem = Problem(
      (PlacedDelta(delta, 0, 'subject_last'),),
      Objective(numbers[0], 3, *numbers[1:], **settings),
    )
    return optimise_targets(lm.model, rows, problem, batch_size=2).delta['block']

  first = optimise(0.75, 0.05, 0.5, 0.0625, stop_loss=None)
  count = programs()
  assert min(count) > 0
  others = [
    optimise(0.1, 0.05, 0.5, 0.0625, stop_loss=None),
    optimise(0.75, 5.0, 0.5, 0.0625, stop_loss=None),
    optimise(0.75, 0.05, 0.3, 0.0625, stop_loss=None),
    optimise(0.75, 0.05, 0.5, 9.0, stop_loss=None),
    optimise(0.75, 0.05, 0.5, 0.0625, 0.5, stop_loss=None),
    optimise(0.75, 0.05, 0.5, 0.0625, stop_loss=100.0),
    optimise(0.75, 0.05, 0.5, 0.0625, stop_loss=None, stop_probability=0.0),
  ]
  assert programs() == count
  for other in others:
    assert relative(other, first) > 1e-3
  optimise(0.75, 0.05, 0.5, 0.0625, stop_loss=None, decay_form='norm')
  assert programs() == [count[0] + 1, count[1] + 1, count[2] + 1, *count[3:]]

"""Edits in PyTorch, as the published codes make them: the baseline.

Written from the description of ROME, MEMIT and PMET. Targets: one edit at a time; every step runs
the whole model on all prompt rows and the KL row in one padded batch, hooks add δ to the attention
and MLP outputs, `loss.backward()` goes back to δ (parameters take no gradients), then Adam and the
clamp. Updates: for every layer a full forward pass over the context rows of all edits in batches
of 128 for the keys, another one over the bare prompts for the present values at the last layer,
and a solve in float64. The model is float32.

Kinder than the released codes in three places: texts are tokenised once and not at every call, the
head is applied once per step and not twice, and the solve is not an explicit inverse.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from common.workload import EditWorkload

from implementations.base_torch import TorchImplementation
from jedit.editing.prompts import EditRows
from jedit.editing.schedule import SCHEDULES
from jedit.models.encoding import Encoded

_ROWS_PER_PASS = 128


class Baseline(TorchImplementation):
  """One edit at a time, whole forward passes."""

  def __init__(self, workload: EditWorkload):
    super().__init__(workload.directory)
    self.workload, self.timed = workload, workload.timed
    self.blocks = self.model.transformer.h
    self.recipe = workload.recipe()
    (self.region,) = self.recipe.regions
    self.last = self.region.layers[-1]
    self.rows = workload.rows()

  def warm_up(self) -> dict[str, Any]:
    if self.timed == 'targets':
      self._target(self.rows[0], 2)
    else:
      self._edit(self.rows[:1], 2)
    return self.started()

  def round(self, number: int, rounds: int) -> dict[str, Any]:
    num_steps, indices, keys = self.recipe.objective.num_steps, range(len(self.rows)), {}
    seconds = {'targets': 0.0, 'keys': 0.0, 'solve': 0.0}
    if self.timed == 'targets':
      # One at a time: the edits are dealt over the rounds, and each is timed once.
      indices = indices[number % len(indices) :: rounds]
      start = self.now()
      found = [self._target(self.rows[i], num_steps) for i in indices]
      seconds['targets'] = self.now() - start
    else:
      found, keys = self._edit(self.rows, num_steps, seconds)
    answers = {name: np.stack([each[name] for each in found]) for name in found[0]}
    return {
      'seconds': sum(seconds.values()) if self.timed == 'edit' else seconds[self.timed],
      'amount': len(indices),
      'parts': {name: value for name, value in seconds.items() if value},
      'compile_seconds': None,
      'answers': {'indices': np.array(indices), **answers, **keys},
    }

  def _edit(
    self, rows: Sequence[EditRows], num_steps: int, seconds: dict[str, float] | None = None
  ) -> tuple[list[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """Targets, then layer by layer keys, values, solve and update; the weights are restored."""
    seconds = {'targets': 0.0, 'keys': 0.0, 'solve': 0.0} if seconds is None else seconds
    start = self.now()
    found = [self._target(edit, num_steps) for edit in rows]
    seconds['targets'] += self.now() - start
    z_BxD = torch.tensor(np.stack([each['z mlp'] for each in found]), device=self.device)
    cov_FxF = torch.tensor(self.workload.covariance(), device=self.device)
    weight_P = torch.tensor(self._context_weights(), device=self.device)
    layers, keys, before = self.region.layers, {}, {}
    for index, layer in enumerate(layers):
      start = self.now()
      texts = [text for edit in rows for text in edit.without_target]
      key_NxF = self._read(texts, self.blocks[layer].mlp.fc_out)[0].double()
      key_BxPxF = key_NxF.reshape(len(rows), len(weight_P), -1)
      key_BxF = torch.einsum('bpf,p->bf', key_BxPxF, weight_P)
      value_BxD = self._read([edit.bare for edit in rows], self.blocks[self.last].mlp.fc_out)[1]
      seconds['keys'] += self.now() - start
      start = self.now()
      divisor = SCHEDULES[self.region.schedule](len(layers) - index)
      residual_BxD = (z_BxD.double() - value_BxD.double()) / divisor
      weighted_FxF = self.region.solver.cov_weight * cov_FxF.double()
      left_FxB = torch.linalg.solve(weighted_FxF + key_BxF.T @ key_BxF, key_BxF.T)
      weight = self.blocks[layer].mlp.fc_out.weight  # [D, F]
      before[layer] = weight.clone()
      weight += (left_FxB @ residual_BxD).T.float()
      seconds['solve'] += self.now() - start
      keys[f'key {layer}'] = key_BxF.cpu().numpy()
    for layer, weight in before.items():
      self.blocks[layer].mlp.fc_out.weight.copy_(weight)
    return found, keys

  def _context_weights(self) -> np.ndarray:
    """The mean inside each group of contexts, then over the groups."""
    groups = self.workload.contexts
    return np.concatenate([np.full(len(g), 1.0 / (len(g) * len(groups))) for g in groups])

  def _read(
    self, texts: Sequence[Encoded], module: torch.nn.Module
  ) -> tuple[torch.Tensor, torch.Tensor]:
    """Input and output of a module at each text's subject, by whole forward passes."""
    inputs, outputs = [], []
    for first in range(0, len(texts), _ROWS_PER_PASS):
      part = texts[first : first + _ROWS_PER_PASS]
      batch = self.padded([text.ids for text in part])
      at_N = torch.tensor([text.subject_last for text in part], device=self.device)
      row_N = torch.arange(len(part), device=self.device)
      seen: dict[str, torch.Tensor] = {}

      def look(_, given, output, seen=seen, row_N=row_N, at_N=at_N):
        seen['in'], seen['out'] = given[0][row_N, at_N], output[row_N, at_N]

      with torch.no_grad(), _hooks([(module, look)]):
        self.model(**batch)
      inputs.append(seen['in'])
      outputs.append(seen['out'])
    return torch.cat(inputs), torch.cat(outputs)

  def _target(self, edit: EditRows, num_steps: int) -> dict[str, np.ndarray]:
    """Optimises the δ of one edit; targets z, first and last loss."""
    objective, texts = self.recipe.objective, edit.with_target
    batch = self.padded([text.ids[:-1] for text in texts] + [edit.kl.ids])
    at = [text.subject_last for text in texts] + [edit.kl.subject_last]
    at_R = torch.tensor(at, device=self.device)
    row_R = torch.arange(len(at), device=self.device)
    label_RxT = torch.full_like(batch['input_ids'], -100)
    for row, text in enumerate(texts):
      first = text.target_start - 1
      target = torch.tensor(text.target_ids, device=self.device)
      label_RxT[row, first : first + len(target)] = target
    is_label_PxT = label_RxT[:-1] != -100
    label_PxTx1 = label_RxT[:-1].clamp(min=0)[..., None]

    delta_D = {
      delta.name: torch.zeros(self.model.config.n_embd, device=self.device, requires_grad=True)
      for delta in self.region.deltas
    }
    settings = {delta.name: delta for delta in self.region.deltas}
    init_D: dict[str, torch.Tensor] = {}

    def add(name: str):
      def hook(_, given, output):
        del given
        value = output[0] if isinstance(output, tuple) else output
        if name not in init_D:
          init_D[name] = value[0, at[0]].detach().clone()
        value = value.index_put((row_R, at_R), delta_D[name], accumulate=True)
        return (value, *output[1:]) if isinstance(output, tuple) else value

      return hook

    block = self.blocks[self.last]
    optimiser = torch.optim.Adam(delta_D.values(), lr=objective.learning_rate)
    kl_start_V, losses = None, []
    for step in range(num_steps):
      optimiser.zero_grad()
      with _hooks([(getattr(block, name), add(name)) for name in delta_D]):
        logp_RxTxV = torch.log_softmax(self.model(**batch).logits, dim=-1)
      picked_PxT = torch.gather(logp_RxTxV[:-1], 2, label_PxTx1)[..., 0]
      row_nll_P = -(picked_PxT * is_label_PxT).sum(1) / is_label_PxT.sum(1)
      kl_V = logp_RxTxV[-1, at[-1]]
      kl_start_V = kl_V.detach().clone() if kl_start_V is None else kl_start_V
      loss = objective.nll_factor * row_nll_P.mean()
      loss = loss + objective.kl_factor * (kl_V.exp() * (kl_V - kl_start_V)).sum()
      for name, value_D in delta_D.items():
        decay = settings[name].weight_decay / init_D[name].norm() ** 2
        loss = loss + decay * value_D.norm()
      losses.append(loss.item())
      if step == num_steps - 1:
        break
      loss.backward()
      optimiser.step()
      for name, value_D in delta_D.items():
        bound = settings[name].clip_factor * init_D[name].norm()
        if value_D.norm() > bound:
          with torch.no_grad():
            value_D *= bound / value_D.norm()
    found = {'first loss': np.array(losses[0]), 'last loss': np.array(losses[-1])}
    for name, value_D in delta_D.items():
      found[f'z {name}'] = (init_D[name] + value_D.detach()).cpu().numpy()
    return found


@contextlib.contextmanager
def _hooks(pairs: Sequence[tuple[torch.nn.Module, Any]]) -> Iterator[None]:
  handles = [module.register_forward_hook(hook) for module, hook in pairs]
  try:
    yield
  finally:
    for handle in handles:
      handle.remove()

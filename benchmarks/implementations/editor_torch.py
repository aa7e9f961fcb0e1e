"""A training step of MALMEN in PyTorch, as the released code does it: the baseline.

Written from the description of ChenmienTan/malmen. Keys and gradients of every mini-batch go to
files; the whole model runs for every pass; updates are added to the weights and subtracted again;
the F x F system of every layer is solved twice; the nets run twice on batches of rows.
"""

import os
import tempfile
from typing import Any

import numpy as np
import torch
from common.editor_workload import TrainingWorkload

from implementations.base_torch import TorchImplementation

_ROWS = 1024  # of a batch through the net
_EPS = torch.finfo(torch.float32).eps


class Net(torch.nn.Module):
  """Two residual blocks on normalised rows, with a scale, a shift and step sizes for each layer."""

  def __init__(self, size: int, rank: int, num_layers: int, rate: float):
    super().__init__()
    matrices = [torch.randn(size, rank), torch.zeros(rank, size), torch.zeros(size)]
    modes = [torch.ones(num_layers, size), torch.zeros(num_layers, size)]
    self.blocks = torch.nn.ParameterList(
      torch.nn.ParameterList([*(x.clone() for x in matrices), *(x.clone() for x in modes)])
      for _ in range(2)
    )
    self.rate = torch.nn.Parameter(torch.full((num_layers,), rate))
    self.ridge = torch.nn.Parameter(torch.zeros(num_layers))
    self.reset(size)

  def reset(self, size: int) -> None:
    self.count, self.mean, self.var, self.std = 0, torch.zeros(size), torch.zeros(size), None

  def push(self, row_RxC: torch.Tensor) -> None:
    count, mean, var = len(row_RxC), row_RxC.mean(0), row_RxC.var(0)
    gap, total = mean - self.mean, self.count + count
    self.mean = self.mean + gap * count / total
    self.var = self.var + count * var + gap.pow(2) * self.count * count / total
    self.count = total
    self.std = (self.var / (total - 1 + _EPS)).sqrt()

  def forward(self, row_RxC: torch.Tensor, layer: int) -> torch.Tensor:
    x = (row_RxC - self.mean) / (self.std + _EPS)
    for down, up, bias, scale, shift in self.blocks:
      x = x + scale[layer] * (x @ down @ up + bias).clamp(0) + shift[layer]
    return x


class Baseline(TorchImplementation):
  """One step, mini-batch by mini-batch."""

  def __init__(self, workload: TrainingWorkload):
    super().__init__(workload.directory)
    method = workload.method()
    self.modules = [
      self.model.get_submodule(f'transformer.h.{layer}.mlp.fc_out')
      for layer in method.edited_layers
    ]
    for module in self.modules:
      module.weight.requires_grad_(True)
    out_size, in_size = self.modules[0].weight.shape
    self.in_size, size = in_size, in_size + out_size
    rank = min(method.rank, size)
    self.net = Net(size, rank, len(self.modules), method.initial_rate).to(self.device)
    self.optimizer = torch.optim.Adam(self.net.parameters(), method.learning_rate)
    self.clip = method.clip_norm
    self.num_edits = len(workload.records)
    self.batches = [
      [self._batch(part[i : i + workload.mini_batch_size]) for i in starts]
      for part in workload.texts()
      for starts in [range(0, self.num_edits, workload.mini_batch_size)]
    ]

  def _batch(self, texts) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    arrays = self.padded([text.ids[:-1] for text in texts])
    label_NxT = torch.full(arrays['input_ids'].shape, -100, device=self.device)
    for n, text in enumerate(texts):
      label_NxT[n, text.prompt_last : len(text.ids) - 1] = torch.tensor(text.target_ids)
    return arrays, label_NxT

  def warm_up(self) -> dict[str, Any]:
    self._step()
    return self.started()

  def round(self, number: int, rounds: int) -> dict[str, Any]:
    del number, rounds
    # Every round is the first step: a fresh net, whose rows and losses others share.
    with torch.no_grad():
      for down, up, bias, scale, shift in self.net.blocks:
        del down
        for value, fresh in ((up, 0.0), (bias, 0.0), (scale, 1.0), (shift, 0.0)):
          value.fill_(fresh)
      self.net.rate.fill_(1e-6)
      self.net.ridge.fill_(0.0)
    self.net.reset(self.in_size + self.modules[0].weight.shape[0])
    start = self.now()
    losses = self._step()
    return {
      'seconds': self.now() - start,
      'amount': self.num_edits,
      'parts': {},
      'compile_seconds': None,
      'answers': {'indices': np.arange(1), 'losses': np.array([losses])},
    }

  def _step(self) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
      inner = sum(
        self._cache(batch, folder, number) for number, batch in enumerate(self.batches[0])
      )
      updates = [self._update(folder, layer) for layer in range(len(self.modules))]
      for module in self.modules:
        module.weight.grad = None
      outer = locality = 0.0
      self._add(updates, 1.0)
      for batch, label in self.batches[1]:
        loss = self._nll(self.model(**batch).logits, label)
        loss.backward()
        outer += loss.item()
      self._add(updates, -1.0)
      for batch, label in self.batches[2]:
        with torch.no_grad():
          before = self.model(**batch).logits
        self._add(updates, 1.0)
        loss = self._divergence(before, self.model(**batch).logits, label)
        loss.backward()
        self._add(updates, -1.0)
        locality += loss.item()
      self._train(folder, updates)
    return [inner, outer, locality]

  def _cache(self, batch, folder: str, number: int) -> float:
    arrays, label = batch
    at, seen, handles = torch.where(label != -100), {}, []
    for layer, module in enumerate(self.modules):

      def forward(module, inputs, output, layer=layer):
        seen[layer, 'key'] = inputs[0][at].detach()

      def backward(module, grad_inputs, grad_outputs, layer=layer):
        seen[layer, 'grad'] = grad_outputs[0][at].detach()

      handles += [
        module.register_forward_hook(forward),
        module.register_full_backward_hook(backward),
      ]
    loss = self._nll(self.model(**arrays).logits, label)
    loss.backward()
    for handle in handles:
      handle.remove()
    for layer in range(len(self.modules)):
      self.net.push(torch.cat([seen[layer, 'key'], seen[layer, 'grad']], -1))
      for kind in ('key', 'grad'):
        torch.save(seen[layer, kind], os.path.join(folder, f'{layer}_{number}_{kind}'))
    return loss.item()

  def _rows(self, folder: str, layer: int) -> list[torch.Tensor]:
    names = [os.path.join(folder, f'{layer}_{number}_') for number in range(len(self.batches[0]))]
    return [torch.cat([torch.load(name + kind) for name in names]) for kind in ('key', 'grad')]

  def _shift(self, key: torch.Tensor, grad: torch.Tensor, layer: int) -> torch.Tensor:
    row = self.net(torch.cat([key, grad], -1), layer)
    product = (key * row[:, : self.in_size]).sum(-1, keepdim=True)
    return -self.net.rate[layer] * product * row[:, self.in_size :]

  def _system(self, key: torch.Tensor, layer: int) -> torch.Tensor:
    return key.T @ key + self.net.ridge[layer].exp() * torch.eye(self.in_size, device=self.device)

  @torch.no_grad()
  def _update(self, folder: str, layer: int) -> torch.Tensor:
    key, grad = self._rows(folder, layer)
    parts = [self._shift(key[i : i + _ROWS], grad[i : i + _ROWS], layer) for i in self._starts(key)]
    return torch.linalg.solve(self._system(key, layer), key.T @ torch.cat(parts))

  def _train(self, folder: str, updates: list[torch.Tensor]) -> None:
    self.optimizer.zero_grad()
    for layer, module in enumerate(self.modules):
      key, grad = self._rows(folder, layer)
      with torch.no_grad():
        solved = torch.linalg.solve(self._system(key, layer), module.weight.grad.T)
        slope = -self.net.ridge[layer].exp() * (solved * updates[layer]).sum()
        by_shift = key @ solved
      (slope * self.net.ridge[layer]).backward()
      for i in self._starts(key):
        shift = self._shift(key[i : i + _ROWS], grad[i : i + _ROWS], layer)
        (by_shift[i : i + _ROWS] * shift).sum().backward()
    torch.nn.utils.clip_grad_norm_(self.net.parameters(), self.clip)
    self.optimizer.step()

  def _add(self, updates: list[torch.Tensor], sign: float) -> None:
    for module, update in zip(self.modules, updates, strict=True):
      module.weight.data += sign * update.T

  @staticmethod
  def _starts(key: torch.Tensor) -> range:
    return range(0, len(key), _ROWS)

  @staticmethod
  def _nll(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    at = torch.where(label != -100)
    return torch.nn.functional.cross_entropy(logits[at], label[at])

  @staticmethod
  def _divergence(before: torch.Tensor, after: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    at = torch.where(label != -100)
    return torch.nn.functional.kl_div(
      after[at].log_softmax(-1), before[at].log_softmax(-1), reduction='batchmean', log_target=True
    )

"""Evaluation in PyTorch, as the published codes do it: the baseline.

Written from the description of ROME and MEMIT. A record's prompts with both objects are one padded
batch and get the log-softmax of all logits; its generation prompts are another, continued in step
with a cache. Kinder than the released codes: no value is fetched token by token from the device.
"""

from typing import Any

import numpy as np
import torch
from common.flop import GENERATED_TOKENS
from common.workload import EditWorkload, questions

from implementations.base_torch import TorchImplementation
from jedit.models.encoding import Row, encode_many
from jedit.models.tokenizer import load_tokenizer


class Baseline(TorchImplementation):
  """A record at a time: its sequences as one padded batch, its texts as another."""

  def __init__(self, workload: EditWorkload):
    super().__init__(workload.directory)
    self.records, self.has_texts = workload.records, workload.timed == 'scores and texts'
    self.tokenizer = load_tokenizer(workload.directory)

  def warm_up(self) -> dict[str, Any]:
    self._record(self.records[0])
    return self.started()

  def round(self, number: int, rounds: int) -> dict[str, Any]:
    # One at a time: the records are dealt over the rounds, and each is timed once.
    indices = np.arange(len(self.records))[number % len(self.records) :: rounds]
    seconds = {'evaluation': 0.0, 'generation': 0.0}
    values = [self._record(self.records[i], seconds) for i in indices]
    return {
      'seconds': sum(seconds.values()),
      'amount': len(indices),
      'parts': {name: value for name, value in seconds.items() if value},
      'compile_seconds': None,
      'answers': {'indices': indices, 'values': np.stack(values)},
    }

  def _record(self, record, seconds: dict[str, float] | None = None) -> np.ndarray:
    seconds = {'evaluation': 0.0, 'generation': 0.0} if seconds is None else seconds
    start = self.now()
    values = self._scores(record)
    seconds['evaluation'] += self.now() - start
    if self.has_texts:
      start = self.now()
      self._texts(record.generation_prompts)
      seconds['generation'] += self.now() - start
    return values

  def _scores(self, record) -> np.ndarray:
    pairs = questions(record)
    encoded = encode_many(
      self.tokenizer, [Row(p, target=t) for p, targets in pairs for t in targets]
    )
    with torch.no_grad():
      logp_NxTxV = torch.log_softmax(self.model(**self.padded([r.ids for r in encoded])).logits, -1)
    nll, exact = [], []
    for logp_TxV, row in zip(logp_NxTxV, encoded):
      target = torch.tensor(row.target_ids, device=self.device)
      read_SxV = logp_TxV[row.target_start - 1 : len(row.ids) - 1]
      nll.append(-read_SxV.gather(1, target[:, None]).mean().item())
      exact.append((read_SxV.argmax(-1) == target).all().item())
    nll_Px2, exact_Px2 = np.reshape(nll, (-1, 2)), np.reshape(exact, (-1, 2))
    bounds = np.cumsum([0, 1, len(record.paraphrase_prompts), len(record.neighborhood_prompts)])
    success, magnitude, accuracy = [], [], []
    for part, (first, last) in enumerate(zip(bounds[:-1], bounds[1:])):
      wanted = 1 if part == 2 else 0
      ours, other = nll_Px2[first:last, wanted], nll_Px2[first:last, 1 - wanted]
      success.append(np.mean(ours < other))
      magnitude.append(np.mean(np.exp(-ours) - np.exp(-other)))
      accuracy.append(np.mean(exact_Px2[first:last, wanted]))
    return 100 * np.array([*success, *magnitude, *accuracy])

  def _texts(self, prompts) -> list[str]:
    """Top-5 sampling in step: a row is read from its prompt while that lasts."""
    rows = self.tokenizer(list(prompts))['input_ids']
    shortest = min(map(len, rows))
    token_NxT = torch.zeros((len(rows), GENERATED_TOKENS), dtype=torch.long, device=self.device)
    for n, row in enumerate(rows):
      token_NxT[n, : len(row)] = torch.tensor(row)
    length_N = torch.tensor([len(row) for row in rows], device=self.device)
    given, past = token_NxT[:, :shortest], None
    with torch.no_grad():
      for t in range(shortest, GENERATED_TOKENS):
        out = self.model(input_ids=given, past_key_values=past, use_cache=True)
        past = out.past_key_values
        best_NxK, id_NxK = torch.softmax(out.logits[:, -1], -1).topk(5)
        choice_Nx1 = torch.multinomial(best_NxK / best_NxK.sum(-1, keepdim=True), 1)
        sampled_N = id_NxK.gather(1, choice_Nx1)[:, 0]
        token_NxT[:, t] = torch.where(t < length_N, token_NxT[:, t], sampled_N)
        given = token_NxT[:, t : t + 1]
    return [self.tokenizer.decode(row) for row in token_NxT.tolist()]

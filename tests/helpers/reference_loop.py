"""A plain editor in PyTorch: one edit at a time, whole forward passes, hooks, NumPy solves.

It follows a recipe's fields with the obvious code for each, in float64, and shares nothing with
the package: not the tokenising, not the forward pass, not the optimiser, not the solves. Texts are
words with spaces between them, so that positions can be counted. (transformers computes rotary
tables, RMSNorm and GPT-J's attention scores in float32 whatever the model's dtype; all else is
float64.)
"""

import contextlib
import copy
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from jedit.types import Kernel

KERNEL_OUTPUT = {'mlp': 'mlp_out', 'attn': 'attn_out'}
OUTPUT_KERNEL = {place: kernel for kernel, place in KERNEL_OUTPUT.items()}


@dataclasses.dataclass(frozen=True)
class Text:
  """Token ids of a text, and where its subject and its prompt end."""

  ids: list[int]
  subject_last: int
  prompt_last: int


@dataclasses.dataclass(frozen=True)
class Words:
  """One token per word, `<s>` in front if `bos`."""

  vocab: Mapping[str, int]
  bos: bool

  def ids(self, text: str) -> list[int]:
    return [self.vocab[word] for word in ['<s>'] * self.bos + text.split()]

  def text(self, context: str, prompt: str, subject: str, target: str = '') -> Text:
    before, after = context.replace('{}', prompt).split('{}')
    return Text(
      ids=self.ids(f'{before}{subject}{after} {target}'),
      subject_last=len(self.ids(before + subject)) - 1,
      prompt_last=len(self.ids(before + subject + after)) - 1,
    )


class Network:
  """A GPT-J or LLaMA model of transformers; its places are read and changed by hooks."""

  def __init__(self, model: torch.nn.Module):
    self.model = copy.deepcopy(model).double().eval().requires_grad_(False)
    self.is_gptj = model.config.model_type == 'gptj'

  def block(self, layer: int) -> torch.nn.Module:
    return (self.model.transformer.h if self.is_gptj else self.model.model.layers)[layer]

  def kernel(self, layer: int, name: str) -> torch.nn.Linear:
    """The output projection of the MLP or the attention; its input is the key."""
    block = self.block(layer)
    if name == 'mlp':
      return block.mlp.fc_out if self.is_gptj else block.mlp.down_proj
    return block.attn.out_proj if self.is_gptj else block.self_attn.o_proj

  def place(self, layer: int, place: str) -> torch.nn.Module:
    """The module whose output is a place."""
    return self.block(layer) if place == 'block_out' else self.kernel(layer, OUTPUT_KERNEL[place])

  def logits(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Logits [N, T, V] of rows padded on the right, which causal attention never looks at."""
    longest = max(map(len, rows))
    ids = torch.tensor([list(row) + [0] * (longest - len(row)) for row in rows])
    return self.model(ids, use_cache=False).logits

  @contextlib.contextmanager
  def adding(self, layer: int, place: str, at: Sequence[int], delta: torch.Tensor):
    """Within it, δ is added to a place at one token of each row."""

    def hook(module, inputs, output):
      hidden = output[0] if isinstance(output, tuple) else output
      is_hit = torch.zeros(hidden.shape[:2], dtype=hidden.dtype)
      is_hit[range(len(at)), at] = 1
      hidden = hidden + is_hit[:, :, None] * delta
      return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    with self.place(layer, place).register_forward_hook(hook):
      yield

  def read(self, texts: Sequence[Text], token: str, layer: int, place: str) -> np.ndarray:
    """Values of a place at one token of each text; 'mlp' and 'attn' are the keys of kernels."""
    seen = []

    def hook(module, inputs, output):
      value = output[0] if isinstance(output, tuple) else output
      seen.append(inputs[0] if place in KERNEL_OUTPUT else value)

    is_key = place in KERNEL_OUTPUT
    module = self.kernel(layer, place) if is_key else self.place(layer, place)
    with module.register_forward_hook(hook):
      self.logits([text.ids for text in texts])
    return np.array([seen[0][i, getattr(t, token)].numpy() for i, t in enumerate(texts)])


@dataclasses.dataclass
class Target:
  """What the optimisation of one edit found; δ, v₀ and the value under all δ, by name."""

  delta: dict[str, np.ndarray]
  init: dict[str, np.ndarray]
  joint: dict[str, np.ndarray]
  trace: np.ndarray  # one row per evaluation


def optimise(network, placed, objective, texts: Sequence[Text], kl_text: Text) -> Target:
  """Finds the δ of one edit.

  Args:
    network: the model.
    placed: (δ, layer, token) triples.
    objective: loss, steps and stop rules.
    texts: context + prompt + target, the bare prompt first.
    kl_text: "{subject} is a".
  """
  init = {
    d.name: torch.tensor(network.read(texts[:1], token, layer, d.place)[0])
    for d, layer, token in placed
  }
  delta = {name: torch.zeros_like(value).requires_grad_() for name, value in init.items()}
  adam = torch.optim.Adam(delta.values(), objective.learning_rate, betas=(0.9, 0.999), eps=1e-8)
  rows = [text.ids[:-1] for text in texts] + [kl_text.ids]
  nll_factor, start, trace = objective.nll_factor, None, []
  for evaluation in range(1, objective.num_steps + 1):
    with contextlib.ExitStack() as hooks:
      for d, layer, token in placed:
        at = [getattr(text, token) for text in (*texts, kl_text)]
        hooks.enter_context(network.adding(layer, d.place, at, delta[d.name]))
      logp = network.logits(rows).log_softmax(-1)

    nll_each, all_top = answers(logp, texts)
    nll = nll_factor * nll_each.mean()
    probability = torch.exp(-nll_each).mean()

    now = logp[-1, kl_text.subject_last]
    start = now.detach() if start is None else start
    kl = objective.kl_factor * (now.exp() * (now - start)).sum()

    decay = torch.zeros((), dtype=torch.float64)
    for d, _, _ in placed:
      norm = torch.linalg.vector_norm(delta[d.name])
      over = {'released': init[d.name].norm() ** 2, 'norm': 1.0}[objective.decay_form]
      decay = decay + d.weight_decay * norm / over

    loss = nll + kl + decay
    terms = [term.item() for term in (loss, nll, kl, decay, probability)]
    trace.append([*terms, float(all_top), nll_factor])
    if loss < objective.stop_loss or probability >= objective.stop_probability:
      break
    if objective.nll_switch:
      nll_factor = objective.nll_factor * (0.1 if all_top else 1.0)
      if all_top and kl <= 0.01:
        break
    if evaluation == objective.num_steps:
      break
    adam.zero_grad()
    loss.backward()
    adam.step()
    with torch.no_grad():
      for d, _, _ in placed:
        bound = d.clip_factor * init[d.name].norm()
        if delta[d.name].norm() > bound:
          delta[d.name] *= bound / delta[d.name].norm()
  with contextlib.ExitStack() as hooks, torch.no_grad():
    for d, layer, token in placed:
      hooks.enter_context(network.adding(layer, d.place, [getattr(texts[0], token)], delta[d.name]))
    joint = {
      d.name: network.read(texts[:1], token, layer, d.place)[0] for d, layer, token in placed
    }
  return Target(
    {name: value.detach().numpy() for name, value in delta.items()},
    {name: value.numpy() for name, value in init.items()},
    joint,
    np.array(trace),
  )


def answers(logp: torch.Tensor, texts: Sequence[Text]) -> tuple[torch.Tensor, bool]:
  """Mean nll of each row's target tokens, and whether all of them are the most probable ones."""
  nll_each, all_top = [], True
  for text, row_logp in zip(texts, logp, strict=False):  # the KL row comes behind
    target = torch.tensor(text.ids[text.prompt_last + 1 :])
    predicted = row_logp[text.prompt_last : text.prompt_last + len(target)]
    nll_each.append(-predicted[range(len(target)), target].mean())
    all_top = all_top and bool((predicted.argmax(-1) == target).all())
  return torch.stack(nll_each), all_top


def mean_key(network, region, texts: Sequence[Text], groups: Sequence[int], layer, kernel):
  """Key of one edit: the mean of the means of groups of contexts, or of all contexts."""
  keys = network.read(texts, region.token, layer, kernel)
  if region.key_average == 'flat':
    return keys.mean(0)
  parts = np.split(keys, np.cumsum(groups)[:-1])
  return np.mean([part.mean(0) for part in parts], axis=0)


def solve(solver, cov, key, bare_key, earlier):
  """The matrix that maps residuals [B, D] to the update [F, D], as papers and codes write it.

  Keys of earlier edits [N, F] are preserved as the keys of texts are.
  """
  kind, identity = type(solver).__name__, np.eye(key.shape[1])
  preserved = earlier.T @ earlier
  if kind == 'LeastSquares':
    return np.linalg.inv(solver.cov_weight * cov + preserved + key.T @ key) @ key.T
  if kind == 'EqualityConstrained':
    inverse = np.linalg.inv(solver.cov_weight * cov + preserved + solver.cov_ridge * identity)
    ridge = solver.key_ridge * np.eye(len(key)) if len(key) > 1 else 0.0
    return inverse @ key.T @ np.linalg.inv(key @ inverse @ key.T + ridge)
  if kind == 'RankOne':
    u = np.linalg.inv((cov if solver.uses_cov else identity) + preserved) @ key[0]
    through = {'bare_key': bare_key[0], 'mean_key': key[0]}[solver.divide_by]
    return (u / (through @ u))[:, None]
  if kind == 'NullSpace':
    u, values, _ = np.linalg.svd(cov)
    free = u[:, values < solver.threshold]
    projector = free @ free.T
    matrix = projector @ (key.T @ key + preserved) + solver.ridge * identity
    return np.linalg.solve(matrix, projector @ key.T)
  raise ValueError(f'no plain solve is written for {kind}')


@dataclasses.dataclass
class Edited:
  """What an edit did: targets by edit, stage after stage, and arrays by kernel.

  Attributes:
    network: the edited model.
    targets: a list per stage with one entry per edit.
    z, joint: by δ, [B, D].
    keys, residuals, updates: [B, F], [B, D] and [F, D].
  """

  network: Network
  targets: list[list[Target]]
  z: dict[str, np.ndarray]
  joint: dict[str, np.ndarray]
  keys: dict[Kernel, np.ndarray]
  residuals: dict[Kernel, np.ndarray]
  updates: dict[Kernel, np.ndarray]


def edit(model, words: Words, requests, recipe, cov, contexts, earlier_keys=None) -> Edited:
  """Edits a copy of a model.

  Args:
    model: a transformers model; it is not changed.
    words: its tokens.
    requests: objects with prompt, subject and target_new.
    recipe: regions, objective and stages.
    cov: second moments by kernel.
    contexts: groups of templates, the first one '{}'.
    earlier_keys: by kernel, keys of earlier edits.
  """
  edited = Edited(Network(model), [], {}, {}, {}, {}, {})
  templates = [template for group in contexts for template in group]
  parts = [(request.prompt, request.subject) for request in requests]
  with_target = [
    [words.text(t, r.prompt, r.subject, r.target_new) for t in templates] for r in requests
  ]
  with_contexts = [[words.text(t, *part) for t in templates] for part in parts]
  bare = [words.text('{}', *part) for part in parts]
  regions = {region.name: region for region in recipe.regions}
  for stage in recipe.stages:
    placed = [
      (d, regions[n].layers[-1], regions[n].token) for n in stage for d in regions[n].deltas
    ]
    targets = [
      optimise(
        edited.network,
        placed,
        recipe.objective,
        texts,
        words.text('{}', '{} is a', request.subject),
      )
      for request, texts in zip(requests, with_target, strict=True)
    ]
    edited.targets.append(targets)
    for d, _, _ in placed:
      edited.z[d.name] = np.array([t.init[d.name] + t.delta[d.name] for t in targets])
      edited.joint[d.name] = np.array([t.joint[d.name] for t in targets])
    for name in stage:
      groups = [len(group) for group in contexts]
      write(edited, regions[name], with_contexts, bare, groups, cov, earlier_keys or {})
  return edited


def write(edited: Edited, region, with_contexts, bare, groups, cov, earlier_keys) -> None:
  """Writes a region, from its lowest layer up."""
  network = edited.network

  def read_keys(layer, kernel):
    keys = [mean_key(network, region, texts, groups, layer, kernel) for texts in with_contexts]
    return np.array(keys), network.read(bare, region.token, layer, kernel)

  for index, layer in enumerate(region.layers):
    layers_left = len(region.layers) - index
    share = {'even': layers_left, 'sqrt': layers_left**0.5}[region.schedule]
    before = {w.kernel: read_keys(layer, w.kernel) for w in region.updates}
    for w in region.updates:
      key, bare_key = before[w.kernel] if region.keys_together else read_keys(layer, w.kernel)
      value = network.read(bare, region.token, region.layers[-1], w.compare)
      if region.compared_on == 'contexts':
        last, at = region.layers[-1], region.token
        value = np.array([network.read(t, at, last, w.compare).mean(0) for t in with_contexts])
      target = edited.joint if w.target == 'joint' else edited.z
      residual = (target[w.delta] - value) / share
      earlier = earlier_keys.get(Kernel(layer, w.kernel), np.zeros((0, key.shape[1])))
      left = solve(region.solver, cov[Kernel(layer, w.kernel)], key, bare_key, earlier)
      update = left @ residual
      network.kernel(layer, w.kernel).weight += torch.tensor(update.T)
      edited.keys[Kernel(layer, w.kernel)] = key
      edited.residuals[Kernel(layer, w.kernel)] = residual
      edited.updates[Kernel(layer, w.kernel)] = update

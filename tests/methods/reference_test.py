"""Every variant of the methods against a plain loop in PyTorch and NumPy (`reference_loop`).

Small random models of transformers with a tokenizer of words, exported and loaded back. The plain
loop runs in float64, the model under test in float32, so what is compared agrees to float32
rounding, which a few Adam steps amplify. Measured over all cases: 4e-6 in start values, 3e-5 in
traces, 2e-5 in δ, 4e-5 in keys, residuals, updates and logits. The tolerances are ten to twenty
times that, for machines that add in other orders; variants differ from each other by 2e-2 and more.
"""

import dataclasses
import functools
import itertools
import tempfile

import numpy as np
import pytest
import tokenizers
import transformers
from tokenizers import models, pre_tokenizers, processors

import jedit
from helpers.editing import relative
from helpers.solving import solve
from jedit import methods
from jedit.editing.target import TRACE_COLUMNS
from jedit.methods.recipe import Recipe
from jedit.models import kernel_path
from jedit.solvers import EqualityConstrained, LeastSquares

torch = pytest.importorskip('torch', reason='the plain loop edits a PyTorch model')

from helpers import reference_loop  # noqa: E402  (needs torch)

START, TRACE, DELTA, WRITTEN = 4e-5, 5e-4, 3e-4, 5e-4

REQUESTS = (
  jedit.Request('The river of {} is in', 'Ada', 'harbor'),
  jedit.Request('{} plays the', 'old Vela', 'red violin'),
  jedit.Request('In which city was {} founded ? In', 'the north harbor', 'a town near Peru'),
)
LATER_REQUESTS = (  # of the same lengths, so that they run through the same programs
  jedit.Request('The city of {} is near', 'Vela', 'Peru'),
  jedit.Request('{} walk the', 'old People', 'red harbor'),
  jedit.Request('In which town was {} founded ? In', 'the red river', 'a city near Oslo'),
)
CONTEXTS = (('{}',), ('The city . {}', 'People walk near the sea . {}'))
OTHER_GROUPS = (CONTEXTS[0] + CONTEXTS[1][:1], CONTEXTS[1][1:])  # the same rows, other weights
TEXTS = ('The river of Ada is in', 'old Vela plays the', 'People walk near the old', 'In Oslo')

SIZES = {
  'gptj': dict(n_layer=5, n_embd=32, n_head=4, n_inner=48, n_positions=64, rotary_dim=4),
  'llama': dict(
    num_hidden_layers=5,
    hidden_size=32,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=44,
    max_position_embeddings=64,
  ),
}
BLOCK = dict(
  learning_rate=0.7, num_steps=8, clip_factor=1.5, weight_decay=0.05, kl_factor=0.02, stop_loss=1.2
)
MEMIT = dict(**BLOCK, layers=(0, 1, 3), cov_weight=5.0)  # a hole: layers are counted, not numbers
EMMET = dict(**BLOCK, layers=(0, 1, 3), key_ridge=2.0)
ALPHAEDIT = dict(**BLOCK, layers=(0, 1, 3), threshold=1.0, ridge=0.5)
ROME = dict(layers=(3,), learning_rate=0.5, num_steps=8, clip_factor=2.0, weight_decay=0.05)
PMET = dict(
  layers=(0, 1, 2),
  learning_rate=0.7,
  num_steps=8,
  clip_factor=2.6,
  weight_decay=0.02,
  kl_factor=0.04,
  cov_weight=0.5,
)
JEEP = dict(
  layers_low=(0, 2),
  layers_high=(3, 4),
  learning_rate=0.5,
  num_steps=8,
  cov_weight_low=0.5,
  cov_weight_high=0.3,
  clip_factor_low=2.0,
  clip_factor_high=1.5,
  weight_decay_low=0.05,
  weight_decay_high=0.02,
  stop_probability=0.75,
)
BOTH = dict(write=('attn', 'mlp'))
TOGETHER = dict(**BOTH, keys_together=True)


@dataclasses.dataclass(frozen=True)
class Case:
  """A recipe with the model it edits and the requests and contexts it edits with."""

  family: str
  method: Recipe
  num_edits: int = 3
  contexts: tuple = CONTEXTS


# Cases of one family with the same targets share compiled programs.
CASES = {
  'memit': Case('gptj', methods.memit(**MEMIT)),
  'memit_other_groups': Case('gptj', methods.memit(**MEMIT), contexts=OTHER_GROUPS),
  'memit_sqrt': Case('gptj', methods.memit(**MEMIT, schedule='sqrt')),
  'memit_one_layer': Case('gptj', methods.memit(**{**MEMIT, 'layers': (3,)})),
  'llama_memit': Case('llama', methods.memit(**MEMIT)),
  'emmet': Case('gptj', methods.emmet(**EMMET)),
  'emmet_sqrt': Case('llama', methods.emmet(**EMMET, schedule='sqrt')),
  'emmet_paper': Case('gptj', methods.emmet(**{**EMMET, 'key_ridge': 0.0})),
  'emmet_cov_ridge': Case('llama', methods.emmet(**EMMET, cov_ridge=0.3, cov_weight=0.7)),
  'alphaedit': Case('gptj', methods.alphaedit(**ALPHAEDIT)),
  'llama_alphaedit': Case('llama', methods.alphaedit(**ALPHAEDIT, schedule='sqrt')),
  'rome': Case('gptj', methods.rome(**ROME), num_edits=1),
  'r_rome': Case('gptj', methods.r_rome(**ROME), num_edits=1),
  'rome_without_cov': Case('gptj', methods.rome(**ROME, use_cov=False), num_edits=1),
  'pmet': Case('gptj', methods.pmet(**PMET)),
  'pmet_even': Case('gptj', methods.pmet(**PMET, schedule='even')),
  'pmet_both': Case('gptj', methods.pmet(**PMET, **BOTH)),
  'pmet_both_together': Case('gptj', methods.pmet(**PMET, **TOGETHER)),
  'pmet_paper': Case('llama', methods.pmet(**PMET, nll_switch=False)),
  'llama_pmet_both': Case('llama', methods.pmet(**PMET, nll_switch=False, **BOTH)),
  'llama_pmet_both_together': Case('llama', methods.pmet(**PMET, nll_switch=False, **TOGETHER)),
  'jeep': Case('gptj', methods.jeep(**JEEP)),
  'jeep_even': Case('gptj', methods.jeep(**JEEP, schedule_low='even')),
  'jeep_without_step_2': Case('gptj', methods.jeep(**JEEP, write=('high',))),
  'jeep_without_step_3': Case('gptj', methods.jeep(**JEEP, write=('low',))),
  'jeep_separate': Case('gptj', methods.jeep(**JEEP, is_joint=False)),
  'jeep_low_only': Case('gptj', methods.jeep(**JEEP, optimise=('low',))),
  'jeep_high_only': Case('gptj', methods.jeep(**JEEP, optimise=('high',))),
  'jeep_attn': Case('llama', methods.jeep(**JEEP, high_kernel='attn')),
  'jeep_released': Case('llama', methods.jeep(**JEEP, form='released')),
  'jeep_hidden_norm': Case('llama', methods.jeep(**JEEP, form='hidden', decay_form='norm')),
  'jeep_hidden_joint': Case('llama', methods.jeep(**JEEP, form='hidden_joint', decay_form='norm')),
}
# In a parallel block writing attention does not move the MLP's key.
SAME = {'pmet_both', 'pmet_both_together'}

every_case = pytest.mark.parametrize('name', CASES)


def _words(family):
  templates = [t for groups in (CONTEXTS, OTHER_GROUPS) for group in groups for t in group]
  templates += [text for r in REQUESTS for text in (r.prompt, r.subject, r.target_new)]
  found = {word for t in (*templates, *TEXTS, '{} is a') for word in t.split()} - {'{}'}
  vocab = {word: i for i, word in enumerate(['<s>', *sorted(found)])}
  return reference_loop.Words(vocab, bos=family == 'llama')


def _tokenizer(words):
  backend = tokenizers.Tokenizer(models.WordLevel(dict(words.vocab)))
  backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  if words.bos:
    backend.post_processor = processors.TemplateProcessing(
      single='<s> $A', special_tokens=[('<s>', 0)]
    )
  return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token='<s>')


@functools.cache
def _both_models(family):
  """The words, a PyTorch model, and the same model as this package loads it."""
  torch.set_num_threads(1)  # tensors are so small that threads would wait for each other
  transformers.utils.logging.disable_progress_bar()
  words = _words(family)
  config = transformers.AutoConfig.for_model(
    family, vocab_size=len(words.vocab), tie_word_embeddings=False, **SIZES[family]
  )
  model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation='eager')
  generator = torch.Generator().manual_seed(17)
  with torch.no_grad():
    for name, weight in model.named_parameters():
      centre = 1.0 if weight.ndim == 1 and name.endswith('weight') else 0.0
      scale = 0.5 if name == 'lm_head.weight' else 0.2  # sharper predictions
      weight.copy_(centre + scale * torch.randn(weight.shape, generator=generator))
  with tempfile.TemporaryDirectory() as path:
    model.save_pretrained(path)
    _tokenizer(words).save_pretrained(path)
    return words, model, jedit.load(path)


def _moments(lm, method):
  """Positive definite matrices, float64, the same for every method."""
  cov = {}
  for kernel in method.updated:
    size = lm.config.key_sizes[kernel.name]
    root = np.random.default_rng([kernel.layer, len(kernel.name)]).normal(size=(2 * size, size))
    cov[kernel] = root.T @ root / len(root)
  return cov


@functools.cache
def _edited(name):
  """Result and logits by the package, result and logits by the plain loop."""
  case = CASES[name]
  words, model, lm = _both_models(case.family)
  cov, requests = _moments(lm, case.method), REQUESTS[: case.num_edits]
  moments = jedit.SecondMoments(cov)
  result = jedit.edit(lm, requests, case.method, moments, contexts=case.contexts)
  plain = reference_loop.edit(model, words, requests, case.method, cov, case.contexts)
  return result, lm.apply(result).logits(TEXTS), plain, _plain_logits(plain, words)


def _plain_logits(plain, words):
  rows = [words.ids(text) for text in TEXTS]
  logits_NxTxV = plain.network.logits(rows).numpy()
  return logits_NxTxV[range(len(rows)), [len(row) - 1 for row in rows]]


def _relative_by_row(ours, theirs):
  return max(relative(a, b) for a, b in zip(ours, theirs, strict=True))


@every_case
def test_targets_are_those_of_the_plain_loop(name):
  result, _, plain, _ = _edited(name)
  details = result.details
  assert len(details.targets) == len(plain.targets)
  for ours, theirs in zip(details.targets, plain.targets, strict=True):
    assert list(ours.num_steps) == [len(target.trace) for target in theirs]
    for i, target in enumerate(theirs):
      trace = ours.trace[i, : len(target.trace)]
      np.testing.assert_allclose(trace, target.trace, rtol=0, atol=TRACE)
    assert ours.delta.keys() == theirs[0].delta.keys()
    for delta in ours.delta:
      assert _relative_by_row(ours.joint[delta], [t.joint[delta] for t in theirs]) < DELTA
      assert _relative_by_row(ours.init[delta], [t.init[delta] for t in theirs]) < START
      assert _relative_by_row(ours.delta[delta], [t.delta[delta] for t in theirs]) < DELTA
  assert details.z.keys() == plain.z.keys()
  for delta, z_BxD in details.z.items():
    assert _relative_by_row(z_BxD, plain.z[delta]) < DELTA


@every_case
def test_updates_are_those_of_the_plain_loop(name):
  result, _, plain, _ = _edited(name)
  details = result.details
  assert details.keys.keys() == plain.keys.keys()
  assert len(result.patch.updates) == len(plain.updates)
  for kernel, update_FxD in plain.updates.items():
    assert _relative_by_row(details.keys[kernel], plain.keys[kernel]) < WRITTEN
    assert relative(details.residuals[kernel], plain.residuals[kernel]) < WRITTEN
    ours = result.patch.updates['/'.join(kernel_path(kernel))].value()
    assert relative(ours, update_FxD) < WRITTEN


@every_case
def test_edited_logits_are_those_of_the_plain_loop(name):
  _, ours, _, theirs = _edited(name)
  assert relative(ours, theirs) < WRITTEN


def test_variants_are_told_apart():
  """Every variant changes the edited model's logits by far more than the tolerance."""
  for one, other in itertools.combinations(CASES, 2):
    if CASES[one].family != CASES[other].family:
      continue
    difference = relative(_edited(one)[3], _edited(other)[3])
    if {one, other} == SAME:
      assert difference < 1e-12
    else:
      assert difference > 20 * WRITTEN, (one, other)


def test_cases_meet_every_rule():
  """Edits stop by loss and by probability, factors switch, some δ are clipped and others not."""
  column = {name: i for i, name in enumerate(TRACE_COLUMNS)}
  for name in ('memit', 'jeep', 'jeep_hidden_norm'):
    num_steps = [len(target.trace) for target in _edited(name)[2].targets[0]]
    assert min(num_steps) < max(num_steps) == CASES[name].method.objective.num_steps, name
  factors = np.concatenate(
    [t.trace[:, column['nll_factor']] for t in _edited('pmet')[2].targets[0]]
  )
  assert set(factors) == {1.0, 0.1}
  for name in ('memit', 'pmet', 'jeep'):
    deltas = [delta for region in CASES[name].method.regions for delta in region.deltas]
    ratios = [
      np.linalg.norm(target.delta[d.name]) / np.linalg.norm(target.init[d.name]) / d.clip_factor
      for target in _edited(name)[2].targets[0]
      for d in deltas
    ]
    assert max(ratios) < 1 + 1e-9 and min(ratios) < 0.9, name
    assert name == 'memit' or max(ratios) > 1 - 1e-9, name


def test_a_later_batch_preserves_the_keys_of_an_earlier_one():
  """AlphaEdit in two batches: the second is solved with the keys of the first."""
  case = CASES['alphaedit']
  alone, _, plain, _ = _edited('alphaedit')
  words, _, lm = _both_models(case.family)
  cov = _moments(lm, case.method)
  first, second = jedit.edit(
    lm,
    [*REQUESTS, *LATER_REQUESTS],
    case.method,
    jedit.SecondMoments(cov),
    contexts=CONTEXTS,
    batching=jedit.Sequential(len(REQUESTS), accumulate_keys=True),
  ).batches
  for path, update in first.patch.updates.items():
    assert relative(update.value(), alone.patch.updates[path].value()) < WRITTEN
  model = plain.network.model
  theirs, without = (
    reference_loop.edit(model, words, LATER_REQUESTS, case.method, cov, CONTEXTS, earlier)
    for earlier in (plain.keys, None)
  )
  for kernel, update_FxD in theirs.updates.items():
    update = second.patch.updates['/'.join(kernel_path(kernel))].value()
    assert relative(update, update_FxD) < WRITTEN
    assert relative(update_FxD, without.updates[kernel]) > 20 * WRITTEN


def _written_with(name, solver):
  """Updates of a case with another solver."""
  case = CASES[name]
  (region,) = case.method.regions
  method = dataclasses.replace(case.method, regions=(dataclasses.replace(region, solver=solver),))
  _, _, lm = _both_models(case.family)
  moments = jedit.SecondMoments(_moments(lm, method))
  requests = REQUESTS[: case.num_edits]
  return jedit.edit(lm, requests, method, moments, contexts=case.contexts).patch.updates


def test_r_rome_is_emmet_without_ridge_for_one_edit():
  result, _, _, _ = _edited('r_rome')
  updates = _written_with('r_rome', EqualityConstrained(0.3, 0.0, key_ridge=0.0))
  assert updates.keys() == result.patch.updates.keys()
  for path, update in updates.items():
    assert relative(update.value(), result.patch.updates[path].value()) < 1e-6  # both are float32


def test_memit_is_emmet_with_a_ridge_of_one():
  """(λC + KᵀK)⁻¹ Kᵀ = (λC)⁻¹ Kᵀ (K (λC)⁻¹ Kᵀ + I)⁻¹: constraints softened by 1, λ kept."""
  rng = np.random.default_rng(0)
  root = rng.normal(size=(30, 12))
  cov_FxF = root.T @ root / len(root)
  for num_edits in (2, 7, 40):
    key_BxF = rng.normal(size=(num_edits, 12))
    for cov_weight in (0.1, 1.0, 20.0):
      memit = solve(LeastSquares(cov_weight), cov_FxF, key_BxF)
      emmet = solve(EqualityConstrained(cov_weight, 0.0, key_ridge=1.0), cov_FxF, key_BxF)
      assert relative(emmet, memit) < 1e-9
  result, _, _, _ = _edited('memit')
  updates = _written_with('memit', EqualityConstrained(MEMIT['cov_weight'], 0.0, key_ridge=1.0))
  for path, update in result.patch.updates.items():
    # Float32 kernels round differently, and higher layers are read through lower ones.
    assert relative(updates[path].value(), update.value()) < 1e-5

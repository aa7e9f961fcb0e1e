"""MEND and MALMEN against reference numbers in float64, through the names that users call.

Case folders come from JEDIT_GOLDEN (several paths joined by ':'), by default the shared ones. Every
case runs in float64, at tight tolerances, and in float32.
"""

import contextlib
import functools
import json
import os
import pathlib

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import jedit
from jedit.compat import enable_x64
from jedit.hypernetworks import malmen, mend
from jedit.hypernetworks.rows import captured
from jedit.hypernetworks.statistics import Statistics, fixed, pushed
from jedit.hypernetworks.steps import Examples, run_step
from jedit.types import Kernel

_DEFAULT = pathlib.Path(__file__).parents[3] / 'shared' / 'golden'
_FOLDERS = [pathlib.Path(p) for p in os.environ.get('JEDIT_GOLDEN', str(_DEFAULT)).split(':') if p]
_CASES = sorted(
  plan.parent for folder in _FOLDERS for plan in folder.glob('hypernetworks/*/plan.json')
)
_NAMES = {'up': 'mlp_up', 'gate': 'mlp_gate', 'down': 'mlp'}
# Tolerances of the README: losses absolute, everything else relative to the largest value.
_BOUNDS = {
  'float64': dict(loss=1e-10, kl=1e-10, rows=1e-10, pseudo=1e-10, update=1e-9, end=1e-9,
                  grad=1e-9, ridge=1e-8, logits=1e-6),
  'float32': dict(loss=2e-6, kl=1e-6, rows=2e-5, pseudo=5e-5, update=5e-5, end=1e-3,
                  grad=2e-4, ridge=1e-2, logits=5e-5),
}  # fmt: skip

pytestmark = pytest.mark.skipif(
  not _CASES, reason='no reference cases: set JEDIT_GOLDEN or provide ../shared/golden'
)


class Case:
  """A case in one precision: editor, texts and reference."""

  def __init__(self, folder: pathlib.Path, dtype: str):
    self.dtype, self.bound = dtype, _BOUNDS[dtype]
    self.plan = json.loads((folder / 'plan.json').read_text())
    self.rows = json.loads((folder / 'rows.json').read_text())
    with np.load(folder / 'outputs.npz') as stored:
      self.outputs = dict(stored)
    self.is_mend = self.plan['method'] == 'MEND'
    self.labels = {_kernel(weight): weight['label'] for weight in self.plan['weights']}
    self.nets = {
      _kernel(weight): (weight['net'], weight['mode']) for weight in self.plan['weights']
    }
    root = folder.parents[1]
    self.prompts = json.loads((root / 'test_prompts.json').read_text())
    with self.precision():
      self.lm = jedit.load(root / self.plan['model'], dtype)
      self.method = self._method()
      self.our_nets = {kernel: net for kernel, net, _ in self.method.plan(self.lm.config)}
      self.editor = self._editor(load_file(folder / 'hypernet.safetensors'))

  @contextlib.contextmanager
  def precision(self):
    # Models take positions as int32, and x64 mode makes int64 ones.
    is_double = self.dtype == 'float64'
    with (
      enable_x64(is_double),
      jax.numpy_dtype_promotion('standard' if is_double else 'strict'),
    ):
      yield

  def _method(self):
    layers = tuple(sorted({kernel.layer for kernel in self.labels}))
    kernels = tuple(dict.fromkeys(kernel.name for kernel in self.labels))
    plan = self.plan
    if self.is_mend:
      return jedit.methods.mend(
        layers=layers,
        kernels=kernels,
        rank=plan['rank'],
        num_blocks=plan['n_hidden'] + 1,
        shared=plan['shared'],
        edit_weight=plan['cedit'],
        locality_weight=plan['cloc'],
        locality_tokens=plan['loc_mask'],
        denominator='released',
        num_edits=len(self.rows['texts']['edit_inner']),
      )
    return jedit.methods.malmen(
      layers=layers,
      kernels=kernels,
      rank=plan['rank'],
      num_blocks=plan['n_blocks'],
      cached_tokens={'ans': 'answer', 'all': 'all'}[plan['token']],
      locality_weight=plan['loc_coef'],
      denominator='released',
      num_edits=plan['num_edits'],
      mini_batch_size=len(self.rows['texts']['later'][0]),
    )

  def _editor(self, stored) -> jedit.Editor:
    params, statistics = {}, {}
    for kernel, (net, mode) in self.nets.items():
      name = self.our_nets[kernel]
      if name not in params:
        params[name], statistics[name] = self._net(stored, net), self._statistics(stored, net)
      if self.is_mend:
        rate = stored['edit_lrs'][list(self.nets).index(kernel)]
        params[name]['rate'] = np.append(params[name].get('rate', []), rate)
        assert mode is None or len(params[name]['rate']) == mode + 1
    tree = jax.tree.map(lambda x: np.asarray(x, self.dtype), params)
    return jedit.Editor(self.method, tree, statistics, self.lm.fingerprint)

  def _net(self, stored, net):
    blocks = {}
    for name, array in stored.items():
      owner, _, rest = name.partition('/') if name.startswith(f'{net}/') else ('', '', '')
      if owner != net or '/' not in rest:
        continue
      block, leaf = rest.split('/')
      ours = {'u': 'up', 'v': 'down', 'A': 'down', 'B': 'up'}.get(leaf, leaf)
      number = block.removeprefix('layer').removeprefix('block')
      blocks.setdefault(number, {})[ours] = array.T if leaf in 'uv' else array
    rest = {} if self.is_mend else {'rate': stored[f'{net}/lr'], 'ridge': stored[f'{net}/lamda']}
    return {'blocks': blocks, **rest}

  def _statistics(self, stored, net) -> Statistics:
    prefix = f'start__{net}__'
    [size] = {a.shape[0] for n, a in stored.items() if n.startswith(f'{net}/') and 'bias' in n}
    if self.is_mend and prefix + 'k' not in stored:
      return Statistics(np.int32(0), np.zeros(size, self.dtype), np.zeros(size, self.dtype))
    return self.reference_statistics(stored, prefix)

  def reference_statistics(self, stored, prefix: str) -> Statistics:
    if not self.is_mend:
      count, mean, square = (stored[prefix + name] for name in ('n', 'mean', 'var'))
    else:
      count = stored[prefix + 'k']
      mean, square = (
        np.concatenate([stored[f'{prefix}{side}_{name}'] for side in ('x', 'delta')])
        for name in ('mean', 's')
      )
    return Statistics(
      np.asarray(count, np.int32), np.asarray(mean, self.dtype), np.asarray(square, self.dtype)
    )

  def records(self, inner, outer, locality):
    """One record per edit; the unrelated prompts are dealt to the records."""
    return [
      jedit.Record(n, _request(*edit), (other[0],), (near[0],), neighborhood_target=near[1])
      for n, (edit, other, near) in enumerate(zip(inner, outer, locality, strict=True))
    ]

  def near(self, name: str, ours, theirs) -> None:
    theirs = np.asarray(theirs, np.float64)
    ours = np.asarray(ours, np.float64).reshape(theirs.shape)
    if not theirs.any():
      assert not ours.any()
      return
    assert np.abs(ours - theirs).max() / np.abs(theirs).max() <= self.bound[name]

  def close(self, name: str, ours, theirs) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=self.bound[name])


def _kernel(weight) -> Kernel:
  name, layer = weight['label'].split('__')
  return Kernel(int(layer), _NAMES[name])


def _request(prompt: str, target: str) -> jedit.Request:
  """The last word as the subject, since a request has one."""
  before, _, last = prompt.rpartition(' ')
  return jedit.Request(f'{before} {{}}', last, target)


def _flat(batches):
  return [pair for batch in batches for pair in batch]


_case = functools.cache(Case)


@functools.cache
def _stepped(case: Case):
  """Rows, statistics and results of the training step of a case."""
  texts = case.rows['texts']
  if case.is_mend:
    parts = [texts[name] for name in ('edit_inner', 'edit_outer', 'loc')]
    count = 1
  else:
    parts = [_flat(texts[name]) for name in ('edit', 'equiv', 'unrel')]
    count = len(case.plan['batches'])
  with case.precision():
    method = case.method
    if not case.is_mend:
      method = jedit.methods.malmen(
        **{**_fields(method), 'mini_batch_size': case.plan['batches'][0]}
      )
    examples = Examples(case.lm, _padded_records(case, *parts), method)
    every = examples.numbers(range(max(map(len, parts))))
    numbers = [each[: len(part)] for each, part in zip(every, parts, strict=True)]
    step = examples.texts_of(numbers, num_groups=count)
    plan = method.plan(case.lm.config)
    params, statistics = case.editor.params, dict(case.editor.statistics)
    gradient, moved, losses = run_step(case.lm.model, params, statistics, step, method, plan)
    _, rows = captured(case.lm.model, step.inner[0], method, plan)
    _, seen = pushed(statistics, rows, method, plan, count)
    return method, plan, step, gradient, moved, losses, rows, seen


def _padded_records(case, inner, outer, locality):
  """Records for lists of different lengths: the last pair of a shorter one is repeated."""
  count = max(map(len, (inner, outer, locality)))
  longer = [[*part, *[part[-1]] * (count - len(part))] for part in (inner, outer, locality)]
  return case.records(*longer)


def _fields(method):
  import inspect

  names = inspect.signature(jedit.methods.malmen).parameters
  renamed = {'layers': 'edited_layers', 'kernels': 'edited_kernels'}
  return {name: getattr(method, renamed.get(name, name)) for name in names}


cases = pytest.mark.parametrize(
  'case',
  [pytest.param((c, d), id=f'{c.name}-{d}') for c in _CASES for d in ('float64', 'float32')],
)


@cases
def test_rows_losses_and_statistics_of_a_step_meet_the_reference(case):
  case = _case(*case)
  _, _, step, _, moved, losses, rows, seen = _stepped(case)
  outputs = case.outputs
  for kernel, label in case.labels.items():
    exists_NxP = np.asarray(rows[kernel].exists_NxP)
    key_RxI = np.asarray(rows[kernel].key_NxPxI)[exists_NxP]
    grad_RxO = np.asarray(rows[kernel].grad_NxPxO)[exists_NxP]
    if case.is_mend:
      np.testing.assert_array_equal(np.argwhere(exists_NxP), outputs[f'train_rows__{label}'])
      case.near('rows', key_RxI, outputs[f'train_x__{label}'])
      case.near('rows', grad_RxO, outputs[f'train_delta__{label}'])
      assert int(seen[kernel].count[0]) == outputs[f'train_used_k__{label}']
    else:
      case.near('rows', key_RxI, outputs[f'train_keys__{label}'])
      case.near('rows', grad_RxO, outputs[f'train_value_grads__{label}'])
  for kernel, (net, _) in case.nets.items():
    ours = moved[case.our_nets[kernel]]
    theirs = case.reference_statistics(outputs, f'after__{net}__')
    assert int(ours.count) == int(theirs.count)
    case.near('rows', ours.mean_C, theirs.mean_C)
    case.near('rows', ours.square_C, theirs.square_C)
  if case.is_mend:
    case.close('loss', np.asarray(losses.inner_N).sum(), outputs['train_loss_inner'])
    case.close('loss', np.asarray(losses.edit_N).sum(), outputs['train_loss_edit'])
    case.close('kl', np.asarray(losses.locality_N).sum(), outputs['train_loss_loc'])
    case.close('loss', losses.total, outputs['train_loss_total'])
  else:
    for name, bound, ours in (
      ('edit', 'loss', losses.inner_N),
      ('gen', 'loss', losses.edit_N),
      ('loc', 'kl', losses.locality_N),
    ):
      batches = np.asarray(ours).reshape(step.num_groups, -1).sum(1)
      case.close(bound, batches, outputs[f'train_{name}_losses'])


@cases
def test_transformed_rows_of_a_step_meet_the_reference(case):
  case = _case(*case)
  method, plan, _, _, moved, _, rows, seen = _stepped(case)
  with case.precision():
    if case.is_mend:
      changes = mend.changes(case.editor.params, seen, rows, method, plan)
    else:
      shifts = malmen.shifts(case.editor.params, moved, rows, method, plan)
    for kernel, label in case.labels.items():
      exists_R = np.asarray(rows[kernel].exists_NxP).reshape(-1)
      if case.is_mend:
        rate = case.editor.rate(kernel, plan)
        left_IxR = np.asarray(changes[kernel].left_IxR[0])
        right_RxO = np.asarray(changes[kernel].right_RxO[0])
        case.near('pseudo', left_IxR.T[exists_R] / rate, case.outputs[f'train_pseudo_x__{label}'])
        case.near('pseudo', right_RxO[exists_R], case.outputs[f'train_pseudo_delta__{label}'])
        norm = np.linalg.norm(left_IxR @ right_RxO)
        case.near('update', norm, case.outputs[f'train_update_norm__{label}'])
        continue
      shift_RxO = np.asarray(shifts[kernel])[exists_R]
      case.near('pseudo', shift_RxO, case.outputs[f'train_D__{label}'])


@cases
def test_gradients_of_a_step_meet_the_reference(case):
  case = _case(*case)
  _, _, _, gradient, _, _, _, _ = _stepped(case)
  outputs = case.outputs
  for kernel, (net, _) in case.nets.items():
    ours, part = gradient[case.our_nets[kernel]], 'layer' if case.is_mend else 'block'
    for number, block in ours['blocks'].items():
      for name, value in block.items():
        theirs = {'up': 'u', 'down': 'v'} if case.is_mend else {'up': 'B', 'down': 'A'}
        stored = outputs[f'grad__{net}__{part}{number}__{theirs.get(name, name)}']
        is_turned = case.is_mend and name in theirs
        case.near('grad', np.asarray(value).T if is_turned else value, stored)
    if case.is_mend:
      continue
    case.near('grad', ours['rate'], outputs[f'grad__{net}__lr'])
    case.near('ridge', ours['ridge'], outputs[f'grad__{net}__lamda'])
  if case.is_mend:
    rates = [
      np.asarray(gradient[case.our_nets[kernel]]['rate'])[mode or 0]
      for kernel, (_, mode) in case.nets.items()
    ]
    case.near('grad', rates, outputs['grad__edit_lrs'])
  norm = np.sqrt(sum(float((np.asarray(leaf) ** 2).sum()) for leaf in jax.tree.leaves(gradient)))
  case.near('grad', norm, outputs['train_grad_norm'])


@cases
def test_updates_of_the_stored_rows_are_exact(case):
  case = _case(*case)
  if case.is_mend:
    pytest.skip('MEND solves nothing')
  plan, outputs = case.method.plan(case.lm.config), case.outputs
  for kernel, net, mode in plan:
    label, log_ridge = case.labels[kernel], case.editor.params[net]['ridge'][mode]
    key_RxI, shift_RxO = (outputs[f'train_{n}__{label}'] for n in ('keys', 'D'))
    ridge, (left, right) = malmen.solve(kernel, key_RxI, shift_RxO, log_ridge)
    bound = 1e-9 if case.dtype == 'float64' else 1e-5  # λ itself is float32 there
    theirs = outputs[f'train_shift__{label}']
    update = left if right is None else left @ right
    assert np.abs(update - theirs).max() / np.abs(theirs).max() < bound
    grad = outputs[f'train_G__{label}']
    _, slope = ridge.pull_back((left, right), grad if right is None else key_RxI @ grad)
    case.near('ridge', slope, outputs[f'train_grad_lamda__{label}'])


@cases
def test_an_edit_meets_the_reference(case):
  case = _case(*case)
  outputs, texts = case.outputs, case.rows['texts']
  edits = texts['edit'] if case.is_mend else _flat(texts['later'])
  # A patch holds float32 factors: the bound of an update is that of their rounding.
  bound = {**case.bound, 'update': 1e-6, 'end': 1e-6}
  if case.dtype == 'float32':
    bound = case.bound
  statistics = {}
  for kernel, (net, _) in case.nets.items():
    name = case.our_nets[kernel]
    statistics[name] = case.reference_statistics(outputs, f'after__{net}__')
    if case.is_mend and case.plan['edit']['statistics'] == 'start':
      statistics[name] = case.editor.statistics[name]
  editor = jedit.Editor(case.method, case.editor.params, statistics, case.lm.fingerprint)
  with case.precision():
    result = jedit.edit(case.lm, [_request(*pair) for pair in edits], case.method, editor=editor)
    logits = case.lm.apply(result).logits(case.prompts)
  for weight in case.plan['weights']:
    update = result.patch.updates[weight['jedit_path']].value()
    label = weight['label']
    theirs = outputs[f'edit_update__{label}'].T if case.is_mend else outputs[f'edit_shift__{label}']
    name = 'update' if case.is_mend else 'end'
    assert np.abs(update - theirs).max() / np.abs(theirs).max() <= bound[name]
  theirs = outputs['edit_test_logits']
  assert np.abs(logits - theirs).max() / np.abs(theirs).max() <= _BOUNDS['float32']['logits']


def test_fixed_statistics_have_an_axis_of_groups():
  case = _case(_CASES[0], 'float32')
  plan = case.method.plan(case.lm.config)
  found = fixed(case.editor.statistics, plan, 3)
  assert all(each.mean_C.shape[0] == 3 for each in found.values())

"""The protocol is open: a method that is written here runs wherever the package's own do."""

import dataclasses
import json

import numpy as np
import pytest

from helpers import editing, tiny_run
from helpers.editing import relative
from jedit import experiments, methods
from jedit.editing.edit import Separate, Sequential, Together, edit, edit_stream
from jedit.editing.region import as_layers, check_layers
from jedit.editing.result import EditResult
from jedit.evals.evaluate import evaluate
from jedit.experiments.config import method_section, read_method
from jedit.models import kernel_path
from jedit.models.patch import Patch, Update
from jedit.types import Kernel, Record, UserError


@dataclasses.dataclass(frozen=True)
class Toy:
  """Adds the mean embedding of the targets to what every down projection writes."""

  layers: tuple[int, ...]
  scale: float = 0.1
  name = 'toy'
  kernels = ()  # needs no second moments

  def check(self, config, num_edits):
    check_layers(self.layers, config.num_layers)

  def edit(self, context, requests):
    rows = context.rows(requests)
    embedding_VxD = np.asarray(context.lm.params['embed']['embedding'])
    target_BxD = np.array([embedding_VxD[list(row.target_ids)].mean(0) for row in rows])
    size = context.lm.config.key_sizes['mlp']
    left_Fx1 = np.full((size, 1), self.scale / size)
    change = Update.from_factors(left_Fx1, target_BxD.mean(0, keepdims=True))
    paths = ['/'.join(kernel_path(Kernel(layer, 'mlp'))) for layer in self.layers]
    return EditResult(Patch(dict.fromkeys(paths, change)))


def toy(*, layers, scale=0.1):
  return Toy(as_layers(layers), scale)


REQUESTS = editing.REQUESTS[:5]
METHOD = toy(layers=(0, 2))


def _bits(lm):
  kernels = [lm.params[f'block_{layer}']['mlp']['down']['kernel'] for layer in range(3)]
  return [np.asarray(kernel).tobytes() for kernel in kernels]


@pytest.mark.parametrize('batching', [Together(), Separate(2), Sequential(2)], ids=repr)
def test_the_driver_runs_it_in_every_mode(batching, tmp_path):
  lm = editing.language_model()
  before, texts = _bits(lm), editing.texts(REQUESTS)
  result = edit(lm, REQUESTS, METHOD, batching=batching)
  parts = result.batches or (result,)
  assert [part.patch.provenance['num_edits'] for part in parts] == (
    [5] if isinstance(batching, Together) else [2, 2, 1]
  )
  for part in parts:
    assert part.patch.provenance['model'] == lm.fingerprint
    assert part.patch.provenance['method'] == {
      'name': 'toy', 'kind': 'Toy', 'layers': [0, 2], 'scale': 0.1,
    }  # fmt: skip
    part.patch.save(tmp_path / 'patch.safetensors')
    loaded = Patch.load(tmp_path / 'patch.safetensors')
    assert loaded.id == part.patch.id and loaded.provenance == part.patch.provenance
  patch = parts[0].patch if isinstance(batching, Separate) else result.patch
  edited = lm.apply(patch)
  assert relative(edited.logits(texts), lm.logits(texts)) > 1e-3
  assert _bits(lm) == before != _bits(edited)
  assert _bits(edited.revert(patch)) == before


def test_what_each_mode_edits():
  lm = editing.language_model()
  for batching, patches in ((Separate(2), 0), (Sequential(2), 2)):
    *_, last = edit_stream(lm, REQUESTS, METHOD, batching=batching)
    assert len(last.base.patches) == patches and len(last.lm.patches) == patches + 1


def test_batches_go_on_after_a_kill(tmp_path, monkeypatch):
  lm, calls = editing.language_model(), []
  whole = edit(lm, REQUESTS, METHOD, batching=Sequential(2))

  def counted(self, context, requests, edit=Toy.edit):
    calls.append(1)
    if len(calls) == 2:
      raise KeyboardInterrupt
    return edit(self, context, requests)

  monkeypatch.setattr(Toy, 'edit', counted)
  with pytest.raises(KeyboardInterrupt):
    edit(lm, REQUESTS, METHOD, batching=Sequential(2), store=tmp_path)
  again = edit(lm, REQUESTS, METHOD, batching=Sequential(2), store=tmp_path)
  assert again.patch.id == whole.patch.id and len(calls) == 4
  # Its settings are part of the key.
  other = edit(lm, REQUESTS, toy(layers=(0, 2), scale=0.2), batching=Sequential(2), store=tmp_path)
  assert other.patch.id != whole.patch.id and len(calls) == 7


def test_its_edits_are_evaluated():
  lm = editing.language_model()
  requests = [dataclasses.replace(each, target_true='the') for each in REQUESTS]
  records = [Record(i, each, ('In {}',), ('The city',)) for i, each in enumerate(requests)]
  result = edit(lm, records, toy(layers=(2,), scale=5.0))
  table = evaluate(lm.apply(result), records, before=lm)
  assert table.after['efficacy'].shape == (5,)
  assert not np.array_equal(table.after['efficacy_magnitude'], table.before['efficacy_magnitude'])


def test_its_check_comes_before_the_work():
  with pytest.raises(UserError, match=r'layers is \(3,\), but the model has layers 0 to 2'):
    edit(editing.language_model(), REQUESTS, toy(layers=(3,)))


@pytest.mark.parametrize('mode', ['together', 'separate', 'sequential'])
def test_an_entry_of_the_registry_makes_it_known_to_configs(made, monkeypatch, mode):
  monkeypatch.setitem(methods.METHODS, 'toy', toy)
  section = method_section('toy', layers=(1,))
  assert section == {'name': 'toy', 'layers': (1,), 'scale': 0.1}
  assert read_method(section) == methods.get('toy', layers=[1]) == toy(layers=(1,))
  workdir = made / f'toy_{mode}'
  config = tiny_run.config(made, method={**section, 'scale': 2.0})
  config.edit.update(mode=mode, edits_per_batch=2)
  experiments.run(config, workdir)
  summary = json.loads((workdir / 'summary.json').read_text())
  assert summary['method'] == 'toy' and summary['num_edits'] == 4
  assert summary['metrics']['efficacy']['after']['n'] == 4
  assert not (workdir / 'statistics.safetensors').exists()
  with pytest.raises(UserError, match="toy has no field 'rate'; it has layers, scale"):
    experiments.run(tiny_run.config(made, method={**section, 'rate': 1.0}), made / 'mistake')

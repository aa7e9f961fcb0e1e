"""What a run computes, on one device or spread over a mesh of fake ones.

python mesh_program.py OUT.npz DEVICES DATA MODEL [COORDINATOR NUM_PROCESSES PROCESS_ID]
"""

import dataclasses
import os
import pathlib
import random
import sys

import numpy as np

PROMPTS = ['The city', 'Zoë plays jazz in']


def results(data: int = 0, model: int = 1, is_spread: bool = False) -> dict[str, np.ndarray]:
  """Second moments, targets, updates, scores and text of the small model."""
  import jax

  import jedit
  from helpers import editing
  from jedit.parallel.mesh import make_mesh

  lm = editing.language_model('gptj')
  if is_spread:
    lm = lm.shard(make_mesh(data, model))
  rng = random.Random(0)
  texts = [' '.join(rng.choices('abcdefghijklm', k=rng.randint(3, 30))) for _ in range(60)]
  moments = jedit.statistics(lm, texts, layers=(0, 1), row_tokens=32, batch_tokens=256)
  method = jedit.methods.pmet(layers=(0, 1), num_steps=4)
  requests = [dataclasses.replace(each, target_true='the') for each in editing.REQUESTS]
  records = [jedit.Record(i, each, ('In {}',), PROMPTS) for i, each in enumerate(requests)]
  # Those of so little text would magnify every rounding.
  stats = editing.second_moments(lm, method)
  result = jedit.edit(lm, requests, method, stats, contexts=editing.CONTEXTS)
  edited = lm.apply(result)
  table = jedit.evaluate(edited, records, before=lm)
  found = {f'z {name}': z_BxD for name, z_BxD in result.details.z.items()}
  found |= {f'moments {kernel}': cov_FxF for kernel, cov_FxF in moments.cov.items()}
  found |= {f'update {path}': update.value() for path, update in result.patch.updates.items()}
  found |= {f'after {name}': value_N for name, value_N in table.after.items()}
  tuning = jedit.methods.ft_w(layers=(1,), num_epochs=2, batch_size=3)  # 7 requests: no multiple
  tuned = jedit.edit(lm, requests, tuning)
  found |= {f'tuned {path}': update.value() for path, update in tuned.patch.updates.items()}
  trained = [dataclasses.replace(each, neighborhood_target='jazz') for each in records]
  common = dict(layers=(1,), kernels=('mlp',), rank=4, learning_rate=1e-3, num_steps=2)
  for method in (
    jedit.methods.malmen(**common, num_edits=4, mini_batch_size=2),
    jedit.methods.mend(**common, accumulate=2, validation_interval=0, patience=0),
  ):
    editor = jedit.train_editor(lm, trained, method)
    leaves = jax.tree_util.tree_leaves_with_path(editor.params)
    found |= {f'{method.name} {jax.tree_util.keystr(path)}': leaf for path, leaf in leaves}
    written = jedit.edit(lm, requests, method, editor=editor).patch.updates
    found |= {f'{method.name} {path}': update.value() for path, update in written.items()}
  found['logits'] = edited.logits(PROMPTS)
  found['text'] = np.array(edited.generate(PROMPTS, max_new_tokens=6))
  found['reverted'] = edited.revert(result).logits(PROMPTS) - lm.logits(PROMPTS)
  return found


def main(out: str, devices: str, data: str, model: str, *processes: str) -> None:
  flags = os.environ.get('XLA_FLAGS', '')
  os.environ['XLA_FLAGS'] = f'{flags} --xla_force_host_platform_device_count={devices}'
  from jedit.parallel import mesh

  if processes:
    mesh.initialise(processes[0], int(processes[1]), int(processes[2]))
  found = results(int(data), int(model), is_spread=True)
  if mesh.is_first_process():
    np.savez(out, **found)
  mesh.wait_for_all()


if __name__ == '__main__':
  sys.path[:0] = [str(pathlib.Path(__file__).parents[n]) for n in (1, 2)]
  main(*sys.argv[1:])

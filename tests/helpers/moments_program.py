"""A pass for second moments on fake devices that saves whenever it can and stops after a few.

python moments_program.py STORE OUT NUM_BATCHES DEVICES DATA MODEL [COORDINATOR PROCESSES ID]

Keys are small integers, whose sums are exact in any order: every mesh gives the same bits.
"""

import itertools
import os
import pathlib
import sys

import numpy as np


def text(num_batches: int | None = None):
  """Batches of random tokens; the pass is interrupted after so many."""
  import synthetic_keys

  class Text(synthetic_keys.Text):
    def batches(self, start=synthetic_keys.START):
      yield from itertools.islice(super().batches(start), num_batches)
      if num_batches is not None:
        raise KeyboardInterrupt

  return Text(10, (4, 16))


def model(mesh=None):
  """A model with integer keys, whole on every device."""
  import synthetic_keys
  from jax.sharding import NamedSharding, PartitionSpec

  from jedit.parallel.mesh import place

  table_VxF = np.random.default_rng(0).integers(-9, 10, (64, 16)).astype(np.float32)
  if mesh is not None:
    table_VxF = place(table_VxF, NamedSharding(mesh, PartitionSpec()))
  return synthetic_keys.Model(table_VxF)


def main(store, out, num_batches, devices, data, model_devices, *processes) -> None:
  flags = os.environ.get('XLA_FLAGS', '')
  os.environ['XLA_FLAGS'] = f'{flags} --xla_force_host_platform_device_count={devices}'
  import synthetic_keys

  from jedit.io import checkpoints
  from jedit.moments import sums
  from jedit.moments.collect import accumulate
  from jedit.parallel import mesh

  if processes:
    mesh.initialise(processes[0], int(processes[1]), int(processes[2]))
  checkpoints._SECONDS_PER_SAVE = checkpoints._WORK_PER_SAVE = 0
  sums.BATCHES_PER_REDUCTION = 3
  on = model(mesh.make_mesh(int(data), int(model_devices)))
  try:
    found = accumulate(
      on, text(int(num_batches) or None), [synthetic_keys.KERNEL], pathlib.Path(store)
    )
    found.save(out)
  except KeyboardInterrupt:
    mesh.wait_for_all()


if __name__ == '__main__':
  root = pathlib.Path(__file__).parents[2]
  sys.path[:0] = [str(root), str(root / 'benchmarks')]
  main(*sys.argv[1:])

r"""Programs of float32 solves, compiled for a TPU that need not be there.

  python benchmarks/solve_programs.py --topology=v5e:1x1 --sizes=4096,11008,16384 --edits=256

Prints for each program the seconds of processor time that compiling took, the memory on a device
and the compiler's estimate of its time, which is a model of cost and no measurement: it has no
cycles for factors and inverses of the diagonal's blocks of 128 rows. Needs libtpu (extra tpu).
"""

import argparse
import time
from collections.abc import Iterator
from typing import Any

from common.command_line import Parser, size_list
from common.runner import write_report

PARSER = Parser(__doc__, 'out')
PARSER.add('topology', str, 'v5e:1x1', 'chip and shape to compile for; its first chip is taken')
PARSER.add('sizes', size_list, (4096, 11008, 16384), 'F, dimensions of the keys')
PARSER.add('edits', size_list, (256,), 'B, numbers of right-hand sides')


def programs(size: int, edits: tuple[int, ...], device: Any) -> Iterator[tuple[str, Any, float]]:
  """Name, lowered program, and iterations of loops that the program does not know."""
  import jax
  import jax.numpy as jnp

  from jedit.parallel.shapes import bucket
  from jedit.solvers import block_cholesky, integer_product
  from jedit.solvers.block_cholesky import Layout

  layout = Layout.of(size, [device])
  padded, one = layout.padded, jax.sharding.SingleDeviceSharding(device)

  def rows(width):
    return jax.ShapeDtypeStruct((padded, width), jnp.float32, sharding=layout.sharding)

  def array(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=one)

  count, high = padded // layout.block, padded // layout.tile
  tiles = sum(
    row + 1 - (number + 1) * layout.block // layout.tile
    for number in range(count)
    for row in range(number * layout.block // layout.tile, high)
  )
  yield 'factor', block_cholesky.factorise.lower(rows(padded), layout), tiles / (count * high)
  for wanted in edits:
    width = bucket(wanted, 128)
    lowered = block_cholesky.solve.lower(rows(padded), rows(width), layout)
    yield f'solve {width}', lowered, 1
    digits = array(size, integer_product._DIGITS * width, dtype=jnp.int8)
    lowered = integer_product._multiply.lower(array(size, size), array(size), digits)
    yield f'residual {width}', lowered, 1


def run(settings: argparse.Namespace) -> list[dict[str, Any]]:
  """A row for each size and program."""
  from jedit.parallel.compiled import cost_of, memory_of
  from jedit.parallel.topology import chip_of, find_topology
  from jedit.solvers.devices import float64_alone

  device, rows = find_topology(settings.topology)[0], []
  chip = chip_of(device)
  assert chip is not None
  for size in settings.sizes:
    with float64_alone():
      for name, lowered, trips in programs(size, settings.edits, device):
        start = time.process_time()
        compiled = lowered.compile()
        seconds = time.process_time() - start
        row = {
          'topology': settings.topology,
          'F': size,
          'program': name,
          'compile_seconds': seconds,
          'bytes': memory_of(compiled).total,
          'seconds': cost_of(compiled, trips).seconds(chip),
        }
        rows.append(row)
        print(
          f'{size:7}  {name:14}{seconds:8.1f} s to compile{row["bytes"] / 2**30:8.2f} GiB'
          f'{1e3 * row["seconds"]:9.2f} ms',
          flush=True,
        )
  return rows


def main() -> None:
  settings = PARSER.parse_args()
  write_report({'rows': run(settings)}, settings.out)


if __name__ == '__main__':
  main()

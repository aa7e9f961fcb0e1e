r"""Second moments: one packed pass, and a pass for every layer.

  python benchmarks/second_moments.py --out=second_moments.json
  python benchmarks/second_moments.py --devices=1x1,8x1,4x2,1x8     costs on several devices

Both implementations collect the second moments of the MLP keys of the preset's edited layers over
the same documents of mixed length, cut at 500 tokens:

  engine    `jedit.moments.collect`: documents packed into rows, all layers at once
  baseline  PyTorch, float32, as the published codes: for each layer a pass over documents that are
            padded to the longest of their batch, stopped behind that layer

Seconds are for all documents, without compiling; the engine's include tokenising. Needed FLOP:
blocks up to the highest layer, once, and 2 F² per layer, over tokens that exist.
"""

import argparse
import os
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from common.command_line import Parser, whole
from common.processes import Process
from common.runner import FLAGS, Benchmark, main, write_report

BENCHMARK = Benchmark(
  name='second_moments',
  prepare='common.workload:prepare_documents',
  implementations={
    'engine': 'implementations.second_moments_jax:Engine',
    'baseline': 'implementations.second_moments_torch:Baseline',
  },
)


def _meshes(text: str) -> list[tuple[int, int]]:
  try:
    return [(int(data), int(model)) for data, model in (m.split('x') for m in text.split(','))]
  except ValueError as error:
    raise argparse.ArgumentTypeError(f'give meshes such as 4x2,8x1, not {text}') from error


PARSER = Parser(__doc__, *FLAGS)
PARSER.add('corpus_tokens', whole(1), 32_768, 'tokens of all documents, at least')
PARSER.add('row_tokens', whole(128), 2048, 'tokens of the longest packed row')
PARSER.add('batch_tokens', whole(512), 4096, 'tokens of a batch, padding included')
PARSER.add_argument(
  '--devices',
  type=_meshes,
  metavar='4x2,8x1',
  help='instead of timing, compile for these meshes, data x model, of fake CPU devices',
)


def device_costs(settings: argparse.Namespace) -> list[dict[str, Any]]:
  """FLOP, sent bytes and kept sums of each device: one batch shared by all, or one for each."""
  rows = []
  most = max(data for data, _ in settings.devices)
  with tempfile.TemporaryDirectory() as scratch:
    maker = Process(BENCHMARK.prepare)
    workload, _ = maker.call(None, settings, pathlib.Path(scratch), True)
    maker.close()
    for data, model in settings.devices:
      fake = f'--xla_force_host_platform_device_count={data * model}'
      xla_flags = f'{os.environ.get("XLA_FLAGS", "")} {fake}'
      costs = Process('implementations.second_moments_jax:device_costs', XLA_FLAGS=xla_flags)
      for kind, num_rows in (('strong', most), ('weak', data)):
        found = costs.call(None, workload, data, model, num_rows)
        rows.append({'data': data, 'model': model, 'scaling': kind, **found})
      costs.close()
  return rows


def device_table(rows: Sequence[Mapping[str, Any]]) -> str:
  """The report of `device_costs` for people."""
  lines = [
    f'{"mesh":>8}{"scaling":>10}{"tokens":>9}{"MFLOP/token/device":>20}{"bytes sent/token":>18}'
    f'{"sums MB":>9}  by'
  ]
  for row in rows:
    by = ', '.join(f'{name} {size / 1e6:.1f} MB' for name, size in row['bytes'].items())
    lines.append(
      f'{row["data"]:>5}x{row["model"]:<2}{row["scaling"]:>10}{row["tokens"]:9,}'
      f'{row["flop"] / row["tokens"] / 1e6:20.2f}'
      f'{sum(row["bytes"].values()) / row["tokens"]:18,.0f}'
      f'{row["sum_bytes"] / 1e6:9.1f}  {by or "-"}'
    )
  return '\n'.join(lines)


if __name__ == '__main__':
  settings = PARSER.parse_args()
  if settings.devices is None:
    main(BENCHMARK, PARSER)
  else:
    report = device_costs(settings)
    print(device_table(report))
    write_report(report, settings.out)

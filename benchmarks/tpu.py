r"""Programs of a run, compiled for TPUs that are not here: memory, estimated time, collectives.

  python benchmarks/tpu.py --topologies=v5p:1x1x1,v5e:2x2 --split=1,2 --stages=targets --windows=4
  python benchmarks/tpu.py --models=llama-7b --topologies=v6e:2x2 --stages=evaluate --out=tpu.json

Needs libtpu (pip install 'jedit[tpu]') and no TPU. The programs are those that `jedit.plan` lists
for PMET's published settings and CounterFact's lengths, in bfloat16 with all layers. Each is
compiled for one topology at a time, which takes seconds to minutes of two CPU cores; --stages and
--windows choose a part.

Columns: calls of the run; bytes of the program on each device with what they consist of; the
compiler's cycles as milliseconds, with collectives at the rate of one link; the share of the chip's
peak that the products of the program reach in them, padding included; collectives in bytes; cycles
by kind of instruction. docs/performance.md says what such an estimate is.
"""

import argparse
import dataclasses
import datetime
import importlib.metadata
from typing import Any

from common.command_line import Parser, name_list, size_list, whole
from common.runner import write_report

from jedit.types import UserError

_SIZES: dict[str, dict[str, Any]] = {
  'gptj-6b': dict(
    model_type='gptj', n_layer=28, n_embd=4096, n_head=16, rotary_dim=64, vocab_size=50400,
    n_positions=2048, activation_function='gelu_new', tie_word_embeddings=False,
  ),
  'llama-7b': dict(
    model_type='llama', num_hidden_layers=32, hidden_size=4096, num_attention_heads=32,
    num_key_value_heads=32, intermediate_size=11008, vocab_size=32000, rms_norm_eps=1e-6,
    max_position_embeddings=2048, hidden_act='silu', tie_word_embeddings=False,
  ),
}  # fmt: skip

PARSER = Parser(__doc__, 'out')
PARSER.add('topologies', name_list, ('v5e:2x2',), 'topologies, see jedit.parallel.topology')
PARSER.add('split', size_list, (1,), 'devices that share the parameters, by topology, or for all')
PARSER.add('models', name_list, ('gptj-6b',), f'shapes of {" and ".join(_SIZES)}')
PARSER.add('stages', name_list, ('statistics', 'targets', 'keys', 'evaluate'), 'stages of a run')
PARSER.add('num_edits', whole(1), 10_000, 'edits')
PARSER.add('windows', size_list, (), 'lengths of windows to take edits of; default: all')


def run(settings: argparse.Namespace) -> list[dict[str, Any]]:
  """Compiles the programs of each model for each topology and prints them."""
  rows = []
  splits = settings.split * (1 if len(settings.split) > 1 else len(settings.topologies))
  for name in settings.models:
    for topology, split in zip(settings.topologies, splits, strict=True):
      rows += _compile(name, topology, split, settings)
  return rows


def _compile(
  name: str, topology: str, split: int, settings: argparse.Namespace
) -> list[dict[str, Any]]:
  import jedit  # slow to import, as the modules below
  from jedit.experiments import schema
  from jedit.experiments.programs import Estimate, run_programs, table
  from jedit.experiments.stand_ins import edit_lengths
  from jedit.models.load import read_config
  from jedit.parallel.mesh import make_mesh
  from jedit.parallel.program import Program
  from jedit.parallel.topology import find_topology
  from jedit.units import format_seconds

  devices = find_topology(topology)
  mesh = make_mesh(0, split, devices)
  config = read_config(_SIZES[name], 'bfloat16', name)
  wanted = schema.Settings(
    task='plan',
    data=schema.Data(num_edits=settings.num_edits),
    method=jedit.preset('pmet', name),
    statistics=schema.Statistics(max_documents=100_000, row_tokens=2048),
  )
  shape = 'one device' if mesh is None else ', '.join(f'{a}={n}' for a, n in mesh.shape.items())
  print(f'{name} on {topology}, {shape}')
  lengths = edit_lengths(settings.num_edits)
  if settings.windows:
    lengths = [each for each in lengths if each.window in settings.windows]

  def show(program: Program) -> None:
    print(f'  {program.stage} {program.name}: {program.seconds:.0f} s', flush=True)

  programs = run_programs(
    wanted,
    config,
    mesh,
    devices[0],
    lengths,
    stages=settings.stages,
    compiles=True,
    show=show,
  )
  found = [Estimate.of(program, devices[0], len(devices)) for program in programs]
  for each, line in zip(found, table(found), strict=True):
    print(f'{line}, compiled in {each.compile_seconds:.0f} s')
    if each.cost is not None and (total := sum(each.cost.cycles.values())):
      shares = (f'{kind} {count / total:.0%}' for kind, count in each.cost.cycles.items())
      print(f'{"":11}{", ".join(shares)}')
    if each.failure:
      print(f'{"":11}{each.failure.splitlines()[0]}')
  for stage in dict.fromkeys(each.stage for each in found):
    seconds = sum(each.calls * (each.seconds or 0.0) for each in found if each.stage == stage)
    print(f'{stage}: {format_seconds(seconds)} for {len(lengths)} edits')
  place = {'model': name, 'topology': topology, 'split': split}
  return [{**place, **dataclasses.asdict(each)} for each in found]


def main() -> None:
  """Prints the table; writes it with its date and versions."""
  settings = PARSER.parse_args()
  try:
    rows = run(settings)
  except UserError as error:
    PARSER.error(str(error))
  versions = {name: importlib.metadata.version(name) for name in ('jax', 'libtpu')}
  print(f'{datetime.date.today()}, {", ".join(f"{n} {v}" for n, v in versions.items())}')
  write_report({'settings': vars(settings), 'versions': versions, 'programs': rows}, settings.out)


if __name__ == '__main__':
  main()

"""Programs that a run compiles: a dry run of its stages, and what compilers say of each."""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from jedit.editing.blocks import fit_shapes
from jedit.editing.prompts import BARE
from jedit.editing.slots import dry_run_targets
from jedit.editing.update import dry_run_region
from jedit.evals.scoring import plan_batches, score_plan
from jedit.experiments.amounts import prefix_lengths, statistics_tokens, updated_of
from jedit.experiments.schema import Settings
from jedit.experiments.stand_ins import Lengths, edit_rows, scored_rows
from jedit.methods import Recipe
from jedit.models import Model, ModelConfig
from jedit.models.sharding import abstract_model, with_float32
from jedit.moments.collect import sums_of
from jedit.moments.corpus import Corpus
from jedit.moments.packing import batch_shape
from jedit.parallel.compiled import Cost, Memory, cost_of, memory_of
from jedit.parallel.mesh import num_row_shards, platform_of
from jedit.parallel.program import DryRun, Program, dry_run, shape_bytes
from jedit.parallel.topology import chip_of
from jedit.types import Kernel, UserError
from jedit.units import format_bytes, format_seconds

STAGES = ('statistics', 'targets', 'keys', 'evaluate')
_RECORDS_PER_CHUNK = 256  # of an evaluation
# Of the config: what bounds the batches of a stage.
_FIELDS = {
  'statistics': 'statistics.batch_tokens',
  'targets': 'edit.target_batch_size',
  'evaluate': 'evaluation.tokens_per_batch',
}


@dataclasses.dataclass(frozen=True)
class Estimate:
  """What one program takes on each device.

  Attributes:
    name, stage: of the program.
    size: shape of its largest argument that is no parameter.
    calls: how often the run calls it.
    flop: of the products of one call, with padding, on each device.
    compile_seconds: of this machine's processor; 0 if it was not compiled.
    parameters: bytes of the model's parameters among its arguments.
    memory, cost: of the compiled program; None if it was not compiled.
    seconds: of one call, by the compiler's cycles; None for compilers that count none.
    share: of the chip's peak in these seconds.
    failure: the compiler's reason for not compiling it.
  """

  name: str
  stage: str
  size: tuple[int, ...]
  calls: float
  flop: float
  compile_seconds: float = 0.0
  parameters: int = 0
  memory: Memory | None = None
  cost: Cost | None = None
  seconds: float | None = None
  share: float | None = None
  failure: str = ''

  @classmethod
  def of(cls, program: Program, device: jax.Device, num_devices: int = 1) -> 'Estimate':
    """Of a program that runs on so many devices like this one."""
    found = cls(
      program.name.lstrip('_'),
      program.stage,
      max((leaf.shape for leaf in _shapes(program.arguments)), key=math.prod, default=()),
      program.calls,
      program.product_flop() / num_devices,
      program.seconds,
      _parameter_bytes(program.arguments),
      failure=program.failure,
    )
    if program.compiled is None:
      return found
    memory, cost, chip = memory_of(program.compiled), cost_of(program.compiled), chip_of(device)
    found = dataclasses.replace(found, memory=memory, cost=cost)
    if chip is None or not cost.cycles:
      return found
    seconds = cost.seconds(chip)
    return dataclasses.replace(found, seconds=seconds, share=found.flop / chip.peak / seconds)

  def bytes_needed(self, memory: Mapping[str, int]) -> int:
    """Bytes on a device that has to hold what a run keeps there in this stage.

    Args:
      memory: that is kept, by use, of `jedit.experiments.plan.Plan`.
    """
    kept = memory.get('parameters', 0) + memory.get('edited kernels', 0)
    if self.memory is None:
      return kept
    own = self.memory.temporaries + self.memory.code
    for use, size in memory.items():
      if (self.stage, use.split()[0]) in (('targets', 'targets'), ('statistics', 'sums')):
        return kept + size + own
    return kept + self.memory.total - self.parameters


def _is_model(x: Any) -> bool:
  return isinstance(x, Model)


def _parameter_bytes(arguments: Any) -> int:
  """Bytes on a device of the models among the arguments."""
  return shape_bytes(list(filter(_is_model, jax.tree.leaves(arguments, is_leaf=_is_model))))


def _shapes(arguments: Any) -> list[jax.ShapeDtypeStruct]:
  """Shapes of all other arguments."""
  leaves = jax.tree.leaves(arguments, is_leaf=_is_model)
  return [leaf for leaf in leaves if isinstance(leaf, jax.ShapeDtypeStruct)]


def run_programs(
  settings: Settings,
  config: ModelConfig,
  mesh: Mesh | None,
  device: jax.Device,
  lengths: Sequence[Lengths],
  *,
  documents: Corpus | None = None,
  stages: Collection[str] = STAGES,
  compiles: bool = False,
  show: Callable[[Program], None] | None = None,
) -> list[Program]:
  """The programs of a run's stages, with the number of their calls.

  Left out are small ones, such as checksums of the weights, the solves, and generated texts.

  Args:
    settings, config: of the run and of its model.
    mesh: devices of the run; None takes `device` alone.
    device: the first one.
    lengths: of the edits' prompts, see `jedit.experiments.stand_ins`.
    documents: text for second moments; None takes Wikipedia's lengths.
    stages: some of `STAGES`.
    compiles: compile them.
    show: called with every new program.
  """
  model, method = abstract_model(config, mesh, device), settings.method
  with dry_run(compiles, show) as run:
    if 'statistics' in stages and method is not None and method.kernels:
      with run.stage('statistics'):
        _statistics(run, settings, model, method.kernels, documents)
    if isinstance(method, Recipe) and lengths:
      _edit(run, settings, model, method, lengths, stages)
    if 'evaluate' in stages:
      with run.stage('evaluate'):
        for each in (model, _edited(model, updated_of(method))):  # before and after
          _evaluate(run, settings, each)
  return run.programs


def _statistics(
  run: DryRun,
  settings: Settings,
  model: Model,
  kernels: Sequence[Kernel],
  documents: Corpus | None,
) -> None:
  wanted = settings.statistics
  row_tokens = wanted.row_tokens or min(model.config.max_positions, 512)
  shape = batch_shape(row_tokens, wanted.batch_tokens, num_row_shards(model))
  num_tokens = statistics_tokens(settings, model.config, documents)
  sums_of(model, kernels, shape).dry_run(run, max(num_tokens / (shape[0] * shape[1]), 1))


def _edit(
  run: DryRun,
  settings: Settings,
  model: Model,
  method: Recipe,
  lengths: Sequence[Lengths],
  stages: Collection[str],
) -> None:
  """Targets and keys of all batches."""
  num_edits, mode, prefixes = len(lengths), settings.edit.mode, prefix_lengths(method)
  rows = edit_rows(lengths, prefixes)
  at_once = num_edits if mode == 'together' else min(settings.edit.edits_per_batch, num_edits)
  contexts = BARE if len(prefixes) == 1 else (*BARE, ('{}',) * (len(prefixes) - 1))
  size = settings.edit.target_batch_size or None
  for number, names in enumerate(method.stages):
    problem, alongside, shapes = method.problem(number), rows, None
    if at_once < num_edits and (mode == 'sequential' or number > 0):
      alongside = rows[:at_once]
      if number == 0:  # all batches share their shapes
        token_flop = problem.token_flop(model.config)
        shapes = fit_shapes(rows, problem.tokens, token_flop, platform_of(model))
    if 'targets' in stages:
      with run.stage('targets'), run.repeated(num_edits / len(alongside)):
        dry_run_targets(run, model, alongside, problem, size, shapes)
    if 'keys' in stages:
      with run.stage('keys'), run.repeated(num_edits / at_once):
        for name in names:
          model = dry_run_region(model, method.region(name), rows[:at_once], contexts)


def _edited(model: Model, kernels: Sequence[Kernel]) -> Model:
  for kernel in kernels:
    model = with_float32(model, kernel)
  return model


def _evaluate(run: DryRun, settings: Settings, model: Model) -> None:
  """All records and unedited prompts with one model."""
  num_records = settings.data.num_edits
  size = min(num_records, _RECORDS_PER_CHUNK)
  batches = plan_batches(
    scored_rows(size),
    tokens_per_batch=settings.evaluation.tokens_per_batch or None,
  )
  with run.repeated(num_records / size):
    score_plan(model, batches)


def check_programs(
  programs: Sequence[Estimate], memory: Mapping[str, int], free: int | None
) -> None:
  """Refuses programs that do not fit a device beside what is kept there.

  Args:
    programs: compiled.
    memory: bytes that are kept, by use, of `jedit.experiments.plan.Plan`.
    free: bytes of a device; None checks nothing.

  Raises:
    UserError: for the first program that does not fit, names the field to change.
  """
  for each in programs:
    field = _FIELDS.get(each.stage, 'edit.edits_per_batch')
    remedy = f'lower {field}, or split the model over more devices with mesh.model'
    if each.failure:
      raise UserError(
        f'The program {each.name} of the stage {each.stage} does not compile '
        f'({each.failure.splitlines()[0].rstrip(".")}); {remedy}.'
      )
    need = each.bytes_needed(memory)
    if free is not None and need > free:
      raise UserError(
        f'The program {each.name} of the stage {each.stage} needs {format_bytes(need)} of a '
        f"device's {format_bytes(free)}; {remedy}."
      )


def summary(programs: Sequence[Estimate]) -> str:
  """The number of programs, and what compiling them took."""
  seconds = sum(each.compile_seconds for each in programs)
  took = f', compiled in {format_seconds(seconds)} of CPU time' if seconds else ' to compile'
  return f'{len(programs)}{took}'


def table(programs: Sequence[Estimate]) -> list[str]:
  """A line for each program."""
  lines = []
  for each in programs:
    size = ' x '.join(map(str, each.size))
    line = f'{each.stage:<11}{each.name:<14}{size:<26}{each.calls:>9,.0f} calls'
    line += f'{each.flop / 1e9:>10,.1f} GFLOP'
    if each.memory is not None:
      memory = each.memory
      parts = {
        'arguments': memory.arguments,
        'results': memory.outputs - memory.aliases,
        'temporary': memory.temporaries,
        'code': memory.code,
      }
      made_of = ', '.join(f'{name} {format_bytes(size)}' for name, size in parts.items() if size)
      line += f'  {format_bytes(memory.total)} ({made_of})'
    if each.seconds is not None and each.share is not None:
      line += f', {1e3 * each.seconds:.2f} ms, {100 * each.share:.0f}% of peak'
    if each.cost is not None and each.cost.collective_bytes:
      line += ', ' + ', '.join(
        f'{kind} {format_bytes(round(size))}' for kind, size in each.cost.collective_bytes.items()
      )
    lines.append(line)
  return lines

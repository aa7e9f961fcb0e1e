"""Plan: devices, dtypes, memory and time of a run, estimated before anything is loaded."""

import dataclasses
import functools
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jedit.editing.blocks import Block
from jedit.editing.slots import bytes_per_edit, choose_batch_size
from jedit.experiments import schema
from jedit.experiments.amounts import (
  COUNTERFACT,
  Lengths,
  edit_flop,
  evaluation_flop,
  prefix_lengths,
  regions_of,
  statistics_flop,
  updated_of,
)
from jedit.experiments.programs import Estimate, check_programs, run_programs, summary, table
from jedit.experiments.schema import Settings
from jedit.experiments.stand_ins import edit_lengths
from jedit.io.downloads import Download
from jedit.methods import Method
from jedit.models import ModelConfig
from jedit.models.language_model import LanguageModel
from jedit.models.load import bytes_per_device, check_fits
from jedit.models.precision import matmul_precision
from jedit.models.sharding import abstract_model
from jedit.moments.corpus import Corpus
from jedit.moments.sums import MemoryPlan
from jedit.parallel.devices import count_kinds, find_devices
from jedit.parallel.memory import free_bytes
from jedit.parallel.mesh import DATA, MODEL, make_mesh
from jedit.parallel.topology import find_topology
from jedit.solvers.budget import kept_bytes
from jedit.solvers.devices import float64_alone, float64_device, working_dtype
from jedit.types import Record, UserError
from jedit.units import format_bytes, format_seconds

# Share of the rate of matrix products that stages reach (docs/performance.md).
_SHARE = 0.3
_EDITS = ('edit', 'sweep', 'plan')


@dataclasses.dataclass(frozen=True)
class Stage:
  """A stage of a run.

  Attributes:
    name: as in the seconds of summary.json.
    flop: needed arithmetic.
    seconds: an estimate, without compilation and downloads; None without one.
    is_done: an earlier run of the same workdir has finished it.
  """

  name: str
  flop: float
  seconds: float | None
  is_done: bool = False


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a run takes, before it begins.

  Attributes:
    title: task, method and model.
    devices: kinds of devices with their numbers.
    mesh: sizes of its axes.
    dtypes: by part of the computation.
    memory: bytes on a device by use; parameters stay, the other uses follow each other.
    free: bytes free on a device; None where it does not report them.
    rates: measured FLOP/s of matrix products on one device, by dtype.
    stages: in order.
    downloads: inputs that are fetched first.
    notes: sentences.
    programs: that the run compiles, where they were asked for.
  """

  title: str
  devices: Mapping[str, int]
  mesh: Mapping[str, int]
  dtypes: Mapping[str, str]
  memory: Mapping[str, int]
  free: int | None
  rates: Mapping[str, float]
  stages: tuple[Stage, ...]
  downloads: tuple[Download, ...] = ()
  notes: tuple[str, ...] = ()
  programs: tuple[Estimate, ...] = ()

  def __str__(self) -> str:
    devices = ', '.join(f'{count} x {kind}' for kind, count in self.devices.items())
    axes = ', '.join(f'{axis}={size}' for axis, size in self.mesh.items())
    free = '' if self.free is None else f' of {format_bytes(self.free)} free'
    rates = ', '.join(f'{rate / 1e9:,.0f} GFLOP/s in {dtype}' for dtype, rate in self.rates.items())
    left = [stage for stage in self.stages if not stage.is_done]
    lines = [
      self.title,
      f'  devices   {devices}; mesh {axes}',
      '  dtypes    ' + '; '.join(f'{part} {dtype}' for part, dtype in self.dtypes.items()),
      f'  memory    on each device{free}: '
      + ', '.join(f'{use} {format_bytes(size)}' for use, size in self.memory.items()),
      *(f'  download  {download}' for download in self.downloads),
    ]
    if self.stages:
      seconds = format_seconds(sum(stage.seconds or 0.0 for stage in left))
      source = f'products at {rates}' if rates else "the compiler's cycles and bytes on one link"
      lines.append(
        f'  time      about {seconds}, estimated from {source}; without compilation and downloads'
      )
    for stage in self.stages:
      shown = '-' if stage.seconds is None else format_seconds(stage.seconds)
      shown = 'done' if stage.is_done else shown
      lines.append(f'    {stage.name:<11}{shown:>12}{_format_flop(stage.flop):>14}')
    if self.programs:
      lines.append(f'  programs  {summary(self.programs)}')
      lines += [f'    {line}' for line in table(self.programs)]
    lines += [f'  note      {note}' for note in self.notes]
    return '\n'.join(lines)


def _format_flop(count: float) -> str:
  for unit, size in (('PFLOP', 1e15), ('TFLOP', 1e12)):
    if count >= size:
      return f'{count / size:,.1f} {unit}'
  return f'{count / 1e9:,.1f} GFLOP'


def make_plan(
  settings: Settings,
  config: ModelConfig,
  mesh: Mesh | None,
  devices: Sequence[jax.Device] | None = None,
  *,
  records: Sequence[Record] | None = None,
  documents: Corpus | None = None,
  tokenizer: Any = None,
  collects: bool = False,
  downloads: Sequence[Download] = (),
  done: Sequence[str] = (),
  num_cells: int = 1,
) -> Plan:
  """The plan of a run, or of the first cell of a sweep.

  Args:
    settings: of the run.
    config: sizes of its model.
    mesh: of its devices.
    devices: None takes all devices of all processes.
    records: to edit and evaluate; None where they are downloaded first.
    documents: text for second moments; None where it is downloaded first.
    tokenizer: of the model; None where it is downloaded first.
    collects: second moments are collected.
    downloads: inputs that are fetched first.
    done: names of finished stages.
    num_cells: of a sweep.

  Raises:
    UserError: if a device is there and cannot compute; if a program does not fit its memory.
  """
  devices = find_devices() if devices is None else devices
  compiles, method = bool(settings.task == 'plan' and settings.plan.topology), settings.method
  rates = {}
  if not compiles:
    rates = {config.dtype: _product_rate(config.dtype), 'float64': _product_rate('float64')}
  lengths = Lengths.of(records) if records else COUNTERFACT
  amounts: dict[str, float] = {}
  if collects and method is not None:
    amounts['statistics'] = statistics_flop(settings, config, method, documents)
  if settings.task in _EDITS and method is not None:
    amounts |= edit_flop(settings, config, method, lengths)
  if settings.task in (*_EDITS, 'evaluate'):
    amounts['evaluate'] = evaluation_flop(settings, config, lengths)
  memory = _memory(settings, config, mesh, devices[0], lengths, collects)
  programs: list[Estimate] = []
  if settings.task == 'plan':
    listed = run_programs(
      settings,
      config,
      mesh,
      devices[0],
      edit_lengths(settings.data.num_edits, records, tokenizer),
      documents=documents,
      stages=amounts,
      compiles=compiles,
    )
    programs = [Estimate.of(program, devices[0], len(devices)) for program in listed]
    check_programs(programs, memory, free_bytes(devices[0]) if compiles else None)
  stages = []
  for name, amount in amounts.items():
    seconds: float | None
    if compiles:
      parts = [each.calls * (each.seconds or 0.0) for each in programs if each.stage == name]
      seconds = sum(parts) if parts else None
    elif name == 'solve':
      seconds = amount / rates['float64']
    else:
      seconds = amount / (_SHARE * len(devices) * rates[config.dtype])
    stages.append(Stage(name, amount, seconds, name in done))
  return Plan(
    title=_title(settings),
    devices=count_kinds(devices),
    mesh={DATA: 1, MODEL: 1} if mesh is None else dict(mesh.shape),
    dtypes={
      'weights and activations': config.dtype,
      'edited kernels, δ, losses and second moments': 'float32',
      'solves': jnp.dtype(working_dtype(devices[0])).name,
    },
    memory=memory,
    free=free_bytes(devices[0]),
    rates=rates,
    stages=tuple(stages),
    downloads=tuple(downloads),
    notes=tuple(_notes(settings, num_cells)),
    programs=tuple(programs),
  )


def _title(settings: Settings) -> str:
  method = '' if settings.method is None else f' with {settings.method.name}'
  task = 'edit' if settings.task == 'plan' else settings.task
  return (
    f'Plan of {task} on {settings.model.name}{method}, '
    f'{settings.data.num_edits} records, {settings.edit.mode}'
  )


def _notes(settings: Settings, num_cells: int) -> list[str]:
  """Sentences about what the estimate leaves out."""
  found = []
  if num_cells > 1:
    found.append(f'the time is that of the first of {num_cells} cells.')
  method = settings.method
  if settings.task in ('edit', 'plan') and method is not None and not regions_of(method):
    found.append(f'the time of {method.name} itself is not estimated.')
  return found


@functools.cache
def _product_rate(dtype: str) -> float:
  """FLOP/s of the matrix products of one device, or of the host for float64 it lacks.

  Raises:
    UserError: if the device cannot compute.
  """
  device = jax.local_devices()[0]
  if dtype == 'float64':
    device = float64_device(device)
  size = 512 if device.platform == 'cpu' else 4096

  @jax.jit
  def products(x_NxN):
    for _ in range(4):
      x_NxN = jnp.matmul(x_NxN, x_NxN, precision=matmul_precision(x_NxN.dtype))
    return x_NxN

  try:
    with float64_alone():
      x_NxN = jax.device_put(np.full((size, size), 1 / size, jnp.dtype(dtype)), device)
      seconds = []
      for _ in range(3):
        start = time.perf_counter()
        products(x_NxN).block_until_ready()
        seconds.append(time.perf_counter() - start)
  except jax.errors.JaxRuntimeError as error:
    reason = str(error).splitlines()[0].rstrip('.')
    raise UserError(
      f'{device} is there and cannot compute ({reason}); end the programs that use it, or set '
      'JAX_PLATFORMS=cpu to run on the processor.'
    ) from error
  return 4 * 2 * size**3 / min(seconds)


def _memory(
  settings: Settings,
  config: ModelConfig,
  mesh: Mesh | None,
  device: jax.Device,
  lengths: Lengths,
  collects: bool,
) -> dict[str, int]:
  """Bytes on a device by use."""
  method = settings.method
  shared, split = (1, 1) if mesh is None else mesh.devices.shape
  found = {'parameters': max(bytes_per_device(config, config.dtype, mesh, device).values())}
  updated = updated_of(method)
  if updated and settings.task in _EDITS:
    sizes = [config.key_sizes[kernel.name] for kernel in updated]
    found['edited kernels'] = 4 * config.width * sum(sizes) // split
  if method is not None and method.kernels:
    sizes = [config.key_sizes[kernel.name] for kernel in method.kernels]
    if collects:
      found['sums of second moments'] = MemoryPlan.of(sizes, shared, split).device
    if settings.task in _EDITS:
      wanted = sum(kept_bytes(device, size) for size in sizes) // (shared * split)
      free = free_bytes(device)
      kept = found['parameters'] + found.get('edited kernels', 0)
      room = wanted if free is None else max(free - kept, 0) // 2
      found['factors'] = min(wanted, room)
  if method is not None and regions_of(method) and settings.task in _EDITS:
    prefixes = prefix_lengths(method)
    first = min(region.layers[-1] for region in regions_of(method))
    shape = Block(
      indices=(),
      size=0,
      fill=0,
      window=math.ceil(lengths.after + lengths.target),
      past=math.ceil(max(prefixes) + lengths.before + lengths.subject),
      num_tokens=0,
      num_targets=math.ceil(lengths.target),
      kl_tokens=math.ceil(lengths.subject),
    )
    size = settings.edit.target_batch_size
    if not size:
      size = choose_batch_size(abstract_model(config, mesh, device), shape, len(prefixes), first)
    size = min(size, settings.data.num_edits)
    per_edit = bytes_per_edit(config, shape, len(prefixes), first, split)
    found[f'targets of {size} edits'] = -(-size // shared) * per_edit
  return found


def plan(
  model: LanguageModel | ModelConfig,
  method: Method,
  num_edits: int,
  device: str = '',
  *,
  data: int = 0,
  split: int = 1,
  records: Sequence[Record] | None = None,
  max_documents: int = 100_000,
) -> Plan:
  """What a run that edits and evaluates takes: programs, memory, arithmetic and seconds.

  Args:
    model: a model, or its sizes alone.
    method: of the edits.
    num_edits: number of edits, in one batch.
    device: TPUs to compile for, such as 'v5e:4x4' (`jedit.parallel.topology`). Empty plans for the
      devices of this machine, without compiling.
    data, split: devices that share the rows, and those that share each copy of the parameters; as
      `data` and `model` of `jedit.parallel.mesh.make_mesh`.
    records: to edit, for the lengths of their texts; None takes those of CounterFact.
    max_documents: text for second moments, in Wikipedia's articles.

  Raises:
    UserError: for a topology that does not exist or a mesh that does not divide it, without the
      libtpu that goes with this JAX, and for a program or model that does not fit; names the field.
  """
  tokenizer = None
  if isinstance(model, ModelConfig):
    config = model
  else:
    config, tokenizer = model.config, model.tokenizer
  settings = Settings(
    task='plan',
    model=schema.Model(config.title, dtype=config.dtype),
    mesh=schema.Mesh(data, split),
    data=schema.Data(num_edits=num_edits),
    method=method,
    statistics=schema.Statistics(max_documents=max_documents),
    plan=schema.Planning(device),
  )
  method.check(config, num_edits)
  devices = find_topology(device) if device else find_devices()
  mesh = make_mesh(data, split, devices)
  check_fits(config.title, config, config.dtype, mesh, devices[0])
  return make_plan(
    settings, config, mesh, devices, records=records, tokenizer=tokenizer, collects=True
  )

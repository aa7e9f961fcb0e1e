"""Reads compiled programs: memory, the compiler's estimate of cycles, and collectives.

The TPU compiler writes `estimated_cycles` at the instructions of an optimised program. Their sum
over all that are executed is its estimate of a call: instructions inside a fusion are part of the
fusion, and those of a loop count as often as it runs. It is a model of cost and no measurement;
collectives, transfers and launches have no cycles in it. Collectives are therefore counted in bytes
and put at the rate of one link in one direction, which is what a ring on a line of chips reaches:
a torus that closes its rings is up to twice as fast, and nothing is assumed to overlap.

Compilers of other devices write no cycles; memory and collectives are read all the same.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import jax

from jedit.parallel.topology import Chip

COLLECTIVES = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')
_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.\-~]+) (?:\(.*\) -> .*)?\{\s*$')
_INSTRUCTION = re.compile(r'^\s+(?:ROOT )?%?[\w.\-~]+ = (\([^=]*?\)|\S+) ([a-z][\w\-]*)\(')
_COMMENT = re.compile(r'/\*index=\d+\*/')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_BOUND = re.compile(r' = s32\[\]\S* constant\((\d+)\)')
_CALLED = re.compile(
  r'\b(body|condition|to_apply|calls|true_computation|false_computation)=%?([\w.\-~]+)'
)
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
_ARRAY = re.compile(r'\b([a-z]+)(\d+)\w*\[([\d,]*)\]|\b(pred)\[([\d,]*)\]')
_LISTED_GROUP = re.compile(r'replica_groups=\{\{([\d,]*)\}')
_TILED_GROUP = re.compile(r'replica_groups=\[\d+,(\d+)\]')
_MESH_GROUP = re.compile(r'replica_groups=mesh\[([^\]]*)\] *\{([^}]*)\}')
_MESH_AXIS, _QUOTED = re.compile(r"'(\w+)'=(\d+)"), re.compile(r"'(\w+)'")
# Instructions that run others and cost nothing themselves.
_CONTROL = ('while', 'call', 'conditional', 'async-start')
_MOVES = {
  *('bitcast', 'broadcast', 'concatenate', 'constant', 'copy', 'copy-done', 'copy-start'),
  *('dynamic-slice', 'dynamic-update-slice', 'get-tuple-element', 'iota', 'pad', 'parameter'),
  *('reshape', 'slice', 'slice-done', 'slice-start', 'transpose', 'tuple'),
}


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes of a program on each device, as the compiler allocates them.

  Attributes:
    arguments, outputs, temporaries, code: parts.
    aliases: outputs that take the place of donated arguments.
  """

  arguments: int
  outputs: int
  aliases: int
  temporaries: int
  code: int

  @property
  def total(self) -> int:
    return self.arguments + self.outputs - self.aliases + self.temporaries + self.code


@dataclasses.dataclass(frozen=True)
class Cost:
  """Cost of one call of a program on each device.

  Attributes:
    cycles: by kind of instruction: 'products', 'moves' (copies, layouts, slices), 'reductions',
      'gathers' (and scatters), 'elementwise', or the name of the instruction.
    collective_bytes: of the arrays of collectives, by kind.
    link_bytes: that each device sends for them.
  """

  cycles: Mapping[str, float]
  collective_bytes: Mapping[str, float]
  link_bytes: float

  def seconds(self, chip: Chip) -> float:
    """Cycles at the chip's clock, and collectives one after the other on one link."""
    return sum(self.cycles.values()) / chip.clock + self.link_bytes / chip.link


def memory_of(compiled: jax.stages.Compiled) -> Memory:
  """The memory of a compiled program."""
  found: Any = compiled.memory_analysis()
  return Memory(
    found.argument_size_in_bytes,
    found.output_size_in_bytes,
    found.alias_size_in_bytes,
    found.temp_size_in_bytes,
    found.generated_code_size_in_bytes,
  )


def cost_of(compiled: jax.stages.Compiled, trips: int = 1) -> Cost:
  """The cost of a compiled program; see `read_cost`."""
  return read_cost(compiled.as_text() or '', trips)


def read_cost(text: str, trips: int = 1) -> Cost:
  """The cost of an optimised program in text.

  Args:
    text: HLO after optimisation and scheduling.
    trips: iterations of loops whose number is not a constant of the program.
  """
  computations, entry = _parse(text)
  reader = _Reader(computations, trips)
  reader.walk(entry, 1.0, is_fused=False)
  return Cost(reader.shares(), dict(reader.collectives), reader.link_bytes)


@dataclasses.dataclass(frozen=True)
class _Instruction:
  """Attributes are those of its line."""

  opcode: str
  shape: str
  line: str

  @property
  def cycles(self) -> int:
    found = _CYCLES.search(self.line)
    return int(found[1]) if found else 0

  @property
  def called(self) -> list[tuple[str, str]]:
    """The computations it runs or is made of, with their roles."""
    found = _CALLED.findall(self.line)
    if branches := _BRANCHES.search(self.line):
      found += [('branch', name.strip().lstrip('%')) for name in branches[1].split(',')]
    return found

  @property
  def group_size(self) -> int:
    """Devices of a collective.

    Raises:
      ValueError: for groups in a form that is not known.
    """
    if tiled := _TILED_GROUP.search(self.line):
      return int(tiled[1])
    if listed := _LISTED_GROUP.search(self.line):
      return len(listed[1].split(','))
    if mesh := _MESH_GROUP.search(self.line):
      sizes = {name: int(size) for name, size in _MESH_AXIS.findall(mesh[1])}
      return math.prod(sizes[name] for name in _QUOTED.findall(mesh[2]))
    raise ValueError(f'Unknown groups of devices: {self.line[:400]}')


def _parse(text: str) -> tuple[dict[str, list[_Instruction]], str]:
  """Instructions by computation, and the name of the first one to run."""
  computations: dict[str, list[_Instruction]] = {}
  entry = name = ''
  for line in text.splitlines():
    line = _COMMENT.sub('', line)
    if header := _COMPUTATION.match(line):
      name = header[2]
      computations[name] = []
      entry = name if header[1] else entry
    elif name and (found := _INSTRUCTION.match(line)):
      computations[name].append(_Instruction(found[2], found[1], line))
  return computations, entry


class _Reader:
  """Sums over the executed instructions."""

  def __init__(self, computations: Mapping[str, list[_Instruction]], trips: int):
    self._computations, self._trips = computations, trips
    self.cycles: dict[str, float] = collections.defaultdict(float)
    self.collectives: dict[str, float] = collections.defaultdict(float)
    self.link_bytes = 0.0

  def shares(self) -> dict[str, float]:
    """The cycles by kind, the largest first."""
    return dict(sorted(self.cycles.items(), key=lambda item: -item[1]))

  def walk(self, name: str, times: float, *, is_fused: bool) -> None:
    """Adds a computation that runs so often; of a fused one only the collectives count."""
    for each in self._computations.get(name, ()):
      if not is_fused and each.opcode not in _CONTROL and each.cycles:
        self.cycles[self._kind(each)] += times * each.cycles
      self._add_collective(each, times)
      repeats = times * self._num_trips(each) if each.opcode == 'while' else times
      for role, other in each.called:
        if role != 'to_apply' or each.opcode in _CONTROL:
          self.walk(other, repeats, is_fused=is_fused or each.opcode not in _CONTROL)

  def _num_trips(self, loop: _Instruction) -> int:
    """Iterations of a loop: the compiler's number, or the bound of an index that counts from 0."""
    if known := _TRIPS.search(loop.line):
      return int(known[1])
    [condition] = (name for role, name in loop.called if role == 'condition')
    bounds = [
      int(found[1])
      for each in self._computations.get(condition, ())
      if (found := _BOUND.search(each.line))
    ]
    return max(bounds, default=self._trips)

  def _add_collective(self, each: _Instruction, times: float) -> None:
    kind = each.opcode.removesuffix('-start')
    if kind not in COLLECTIVES:
      return
    sizes = _array_bytes(each.shape)
    if each.opcode.endswith('-start') and kind in ('all-gather', 'collective-permute'):
      sizes = sizes[len(sizes) // 2 :] if kind == 'all-gather' else sizes[1:2]  # (inputs, outputs)
    size = times * sum(sizes)
    if kind == 'collective-permute':
      self.collectives[kind] += size
      self.link_bytes += size
      return
    count = each.group_size
    share = (count - 1) / count
    sent = {
      'all-reduce': 2 * size * share,
      'all-gather': size * share,
      'reduce-scatter': size * (count - 1),  # its shape is that of one part
      'all-to-all': size * share,
    }
    self.collectives[kind] += size
    self.link_bytes += sent[kind]

  def _kind(self, each: _Instruction) -> str:
    inside = self._opcodes(each)
    if inside & {'convolution', 'dot'}:  # a collective may go on inside
      return 'products'
    if any(op.removesuffix('-start').removesuffix('-done') in COLLECTIVES for op in inside):
      return 'collectives'
    if inside & {'gather', 'scatter'}:
      return 'gathers'
    if inside <= _MOVES:
      return 'moves'
    if inside & {'reduce', 'reduce-window'}:
      return 'reductions'
    return 'elementwise' if each.opcode == 'fusion' else each.opcode

  def _opcodes(self, each: _Instruction) -> set[str]:
    """Instructions that it consists of."""
    if each.opcode != 'fusion':
      return {each.opcode}
    found: set[str] = set()
    for _, name in each.called:
      found = found.union(*map(self._opcodes, self._computations.get(name, ())))
    return found


def _array_bytes(shape: str) -> list[int]:
  """Bytes of the arrays of a shape, such as `(f32[8,128]{1,0}, bf16[4]{0})`."""
  found = []
  for _, bits, sizes, pred, pred_sizes in _ARRAY.findall(shape.replace('{', ' {')):
    count = math.prod(int(size) for size in (pred_sizes if pred else sizes).split(',') if size)
    found.append(count * (8 if pred else int(bits)) // 8)
  return found

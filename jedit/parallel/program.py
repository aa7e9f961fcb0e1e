"""Programs: jitted functions, which a dry run lists and compiles instead of running them.

The jitted functions of a run's stages are made with `jit`. In a `dry_run` they take shapes in place
of arrays, note the call and return the shapes of their results. The code that runs a stage thereby
lists its programs, for devices that need not be there:

  with dry_run(compiles=True) as run:
    slots = enter(abstract_model(config, mesh), problem, rows, None, at, block)
  print(run.programs)
"""

import contextlib
import contextvars
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
from jax.interpreters.partial_eval import dce_jaxpr
from jax.sharding import NamedSharding, SingleDeviceSharding


@dataclasses.dataclass
class Program:
  """A jitted function at the shapes at which a run calls it.

  Attributes:
    name: of the function.
    stage: of the run.
    function: jitted.
    arguments: arrays or `jax.ShapeDtypeStruct`, with the shardings of the run.
    keywords: static arguments.
    calls: how often the run calls it.
    compiled: once it is compiled.
    seconds: of the processor that this took.
    failure: the compiler's reason for not compiling it.
  """

  name: str
  stage: str
  function: Any
  arguments: tuple[Any, ...]
  keywords: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  calls: float = 0.0
  compiled: jax.stages.Compiled | None = None
  seconds: float = 0.0
  failure: str = ''

  @property
  def key(self) -> tuple[Any, ...]:
    """Equal for calls that share a compiled program."""
    leaves, tree = jax.tree.flatten((self.arguments, dict(self.keywords)))
    return (id(self.function), tree, *map(_form, leaves))

  @property
  def is_placed(self) -> bool:
    """True if an argument has a device; all others follow it."""
    return bool(self._shardings)

  @property
  def _shardings(self) -> list[Any]:
    found = (getattr(leaf, 'sharding', None) for leaf in jax.tree.leaves(self.arguments))
    return [sharding for sharding in found if sharding is not None]

  def compile(self) -> None:
    """Compiles it, or keeps the compiler's reason."""
    start = time.process_time()
    try:
      with _unstored():
        self.compiled = self.function.lower(*self.arguments, **self.keywords).compile()
    except jax.errors.JaxRuntimeError as error:
      self.failure = str(error)
    self.seconds = time.process_time() - start

  @functools.cached_property
  def results(self) -> Any:
    """Shapes of the results, with the shardings of the compiled program."""
    shapes = self.function.eval_shape(*self.arguments, **self.keywords)
    if self.compiled is None:
      return shapes

    here = {device for each in self._shardings for device in each.device_set}

    def placed(shape: Any, sharding: Any) -> jax.ShapeDtypeStruct:
      if not sharding.device_set <= here:  # it uses no argument: all run where the others do
        sharding = SingleDeviceSharding(*here) if len(here) == 1 else None
      return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)

    return jax.tree.map(placed, shapes, self.compiled.output_shardings)

  def product_flop(self) -> float:
    """Floating-point operations of the products of one call, on all devices, padding included.

    Loops whose number of iterations is an argument count once.
    """
    jaxpr = self.function.trace(*self.arguments, **self.keywords).jaxpr.jaxpr
    live, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))  # as compilers do
    return _product_flop(live)


@contextlib.contextmanager
def _unstored() -> Iterator[None]:
  """Stores no compiled programs: compilers without devices cannot read them back."""
  name = 'jax_persistent_cache_min_compile_time_secs'
  before = getattr(jax.config, name)
  jax.config.update(name, math.inf)
  try:
    yield
  finally:
    jax.config.update(name, before)


class DryRun:
  """The programs of a dry run.

  Attributes:
    programs: in the order of their first calls.
  """

  def __init__(self, compiles: bool, show: Callable[[Program], None] | None = None):
    self._compiles, self._show = compiles, show
    self._stage, self._times = '', 1.0
    self._by_key: dict[tuple[Any, ...], Program] = {}

  @property
  def programs(self) -> list[Program]:
    return list(self._by_key.values())

  @contextlib.contextmanager
  def stage(self, name: str) -> Iterator[None]:
    """The programs inside belong to this stage of the run."""
    self._stage, before = name, self._stage
    try:
      yield
    finally:
      self._stage = before

  @contextlib.contextmanager
  def repeated(self, times: float) -> Iterator[None]:
    """The calls inside happen so often."""
    self._times, before = self._times * times, self._times
    try:
      yield
    finally:
      self._times = before

  def call(self, function: Any, *arguments: Any, **keywords: Any) -> Any:
    """Notes a call and returns the shapes of its results."""
    new = Program(function.__name__, self._stage, function, arguments, keywords)
    program = self._by_key.setdefault(new.key, new)
    program.calls += self._times
    if program is new and self._compiles and program.is_placed:
      program.compile()
    if program is new and self._show is not None:
      self._show(program)
    return program.results


_active: contextvars.ContextVar[DryRun | None] = contextvars.ContextVar('dry run', default=None)


@contextlib.contextmanager
def dry_run(
  compiles: bool = False, show: Callable[[Program], None] | None = None
) -> Iterator[DryRun]:
  """Functions of `jit` note their calls inside, and compute nothing.

  Args:
    compiles: compile each program, so that results have their shardings.
    show: called with every new program.
  """
  run = DryRun(compiles, show)
  token = _active.set(run)
  try:
    yield run
  finally:
    _active.reset(token)


class Jitted:
  """A function of `jax.jit` that a dry run lists; has its attributes."""

  def __init__(self, function: Callable[..., Any], options: Mapping[str, Any]):
    functools.update_wrapper(self, function)
    self.jitted = jax.jit(function, **options)

  def __call__(self, *arguments: Any, **keywords: Any) -> Any:
    run = _active.get()
    if run is None:
      return self.jitted(*arguments, **keywords)
    return run.call(self.jitted, *arguments, **keywords)

  def __getattr__(self, name: str) -> Any:
    return getattr(self.jitted, name)


def jit(function: Callable[..., Any], **options: Any) -> Jitted:
  """`jax.jit` for functions that a dry run lists; options as there."""
  return Jitted(function, options)


def shape_bytes(tree: Any) -> int:
  """Bytes on each device of the shapes in a tree; arrays do not count."""
  total = 0
  for leaf in jax.tree.leaves(tree):
    if isinstance(leaf, jax.ShapeDtypeStruct):
      shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
      total += math.prod(shape) * leaf.dtype.itemsize
  return total


def _form(leaf: Any) -> Any:
  """What a compiled program depends on of an argument."""
  if not (hasattr(leaf, 'shape') and hasattr(leaf, 'dtype')):  # a static argument
    return leaf
  sharding = getattr(leaf, 'sharding', None)
  if isinstance(sharding, NamedSharding):
    axes = list(sharding.spec)
    while axes and axes[-1] is None:
      axes.pop()
    sharding = (sharding.mesh, tuple(axes))
  return leaf.shape, leaf.dtype, sharding


def _product_flop(jaxpr: Any) -> float:
  total = 0.0
  for equation in jaxpr.eqns:
    name, parameters = equation.primitive.name, equation.params
    if name == 'dot_general':
      (contracted, _), _ = parameters['dimension_numbers']
      left = equation.invars[0].aval.shape
      sizes = [*equation.outvars[0].aval.shape, *(left[axis] for axis in contracted)]
      total += 2 * math.prod(sizes)
      continue
    inner = list(map(_product_flop, _inner(parameters.values())))
    if name == 'cond':  # one of its branches runs
      total += max(inner, default=0.0)
    else:
      total += (parameters['length'] if name == 'scan' else 1) * sum(inner)
  return total


def _inner(values: Iterable[Any]) -> list[Any]:
  """The functions among the parameters of an equation."""
  found = []
  for value in values:
    for each in value if isinstance(value, tuple | list) else (value,):
      each = getattr(each, 'jaxpr', each)
      if hasattr(each, 'eqns'):
        found.append(each)
  return found

"""Readers of compiled programs: on a text written by hand, and on a program for a real TPU."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jedit.parallel.compiled import cost_of, memory_of, read_cost
from jedit.parallel.mesh import make_mesh
from jedit.parallel.program import dry_run, jit
from jedit.parallel.topology import CHIPS, Chip, find_topology

needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None, reason='libtpu is not installed (extra tpu)'
)

# Two nested loops, the inner one three times, around a product of 100 cycles with an all-reduce.
TEXT = """HloModule jit_step, is_scheduled=true

%fused_move (param_0.1: bf16[8,128]) -> bf16[128,8] {
  ROOT %transpose.1 = bf16[128,8]{1,0:T(8,128)} transpose(%param_0.1), dimensions={1,0}
}

%fused_product (param_0.2: bf16[128,8], param_1.2: bf16[8,128]) -> bf16[8,128] {
  %inner = bf16[8,128]{1,0} fusion(%param_0.2), kind=kLoop, calls=%fused_move, \
backend_config={"estimated_cycles":"999"}
  ROOT %convolution.1 = bf16[8,128]{1,0} convolution(%inner, %param_1.2), dim_labels=bf_io->bf
}

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %add.1 = f32[] add(%x, %y), backend_config={"estimated_cycles":"999"}
}

%inner_body (carry.1: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {
  %product = bf16[8,128]{1,0} fusion(%a, %b), kind=kOutput, calls=%fused_product, \
backend_config={"flag_configs":[],"estimated_cycles":"100","iteration_bounds":["1"]}
  %sum = (bf16[8,128]{1,0}, /*index=1*/f32[256]{0}) all-reduce(%product, %c), \
replica_groups={{0,1},{2,3}}, to_apply=%add
  ROOT %tuple.1 = (s32[], bf16[8,128]{1,0}) tuple(%i, %product)
}

%inner_condition (carry.2: (s32[], bf16[8,128])) -> pred[] {
  %three = s32[]{:T(128)} constant(3)
  ROOT %less = pred[] compare(%i, %three), direction=LT, backend_config={"estimated_cycles":"2"}
}

%outer_body (carry.3: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {
  %copy.1 = bf16[8,128]{0,1} copy(%x), backend_config={"estimated_cycles":"10"}
  ROOT %while.1 = (s32[], bf16[8,128]{1,0}) while(%t), condition=%inner_condition, body=%inner_body
}

%outer_condition (carry.4: (s32[], bf16[8,128])) -> pred[] {
  ROOT %less.2 = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (argument: bf16[8,128]) -> bf16[16,128] {
  %while.2 = (s32[], bf16[8,128]{1,0}) while(%t), condition=%outer_condition, body=%outer_body
  %gathered = (bf16[8,128]{1,0}, bf16[16,128]{1,0}) all-gather-start(%x), \
replica_groups=[2,2]<=[4], dimensions={0}
  %moved = bf16[4,8]{1,0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}
  %part = f32[64]{0} reduce-scatter(%x), channel_id=3, \
replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, to_apply=%add
  ROOT %done = bf16[16,128]{1,0} all-gather-done(%gathered), backend_config={"estimated_cycles":"7"}
}
"""


def test_cycles_count_what_is_executed_as_often_as_it_runs():
  cost = read_cost(TEXT, trips=5)
  # The condition of a loop runs as often as its body; fused and reduced instructions are no calls.
  assert cost.cycles == {
    'products': 5 * 3 * 100,
    'compare': 5 * 3 * 2,
    'moves': 5 * 10,
    'collectives': 7,
  }
  assert read_cost(TEXT).cycles['products'] == 300


def test_collectives_are_counted_in_bytes():
  cost = read_cost(TEXT, trips=5)
  reduced, gathered = 15 * (2 * 8 * 128 + 4 * 256), 2 * 16 * 128
  moved, part = 2 * 4 * 8, 4 * 64
  assert cost.collective_bytes == {
    'all-reduce': reduced,
    'all-gather': gathered,
    'collective-permute': moved,
    'reduce-scatter': part,
  }
  # Rings of two, and one of four whose members keep a part each.
  assert cost.link_bytes == 2 * reduced * 1 / 2 + gathered * 1 / 2 + moved + 3 * part
  chip = Chip('', peak=1.0, clock=10.0, memory=0, link=100.0, axes=2, most=1)
  assert cost.seconds(chip) == sum(cost.cycles.values()) / 10 + cost.link_bytes / 100


@jit
def layers(x, weights, count):
  """Three layers of two products, `count` times."""

  def layer(x, weights):
    return jnp.tanh(x @ weights[0]) @ weights[1], None

  return jax.lax.fori_loop(0, count, lambda _, x: jax.lax.scan(layer, x, weights)[0], x)


@needs_libtpu
def test_a_program_compiles_for_a_tpu():
  mesh = make_mesh(2, 2, find_topology('v5e:2x2'))

  def abstract(shape, *axes, dtype=jnp.bfloat16):
    sharding = NamedSharding(mesh, PartitionSpec(*axes))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

  up, down = (3, 512, 1024), (3, 1024, 512)
  weights = (abstract(up, None, None, 'model'), abstract(down, None, 'model'))
  with dry_run(compiles=True) as run:
    out = layers(abstract((256, 512), 'data'), weights, abstract((), dtype=jnp.int32))
  assert out.shape == (256, 512) and out.sharding.spec == PartitionSpec('data')
  [program] = run.programs
  flop = 3 * 2 * (2 * 256 * 512 * 1024)
  assert program.product_flop() == flop
  assert program.compiled is not None and program.seconds > 0
  cost, memory = cost_of(program.compiled, trips=7), memory_of(program.compiled)
  chip, x, weights = CHIPS['v5e'], 2 * 128 * 512, 2 * 3 * 2 * 512 * 512
  # Of each device: half of x and half of the weights.
  assert memory.arguments == pytest.approx(x + weights, abs=2**10)
  assert memory.total < chip.memory
  assert cost.collective_bytes == {'all-reduce': 7 * 3 * x} and cost.link_bytes == 7 * 3 * x
  shortest = 7 * flop / 4 / chip.peak
  assert shortest < cost.seconds(chip) < 20 * shortest
  assert cost.cycles['products'] > 0.5 * sum(cost.cycles.values())


@needs_libtpu
def test_what_does_not_fit_a_tpu_keeps_the_reason():
  [device] = find_topology('v5e:1x1')
  square = jax.ShapeDtypeStruct(
    (2**16, 2**16), jnp.float32, sharding=jax.sharding.SingleDeviceSharding(device)
  )
  with dry_run(compiles=True) as run:
    assert jit(jnp.matmul)(square, square).shape == square.shape
  [program] = run.programs
  assert program.compiled is None and 'memory on HBM' in program.failure


def test_groups_in_an_unknown_form_are_not_guessed():
  text = (
    'ENTRY %main (x: f32[8]) -> f32[8] {\n  ROOT %y = f32[8]{0} all-reduce(%x), groups=all\n}\n'
  )
  with pytest.raises(ValueError, match='Unknown groups of devices'):
    read_cost(text)

# SPDX-License-Identifier: Apache-2.0
"""Reading compiled programs: loops count as often as they turn, collectives go over the axes they should."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from vllm2_jax.nn.layers import contract
from vllm2_jax.sharding.chips import CHIPS
from vllm2_jax.sharding.collectives import collectives, mesh_axes, totals
from vllm2_jax.sharding.costs import part_of_files, valid_pairs, work
from vllm2_jax.sharding.mesh import find_devices
from vllm2_jax.sharding.program import Instruction, parse
from vllm2_jax.train.flops import count_flops

DEPTH, ROWS, WIDTH = 5, 32, 64
X = jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32)
W = jax.ShapeDtypeStruct((DEPTH, WIDTH, WIDTH), jnp.float32)


def chain(x, w, unroll):
    return jax.lax.scan(lambda x, w: (x @ w, None), x, w, unroll=unroll)[0]


def compiled(unroll, **kwargs):
    return jax.jit(functools.partial(chain, unroll=unroll), **kwargs).lower(X, W).compile()


def summed(program, what):
    return sum(one.times * getattr(one, what) for one in work(parse(program.as_text()))[0])


def test_loops_count_as_often_as_they_turn():
    scanned, unrolled = compiled(1), compiled(DEPTH)
    expected = 2 * DEPTH * ROWS * WIDTH * WIDTH
    assert scanned.cost_analysis()["flops"] < expected / 2  # XLA counts the body once
    assert unrolled.cost_analysis()["flops"] == pytest.approx(expected, rel=0.01)
    assert summed(scanned, "flops") == summed(unrolled, "flops") == expected
    assert count_flops(functools.partial(chain, unroll=1), X, W) == expected


def test_gradients_that_nobody_wants_do_not_count():
    def loss(x, w):
        return jax.lax.scan(lambda x, w: (contract(x, w, 1), None), x, w)[0].sum()

    forward = count_flops(loss, X, W)
    assert count_flops(jax.value_and_grad(loss), X, W) == 2 * forward  # the kernels are frozen
    assert count_flops(jax.value_and_grad(loss, (0, 1)), X, W) == 3 * forward


def test_traffic_is_that_of_one_layer_a_turn():
    scanned, unrolled = summed(compiled(1), "bytes"), summed(compiled(DEPTH), "bytes")
    least = 4 * (DEPTH * WIDTH * WIDTH + 2 * DEPTH * ROWS * WIDTH)  # weights once, activations in and out
    assert least <= unrolled <= 2.5 * least
    assert least <= scanned <= 4 * least  # a stack read whole in every turn would be DEPTH times as much


def test_loops_that_wait_for_data_are_listed():
    def halve(x):
        return jax.lax.while_loop(lambda x: x.sum() > 1, lambda x: x @ x, x)

    x = jax.ShapeDtypeStruct((8, 8), jnp.float32)
    found, unknown = work(parse(jax.jit(halve).lower(x).compile().as_text()))
    assert len(unknown) == 1
    assert sum(one.times * one.flops for one in found) == 2 * 8**3
    assert count_flops(halve, x) == 2 * 8**3


@pytest.mark.parametrize(("stride", "pad"), [(1, 1), (2, 1), (3, 0)])
def test_convolutions_leave_out_the_border(stride, pad):
    def convolve(x, k):
        return jax.lax.conv_general_dilated(
            x, k, (stride, stride), [(pad, pad)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    x, k = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, 9, 9, 3), (3, 3, 3, 5)))
    program = jax.jit(convolve).lower(x, k).compile()
    flops = summed(program, "flops")
    assert flops == count_flops(convolve, x, k)
    out = (9 + 2 * pad - 3) // stride + 1
    seen = sum(0 <= o * stride + c - pad < 9 for o in range(out) for c in range(3))
    assert valid_pairs(9, 3, out, stride=stride, pad=pad) == seen
    assert flops == 2 * 2 * seen**2 * 3 * 5


@pytest.mark.parametrize(
    ("kernel", "options"),
    [
        ((3, 2, 2, 9), {"feature_group_count": 3}),
        ((3, 2, 1, 6), {"feature_group_count": 6}),
        ((3, 2, 6, 8), {"batch_group_count": 2}),
        ((3, 2, 6, 5), {"padding": [(1, 0), (0, 1)], "window_strides": (2, 2)}),
        ((3, 2, 6, 5), {"window_strides": (1, 2)}),
        ((3, 2, 6, 5), {"lhs_dilation": (1, 3)}),
        ((3, 2, 6, 5), {"rhs_dilation": (2, 1)}),
    ],
    ids=str,
)
def test_a_convolution_of_ones_adds_up_its_products(kernel, options):
    options = {"window_strides": (1, 1), "padding": [(1, 1), (0, 0)]} | options
    convolve = functools.partial(
        jax.lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options
    )
    x, k = jnp.ones((4, 9, 7, 6)), jnp.ones(kernel)
    program = jax.jit(convolve).lower(x, k).compile()
    assert summed(program, "flops") == count_flops(convolve, x, k) == 2 * program(x, k).sum()


BATCH_GROUPS = """HloModule m

ENTRY %main (x: f32[4,9,7,6], k: f32[3,2,6,8]) -> f32[6,8,9,2] {
  %x = f32[4,9,7,6]{3,2,1,0} parameter(0)
  %k = f32[3,2,6,8]{3,2,1,0} parameter(1)
  ROOT %c = f32[6,8,9,2]{3,2,1,0} convolution(%x, %k), window={size=3x2 pad=1_1x0_0}, dim_labels=LABELS
}
"""


def test_groups_of_a_batch_in_a_result_of_another_order():
    text = BATCH_GROUPS.replace("LABELS", "b01f_01io->1f0b, batch_group_count=2")
    (one,), _ = work(parse(text))
    # Of 9 rows under 3 cells two lie in the border; 6 columns see 2 cells each.
    assert one.flops == 2 * 2 * (9 * 3 - 2) * (6 * 2) * 6 * 8


def test_products_over_two_axes():
    x, y = jnp.ones((3, 4, 5)), jnp.ones((4, 5, 7))
    assert count_flops(functools.partial(jnp.einsum, "aij,ijb->ab"), x, y) == 2 * 3 * 4 * 5 * 7


def test_of_branches_the_dearest_counts_but_of_platforms_the_cheapest():
    def many(x):
        return x @ x @ x

    def few(x):
        return x @ x

    x = jax.ShapeDtypeStruct((8, 8), jnp.float32)
    dearest = count_flops(lambda x: jax.lax.cond(x[0, 0] > 0, few, many, x), x)
    cheapest = count_flops(lambda x: jax.lax.platform_dependent(x, cpu=few, tpu=many), x)
    assert (dearest, cheapest) == (2 * 2 * 8**3, 2 * 8**3)


def test_what_every_device_does_counts_for_all_of_them():
    mesh = jax.make_mesh((2, 4), ("fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    for manual in ({"fsdp"}, {"fsdp", "tensor"}):
        specs = (P(tuple(sorted(manual))), P())
        run = jax.shard_map(jnp.matmul, mesh=mesh, in_specs=specs, out_specs=specs[0], axis_names=manual)
        with jax.set_mesh(mesh):
            assert count_flops(run, jnp.ones((16, 5)), jnp.ones((5, 3))) == 2 * 16 * 5 * 3


@pytest.mark.parametrize(
    ("files", "part"),
    [
        (["/a/vllm2_jax/train/step.py", "/a/vllm2_jax/llm/llama.py", "/a/vllm2_jax/nn/mlp.py"], "llm"),
        (["/a/vllm2_jax/model.py", "/a/vllm2_jax/links.py"], "links"),
        (["/a/vllm2_jax/decoders/unipose/model.py", "/a/vllm2_jax/vision/swin.py"], "decoders/unipose"),
        (["/a/vllm2_jax/train/step.py", "/b/optax/_src/base.py"], "train/optimizer"),
        (["/a/vllm2_jax/train/optimizer.py"], "train/optimizer"),
        (["/a/vllm2_jax/nn/mlp.py"], "other"),
        ([], "other"),
    ],
)
def test_the_outermost_file_of_a_part_decides(files, part):
    assert part_of_files(files) == part


MOVES = """HloModule m

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

%fused (x: f32[64,8], u: f32[2,8], i: s32[2]) -> RESULT {
  %x = f32[64,8]{1,0} parameter(0)
  %u = f32[2,8]{1,0} parameter(1)
  %i = s32[2]{0} parameter(2)
  ROOT %moved = RESULT OPCODE
}

ENTRY %main (x: f32[64,8], u: f32[2,8], i: s32[2]) -> RESULT {
  %x = f32[64,8]{1,0} parameter(0)
  %u = f32[2,8]{1,0} parameter(1)
  %i = s32[2]{0} parameter(2)
  ROOT %r = RESULT ENTERED
}
"""


@pytest.mark.parametrize(
    ("result", "opcode", "alone", "fused"),
    [  # in rows of 32 bytes; a fusion also reads the 8 bytes of places
        ("f32[64,8]{1,0}", "negate(%x)", 64 + 64, (64 + 64) * 32),
        ("f32[2,8]{1,0}", "dynamic-slice(%x, %i), dynamic_slice_sizes={2,8}", 2 + 2, (2 + 2) * 32 + 8),
        ("f32[2,8]{1,0}", "gather(%x, %i), slice_sizes={1,8}", 2 + 2, (2 + 2) * 32 + 8),
        ("f32[64,8]{1,0}", "dynamic-update-slice(%x, %u, %i)", 2 + 2, (2 + 2) * 32 + 8),
        # Adds to what was there: it reads the updates and those rows of the table, and writes them.
        ("f32[64,8]{1,0}", "scatter(%x, %i, %u), to_apply=%add", 2 + 2, (2 + 2 + 2) * 32 + 8),
    ],
)
def test_a_move_touches_what_it_moves(result, opcode, alone, fused):
    text = MOVES.replace("RESULT", result).replace("OPCODE", opcode)
    (one,), _ = work(parse(text.replace("ENTERED", opcode)))
    assert one.bytes == alone * 32
    (one,), _ = work(parse(text.replace("ENTERED", "fusion(%x, %u, %i), kind=kLoop, calls=%fused")))
    assert one.bytes == fused


def test_collectives_are_no_traffic_with_the_memory():
    reduced = "all-reduce(%x), replica_groups={}, to_apply=%add"
    text = MOVES.replace("RESULT", "f32[64,8]{1,0}").replace("ENTERED", reduced)
    assert work(parse(text.replace("OPCODE", "negate(%x)")))[0] == []
    assert work(parse(PREFETCH.replace("slice(%x), slice={[2:4], [0:128]}", "all-gather(%x)")))[0] == []


PREFETCH = """HloModule m

%copied (x: f32[8,128]) -> f32[2,128] {
  %x = f32[8,128]{1,0} parameter(0)
  ROOT %part = f32[2,128]{1,0:S(1)} slice(%x), slice={[2:4], [0:128]}
}

ENTRY %main (x: f32[8,128]) -> f32[2,128] {
  %x.1 = f32[8,128]{1,0} parameter(0)
  %start = ((f32[8,128]{1,0}), f32[2,128]{1,0:S(1)}, s32[]{:S(2)}) async-start(%x.1), calls=%copied
  ROOT %done = f32[2,128]{1,0:S(1)} async-done(%start)
}
"""


def test_a_slice_that_is_brought_to_the_chip_reads_itself():
    """As libtpu prints it: the whole array stands in the result of `async-start`."""
    (one,), _ = work(parse(PREFETCH))
    assert one.bytes == 2 * 128 * 4 and one.beside
    (one,), _ = work(parse(PREFETCH.replace("S(1)", "S(0)")))
    assert one.bytes == 2 * 2 * 128 * 4  # read and written


SCATTER = """HloModule m

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

%fused (x: f32[4096,8], i: s32[16], u: f32[16,8]) -> f32[4096,8] {
  %x = f32[4096,8]{1,0} parameter(0)
  %i = s32[16]{0} parameter(1)
  %u = f32[16,8]{1,0} parameter(2)
  ROOT %s = f32[4096,8]{1,0} scatter(%x, %i, %u), to_apply=%add
}

ENTRY %main (x: f32[4096,8], i: s32[16], u: f32[16,8]) -> f32[4096,8] {
  %x.1 = f32[4096,8]{1,0} parameter(0)
  %i.1 = s32[16]{0} parameter(1)
  %u.1 = f32[16,8]{1,0} parameter(2)
  ROOT %f = f32[4096,8]{1,0} fusion(%x.1, %i.1, %u.1), kind=kCustom, calls=%fused
}
"""


# As compiled for v5p: a fusion inside a fusion.
NESTED = SCATTER.replace(
    "ENTRY",
    """%outer (x: f32[4096,8], i: s32[16], u: f32[16,8]) -> f32[4096,8] {
  %x.2 = f32[4096,8]{1,0} parameter(0)
  %i.2 = s32[16]{0} parameter(1)
  %u.2 = f32[16,8]{1,0} parameter(2)
  ROOT %s.2 = f32[4096,8]{1,0} fusion(%x.2, %i.2, %u.2), kind=kCustom, calls=%fused
}

ENTRY""",
).replace(
    "fusion(%x.1, %i.1, %u.1), kind=kCustom, calls=%fused",
    "fusion(%x.1, %i.1, %u.1), kind=kCustom, calls=%outer",
)


def test_a_scatter_touches_what_it_adds_to():
    updates, index = 16 * 8 * 4, 16 * 4
    for text in (SCATTER, NESTED):
        (one,), _ = work(parse(text))
        # Both are read, the rows of the table read and written.
        assert one.bytes == updates + index + 2 * updates


def test_collectives_by_kind_and_axes():
    mesh = jax.make_mesh((2, 4), ("fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=P("fsdp", "tensor"), out_specs=P("fsdp", "tensor"), check_vma=False
    )
    def talk(x):
        def body(x, _):
            whole = jax.lax.all_gather(x, "tensor", axis=1, tiled=True)
            return x + jax.lax.psum(jnp.sin(whole).sum(1, keepdims=True), "fsdp"), None

        return jax.lax.psum(jax.lax.scan(body, x, length=3)[0], ("fsdp", "tensor"))

    x = jax.ShapeDtypeStruct((16, 32), jnp.float32)
    program = parse(jax.jit(talk).lower(x).compile().as_text())
    found = {(row.kind, row.axes): row for row in totals(collectives(program, dict(mesh.shape)))}
    gather = found["all-gather", ("tensor",)]
    assert (gather.count, gather.times) == (1, 3)
    assert gather.sent == 3 * (3 / 4) * (8 * 32 * 4)  # three quarters of the gathered rows, three times
    inner = found["all-reduce", ("fsdp",)]
    assert (inner.times, inner.sent) == (3, 3 * 2 * (1 / 2) * (8 * 1 * 4))
    assert found["all-reduce", ("fsdp", "tensor")].sent == 2 * (7 / 8) * (8 * 8 * 4)


@pytest.mark.parametrize(
    ("groups", "axes", "size"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}, x", ("tensor",), 4),
        ("replica_groups={}, x", ("fsdp", "tensor"), 8),
        ("replica_groups=[4,2]<=[2,4]T(1,0), x", ("fsdp",), 2),
        ("replica_groups=[1,8]<=[8], x", ("fsdp", "tensor"), 8),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, x", ("tensor",), 4),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}, x", ("fsdp",), 2),
        ("replica_groups=mesh['a'=8] {'a':(2)4}, x", ("tensor",), 4),
        ("source_target_pairs={{0,4},{4,0}}, x", ("fsdp",), 2),
    ],
)
def test_forms_of_groups(groups, axes, size):
    line = Instruction("a", "f32[4]", "all-gather", (), "", f", {groups}", False)
    assert mesh_axes(line, {"fsdp": 2, "tensor": 4}) == (axes, size)


def test_unknown_form_of_groups_is_shown():
    line = Instruction("a", "f32[4]", "all-gather", (), "", ", replica_groups=<new>", False)
    with pytest.raises(ValueError, match="unknown form of replica groups: '<new>'"):
        mesh_axes(line, {"fsdp": 2})


@pytest.mark.tpu_compile
@pytest.mark.parametrize("chip", CHIPS)
def test_products_of_a_tpu_program(chip):
    """TPUs run products as convolutions, sometimes padded ones, inside of fusions."""
    device = find_devices(f"{chip}:2x2" + ("x1" if CHIPS[chip].dims == 3 else ""))[0]
    sharding = jax.sharding.SingleDeviceSharding(device)
    q = jax.ShapeDtypeStruct((4, 16, 8, 32), jnp.bfloat16, sharding=sharding)
    w = jax.ShapeDtypeStruct((3, 8, 32, 32), jnp.bfloat16, sharding=sharding)

    def layers(q, w):
        def body(q, w):
            q = jnp.einsum("bthd,hde->bthe", q, w)
            return jnp.einsum("bths,bshd->bthd", jnp.einsum("bthd,bshd->bths", q, q), q), None

        return jax.lax.scan(body, q, w)[0]

    program = jax.jit(layers).lower(q, w).compile()
    assert summed(program, "flops") == count_flops(layers, q, w) == 3 * 2 * 4 * 16 * 8 * 32 * (32 + 2 * 16)


KERNEL = """HloModule m

ENTRY %main (b: s8[8,4,BLOCKS], q: bf16[8,256,64], k: bf16[2,512,64]) -> bf16[8,256,64] {
  %b = s8[8,4,BLOCKS]{2,1,0} parameter(0)
  %q = bf16[8,256,64]{2,1,0} parameter(1)
  %k = bf16[2,512,64]{2,1,0} parameter(2)
  ROOT %splash_mha_NAME = bf16[8,256,64] custom-call(%b, %q, %k, %k), custom_call_target="tpu_custom_call"
}
"""


@pytest.mark.parametrize(("name", "products"), [("fwd", 2), ("dq", 3), ("dkv", 4)])
def test_products_of_an_attention_kernel(name, products):
    def flops(blocks):
        (one,), _ = work(parse(KERNEL.replace("BLOCKS", str(blocks)).replace("NAME", name)))
        return one.flops

    assert flops(8) == 2 * products * 8 * 256 * 512 * 64
    assert flops(4) == flops(8) * (1 + 2 + 3 + 4) / 16  # causal: of four rows of blocks what is no future


SENT = """HloModule sent

ENTRY %main (p: f32[8,4]) -> f32[8,4] {
  %p = f32[8,4]{1,0} parameter(0)
  %token = token[] after-all()
  ROOT %send = (f32[8,4]{1,0}, u32[], token[]) send(%p, %token), channel_id=1, frontend_attributes={KIND}
}
"""


@pytest.mark.parametrize(
    "kind, read, sent",
    [
        ("ONE_TO_ONE", "dcn collective-permute", 128),
        ("ALL_REDUCE", "dcn all-reduce", 128),
        ("ALL_GATHER", "dcn all-gather", 128),
    ],
)
def test_transfers_between_slices(kind, read, sent):
    program = parse(SENT.replace("KIND", f'_xla_megascale_transfer_type="{kind}"'))
    (found,) = collectives(program, {"data": 2}, slices=2)
    assert (found.kind, found.axes, found.sent) == (read, ("slices",), sent)


def test_an_unknown_transfer_between_slices_is_an_error():
    program = parse(SENT.replace("KIND", '_xla_megascale_transfer_type="BROADCAST"'))
    with pytest.raises(ValueError, match="unknown transfer between slices 'broadcast'"):
        collectives(program, {"data": 2}, slices=2)

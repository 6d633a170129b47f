# SPDX-License-Identifier: Apache-2.0
"""Attention: both implementations against each other and a loop over columns, and the TPU compiler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import mesh_utils, topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vllm2_jax.nn.attention import attention
from vllm2_jax.nn.axes import axis_rules

RULES = {"batch": "data", "heads": "tensor", "kv_heads": "tensor"}


def draw(shape_q, shape_k, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = (shape_q, shape_k, shape_k)
    return [jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)]


def segments_of(rows, length):
    """Three segments and a padded tail (0), cut at different places in each row."""
    cuts = np.sort(np.random.default_rng(1).integers(1, length, (rows, 3)), axis=1)
    numbers = (np.arange(length)[None, :, None] >= cuts[:, None]).sum(-1) + 1
    return jnp.asarray(np.where(numbers > 3, 0, numbers), jnp.int32)


def slow(q, k, v, may_look):
    """One query at a time, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros(q.shape)
    for b, t, h in np.ndindex(*q.shape[:3]):
        seen = np.flatnonzero(may_look[b, t])
        head = h // (q.shape[2] // k.shape[2])
        scores = k[b, seen, head] @ q[b, t, h] / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max())
        out[b, t, h] = weights @ v[b, seen, head] / weights.sum()
    return out


def test_xla_matches_a_loop_with_grouped_heads_and_segments():
    q, k, v = draw((2, 9, 6, 4), (2, 9, 2, 4))
    segments = segments_of(2, 9)
    same = np.asarray(segments)[:, :, None] == np.asarray(segments)[:, None]
    causal = np.tril(np.ones((9, 9), bool))[None]
    got = attention(q, k, v, causal=True, segments=segments)
    np.testing.assert_allclose(got, slow(q, k, v, same & causal), atol=2e-6)
    got = attention(q, k, v, mask=jnp.asarray(same), segments=segments)
    np.testing.assert_allclose(got, slow(q, k, v, same), atol=2e-6)


def test_a_query_that_sees_nothing_gives_no_nan():
    q, k, v = draw((1, 3, 2, 4), (1, 5, 2, 4))
    mask = jnp.ones((1, 3, 5), bool).at[0, 1].set(False)

    def loss(q, k, v):
        return (attention(q, k, v, mask=mask) ** 2).sum()

    for array in (attention(q, k, v, mask=mask), *jax.grad(loss, (0, 1, 2))(q, k, v)):
        assert np.isfinite(array).all()


def value_and_gradients(impl, arrays, weight, **options):
    def loss(*arrays):
        out = attention(*arrays, impl=impl, **options)
        return (out * weight).sum(), out

    (_, out), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(*arrays)
    return out * (weight != 0), gradients


@pytest.mark.parametrize(
    ("length", "heads", "kv_heads", "width", "causal", "packed"),
    [
        (150, 4, 2, 40, True, True),  # nothing divides: length, head width and heads are all fitted
        (128, 2, 2, 64, True, False),
        (130, 2, 1, 72, False, True),
        (130, 2, 1, 24, False, False),
    ],
)
def test_splash_equals_xla(length, heads, kv_heads, width, causal, packed):
    arrays = draw((2, length, heads, width), (2, length, kv_heads, width))
    segments = segments_of(2, length) if packed else None
    weight = jax.random.normal(jax.random.key(7), arrays[0].shape)
    if packed:
        weight = weight * (segments > 0)[..., None, None]
    options = {"causal": causal, "segments": segments}
    got, got_gradients = value_and_gradients("splash", arrays, weight, **options)
    want, want_gradients = value_and_gradients("xla", arrays, weight, **options)
    np.testing.assert_allclose(got, want, atol=5e-6)
    for a, b in zip(got_gradients, want_gradients, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_splash_takes_keys_of_another_length():
    q, k, v = draw((1, 20, 2, 16), (1, 140, 1, 16))
    np.testing.assert_allclose(attention(q, k, v, impl="splash"), attention(q, k, v), atol=2e-6)


def test_bad_arguments_say_what_to_do():
    q, k, v = draw((1, 4, 2, 8), (1, 4, 2, 8))
    with pytest.raises(ValueError, match="choose one of xla, splash"):
        attention(q, k, v, impl="flash")
    with pytest.raises(ValueError, match="impl='xla'"):
        attention(q, k, v, mask=jnp.ones((1, 4, 4), bool), impl="splash")
    with pytest.raises(ValueError, match="explicit mask"):
        attention(q[:, :2], k, v, causal=True)


@pytest.mark.tpu_compile
@pytest.mark.parametrize("kv_heads", [4, 1])
def test_splash_compiles_for_four_chips_without_gathering(kv_heads):
    topology = topologies.get_topology_desc("v5e:2x2", platform="tpu")
    devices = mesh_utils.create_device_mesh((2, 2), devices=topology.devices, allow_split_physical_axes=True)
    mesh = Mesh(devices, ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    shard = lambda *spec: NamedSharding(mesh, PartitionSpec(*spec))  # noqa: E731
    q = jax.ShapeDtypeStruct((4, 700, 4, 72), jnp.bfloat16, sharding=shard("data", None, "tensor"))
    over_heads = "tensor" if kv_heads > 1 else None
    k = jax.ShapeDtypeStruct((4, 700, kv_heads, 72), jnp.bfloat16, sharding=shard("data", None, over_heads))
    segments = jax.ShapeDtypeStruct((4, 700), jnp.int32, sharding=shard("data"))

    def loss(q, k, v, segments):
        out = attention(q, k, v, causal=True, segments=segments, impl="splash")
        return out.astype(jnp.float32).sum()

    with jax.set_mesh(mesh), axis_rules(RULES):
        compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, k, k, segments).compile()
    text = compiled.as_text()
    assert text.count("tpu_custom_call") >= 3  # forward, gradient of the queries, of keys and values
    assert "all-gather" not in text

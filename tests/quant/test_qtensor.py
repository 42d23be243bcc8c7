"""Codes and scales: what they decode to, what they cost, and that they are a pytree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.quant import QTensor, decode, encode, parse, quantize

SHARED = [{}, {"axis": 0}, {"axis": (0, 1), "block": (3, 4)}]
FORMATS = ["int4", "int4_asymmetric", "e4m3fn", "fixed8.4", "nf4", "mxfp4_k4", "ternary_twn"]
X = jnp.asarray(np.random.default_rng(0).normal(0.3, size=(6, 32)), jnp.float32)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shared", SHARED, ids=str)
@pytest.mark.parametrize("rounding", ["nearest_even", "stochastic"])
def test_decoded_codes_are_the_quantized_numbers(name, shared, rounding):
    def key():
        return jax.random.key(1) if rounding == "stochastic" else None

    if name == "mxfp4_k4":
        shared = {"axis": shared.get("axis", -1), "block": shared.get("block")}
        shared["block"] = shared["block"] or (3 if shared["axis"] == 0 else 4)
    q = encode(X, name, rounding=rounding, key=key(), **shared)
    y = quantize(X, name, rounding=rounding, key=key(), **shared)
    assert q.codes.shape == X.shape
    assert q.codes.dtype == parse(name).code_dtype
    np.testing.assert_array_equal(np.asarray(decode(q)).view(np.uint32), np.asarray(y).view("u4"))
    np.testing.assert_array_equal(q.dequantize(), y)


def asymmetric(x, bits):
    """The definition, in numpy and float32: scale, zero point, codes."""
    low, high = np.minimum(x.min(), np.float32(0)), np.maximum(x.max(), np.float32(0))
    s = (high - low) / np.float32(2**bits - 1)
    z = np.clip(np.rint(-low / s), 0, 2**bits - 1)
    return s, z, np.clip(np.rint(x / s) + z, 0, 2**bits - 1)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("shift", [-5, -0.3, 0, 0.7, 5])
def test_asymmetric_integers_equal_the_definition(bits, shift):
    x = np.random.default_rng(bits).normal(size=500).astype(np.float32) + np.float32(shift)
    x[0] = 0
    s, z, codes = asymmetric(x, bits)
    q = encode(jnp.asarray(x), f"int{bits}_asymmetric")
    np.testing.assert_array_equal(q.codes, codes)
    np.testing.assert_array_equal(q.scale.unit, [s])
    np.testing.assert_array_equal(q.scale.zero, [z])
    np.testing.assert_array_equal(decode(q), ((codes - z) * s).astype(np.float32))
    assert decode(q)[0] == 0  # padding and relu stay exact
    inside = (codes > 0) & (codes < 2**bits - 1)
    assert (np.abs(decode(q) - x)[inside] <= s / 2 * (1 + 1e-6)).all()


@pytest.mark.parametrize("side", [1, -1])
def test_asymmetric_integers_spend_all_codes_on_one_side(side):
    x = side * jnp.linspace(0, 3, 16)
    q = encode(x, "int4_asymmetric")
    assert sorted(q.codes.tolist()) == list(range(16))
    assert q.scale.zero.item() == (0 if side > 0 else 15)
    np.testing.assert_array_equal(jax.grad(lambda x: quantize(x, "int4_asymmetric").sum())(x), 1)
    assert not np.asarray(quantize(jnp.zeros(3), "int4_asymmetric")).any()


@pytest.mark.parametrize(
    ("name", "granularity", "bits"),
    [
        ("int4", "group32", 4 + 32 / 32),
        ("int4", "tensor", 4 + 32 / 192),
        ("int4", "channel", 4 + 32 / 32),
        ("int4_asymmetric", "group16", 4 + (32 + 4) / 16),
        ("e4m3fn", None, 8),
        ("e4m3fn", "block3x16", 8 + 32 / 48),
        ("fixed12.6", None, 12),
    ],
)
def test_bits_count_scales_and_zero_points(name, granularity, bits):
    assert QTensor.from_dense(X, name, granularity).bits_per_weight == pytest.approx(
        bits, rel=1e-12
    )


def test_granularity_by_name_is_that_by_axis():
    for name, shared in (("token", {"axis": 1}), ("group8", {"axis": -1, "block": 8})):
        np.testing.assert_array_equal(
            QTensor.from_dense(X, "int4", name).dequantize(), quantize(X, "int4", **shared)
        )
    fp8 = QTensor.from_dense(X, "e4m3fn", "tensor")  # a unit of its own, and a scale as well
    s = np.abs(np.asarray(X)).max() / np.float32(448)
    units = quantize(jnp.asarray(np.asarray(X) / s), "e4m3fn")
    np.testing.assert_array_equal(fp8.dequantize(), np.asarray(units) * s)


def test_it_is_a_pytree_for_jit_vmap_and_products():
    q = QTensor.from_dense(X, "int8", "group8")
    same = jax.jit(lambda q: q)(q)
    assert (same.fmt, same.granularity, same.dtype) == (q.fmt, q.granularity, "float32")
    np.testing.assert_array_equal(jax.jit(decode)(q), decode(q))
    a = np.random.default_rng(1).normal(size=(5, 6)).astype(np.float32)
    np.testing.assert_array_equal(jnp.asarray(a) @ q, jnp.asarray(a) @ q.dequantize())
    b = jnp.asarray(np.random.default_rng(2).normal(size=(32, 3)), jnp.float32)
    np.testing.assert_array_equal(q @ b, q.dequantize() @ b)
    rows = jax.vmap(lambda x: QTensor.from_dense(x, "int8", "group8").dequantize())(X)
    np.testing.assert_array_equal(rows, q.dequantize())
    half = QTensor.from_dense(X.astype(jnp.bfloat16), "int8", "group8")
    assert half.dequantize().dtype == jnp.bfloat16


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"encode\(e4m3fn\): scale is 'mse', but"):
        encode(X, "e4m3fn", scale="mse")
    with pytest.raises(ValueError, match=r"granularity is 'tensor', but mxfp4 brings blocks of 32"):
        QTensor.from_dense(X, "mxfp4", "tensor")
    with pytest.raises(ValueError, match="int4_asymmetric finds its scales by its own"):
        encode(X, "int4_asymmetric", scale="mse")
    with pytest.raises(ValueError, match=r"encode\(int4\).*key=None"):
        encode(X, "int4", rounding="stochastic")

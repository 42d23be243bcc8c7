"""Weights, spikes and connections are pytrees: what maps over them must not reach a kernel."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.kernels import (
    Csr,
    SpikeBits,
    csr_from_dense,
    float8_matmul,
    integer_matmul,
    low_bit_matmul,
    low_bit_softmax,
    pack,
    pack24,
    quantized_matrix,
    sparse24_matmul,
    spike_matmul_low_bit,
    spike_matmul_sparse,
    stochastic_codes,
    two_level_scales,
)
from spikebit.kernels.sparse import Pattern

RANDOM = np.random.default_rng(0)
SCALE = np.exp2(RANDOM.integers(-3, 3, (2, 24))).astype(np.float32)  # exact in every float
W = quantized_matrix(RANDOM.integers(0, 16, (64, 24)).astype(np.uint8), SCALE)
X = jnp.asarray(RANDOM.integers(-3, 4, (3, 64)), jnp.float32)


def products(w, layout):
    one = jnp.ones((3, 1))
    if layout == "rows":
        return [spike_matmul_low_bit(X > 0, w)]
    return [
        low_bit_matmul(X, w),
        integer_matmul(X.astype(jnp.int8), one, w),
        float8_matmul(X.astype(jnp.float8_e4m3fn), one, w),
    ]


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("layout", ["vnni", "rows"])
def test_a_model_that_is_cast_keeps_its_numbers(layout, dtype):
    w = pack(W, layout)
    half = jax.tree.map(lambda a: a.astype(dtype) if a.dtype == jnp.float32 else a, w)
    for a, b in zip(products(half, layout), products(w, layout), strict=True):
        assert (a == b).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"table": jnp.arange(4.0)}, r"a table of shape \(4,\) for codes of 4 bits; it has 16"),
        ({"scale": jnp.ones((3, 24))}, r"w of shape \(64, 24\) has scales of shape \(3, 24\)"),
        ({"scale": jnp.ones((2, 23))}, r"has scales of shape \(2, 23\)"),
        ({"zero": jnp.ones((1, 24))}, r"zero points of shape \(1, 24\)"),
        ({"scale": jnp.ones((2, 24), jnp.int32)}, "scale of w is int32; it holds floats"),
        ({"shape": (128, 24)}, "words of w are uint8 of shape .*make it by `pack`"),
        ({"layout": "rows"}, "words of w are uint8 of shape .*in the layout rows"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused_by_every_product(change, message):
    w, one = dataclasses.replace(pack(W), **change), jnp.ones((3, 1))
    x = jnp.zeros((3, w.shape[0]))
    calls = (
        lambda: low_bit_matmul(x, w),
        lambda: integer_matmul(x.astype(jnp.int8), one, w),
        lambda: float8_matmul(x.astype(jnp.float8_e4m3fn), one, w),
        lambda: spike_matmul_low_bit(x > 0, w),
    )
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("words", [1, 4, 9000])
def test_bits_in_other_words_than_their_size_are_refused(words):
    bits = SpikeBits(jnp.full((2, words), 0xFFFFFFFF, jnp.uint32), 64)
    with pytest.raises(ValueError, match=r"64 packed spikes in words .*2 along the last axis"):
        spike_matmul_low_bit(bits, pack(W, "rows"))


def test_connections_in_other_integers_are_refused():
    w = csr_from_dense(np.eye(5, dtype=np.float32))
    narrow = Pattern(w.pattern.indptr, w.pattern.indices.astype(jnp.int16), w.shape)
    short = Pattern(w.pattern.indptr[:-1], w.pattern.indices, w.shape)
    for pattern, data in ((narrow, w.data), (short, w.data), (w.pattern, w.data[:-1])):
        with pytest.raises(ValueError, match="indptr has one more than there are inputs"):
            spike_matmul_sparse(jnp.ones((2, 5)), Csr(data, pattern))


def test_products_over_no_rows_of_weights_and_vmap_of_float8():
    none = quantized_matrix(np.zeros((0, 5), np.uint8), np.ones((1, 5)))
    zeros = float8_matmul(jnp.zeros((3, 0), jnp.float8_e4m3fn), jnp.ones((3, 1)), pack(none))
    assert (zeros == 0).all()
    assert zeros.shape == sparse24_matmul(jnp.zeros((3, 0)), pack24(none)).shape == (3, 5)
    x = jnp.stack([X, -X]).astype(jnp.float8_e4m3fn)
    w = pack(W)
    both = jax.vmap(lambda x: float8_matmul(x, jnp.ones((3, 1)), w))(x)
    for a, b in zip(both, x, strict=True):
        assert (a == float8_matmul(b, jnp.ones((3, 1)), w)).all()


def test_scales_that_are_none():
    key, x = jnp.array([1, 2], jnp.uint32), jnp.array([1.0, -2.0, 3.0])
    for scale in (np.nan, 0.0, -1.0, np.inf):
        with pytest.raises(ValueError, match=r"scale is .*, but scale is finite and above 0"):
            stochastic_codes(x, scale, key)
    codes = jax.jit(lambda scale: stochastic_codes(x, scale, key))(jnp.float32(np.nan))
    assert codes.tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match=r"scale\[0, 1\] is nan, but scale is finite"):
        two_level_scales(jnp.array([[1.0, np.nan]]), 8)
    with pytest.raises(ValueError, match=r"scale is of shape \(0, 3\)"):
        two_level_scales(jnp.zeros((0, 3)), 8)


def test_a_range_too_small_to_divide_by_makes_all_alike(monkeypatch):
    x = jnp.asarray(RANDOM.standard_normal((2, 7)) * 1e-38, jnp.float32)
    for forced in ("cpu", "reference"):
        monkeypatch.setenv("SPIKEBIT_KERNELS", forced)
        np.testing.assert_allclose(low_bit_softmax(x, 4, clip=-4.0), 1 / 7, rtol=1e-6)

"""Matrices to codes: nearest codes of every method by brute force, the kernel's bits, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spikebit.kernels.matrix import dequantize, quantized_matrix
from spikebit.kernels.quantize_pack import quantize_matrix
from spikebit.quant import quantize

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
UNEVEN = np.linspace(-1, 1, 16).astype(np.float32) ** 3
KEY = jnp.array([0x13198A2E, 0x03707344], jnp.uint32)
METHODS = {
    "symmetric": dict(bits=4, group=32),
    "one scale a column": dict(bits=8),
    "zero points": dict(bits=3, group=48, zeros=True),
    "alone": dict(bits=2, group=1, zeros=True),
    "uneven table": dict(bits=4, group=32, table=UNEVEN),
    "e2m1": dict(bits=4, group=16, table=E2M1),
    "short table": dict(bits=2, group=96, table=[1.0, -1.0, 0.0, 4.0]),
    "clipped": dict(bits=4, group=32, clips=8),
    "clipped with zero points": dict(bits=4, group=32, clips=5, zeros=True),
    "clipped table": dict(bits=4, group=32, clips=8, table=E2M1),
    "drawn": dict(bits=4, group=32, key=KEY, stream=3),
    "drawn with zero points": dict(bits=8, group=32, zeros=True, key=KEY),
}


def weights(k=96, n=150):
    """Weights with ties, zeros, columns of one sign, and some too small for a scale."""
    random = np.random.default_rng(0)
    w = random.standard_normal((k, n)).astype(np.float32)
    w[: k // 3, 3], w[:, 5], w[:, 4] = 0, abs(w[:, 5]), -abs(w[:, 4])
    w[:, 6] *= np.float32(1e-40)
    w[:, 7] = random.integers(-14, 15, k) / np.float32(2)
    w[0, 7] = 7
    return jnp.asarray(w)


@pytest.mark.parametrize("name", METHODS)
def test_the_kernel_has_the_bits_of_the_reference(name, monkeypatch):
    found = []
    for kind in ("cpu", "reference"):
        monkeypatch.setenv("SPIKEBIT_KERNELS", kind)
        found.append(jax.jit(lambda w: quantize_matrix(w, **METHODS[name]))(weights()))
    for a, b in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_array_equal(a, b)
    q = found[0]  # and its parts fit
    quantized_matrix(q.codes, q.scale, q.zero, table=q.table, bits=q.bits)


def possible(q):
    """What each code of each weight would stand for, (k, n, codes), in float64."""
    scale = np.repeat(np.asarray(q.scale, np.float64), q.group, 0)[..., None]
    if q.table is not None:
        return np.asarray(q.table, np.float64) * scale
    zero = np.full_like(scale, 1 << q.bits - 1)
    if q.zero is not None:
        zero = np.repeat(np.asarray(q.zero, np.float64), q.group, 0)[..., None]
    return (np.arange(1 << q.bits) - zero) * scale


@pytest.mark.parametrize("name", [n for n in METHODS if "drawn" not in n])
def test_no_other_code_is_nearer(name):
    w = weights()
    q = jax.jit(lambda w: quantize_matrix(w, **METHODS[name]))(w)
    w = np.asarray(w, np.float64)
    best = abs(possible(q) - w[..., None]).min(-1)
    found = abs(np.asarray(dequantize(q), np.float64) - w)
    assert (found <= best + 2**-22 * abs(w) + 1e-37).all()


@pytest.mark.parametrize("name", ["symmetric", "one scale a column", "zero points", "e2m1"])
def test_without_clips_no_weight_lies_beyond_the_codes(name):
    w = weights()
    q = quantize_matrix(w, **METHODS[name])
    values, w = possible(q), np.asarray(w, np.float64)
    slack = 2**-22 * abs(w) + (0.5 * np.repeat(q.scale, q.group, 0) if q.zero is not None else 0)
    assert (values.max(-1) >= w - slack).all()
    assert (values.min(-1) <= w + slack).all()


@pytest.mark.parametrize("table", [None, E2M1])
def test_of_the_clips_the_best_is_taken(table):
    w = weights()
    error = []
    for clips in (1, 8):
        q = quantize_matrix(w, 4, group=32, clips=clips, table=table)
        error.append(np.square(np.asarray(dequantize(q) - w, np.float64)).reshape(3, 32, -1).sum(1))
    by_hand = np.full(error[0].shape, np.inf)
    for i in range(8):
        q = quantize_matrix(w, 4, group=32, table=table)
        scale = q.scale * np.float32(1 - i / 16)
        if table is None:
            q = quantize_matrix(w, 4, group=32, scale=scale)
        else:  # the nearest of all values
            scaled = np.repeat(np.asarray(scale, np.float64), 32, 0)[..., None] * np.asarray(table)
            off = abs(scaled - np.asarray(w)[..., None]).min(-1)
            by_hand = np.minimum(by_hand, np.square(off).reshape(3, 32, -1).sum(1))
            continue
        off = np.asarray(dequantize(q) - w, np.float64)
        by_hand = np.minimum(by_hand, np.square(off).reshape(3, 32, -1).sum(1))
    assert (error[1] <= by_hand * (1 + 1e-5) + 1e-37).all()
    assert (error[1] < error[0]).mean() > 0.5


def test_given_scales_and_zero_points_of_any_kind_are_used():
    w, shape = weights(), (3, 150)
    for zero in (None, 5.0, 5.37, -2.6):
        given = dict(scale=jnp.full(shape, 0.3))
        if zero is not None:
            given["zero"] = jnp.full(shape, zero)
        q = jax.jit(lambda w, given=given: quantize_matrix(w, 4, **given, group=32))(w)
        exact = np.rint(np.asarray(w, np.float64) / np.float64(np.float32(0.3)) + (zero or 0) % 1)
        exact = np.clip(exact + np.floor(8 if zero is None else zero), 0, 15)
        assert (np.asarray(q.codes) == exact).mean() > 0.999  # all but what lies at ties
        assert abs(np.asarray(q.codes) - exact).max() <= 1
        assert (q.scale == given["scale"]).all()
        assert q.zero is None if zero is None else (q.zero == np.float32(zero)).all()


@pytest.mark.parametrize("rounding", ["nearest_even", "stochastic"])
def test_symmetric_codes_are_those_of_quantize(rounding):
    w, key = weights(), jax.random.key(2)
    drawn = rounding == "stochastic"
    words = jax.random.bits(jax.random.key(2), (2,), jnp.uint32) if drawn else None
    q = quantize_matrix(w, 4, group=32, key=words)
    expected = quantize(w, "int4", axis=0, block=32, rounding=rounding, key=key if drawn else None)
    np.testing.assert_array_equal(dequantize(q), expected)


@pytest.mark.parametrize("kind", ["cpu", "reference"])
def test_what_lies_far_beyond_a_table_gets_its_last_value(kind, monkeypatch):
    monkeypatch.setenv("SPIKEBIT_KERNELS", kind)
    w = jnp.array([[3e38], [-3e38], [0.0]])
    q = quantize_matrix(w, 4, table=E2M1, scale=jnp.full((1, 1), 1e-20))
    assert q.codes.ravel().tolist() == [7, 15, 0]


def test_drawn_codes_have_the_weight_as_their_mean():
    w = jnp.concatenate([jnp.full((1, 1 << 14), 7.0), jnp.full((1, 1 << 14), 2.3)])
    codes = quantize_matrix(w, 4, key=KEY).codes[1].astype(jnp.float32) - 8
    assert abs(float(codes.mean()) - 2.3) < 5 * np.sqrt(0.3 * 0.7 / (1 << 14))
    assert set(np.unique(codes)) == {2, 3}


def test_vmap_is_one_matrix_after_the_other_and_nothing_is_nothing():
    w = jnp.stack([weights(8, 20), weights(8, 20) * 2])
    many = jax.jit(jax.vmap(lambda w: quantize_matrix(w, 4, group=4)))(w)
    for i in range(2):
        one = quantize_matrix(w[i], 4, group=4)
        for a, b in zip(jax.tree.leaves(many), jax.tree.leaves(one), strict=True):
            assert (a[i] == b).all()
    assert quantize_matrix(jnp.zeros((4, 0)), 4, group=2).scale.shape == (2, 0)
    assert quantize_matrix(jnp.zeros((0, 3)), 4).codes.shape == (0, 3)


def test_under_jit_a_weight_that_is_not_finite_makes_its_scale_nan():
    w = weights(8, 20).at[2, 3].set(jnp.inf).at[5, 4].set(jnp.nan)
    for settings_ in (dict(), dict(zeros=True), dict(table=E2M1), dict(clips=3)):
        scale = jax.jit(lambda w, s=settings_: quantize_matrix(w, 4, group=4, **s).scale)(w)
        assert np.argwhere(np.isnan(np.asarray(scale))).tolist() == [[0, 3], [1, 4]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(w=np.ones(3, np.float32)), r"shape \(3,\)"),
        (dict(w=np.ones((4, 2), np.float16)), "w is float16"),
        (dict(w=np.array([[1, np.nan]], np.float32)), "1 weights that are not finite"),
        (dict(bits=5), "bits=5"),
        (dict(bits=8, table=np.ones(256)), "bits=8.*at most 4"),
        (dict(group=3), "group=3.*4 rows"),
        (dict(group=0), "group=0"),
        (dict(clips=0), "clips=0"),
        (dict(clips=2, scale=np.ones((1, 2), np.float32)), "clips=2.*1 with scales"),
        (dict(table=E2M1, zeros=True), "without zero points"),
        (dict(table=np.ones(15)), r"shape \(15,\)"),
        (dict(table=np.full(16, np.nan)), "16 finite"),
        (dict(zero=np.ones((1, 2), np.float32)), "go with scales"),
        (dict(scale=np.ones((2, 2), np.float32)), r"shape \(2, 2\)"),
        (dict(scale=np.array([[1, np.nan]], np.float32)), "1 values that are not positive"),
        (dict(scale=np.ones((1, 2), np.int32)), "scale is int32"),
    ],
)
def test_what_does_not_fit_is_said(change, message):
    arguments = {"w": np.ones((4, 2), np.float32)} | change
    w = arguments.pop("w")
    with pytest.raises(ValueError, match=message):
        quantize_matrix(w, **arguments)


@settings(max_examples=12, deadline=None)
@given(
    k=st.integers(0, 9),
    n=st.integers(0, 5),
    bits=st.integers(1, 9),
    group=st.none() | st.integers(-1, 9),
    zeros=st.booleans(),
)
def test_any_shape_either_works_or_is_refused(k, n, bits, group, zeros):
    w = jnp.asarray(np.random.default_rng(0).standard_normal((k, n)), jnp.float32)
    try:
        q = quantize_matrix(w, bits, group=group, zeros=zeros)
    except ValueError:
        return
    assert q.shape == (k, n)
    quantized_matrix(q.codes, q.scale, q.zero, bits=bits)


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="JAX has no GPU here")
@pytest.mark.parametrize("name", METHODS)
def test_on_the_gpu_it_has_the_bits_of_the_reference(name, monkeypatch):
    found = []
    for kind in ("gpu", "reference"):
        monkeypatch.setenv("SPIKEBIT_KERNELS", kind)
        found.append(jax.jit(lambda w: quantize_matrix(w, **METHODS[name]))(weights()))
    for a, b in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_array_equal(a, b)

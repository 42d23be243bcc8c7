"""Stochastic rounding: the bits of the reference and of `quantize`, means, ends, derivatives."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spikebit.kernels.stochastic import (
    FLOATS,
    Steps,
    codes_reference,
    floats_reference,
    stochastic_codes,
    stochastic_round,
)
from spikebit.quant import quantize

KEY = jnp.array([0x13198A2E, 0x03707344], jnp.uint32)
NAMES = {"bfloat16": "bfloat16", "float16": "float16", "float8_e4m3fn": "e4m3fn"}
NAMES["float8_e5m2"] = "e5m2"


def hard_numbers():
    """All sizes of numbers, and what is not finite."""
    random = np.random.default_rng(0)
    x = random.standard_normal(3000) * 10.0 ** random.integers(-12, 6, 3000)
    ends = [np.inf, -np.inf, np.nan, 0, -0.0, 448, 57344, 3.4e38, -500, 2.0**-6, -(2.0**-14)]
    return jnp.asarray(np.concatenate([x, ends]), jnp.float32)


def row(stream=0):
    return jnp.append(KEY, jnp.uint32(stream))[None]


@pytest.mark.parametrize("name", NAMES)
def test_floats_have_the_bits_of_the_reference_and_of_quantize(name):
    x, key = hard_numbers(), jax.random.key(3)
    words = jax.random.bits(key, (2,), jnp.uint32)
    y = jax.jit(functools.partial(stochastic_round, dtype=name))(x, words)
    reference = jax.jit(functools.partial(floats_reference, FLOATS[name]))
    bits = reference(x[None], jnp.append(words, jnp.uint32(0))[None])[0]
    assert (jax.lax.bitcast_convert_type(y, bits.dtype) == bits).all()
    again = jax.random.key(3)
    expected = quantize(x, NAMES[name], rounding="stochastic", key=again)
    np.testing.assert_array_equal(y.astype(jnp.float32), expected)
    assert (jnp.signbit(y.astype(jnp.float32)) == jnp.signbit(expected)).all()


def test_codes_are_those_of_quantize():
    x, key = hard_numbers()[:3000], jax.random.key(5)
    expected = quantize(x, "int8", rounding="stochastic", key=key)
    scale = jnp.abs(x).max() / 127
    codes = stochastic_codes(x, scale, jax.random.bits(jax.random.key(5), (2,), jnp.uint32))
    np.testing.assert_array_equal(codes.astype(jnp.float32) * scale, expected)


@pytest.mark.parametrize(("bits", "groups", "stream"), [(8, 1, 0), (4, 5, 7), (2, 320, 2**32 - 1)])
def test_codes_have_the_bits_of_the_reference(bits, groups, stream):
    random = np.random.default_rng(1)
    x = jnp.asarray(random.standard_normal((30, 320)), jnp.float32).at[2, 7].set(jnp.nan)
    x = x.at[3, 3].set(jnp.inf).at[4, 4].set(-jnp.inf)
    scale = jnp.asarray(random.uniform(0.01, 0.1, (30, groups)), jnp.float32)
    found = jax.jit(lambda x, s: stochastic_codes(x, s, KEY, stream, bits=bits))(x, scale)
    expected = jax.jit(functools.partial(codes_reference, Steps(2 ** (bits - 1) - 1)))(
        x.reshape(1, -1), scale.reshape(1, -1), row(stream)
    )
    assert (found == expected.reshape(x.shape)).all()
    top = 2 ** (bits - 1) - 1
    assert [int(found[i, i]) for i in (3, 4)] == [top, -top]
    assert found[2, 7] == 0


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn"])
def test_the_mean_is_the_number_and_a_value_of_the_type_does_not_move(name):
    fractions, n = (0.0, 0.25, 0.7), 1 << 16
    for low, high in ((1.0, 1 + 2.0 ** -FLOATS[name].mantissa), (-(2.0**-9), -(2.0**-8))):
        for p in fractions:
            x = np.float32(low + p * (high - low))
            y = stochastic_round(jnp.full(n, x), KEY, 9, dtype=name).astype(jnp.float32)
            if name == "bfloat16" and low < 0:
                continue  # there is much between these two
            assert set(np.unique(y)) <= {np.float32(low), np.float32(high)}
            share = float((y == np.float32(high)).mean())
            assert abs(share - p) <= 5 * np.sqrt(p * (1 - p) / n)  # five standard deviations


def test_the_mean_of_codes_is_the_number():
    x, n = np.array([0.3, -1.6, 5.0, 0.0], np.float32), 1 << 15
    codes = stochastic_codes(jnp.tile(x, (n, 1)), 1.0, KEY, bits=8).astype(jnp.float32)
    part = abs(x) % 1
    assert (abs(codes.mean(0) - x) <= 5 * np.sqrt(part * (1 - part) / n)).all()


@pytest.mark.parametrize("kind", ["cpu", "reference"])
@pytest.mark.usefixtures("compile_quickly")
def test_each_example_of_a_batch_is_rounded_as_if_alone(kind, monkeypatch):
    monkeypatch.setenv("SPIKEBIT_KERNELS", kind)
    x = hard_numbers()[:3000].reshape(3, 2, 500)
    keys = jnp.stack([KEY, KEY + jnp.uint32(1), KEY + jnp.uint32(2)])
    one = functools.partial(stochastic_round, dtype=jnp.bfloat16)

    def codes(x, scale, key):
        return stochastic_codes(x, scale, key)

    @jax.jit
    def run(x):
        scale = jnp.abs(x).max(-1, keepdims=True)
        both = (
            (jax.vmap(one, (0, None))(x, KEY), jnp.stack([one(a, KEY) for a in x])),
            (jax.vmap(one)(x, keys), jnp.stack([one(a, k) for a, k in zip(x, keys, strict=True)])),
            (
                jax.vmap(codes)(x, scale, keys),
                jnp.stack([codes(*each) for each in zip(x, scale, keys, strict=True)]),
            ),
        )
        return [(a == b).all() for a, b in both]

    assert all(run(x))


def test_the_derivative_is_one_inside_the_range():
    x = jnp.array([0.3, -448.0, 500.0, -jnp.inf])

    def loss(x):
        return stochastic_round(x, KEY, dtype="float8_e4m3fn").astype(jnp.float32).sum()

    assert jax.jit(jax.grad(loss))(x).tolist() == [1, 1, 0, 0]
    _, tangent = jax.jvp(lambda x: stochastic_round(x, KEY, dtype=jnp.bfloat16), (x,), (x,))
    assert tangent[:2].tolist() == [float(ml_dtypes.bfloat16(0.3)), -448]


def test_streams_are_independent_and_shapes_do_not_matter():
    x = jnp.full((64, 33), 0.5)
    a, b = (stochastic_codes(x, 1.0, KEY, stream) for stream in (0, 1))
    assert 0.45 < float((a == b).mean()) < 0.55  # 2112 fair coins: 4.6 standard deviations
    assert (a.ravel() == stochastic_codes(x.ravel(), 1.0, KEY)).all()
    assert stochastic_codes(x[:0], 1.0, KEY).shape == (0, 33)
    assert stochastic_round(jnp.zeros(()), KEY, dtype=jnp.float16).shape == ()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: stochastic_round(x, KEY, dtype=jnp.float32), "dtype=float32.*bfloat16"),
        (lambda x: stochastic_round(x.astype(jnp.float16), KEY, dtype="bfloat16"), "x is float16"),
        (lambda x: stochastic_round(x, KEY, -1, dtype="bfloat16"), "stream=-1"),
        (lambda x: stochastic_codes(x, 1.0, KEY, bits=1), "bits=1"),
        (lambda x: stochastic_codes(x, jnp.ones((2, 4)), KEY), r"shape \(2, 4\) for x.*\(2, 6\)"),
        (lambda x: stochastic_codes(x, jnp.ones(2), KEY), r"of shape \(2,\)"),
        (lambda x: stochastic_codes(x, 1, KEY), "scale is int32"),
    ],
)
def test_what_does_not_fit_is_said(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.ones((2, 6)))


@settings(max_examples=15, deadline=None)
@given(m=st.integers(0, 3), k=st.integers(0, 40), groups=st.integers(0, 9), bits=st.integers(0, 9))
def test_any_shape_either_works_or_is_refused(m, k, groups, bits):
    x = jnp.ones((m, k))
    try:
        codes = stochastic_codes(x, jnp.full((m, groups), 0.5), KEY, bits=bits)
    except ValueError:
        return
    assert codes.shape == x.shape
    assert (codes == min(2, 2 ** (bits - 1) - 1)).all()


def test_in_the_interpreter_the_triton_kernels_do_the_same(triton_script):
    triton_script("triton_elementwise.py", "interpret")  # with those of matrices and softmax


@pytest.mark.parametrize("capability", ["80", "90", "100"])
def test_the_triton_kernels_compile_without_spills(triton_script, capability):
    triton_script("triton_elementwise.py", "compile", capability)


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="JAX has no GPU here")
def test_on_the_gpu_it_has_the_bits_of_the_reference(monkeypatch):
    monkeypatch.setenv("SPIKEBIT_KERNELS", "gpu")
    x = hard_numbers()
    for name in NAMES:
        y = stochastic_round(x, KEY, 5, dtype=name)
        bits = floats_reference(FLOATS[name], x[None], row(5))[0]
        assert (jax.lax.bitcast_convert_type(y, bits.dtype) == bits).all()
    found = stochastic_codes(x, 0.5, KEY, 5)
    expected = codes_reference(Steps(127), x[None], jnp.full((1, 1), 0.5), row(5))[0]
    assert (found == expected).all()

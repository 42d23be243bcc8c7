"""Softmax of few bits: against exact arithmetic, masks, derivative, the rules for the clip."""

import functools

import elementwise_cases as cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spikebit.kernels.softmax import (
    Levels,
    best_clip,
    linear_clip,
    low_bit_softmax,
    softmax_reference,
)

# what EXAQ's authors give as the best clips of inputs less their largest, for 2, 3 and 4 bits
PUBLISHED = {1.01: (-3.18, -3.56, -3.91), 2.02: (-4.31, -4.86, -5.41), 4.04: (-4.91, -5.54, -6.17)}


@pytest.fixture(params=["cpu", "reference"])
def kind(request, monkeypatch):
    monkeypatch.setenv("SPIKEBIT_KERNELS", request.param)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize(("m", "k"), cases.SOFTMAX)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.usefixtures("kind", "compile_quickly")
def test_it_is_the_softmax_of_the_rounded_input(bits, m, k, masked):
    x, mask = cases.softmax_inputs(m, k, masked)
    clip = np.linspace(-6, -2, m, dtype=np.float32)[:, None]
    p = jax.jit(lambda x: low_bit_softmax(x, bits, clip=clip, where=mask))(x)
    cases.is_low_bit_softmax(np.asarray(p), x, bits, clip, mask)


@pytest.mark.parametrize("bits", [2, 4])
def test_kernel_and_reference_agree_on_what_is_strange(bits):
    x = cases.softmax_inputs(9, 77, False)[0]
    x[1], x[4, 5], x[5, 2], x[6, ::2], x[7], x[8, 7] = (
        1.5,
        np.nan,
        np.inf,
        -np.inf,
        -np.inf,
        -np.nan,
    )
    clip = jnp.full((9, 1), -4.0)
    found = jax.jit(lambda x: low_bit_softmax(x, bits, clip=-4.0))(x)
    expected = jax.jit(functools.partial(softmax_reference, Levels(bits)))(x, clip)
    np.testing.assert_allclose(found, expected, rtol=2e-6)
    assert np.isnan(np.asarray(found)).all(1).tolist() == [i in (4, 5, 8) for i in range(9)]
    assert not found[7].any()
    np.testing.assert_allclose(found[1], 1 / 77, rtol=1e-6)
    assert not found[6, ::2].any()


@pytest.mark.usefixtures("kind")
def test_many_bits_of_range_come_near_the_softmax():
    x = jnp.asarray(cases.softmax_inputs(4, 64, False)[0])
    p = low_bit_softmax(x, 4, clip=-20.0)
    step = float((x.max(-1) - x.min(-1)).max()) / 15  # each exponent is off by half a step at most
    ratio = np.asarray(p / jax.nn.softmax(x, -1))
    assert (ratio <= np.exp(step)).all()
    assert (ratio >= np.exp(-step)).all()


@pytest.mark.usefixtures("kind")
def test_without_a_clip_it_is_that_of_each_rows_deviation():
    x, mask = cases.softmax_inputs(5, 40, True)
    mask[:, 0] = True
    sigma = np.array([row[on].std() for row, on in zip(x, mask, strict=True)], np.float32)[:, None]
    one = low_bit_softmax(x, 3, where=mask)
    two = low_bit_softmax(x, 3, where=mask, clip=linear_clip(sigma, 3))
    np.testing.assert_allclose(one, two, rtol=1e-5)


@pytest.mark.usefixtures("kind", "compile_quickly")
def test_the_derivative_is_that_of_the_softmax_of_the_clipped_input():
    random = np.random.default_rng(3)
    x, mask = (jnp.asarray(a) for a in cases.softmax_inputs(6, 23, True))
    dp = jnp.asarray(random.standard_normal(x.shape), jnp.float32)

    def loss(x, dp, mask):
        return (low_bit_softmax(x, 4, clip=-3.0, where=mask) * dp).sum()

    dx = jax.jit(jax.vmap(jax.grad(loss)))(x, dp, mask)
    p = np.asarray(low_bit_softmax(x, 4, clip=-3.0, where=mask), np.float64)
    most = np.where(mask, x, -np.inf).max(-1, keepdims=True)
    inside = np.asarray(mask) & (np.asarray(x) - most >= -3)
    # the Jacobian of the exact softmax, at p, its columns 0 where the input is clipped
    jacobian = p[:, :, None] * (np.eye(23) - p[:, None, :]) * inside[:, None, :]
    np.testing.assert_allclose(dx, np.einsum("ri,rij->rj", dp, jacobian), atol=1e-6)
    tangent = jax.jvp(lambda x: low_bit_softmax(x, 4, clip=-3.0, where=mask), (x,), (dp,))[1]
    np.testing.assert_allclose(tangent, np.einsum("rij,rj->ri", jacobian, dp), atol=1e-6)


def test_where_nothing_is_rounded_the_derivative_is_that_of_finite_differences():
    x = jnp.array([0.0, -1.0, -2.0, -3.0])  # multiples of the step: p is exact, and so is its slope
    exact = jax.jacobian(jax.nn.softmax)(x)
    found = jax.jacobian(lambda x: low_bit_softmax(x, 2, clip=-3.0))(x)
    np.testing.assert_allclose(found, exact, atol=1e-6)


@pytest.mark.usefixtures("kind", "compile_quickly")
def test_masks_broadcast_and_batches_are_rows():
    x, mask = cases.softmax_inputs(6, 20, True)
    x, mask = x.reshape(2, 3, 20), jnp.asarray(mask.reshape(2, 3, 20))
    one = low_bit_softmax(x, 3, clip=-4.0, where=mask[0])
    for i in range(2):
        assert (one[i] == low_bit_softmax(x[i], 3, clip=-4.0, where=mask[0])).all()
    clips = jnp.array([-3.0, -5.0])
    both = jax.vmap(lambda x, c: low_bit_softmax(x, 3, clip=c, where=mask[0]))(
        jnp.asarray(x), clips
    )
    assert (both[1] == low_bit_softmax(x[1], 3, clip=-5.0, where=mask[0])).all()
    half = low_bit_softmax(jnp.asarray(x, jnp.bfloat16), 2, clip=-4.0)
    assert half.dtype == jnp.bfloat16
    assert low_bit_softmax(jnp.zeros((0, 5)), 2, clip=-1.0).shape == (0, 5)
    assert low_bit_softmax(jnp.zeros((5, 0)), 2, clip=-1.0).shape == (5, 0)


@pytest.mark.parametrize("sigma", PUBLISHED)
def test_the_best_clip_is_about_what_was_published(sigma):
    for bits, clip in zip((2, 3, 4), PUBLISHED[sigma], strict=True):
        assert abs(best_clip(sigma, bits) / clip - 1) < 0.06  # these are of samples, ours of a law


def test_the_best_clip_beats_others_on_normal_numbers():
    random = np.random.default_rng(5)
    t = np.sort(random.standard_normal((200, 512)) * 2, -1)
    t -= t[:, -1:]

    def error(clip, bits=3):
        step = -clip / (2**bits - 1)
        rounded = np.round(np.maximum(t, clip) / step) * step
        return np.square(np.exp(rounded) - np.exp(t)).mean()

    best = error(best_clip(2.0, 3, largest=-float(t.mean()) / 2))
    assert best < min(error(-2.0), error(-3.5), error(-8.0), error(-12.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(bits=5), "bits=5.*2, 3 or 4"),
        (dict(x=np.zeros(())), r"shape \(\)"),
        (dict(x=np.zeros((2, 3), int)), "x is int"),
        (dict(clip=1.0), "below 0"),
        (dict(clip=np.nan), "below 0"),
        (dict(clip=np.full((2, 3), -1.0)), r"shape \(2, 3\).*\(2, 1\)"),
        (dict(clip=-1), "clip is int32"),
        (dict(where=np.ones((3, 2), bool)), r"where is bool of shape \(3, 2\)"),
        (dict(where=np.ones((2, 3))), "where is float"),
    ],
)
def test_what_does_not_fit_is_said(change, message):
    arguments = {"x": np.zeros((2, 3), np.float32), "bits": 2} | change
    with pytest.raises(ValueError, match=message):
        low_bit_softmax(arguments.pop("x"), arguments.pop("bits"), **arguments)


def test_a_deviation_must_be_one():
    for sigma in (0.0, -1.0, 100.0, float("nan")):
        with pytest.raises(ValueError, match="standard deviation"):
            best_clip(sigma, 2)


@settings(max_examples=12, deadline=None)
@given(m=st.integers(0, 4), k=st.integers(0, 70), bits=st.integers(1, 5), clip=st.floats(-9, 1))
def test_any_shape_either_works_or_is_refused(m, k, bits, clip):
    x, _ = cases.softmax_inputs(m, k, False)
    try:
        p = np.asarray(low_bit_softmax(x, bits, clip=clip))
    except ValueError:
        return
    assert p.shape == (m, k)
    if k:
        np.testing.assert_allclose(p.sum(-1), 1, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="JAX has no GPU here")
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize(("m", "k"), cases.SOFTMAX)
def test_on_the_gpu_it_is_the_softmax_of_the_rounded_input(bits, m, k, monkeypatch):
    monkeypatch.setenv("SPIKEBIT_KERNELS", "gpu")
    for masked in (False, True):
        x, mask = cases.softmax_inputs(m, k, masked)
        clip = np.linspace(-6, -2, m, dtype=np.float32)[:, None]
        p = low_bit_softmax(x, bits, clip=clip, where=mask)
        cases.is_low_bit_softmax(np.asarray(p), x, bits, clip, mask)

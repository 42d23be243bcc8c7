"""Numbers that say what formats did to a gradient and to the writes of weights."""

import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.quant import losses, number_format, quantize
from spikebit.quant.training.diagnostics import gradient_quality, write_shares


def test_the_cosine_is_that_of_numpy_at_every_size():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 6, 7))
    want = (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())
    for size in (1.0, 1e-30, 1e30):  # the squares of the latter two are no float32 numbers
        pair = ({"w": jnp.asarray(size * x, jnp.float32)} for x in (a, b))
        assert float(gradient_quality(*pair)["cosine"]["w"]) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize(
    ("a", "b", "cosine"),
    [
        ([1.0, 2.0], [2.0, 4.0], 1),
        ([1.0, 2.0], [-1.0, -2.0], -1),
        ([1.0, 0.0], [0.0, 1.0], 0),
        ([0.0, 0.0], [0.0, 0.0], 1),
        ([1.0, 0.0], [0.0, 0.0], 0),
        ([0.0, 0.0], [1.0, 0.0], 0),
    ],
)
def test_the_cosine_of_known_pairs(a, b, cosine):
    got = gradient_quality(jnp.array(a), jnp.array(b))["cosine"]
    assert float(got) == pytest.approx(cosine, abs=1e-6)


def test_shares_count_what_the_format_of_the_gradient_loses():
    g = jnp.array([0.0, 1e-6, -1e-6, 0.5, 300.0, -600.0, 400.0, 0.3])
    q = quantize(g, "e4m3fn")
    got = gradient_quality({"w": g}, {"w": q}, "e4m3fn")
    assert float(got["gradient_underflowed"]["w"]) == pytest.approx(2 / 7)
    assert float(got["gradient_saturated"]["w"]) == pytest.approx(1 / 8)
    scaled = gradient_quality({"w": g}, {"w": q}, "e4m3fn", scale=2.0)
    assert float(scaled["gradient_saturated"]["w"]) == pytest.approx(3 / 8)
    for fmt in (None, "int8"):
        assert float(gradient_quality({"w": g}, {"w": q}, fmt)["gradient_saturated"]["w"]) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_what_is_not_finite_is_counted_and_never_a_good_cosine(bad, side):
    pair = [jnp.array([1.0, 2.0, 1e-6, 0.0]), jnp.array([1.0, 2.0, 0.0, 0.0])]
    fine = gradient_quality(*pair)
    assert float(fine["gradient_not_finite"]) == 0
    assert float(fine["cosine"]) > 0.9
    pair[side] = pair[side].at[0].set(bad)
    got = gradient_quality(*pair)
    assert float(got["gradient_not_finite"]) == 1 / 4
    assert float(got["cosine"]) == 0
    # a NaN is no number that could become 0
    numbers = 2 if side == 0 and np.isnan(bad) else 3
    assert float(got["gradient_underflowed"]) == pytest.approx(1 / numbers)
    became_zero = gradient_quality(jnp.array([jnp.nan, 1.0]), jnp.array([0.0, 1.0]))
    assert float(became_zero["gradient_not_finite"]) == 1 / 2
    assert float(became_zero["gradient_underflowed"]) == 0
    assert float(gradient_quality(jnp.zeros(0), jnp.zeros(0))["gradient_not_finite"]) == 0


def test_shares_of_writes_are_those_between_two_moments():
    memory = number_format("fixed8.4")
    state = memory.init({"w": jnp.zeros(4)}, None)
    state = memory.update(state, {"w": jnp.full(4, 0.01)}, None)  # all four stay 0
    before = losses(state)
    state = memory.update(state, {"w": jnp.array([0.0, 0.01, 1.0, 100.0])}, None)
    got = write_shares(before, losses(state))["w"]
    assert got == {"stagnated": 1 / 3, "saturated": 1 / 3, "underflowed": 1 / 3}
    assert write_shares(losses(state), losses(state))["w"]["stagnated"] == 0

"""The rounding decision: what holds for every format, and the statistics of stochastic rounding."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spikebit.quant import parse, quantize, rounds_up

rounding = importlib.import_module("spikebit.quant.rounding")
FORMATS = ["e4m3fn", "e5m2", "bfloat16", "e4m3fnuz", "e2m1fn", "e4m0", "fixed8.4", "fixed6.-3"]
QUANTIZE = {name: jax.jit(lambda x, name=name: quantize(x, name)) for name in FORMATS}
numbers = st.one_of(
    st.floats(-600, 600, width=32), st.floats(width=32, allow_nan=False), st.floats(-1, 1, width=32)
)


@settings(max_examples=200, deadline=None)
@given(st.tuples(numbers, numbers), st.sampled_from(FORMATS))
def test_rounding_is_idempotent_monotone_odd_and_nearest(pair, name):
    x, fmt = np.array(pair, np.float32), parse(name)
    q = np.asarray(QUANTIZE[name](x))
    np.testing.assert_array_equal(QUANTIZE[name](q), q)
    assert (q[0] <= q[1]) if (x[0] <= x[1]) else (q[0] >= q[1])
    if fmt.min == -fmt.max:
        np.testing.assert_array_equal(QUANTIZE[name](-x), -q)
    values = fmt.values().astype(np.float64)
    error = np.abs(np.clip(x.astype(np.float64), fmt.min, fmt.max)[:, None] - values).min(1)
    np.testing.assert_array_equal(np.abs(q - np.clip(x, fmt.min, fmt.max).astype(float)), error)


@pytest.mark.parametrize("width", [32, 64])
def test_stochastic_goes_up_where_remainder_plus_noise_carries(width, monkeypatch):
    rng = np.random.default_rng(0)
    with jax.enable_x64(width == 64):
        word = np.dtype(f"uint{width}")
        edge = [0, 1, 2, 2 ** (width - 1), 2**width - 2, 2**width - 1]
        edge = np.array(edge, word)
        r = np.concatenate([edge, rng.integers(0, 2**width, 200, word), edge])
        u = np.concatenate([edge[::-1], ~r[6:206], ~r[206:] + word.type(1)])
        monkeypatch.setattr(rounding, "random_bits", lambda key, shape, dtype: jnp.asarray(u))
        got = rounds_up(
            jnp.zeros(len(r), bool), jnp.asarray(r), rounding="stochastic", key=jax.random.key(0)
        )
    carries = [int(a) + int(b) >= 2**width for a, b in zip(r, u, strict=True)]
    assert any(carries)
    assert not all(carries)
    np.testing.assert_array_equal(got, carries)


# Positions in a step of the formats: subnormal, first normal step, a step across a power of two,
# the last step; without a mantissa; steps that are float32 subnormals; evenly spaced.
STEPS = [
    ("e4m3fn", 0.0, 2.0**-9),
    ("e4m3fn", 2.0**-6, 2.0**-6 + 2.0**-9),
    ("e4m3fn", -1.875, -2.0),
    ("e4m3fn", 416.0, 448.0),
    ("e4m0", 2.0, 4.0),
    ("float16", 1.0, 1.0 + 2.0**-10),
    ("bfloat16", 1.0, 1.0 + 2.0**-7),
    ("bfloat16", 2.0**-132, 2.0**-132 + 2.0**-133),
    ("fixed8.4", -1.0, -1.0625),
    ("int8", 12.0, 13.0),
]
FRACTIONS = np.array([1 / 16, 1 / 4, 1 / 2, 3 / 4, 15 / 16])


@pytest.mark.parametrize(
    ("name", "low", "high", "x64"),
    [*((*s, False) for s in STEPS), *((*s, True) for s in STEPS[1::4])],
)
def test_stochastic_rounding_is_unbiased_with_the_closed_form_variance(name, low, high, x64):
    n = 100_000
    with jax.enable_x64(x64):
        x = np.array(low + FRACTIONS * (high - low), np.float64 if x64 else np.float32)
        tall = jnp.asarray(np.repeat(x[:, None], n, 1))
        codes = parse(name).encode(tall, rounding="stochastic", key=jax.random.key(7))
        q = np.asarray(parse(name).decode(codes)).astype(np.float64)
        assert np.isin(q, [low, high]).all()
        up = (q == high).mean(1)
        deviation = np.sqrt(FRACTIONS * (1 - FRACTIONS) / n)
        assert (np.abs(up - FRACTIONS) < 4.5 * deviation).all()
        # |mean - x| < 4.5 sqrt(var / n), var = (|x| - lo)(hi - |x|): in units of the step
        variance = (x - low) / (high - low) * (high - x) / (high - low)
        assert (
            np.abs(((q - x[:, None]) / (high - low)).mean(1)) < 4.5 * np.sqrt(variance / n)
        ).all()


@pytest.mark.parametrize(
    "name", ["e4m3fn", "float16", "e3m2fn", "e4m3fnuz", "bfloat16", "fixed8.4"]
)
def test_stochastic_rounding_never_moves_a_value_of_the_format(name):
    v = parse(name).values()
    for seed in range(3):
        q = quantize(jnp.asarray(v), name, rounding="stochastic", key=jax.random.key(seed))
        np.testing.assert_array_equal(q, v)


@pytest.mark.parametrize("name", ["e4m3fn", "float16", "e4m3fnuz"])
def test_values_and_codes_draw_the_same(name):
    """The float and the integer way to a value agree for the same key, and with eager execution."""
    x = np.random.default_rng(3).normal(size=4096).astype(np.float32)
    x = np.concatenate([x, x * 2.0**-8, x * 2.0**7, x * 2.0**-120])
    fmt = parse(name)
    q = quantize(jnp.asarray(x), name, rounding="stochastic", key=jax.random.key(3))
    c = fmt.decode(fmt.encode(jnp.asarray(x), rounding="stochastic", key=jax.random.key(3)))
    np.testing.assert_array_equal(np.asarray(q).view(np.uint32), np.asarray(c).view(np.uint32))
    with jax.disable_jit():
        e = quantize(jnp.asarray(x), name, rounding="stochastic", key=jax.random.key(3))
    np.testing.assert_array_equal(np.asarray(q).view(np.uint32), np.asarray(e).view(np.uint32))


def test_draws_are_reproducible_and_differ_between_keys_and_places():
    x = jnp.full((64, 64), 1.0625)  # half-way, so each draw is one fair bit
    keys = jax.random.split(jax.random.key(0), 3)
    q = [np.asarray(quantize(x, "e4m3fn", rounding="stochastic", key=k)) for k in keys]
    np.testing.assert_array_equal(
        quantize(x, "e4m3fn", rounding="stochastic", key=jax.random.key(5)),
        quantize(x, "e4m3fn", rounding="stochastic", key=jax.random.key(5)),
    )
    for a, b in ((q[0], q[1]), (q[1], q[2]), (q[0], q[0].T), (q[0][:32], q[0][32:])):
        equal = (a == b).mean()  # of 2048 bits or more: within 4.5 sigma of one half
        assert abs(equal - 0.5) < 4.5 * 0.5 / np.sqrt(a.size / 2)


def test_ties_of_integers_go_to_even():
    r = jnp.array([0.5, 1.5, 2.5, 3.5, 2**23 + 1.0, 0.49999997])
    got = rounding.round_to_integer(r)
    assert got.tolist() == [0, 2, 2, 4, 2**23 + 1, 0]


def test_bad_settings():
    x = jnp.ones(3)
    with pytest.raises(ValueError, match=r"quantize\(e4m3fn\).*key=jax.random.key\(seed\)"):
        quantize(x, "e4m3fn", rounding="stochastic")
    with pytest.raises(ValueError, match=r"'nearest'; choose one of nearest_even, nearest_away"):
        quantize(x, "e4m3fn", rounding="nearest")
    with pytest.raises(ValueError, match="key=None"):
        rounds_up(x > 0, jnp.ones(3, jnp.uint32), rounding="stochastic")

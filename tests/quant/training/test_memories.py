"""Memories with a float copy or a remainder: what they recover that a format alone loses."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from spikebit.quant import WeightMemory, bits_per_weight, float32, losses, number_format, quantize
from spikebit.quant.training import compensated, master_copy

pytestmark = pytest.mark.usefixtures("compile_quickly")

N, STEP = 10000, -1e-4  # from 1 towards 0


def compiled(memory):
    """The memory, each of its functions one program."""
    return WeightMemory(*map(jax.jit, memory))


def walk(memory, n=N, u=STEP):
    """One weight that starts at 1 and gets n equal updates."""

    def body(state, key):
        return memory.update(state, {"w": jnp.full(1, u)}, key), None

    state = memory.init({"w": jnp.ones(1)}, jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), n)
    return jax.jit(lambda s: jax.lax.scan(body, s, keys)[0])(state)


def value(memory, state):
    return float(memory.read(state, None)["w"][0])


def test_ten_thousand_small_updates_of_a_bfloat16_weight():
    plain = number_format("bfloat16")
    assert value(plain, walk(plain)) == 1.0  # half a step below 1 is 2^-9: nothing ever moves
    kahan = compensated(number_format("bfloat16"), "bfloat16")
    # each step adds at most half a step of bfloat16 at c, and |c| <= 2^-9 + 1e-4
    bound = N * 2.0**-9 * (2.0**-9 - STEP)
    assert bound < 0.05
    assert abs(value(kahan, walk(kahan)) - (1 + N * STEP)) <= bound + 2.0**-9
    wide = compensated(number_format("bfloat16"), "float32")
    assert abs(value(wide, walk(wide)) - (1 + N * STEP)) <= N * 2.0**-24 + 2.0**-9
    copy = master_copy("bfloat16")
    assert abs(value(copy, walk(copy)) - (1 + N * STEP)) <= N * 2.0**-25 + 2.0**-9


@pytest.mark.parametrize("fmt", ["e4m3fn", "fixed8.4", "int8", "bfloat16"])
@pytest.mark.parametrize("rounding", ["nearest_even", "stochastic"])
def test_weight_and_remainder_together_are_the_exact_sum(fmt, rounding):
    memory = compiled(compensated(number_format(fmt, rounding)))
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.uniform(-2, 2, 30), jnp.float32)}
    state = memory.init(params, jax.random.key(0))
    start = np.asarray(memory.read(state, None)["w"])
    exact = [Fraction(float(w)) for w in start]
    for i in range(20):
        u = rng.normal(size=30).astype(np.float32) * np.float32(0.01)
        u[rng.random(30) < 0.2] = 0
        exact = [e + Fraction(float(a)) for e, a in zip(exact, u, strict=True)]
        state = memory.update(state, {"w": jnp.asarray(u)}, jax.random.key(i))
    weights, rest = np.asarray(memory.read(state, None)["w"]), state.remainder[0].dequantize()
    sums = [
        Fraction(float(w)) + Fraction(float(c))
        for w, c in zip(weights, np.asarray(rest), strict=True)
    ]
    # 20 steps, each with four float32 operations on numbers below 4
    assert max(abs(a - b) for a, b in zip(sums, exact, strict=True)) <= 20 * 4 * 2.0**-23
    assert losses(state)["w"]["writes"] > 30
    assert (weights != start).any()


def test_a_block_whose_largest_weight_saturates_still_gets_its_small_updates():
    """The remainder of such a weight is large, so that it needs the digits of float32."""
    inner = compensated(number_format("mxfp4"))
    memory = compiled(inner)
    params = {"w": jnp.linspace(0.5, 1.0, 64)}
    state, n, step = memory.init(params, None), 500, jnp.full(64, -1e-4)
    first = np.asarray(memory.read(state, None)["w"], np.float64)
    update = jax.jit(
        lambda s: jax.lax.fori_loop(0, n, lambda _, s: inner.update(s, {"w": step}), s)
    )
    state = update(state)
    rest = jax.jit(lambda q: q.dequantize())(state.remainder[0])
    whole = np.asarray(memory.read(state, None)["w"]) + np.asarray(rest)
    # n roundings of sums below 2, which is 2 ** -24 each
    np.testing.assert_allclose(whole, first - n * 1e-4, rtol=0, atol=n * 2.0**-24 + 1e-6)


def test_without_losses_there_is_no_remainder():
    memory = compensated(float32(), "float32")
    state = memory.init({"w": jnp.ones(3)}, None)
    state = memory.update(state, {"w": jnp.full(3, 0.25)}, None)
    np.testing.assert_array_equal(state.remainder[0].dequantize(), 0)
    np.testing.assert_array_equal(memory.read(state, None)["w"], 1.25)


def test_a_master_copy_is_float32_read_in_the_format():
    memory, plain = compiled(master_copy("e4m3fn")), compiled(float32())
    rng = np.random.default_rng(1)
    params = {"w": jnp.asarray(rng.normal(size=(4, 5)), jnp.float32)}
    state, exact = memory.init(params, None), plain.init(params, None)
    for _ in range(5):
        u = {"w": jnp.asarray(0.003 * rng.normal(size=(4, 5)), jnp.float32)}
        state, exact = memory.update(state, u, None), plain.update(exact, u, None)
    want = np.asarray(plain.read(exact, None)["w"])
    got = np.asarray(memory.read(state, None)["w"])
    np.testing.assert_array_equal(got, want.astype(ml_dtypes.float8_e4m3fn).astype(np.float32))
    assert (got != want).any()
    assert bits_per_weight(state) == 32


def test_a_master_copy_may_be_read_stochastically():
    memory = master_copy("fixed8.2", "stochastic")
    state = memory.init({"a": jnp.full(2000, 0.3), "b": jnp.full(2000, 0.3)}, None)
    read = memory.read(state, jax.random.key(0))
    deviation = np.sqrt(0.05 * 0.2 / 2000)
    for w in read.values():
        assert abs(float(w.mean()) - 0.3) < 4.5 * deviation
    assert (read["a"] != read["b"]).any()
    again = memory.read(state, jax.random.key(0))
    np.testing.assert_array_equal(read["a"], again["a"])
    with pytest.raises(ValueError, match=r"master_copy\(fixed8.2\).read.*key=None"):
        memory.read(state, None)


def test_blocks_run_through_weights_of_any_shape():
    rng = np.random.default_rng(2)
    params = {s: jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((5, 30),)}
    blocks = compiled(number_format("mxfp4"))
    for memory in map(compiled, (master_copy("mxfp4"), compensated(float32(), "mxfp4"))):
        state = memory.init(params, None)
        read = memory.read(memory.update(state, jax.tree.map(jnp.zeros_like, params), None), None)
        wanted = (
            params if hasattr(state, "remainder") else blocks.read(blocks.init(params, None), None)
        )
        for shape, w in wanted.items():
            np.testing.assert_array_equal(read[shape], w, strict=True)


def test_the_gradient_reaches_the_master_copy():
    memory = master_copy("fixed4.1")
    state = memory.init({"w": jnp.array([0.3, 20.0])}, None)
    grads = jax.grad(lambda w: (quantize(w, "fixed4.1") ** 2).sum())(state.codes["w"])
    np.testing.assert_array_equal(memory.read(state, None)["w"], [0.5, 3.5])
    np.testing.assert_array_equal(grads, [2 * 0.5, 0.0])


def test_unknown_formats_are_refused_at_once():
    for make in (lambda: master_copy("brain16"), lambda: compensated(float32(), "brain16")):
        with pytest.raises(ValueError, match="brain16"):
            make()

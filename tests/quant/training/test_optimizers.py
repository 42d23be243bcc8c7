"""Optimizers in formats: nothing changes in float32, and elsewhere what is said and no more."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from spikebit.quant import QTensor, parse, quantize
from spikebit.quant.training import low_precision, quantize_gradients, quantize_state

OPTIMIZERS = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "adam": optax.adam(1e-2),
    "adamw": optax.adamw(1e-2),
    "clipped": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2)),
}
F8 = ml_dtypes.float8_e4m3fn


@pytest.fixture(autouse=True)
def as_users_have_it():
    """Optax's adam relies on dtype promotion."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def tree(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return {
        "w": jnp.asarray(scale * rng.normal(size=(5, 7)), jnp.float32),
        "b": jnp.asarray(scale * rng.normal(size=7), jnp.float32),
    }


def run(tx, steps=8, **extra):
    """Parameters, updates and state after some steps on given gradients."""
    params = tree(0)
    state, update = tx.init(params), jax.jit(tx.update)
    for i in range(steps):
        grads = tree(i + 1, scale=10.0 ** (-i))
        grads["b"] = grads["b"].at[:3].set(jnp.array([0.0, -0.0, 1e-40]))
        updates, state = update(grads, state, params, **extra)
        params = optax.apply_updates(params, updates)
    return params, updates, state


def bits(a):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(a)]


@pytest.mark.parametrize("rounding", ["nearest_even", "stochastic"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_in_float32_it_is_the_plain_optimizer_bit_for_bit(name, rounding):
    plain = OPTIMIZERS[name]
    tx = low_precision(plain, gradients="float32", state="float32", rounding=rounding)
    key = jax.random.key(0)
    assert bits(run(tx, key=key)[:2]) == bits(run(plain)[:2])


def test_gradients_are_rounded_and_nothing_else():
    grads = tree(1, scale=0.01)
    got, _ = quantize_gradients("e4m3fn").update(grads, optax.EmptyState())
    for name, g in grads.items():
        np.testing.assert_array_equal(got[name], np.asarray(g).astype(F8).astype(np.float32))


def in_blocks(x, name):
    """By hand: flattened, filled up with zeros, cut into blocks."""
    block, flat = parse(name).block, np.asarray(x, np.float32).ravel()
    rows = np.concatenate([flat, np.zeros(-len(flat) % block, np.float32)]).reshape(-1, block)
    q = np.asarray(quantize(jnp.asarray(rows), name)).ravel()
    return q[: len(flat)].reshape(np.shape(x))


def test_blocks_run_through_leaves_of_any_shape():
    name = "mxfp4"
    grads = {"w": tree(1)["w"], "one": jnp.float32(0.7), "empty": jnp.zeros((0, 3))}
    grads["whole"] = jnp.tile(tree(2)["w"][:4, :4], (2, 16))  # (8, 64)
    tx = low_precision(optax.trace(0.5), gradients=name, state=name)
    update, state = jax.jit(tx.update), tx.init(grads)
    updates, state = update(grads, state)
    for leaf, g in grads.items():
        np.testing.assert_array_equal(updates[leaf], in_blocks(g, name), err_msg=leaf)
    np.testing.assert_array_equal(updates["whole"], quantize(grads["whole"], name))
    again, _ = update(grads, state)
    for leaf, g in grads.items():
        first = in_blocks(g, name)
        kept = in_blocks(first, name) if np.ndim(g) else first  # numbers without axes stay
        np.testing.assert_array_equal(again[leaf], first + np.float32(0.5) * kept, err_msg=leaf)


@pytest.mark.parametrize("name", ["int4", "e2m1fn", "log4"])
def test_a_nan_in_a_gradient_is_never_hidden(name):
    tx, g = quantize_gradients(name), jnp.array([2.0, jnp.nan, -2.0])
    q, _ = jax.jit(tx.update)(g, optax.EmptyState())
    assert np.isnan(q).tolist() == [False, True, False]
    np.testing.assert_array_equal(q[::2], [2.0, -2.0])  # values of each of the formats
    with pytest.raises(ValueError, match=rf"quantize\({name}\): x of shape \(3,\) holds 1 NaN"):
        tx.update(g, optax.EmptyState())


def test_stochastic_gradients_have_the_right_mean():
    tx, g = quantize_gradients("e4m3fn", "stochastic"), jnp.full(1, 1.03)  # between 1 and 1.125
    keys = jax.random.split(jax.random.key(1), 4000)
    got = jax.vmap(lambda k: tx.update(g, optax.EmptyState(), key=k)[0])(keys)
    deviation = np.sqrt(0.03 * 0.095 / 4000)  # (x - lo)(hi - x)
    assert abs(float(got.mean()) - 1.03) < 4.5 * deviation
    assert set(np.unique(got)) == {1.0, 1.125}


def test_momentum_in_a_format_is_the_recursion_with_rounding():
    tx = quantize_state(optax.sgd(0.25, momentum=0.875), "e4m3fn")
    params = {"w": jnp.zeros(50)}
    state, m = tx.init(params), np.zeros(50, np.float32)
    for i in range(10):
        g = np.random.default_rng(i).normal(size=50).astype(np.float32)
        updates, state = tx.update({"w": jnp.asarray(g)}, state, params)
        total = g + np.float32(0.875) * m
        np.testing.assert_array_equal(updates["w"], np.float32(-0.25) * total)
        m = total.astype(F8).astype(np.float32)  # only what is kept is rounded
    (kept,) = [leaf for leaf in state.leaves if isinstance(leaf, QTensor)]
    assert kept.codes.dtype == jnp.uint8
    np.testing.assert_array_equal(np.asarray(kept.codes).view(F8).astype(np.float32), m)


def test_each_field_has_a_format_of_its_own():
    tx = quantize_state(optax.adam(1e-3), {"mu": "e4m3fn", "nu": "bfloat16"})
    _, _, state = run(tx)
    kept = [leaf for leaf in state.leaves if isinstance(leaf, QTensor)]
    assert [q.fmt.name for q in kept] == ["e4m3fn"] * 2 + ["bfloat16"] * 2
    counts = [leaf for leaf in state.leaves if not isinstance(leaf, QTensor)]
    assert [int(c) for c in counts] == [8]
    only = quantize_state(optax.adam(1e-3), {"nu": "bfloat16"}).init(tree(0))
    assert sum(isinstance(leaf, QTensor) for leaf in only.leaves) == 2


def test_integer_states_find_their_scale_anew():
    tx, params = quantize_state(optax.trace(0.5), "int8"), {"w": jnp.zeros(3)}
    state = tx.init(params)
    for scale in (1.0, 1000.0):
        g = jnp.array([1.0, -0.5, 0.25]) * scale
        before = np.asarray(state.leaves[0].dequantize())
        updates, state = tx.update({"w": g}, state, params)
        np.testing.assert_allclose(updates["w"], g + 0.5 * before, rtol=1e-6)
        kept = np.asarray(state.leaves[0].dequantize())
        np.testing.assert_allclose(kept, updates["w"], atol=float(abs(updates["w"]).max()) / 254)


def test_gradients_and_state_are_rounded_independently():
    g, key = {"w": jnp.full(400, 1.03)}, jax.random.key(3)
    first, _ = quantize_gradients("e4m3fn", "stochastic").update(g, optax.EmptyState(), key=key)
    tx = quantize_state(optax.trace(0.0), "e4m3fn", "stochastic")
    _, state = tx.update(g, tx.init(g), key=key)
    up = [np.asarray(a) > 1.03 for a in (first["w"], state.leaves[0].dequantize())]
    share = 0.03 / 0.125
    both = (up[0] & up[1]).mean()
    assert abs(both - share**2) < 4.5 * np.sqrt(share**2 / 400)


def test_accumulators_of_gradients_are_state():
    tx = optax.MultiSteps(optax.sgd(1.0), every_k_schedule=4)
    low = quantize_state(optax.GradientTransformation(tx.init, tx.update), {"acc_grads": "e4m3fn"})
    params = {"w": jnp.zeros(20)}
    state, mean = low.init(params), np.zeros(20, np.float32)
    for i in range(4):
        g = np.random.default_rng(i).normal(size=20).astype(np.float32)
        updates, state = low.update({"w": jnp.asarray(g)}, state, params)
        exact = mean + (g - mean) / np.float32(i + 1)
        mean = exact.astype(F8).astype(np.float32)
        assert (np.asarray(updates["w"]) == 0).all() == (i < 3)
    np.testing.assert_allclose(updates["w"], -exact, rtol=1e-6)


def test_low_precision_is_its_parts():
    plain, key = optax.adam(1e-2), jax.random.key(5)
    whole = low_precision(plain, gradients="e5m2", state="bfloat16", rounding="stochastic")
    parts = optax.chain(
        quantize_gradients("e5m2", "stochastic"), quantize_state(plain, "bfloat16", "stochastic")
    )
    assert bits(run(whole, key=key)) == bits(run(parts, key=key))
    assert bits(run(low_precision(plain))) == bits(run(plain))


def test_a_sharp_optimum_is_reached_with_everything_in_8_bits():
    """Adam on a quadratic, gradients and state in 8 bits: as near as a step of Adam goes."""
    tx = low_precision(
        optax.adam(0.02), gradients="e5m2", state={"mu": "e4m3fn", "nu": "e5m2"},
        rounding="stochastic",
    )  # fmt: skip
    target = tree(4)["b"]

    def step(carry, key):
        x, state = carry
        updates, state = tx.update(x - target, state, x, key=key)
        return (optax.apply_updates(x, updates), state), None

    x = jnp.zeros(7)
    keys = jax.random.split(jax.random.key(0), 400)
    (x, _), _ = jax.lax.scan(step, (x, tx.init(x)), keys)
    assert float(jnp.abs(x - target).max()) < 0.1
    np.testing.assert_array_equal(quantize(x, "float32"), x)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: quantize_gradients("brain16"), "brain16"),
        (lambda: quantize_gradients("e5m2", "nearest"), "rounding is 'nearest'"),
        (lambda: quantize_state(optax.sgd(1.0), {"mu": "brain16"}), "brain16"),
        (
            lambda: quantize_state(optax.adam(1.0), {"nue": "e5m2"}).init(jnp.zeros(3)),
            "no field 'nue'; it has count, mu, nu",
        ),
        (
            lambda: quantize_gradients("e5m2", "stochastic").update(jnp.zeros(3), None),
            r"update\(..., key=...\).*key=None",
        ),
    ],
)
def test_what_is_wrong_is_named(call, said):
    with pytest.raises(ValueError, match=said):
        call()

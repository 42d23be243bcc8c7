"""The factors of GRAPES: importance, the factor, its controls, and the identity that carries it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.learning_rules import importance, modulate, modulation_factor

pytestmark = pytest.mark.usefixtures("compile_quickly")
W = jnp.array([[1.0, 0.0, 2.0], [-1.0, 1.0, -2.0]])  # (in, out)


def test_importance_and_factor_of_the_example():
    np.testing.assert_array_equal(importance(W), [2, 1, 4])
    np.testing.assert_array_equal(modulation_factor(importance(W)), [1, 1, 2])
    np.testing.assert_array_equal(modulation_factor(importance(W), floor=0), [1, 0.5, 2])


def test_importance_of_a_convolution_sums_the_window_and_the_channels_below():
    kernel = jnp.asarray(np.random.default_rng(2).normal(size=(3, 2, 4, 5)), jnp.float32)
    wanted = [
        sum(abs(float(kernel[a, b, c, o])) for a in range(3) for b in range(2) for c in range(4))
        for o in range(5)
    ]
    np.testing.assert_allclose(importance(kernel), wanted, rtol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_factors_lie_between_1_and_2_and_know_no_scale(seed):
    kernel = jnp.asarray(np.random.default_rng(seed).standard_t(2, size=(6, 9)), jnp.float32)
    m = modulation_factor(importance(kernel))
    assert m.min() >= 1
    assert m.max() == 2
    np.testing.assert_array_equal(modulation_factor(importance(-8 * kernel)), m)
    np.testing.assert_allclose(modulation_factor(importance(0.3 * kernel)), m, rtol=1e-6)
    total = np.abs(np.asarray(kernel, np.float64)).sum(0)
    np.testing.assert_allclose(m, np.maximum(1, 2 * total / total.max()), rtol=1e-6)


def test_units_of_equal_weight_get_2_even_where_there_is_none():
    np.testing.assert_array_equal(modulation_factor(jnp.full(4, 0.7)), [2, 2, 2, 2])
    np.testing.assert_array_equal(modulation_factor(jnp.zeros(4)), [2, 2, 2, 2])


def test_controls_have_the_scale_of_the_factors():
    total = jnp.asarray(np.random.default_rng(3).uniform(0, 1, 50), jnp.float32)
    m = np.asarray(modulation_factor(total))
    mean = np.asarray(modulation_factor(total, "mean"))
    np.testing.assert_allclose(mean, np.full(50, m.mean()), rtol=1e-6)
    perm = np.asarray(modulation_factor(total, "perm", key=jax.random.key(7)))
    assert (perm != m).any()
    np.testing.assert_array_equal(np.sort(perm), np.sort(m))
    np.testing.assert_array_equal(modulation_factor(total, "two"), np.full(50, 2))


def test_no_gradient_flows_through_a_factor():
    y = jnp.array([0.3, -1.0, 2.0])

    def through(w, y):
        return (modulate(y, modulation_factor(importance(w))) ** 2).sum()

    dw, dy = jax.grad(through, (0, 1))(W, y)
    np.testing.assert_array_equal(dw, jnp.zeros_like(W))
    np.testing.assert_array_equal(dy, 2 * y * jnp.array([1.0, 1.0, 2.0]))
    dw = jax.grad(lambda w: modulation_factor(importance(w)).sum())(W)
    np.testing.assert_array_equal(dw, jnp.zeros_like(W))


def test_modulate_is_the_identity_and_its_derivative_the_factor_both_ways():
    y = jnp.asarray(np.random.default_rng(4).normal(size=(2, 5, 3)) * 1e-3, jnp.float32)
    m = jnp.array([1.0, 1.3, 2.0])
    t = jnp.ones_like(y)
    out, tangent = jax.jvp(lambda y: modulate(y, m), (y,), (t,))
    np.testing.assert_array_equal(out, y)
    np.testing.assert_array_equal(tangent, t * m)
    batched = jax.vmap(jax.grad(lambda y: modulate(y, m).sum()))(y[0])
    np.testing.assert_array_equal(batched, t[0] * m)


def test_bad_settings_are_told_what_would_work():
    with pytest.raises(ValueError, match=r"factor='median'.*'grapes', 'mean', 'perm'"):
        modulation_factor(jnp.ones(3), "median")
    with pytest.raises(ValueError, match=r"floor=-1\): give a number from 0 to 2"):
        modulation_factor(jnp.ones(3), floor=-1)
    with pytest.raises(ValueError, match=r"shuffles: give key=jax\.random\.key"):
        modulation_factor(jnp.ones(3), "perm")

"""Rules on networks with quantized products: exact without formats, new noise at every step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spikebit.learning_rules import (
    bptt,
    losses,
    ostl,
    parameters,
    relative_error,
    run_sequence,
    with_new_noise,
)
from spikebit.quant.training import LUQ, quantize_products
from spikebit.simulator import LIFCell, Network

pytestmark = pytest.mark.usefixtures("compile_quickly")

OFF = LUQ(weights=None, activations=None, gradients=None)
XS = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3, 5)), jnp.float32)
TARGETS = jnp.asarray(np.random.default_rng(1).integers(0, 4, (6, 3)))


def network():
    cells = [LIFCell(5, 7, recurrent=True, rngs=nnx.Rngs(0)), nnx.LSTMCell(7, 6, rngs=nnx.Rngs(1))]
    return Network([*cells, nnx.Linear(6, 4, rngs=nnx.Rngs(2))])


@pytest.mark.parametrize("make", [bptt, ostl])
def test_without_formats_the_gradient_is_that_of_the_rule(make):
    plain, quantized = network(), quantize_products(network(), OFF, first_and_last=True)
    known = make(plain, losses.cross_entropy)
    expected = jax.jit(lambda p: run_sequence(known, p, XS, TARGETS))(parameters(plain))
    rule, key = with_new_noise(make)(quantized, losses.cross_entropy), jax.random.key(0)
    got = jax.jit(lambda p: run_sequence(rule, p, XS, TARGETS, key=key))(parameters(quantized))
    assert relative_error(got.grads, expected.grads) < 1e-6
    np.testing.assert_allclose(got.loss, expected.loss, rtol=1e-6)


def test_the_gradient_is_right_on_average_and_new_at_each_step():
    """Against the same network whose gradients are not rounded, only its operands."""
    quantized = quantize_products(network(), LUQ(), first_and_last=True)
    exact = quantize_products(network(), LUQ(gradients=None), first_and_last=True)
    params = parameters(quantized)
    rule = with_new_noise(bptt)(quantized, losses.cross_entropy)
    last = jax.jit(  # one product lies behind this gradient, so it is exact on average
        lambda key: run_sequence(rule, params, XS, TARGETS, key=key).grads["layers"][2]["kernel"]
    )
    draws = np.stack([np.asarray(last(jax.random.key(s))[...], np.float64) for s in range(300)])
    unrounded = bptt(exact, losses.cross_entropy)
    wanted = jax.jit(lambda p: run_sequence(unrounded, p, XS, TARGETS).grads)(params)
    error = draws.mean(0) - np.asarray(wanted["layers"][2]["kernel"][...])
    assert (np.abs(error) < 4.5 * draws.std(0) / np.sqrt(len(draws)) + 1e-5).all()
    assert (draws.std(0) > 0).any()
    state = rule.init(params, XS[:2], jax.random.key(0))
    step = jax.jit(rule.step)
    new, first = step(params, state, XS[:2], TARGETS[:2])
    _, again = step(params, new._replace(rule=state.rule), XS[:2], TARGETS[:2])
    assert relative_error(again.grads, first.grads) > 0  # the same steps, another draw


def test_no_key():
    rule = with_new_noise(bptt)(quantize_products(network()), losses.cross_entropy)
    with pytest.raises(ValueError, match="rounded stochastically and init found no"):
        rule.init(parameters(network()), XS)

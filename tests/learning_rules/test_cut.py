"""Cutting the recurrent product where it stands inside a call of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spikebit.learning_rules import (
    losses,
    ostl,
    parameters,
    relative_error,
    run_sequence,
    with_new_noise,
)
from spikebit.learning_rules.cut import cut_products
from spikebit.quant.training import LUQ, quantize_products
from spikebit.simulator import Network, SNUCell

pytestmark = pytest.mark.usefixtures("compile_quickly")
OFF = LUQ(weights=None, activations=None, gradients=None)
XS = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3, 5)), jnp.float32)
TARGETS = jnp.asarray(np.random.default_rng(1).integers(0, 4, (4, 3)))


def no_h(network, loss):
    return ostl(network, loss, scope="no_h")


@pytest.mark.parametrize(
    "cell", [lambda r: SNUCell(5, 6, recurrent=True, rngs=r), lambda r: nnx.GRUCell(5, 6, rngs=r)]
)
def test_a_quantized_product_is_cut_like_a_plain_one(cell):
    network = Network([cell(nnx.Rngs(0)), nnx.Linear(6, 4, rngs=nnx.Rngs(2))])
    quantized = quantize_products(network, OFF, first_and_last=True)
    params, key = parameters(network), jax.random.key(0)
    expected = run_sequence(no_h(network, losses.cross_entropy), params, XS, TARGETS, chunk=2)
    rule = with_new_noise(no_h)(quantized, losses.cross_entropy)
    got = run_sequence(rule, parameters(quantized), XS, TARGETS, key=key, chunk=2)
    full = run_sequence(ostl(network, losses.cross_entropy), params, XS, TARGETS, chunk=2)
    assert relative_error(got.grads, expected.grads) < 1e-6
    assert relative_error(full.grads, expected.grads) > 1e-2  # there was something to cut


@jax.custom_vjp
def product_and_more(s, w):
    return s @ w + s


product_and_more.defvjp(
    lambda s, w: (product_and_more(s, w), (s, w)),
    lambda kept, d: (d @ kept[1].T + d, kept[0].T @ d),
)


def test_a_path_beside_the_hidden_product_is_not_cut_by_chance():
    s, w = jnp.ones((2, 3)), jnp.eye(3)
    with pytest.raises(ValueError, match=r"inside `custom_vjp_call`.*use scope='full'"):
        cut_products(lambda s, w: (product_and_more(s, w),))(s, w)

    def in_a_loop(s, w):
        return jax.lax.scan(lambda s, _: (s @ w, None), s, None, length=2)

    with pytest.raises(ValueError, match=r"inside `scan`"):
        cut_products(in_a_loop)(s, w)

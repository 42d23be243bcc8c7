"""Cells of one's own: what rules can treat whatever it is made of, and what they refuse by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spikebit import learning_rules as rules
from spikebit.simulator import Network

pytestmark = pytest.mark.usefixtures("compile_quickly")
XS = jax.random.normal(jax.random.key(0), (6, 2, 3))
TARGETS = jnp.zeros((6, 2), jnp.int32)
LOSS = rules.losses.cross_entropy


@jax.custom_vjp
def reverse_only(v):
    return (v > 0).astype(v.dtype)


reverse_only.defvjp(lambda v: (reverse_only(v), v), lambda v, g: (g / (1 + v * v),))


class Spiking(nnx.RNNCellBase):
    """A spiking cell whose surrogate is known in reverse mode only."""

    def __init__(self, first=None, after=lambda new: new):
        rngs = nnx.Rngs(1)
        self.inner, self.outer = nnx.Linear(4, 4, rngs=rngs), nnx.Linear(3, 4, rngs=rngs)
        self.first, self.after = first, after

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        zero = jnp.zeros((*input_shape[:-1], 4))
        return {"v": zero, "y": zero} if self.first is None else self.first()

    def __call__(self, carry, x):
        v = 0.8 * carry["v"] * (1 - carry["y"]) + self.outer(x) + self.inner(carry["y"])
        y = reverse_only(v)
        return self.after({"v": v, "y": y}), y

    @property
    def num_feature_axes(self):
        return 1


def network(cell):
    return Network([cell, nnx.Linear(4, 2, rngs=nnx.Rngs(0))])


def gradient(rule, net, chunk):
    run = jax.jit(lambda p: rules.run_sequence(rule, p, XS, TARGETS, chunk=chunk).grads)
    return run(rules.parameters(net))


def test_a_surrogate_without_forward_mode_is_traced_exactly():
    net = network(Spiking())
    exact = gradient(rules.bptt(net, LOSS), net, None)
    for name in ("ostl", "rtrl"):
        grads = gradient(rules.RULES[name](net, LOSS), net, 2)
        for g, e in zip(jax.tree.leaves(grads), jax.tree.leaves(exact), strict=True):
            assert np.any(np.asarray(e))
            assert rules.relative_error(g, e) <= 1e-5
    for name in ("snap1", "ostl_no_h", "sltt"):
        grads = gradient(rules.RULES[name](net, LOSS), net, 2)
        assert all(np.any(np.asarray(g)) for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("name", ["bptt", "ostl", "sltt", "eprop"])
@pytest.mark.parametrize(
    ("cell", "words"),
    [
        (lambda: Spiking(lambda: "rest"), r"Layer 0 \(Spiking\).* a str in it: .*pytree of arrays"),
        (lambda: Spiking(lambda: {"v": jnp.zeros((2, 4)), "y": None}), "a NoneType in it"),
        (dict, "neither a cell nor callable"),
        (lambda: Spiking(dict), "nothing in it"),
        (
            lambda: Spiking(after=lambda new: new | {"n": jnp.zeros(2)}),
            r"begins with the carry .*its step gives .*\['n'\]: float32\[2\]",
        ),
        (
            lambda: Spiking(after=lambda new: {k: a.astype(jnp.bfloat16) for k, a in new.items()}),
            r"float32\[2, 4\].*gives.*bfloat16\[2, 4\]",
        ),
    ],
)
def test_a_carry_that_no_rule_can_take_is_named(name, cell, words):
    def begin():
        net = network(cell())
        rules.RULES[name](net, LOSS).init(rules.parameters(net), XS)

    with pytest.raises(ValueError, match=words):
        begin()


@pytest.mark.parametrize("name", ["bptt", "ostl", "sltt"])
def test_a_layer_that_changes_itself_is_named(name):
    rngs = nnx.Rngs(0)
    net = Network([nnx.Linear(3, 4, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)])
    rule, params = rules.RULES[name](net, LOSS), rules.parameters(net)
    with pytest.raises(ValueError, match=r"Layer 1 \(Dropout\) changes .*network\.eval\(\)"):
        rule.init(params, XS)
    net.eval()
    rules.RULES[name](net, LOSS).init(params, XS)

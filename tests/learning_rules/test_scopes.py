"""SnAp-1, SLTT, OTTT and RTRL: each leaf against an independent reference, in any chunks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree

from spikebit import learning_rules as rules
from spikebit.simulator import (
    ALIFCell,
    LeakyReadout,
    LIFCell,
    Network,
    SNUCell,
    SoftSNUCell,
    SynapticLIFCell,
)

pytestmark = pytest.mark.usefixtures("compile_quickly")
STEPS, BATCH, N_IN, N, N_OUT = 12, 3, 5, 6, 4
XS = 2 * jax.random.normal(jax.random.key(0), (STEPS, BATCH, N_IN))
TARGETS = jax.random.randint(jax.random.key(1), (STEPS, BATCH), 0, N_OUT)
LOSS = rules.losses.cross_entropy
CELLS = {
    "snu": partial(SNUCell, recurrent=True),
    "soft snu": partial(SoftSNUCell, recurrent=True, train_decay=True),
    "lif": partial(LIFCell, recurrent=True, tau=5e-3),
    "synaptic lif": partial(SynapticLIFCell, recurrent=True),
    "alif": partial(ALIFCell, recurrent=True, beta=0.5),
    "lstm": nnx.LSTMCell,
    "optimized lstm": nnx.OptimizedLSTMCell,
    "gru": nnx.GRUCell,
    "simple": nnx.SimpleCell,
}


def network(*cells):
    layers = [c(N_IN if i == 0 else N, N, rngs=nnx.Rngs(i)) for i, c in enumerate(cells)]
    return Network([*layers, nnx.Linear(N, N_OUT, rngs=nnx.Rngs(9))])


def gradient(rule, net, chunk=None, steps=STEPS, key=None):
    params, data = rules.parameters(net), (XS[:steps], TARGETS[:steps])

    def run(params):
        return rules.run_sequence(rule, params, *data, chunk=chunk, key=key).grads

    return jax.jit(run)(params)


def assert_leaves(grads, expected, tolerance=1e-5):
    pairs = zip(jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(expected), strict=True)
    for (path, g), e in pairs:
        assert rules.relative_error(g, e) <= tolerance, jax.tree_util.keystr(path)


def backpropagated(net, cut=lambda carry: carry, steps=STEPS):
    """BPTT by `Network.__call__` in a scan."""
    graphdef, params, rest = nnx.split(net, nnx.Param, ...)

    def total(params):
        def step(carry, inputs):
            carry, y = nnx.merge(graphdef, params, rest)(cut(carry), inputs[0])
            return carry, LOSS(y, inputs[1]).mean()

        carry = net.initialize_carry(XS.shape[1:])
        return jax.lax.scan(step, carry, (XS[:steps], TARGETS[:steps]))[1].sum()

    return jax.jit(jax.grad(total))(params)


@pytest.mark.parametrize("name", ["snu", "alif", "gru"])
def test_sltt_is_bptt_with_every_carry_held_constant(name):
    net = network(CELLS[name], CELLS["snu"])
    expected = backpropagated(net, jax.lax.stop_gradient)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(expected)[-2:])
    chunks = {"snu": (1, 4), "alif": (4,), "gru": (4,)}
    for chunk in chunks[name]:
        assert_leaves(gradient(rules.sltt(net, LOSS), net, chunk), expected)


def test_the_steps_of_sltt_k_are_sltt_on_average():
    net, k = network(CELLS["snu"]), 1
    params, (xs, targets) = rules.parameters(net), (XS[:3], TARGETS[:3])
    keys = jax.random.split(jax.random.key(3), 40)

    def draws(**settings):
        rule = rules.sltt(net, LOSS, k=k, **settings)

        @jax.jit
        @jax.vmap
        def run(key):
            out = rules.run_sequence(rule, params, xs, targets, key=key)
            return ravel_pytree(out.grads)[0], out.loss

        return run(keys)

    scaled, loss = draws()
    whole = jax.jit(lambda p: rules.run_sequence(rules.sltt(net, LOSS), p, xs, targets))(params)
    np.testing.assert_allclose(loss, whole.loss, rtol=1e-6)  # that of all steps
    kinds = np.unique(np.round(np.asarray(scaled), 5), axis=0)
    assert len(kinds) == 3  # one step of three, and each was drawn
    exact = np.asarray(ravel_pytree(whole.grads)[0])
    np.testing.assert_allclose(kinds.mean(0), exact, atol=2e-5)
    np.testing.assert_allclose(3 * draws(scale=False)[0], scaled, rtol=1e-5, atol=1e-7)
    every = gradient(rules.sltt(net, LOSS, k=3), net, steps=3, key=jax.random.key(0))
    assert_leaves(every, whole.grads)


def masked_rtrl(cell, xs, targets):
    """RTRL that drops, at each step, the influence of a unit's state on every other unit."""
    graphdef, params, rest = nnx.split(cell, nnx.Param, ...)
    theta, unravel = ravel_pytree(params)
    first = cell.initialize_carry((1, N_IN), nnx.Rngs(0))
    s0, unravel_state = ravel_pytree(first)
    units = np.tile(np.arange(N), s0.size // N)

    def step(theta, s, x):
        carry, y = nnx.merge(graphdef, unravel(theta), rest)(unravel_state(s), x[None])
        return ravel_pytree(carry)[0], y[0]

    same = units[:, None] == units
    out_same = np.arange(N)[:, None] == units

    @jax.jit
    def sample(xs, targets):
        def body(state, inputs):
            s, eps, grad = state
            x, target = inputs
            (b, a), (d, c) = jax.jacrev(step, (0, 1))(theta, s, x)
            new, y = step(theta, s, x)
            learning = jax.grad(lambda y: rules.losses.squared_error(y, target))(y)
            grad = grad + learning @ (jnp.where(out_same, c, 0) @ eps + d)
            return (new, jnp.where(same, a, 0) @ eps + b, grad), None

        start = (s0, jnp.zeros((s0.size, theta.size)), jnp.zeros_like(theta))
        return jax.lax.scan(body, start, (xs, targets))[0][2]

    grads = [sample(xs[:, i], targets[:, i]) for i in range(xs.shape[1])]
    return unravel(jnp.stack(grads).mean(0))


@pytest.mark.parametrize("name", CELLS)
def test_snap_1_is_rtrl_without_influence_between_units(name):
    cell = CELLS[name](N_IN, N, rngs=nnx.Rngs(0))
    xs, targets = XS[:8, :2], jax.random.normal(jax.random.key(4), (8, 2, N))
    expected = masked_rtrl(cell, xs, targets)
    chunk = 1 if name in ("soft snu", "alif", "gru") else 4

    @partial(jax.jit, static_argnames="scope")
    def grads(params, scope):
        rule = rules.ostl(cell, rules.losses.squared_error, scope=scope)
        return rules.run_sequence(rule, params, xs, targets, chunk=chunk).grads

    params = rules.parameters(cell)
    assert_leaves(grads(params, "unit"), expected)
    if name in ("snu", "gru"):  # there was something to leave out
        assert rules.relative_error(grads(params, "full"), expected) > 1e-3


@pytest.mark.parametrize(("name", "chunk"), [("snu", 1), ("alif", 4), ("lstm", 4)])
def test_rtrl_of_the_whole_network_is_bptt_on_every_layer(name, chunk):
    net = network(CELLS[name], CELLS["snu"])
    assert_leaves(gradient(rules.rtrl(net, LOSS), net, chunk), backpropagated(net))


OTTT_CELLS = [
    partial(LIFCell, detach_reset=True),
    partial(LIFCell, reset="none", refractory=2),
    LeakyReadout,
]


@pytest.mark.parametrize(("cell", "chunk"), list(zip(OTTT_CELLS, (1, 4, 4), strict=True)))
def test_ottt_is_exact_for_one_leaky_membrane(cell, chunk):
    net = network(cell)
    assert_leaves(gradient(rules.ottt(net, LOSS), net, chunk), backpropagated(net))


def test_ottt_of_two_layers_is_ostl_there():
    """Both drop the same paths where the trace of one decay is no approximation."""
    lif = partial(LIFCell, detach_reset=True, tau=5e-3, recurrent=True)
    net = network(lif, lif)
    expected = gradient(rules.ostl(net, LOSS, scope="no_h"), net, 4)
    for chunk in (1, 4):
        assert_leaves(gradient(rules.ottt(net, LOSS), net, chunk), expected)


@pytest.mark.parametrize(
    "cell",
    [
        LIFCell,
        SNUCell,
        nnx.GRUCell,
        SynapticLIFCell,
        partial(LIFCell, detach_reset=True, reset="zero"),
        partial(LIFCell, detach_reset=True, train_decay=True),
    ],
)
def test_ottt_refuses_a_cell_that_one_trace_cannot_stand_for(cell):
    net = network(cell)
    with pytest.raises(ValueError, match=r"ottt: .*Layer 0 .*use ostl\(scope='no_h'\)"):
        rules.ottt(net, LOSS).init(rules.parameters(net), XS)


@pytest.mark.parametrize(("name", "layers"), [("snu", 2), ("lstm", 1)])
def test_one_step_is_bptt_for_every_rule(name, layers):
    net = network(*[CELLS[name]] * layers)
    expected = backpropagated(net, steps=1)
    for scope in ("full", "unit", "no_h", "none"):
        assert_leaves(gradient(rules.ostl(net, LOSS, scope=scope), net, steps=1), expected)


def test_scopes_without_a_trace_of_the_state_are_their_rules():
    net = network(partial(LIFCell, detach_reset=True))
    for scope, rule in (("none", rules.sltt), ("pre", rules.ottt)):
        a = gradient(rules.ostl(net, LOSS, scope=scope), net, 4)
        b = gradient(rule(net, LOSS), net, 4)
        assert all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))
        with pytest.raises(ValueError, match=rf"scope='{scope}', trace_format='int8'"):
            rules.ostl(net, LOSS, scope=scope, trace_format="int8")


@pytest.mark.parametrize("name", ["sltt", "ottt", "unit"])
def test_memory_does_not_grow_with_time(name):
    net = network(partial(LIFCell, detach_reset=True, recurrent=True))
    rule = rules.ostl(net, LOSS, scope={"sltt": "none", "ottt": "pre"}.get(name, name))

    def scratch(steps):
        xs, targets = jnp.zeros((steps, BATCH, N_IN)), jnp.zeros((steps, BATCH), jnp.int32)

        def grads(params, xs, targets):
            out = rules.run_sequence(rule, params, xs, targets, chunk=5)
            return out.loss, out.grads

        compiled = jax.jit(grads).lower(rules.parameters(net), xs, targets).compile()
        outputs = steps * BATCH * N_OUT * 4  # of all steps, gathered by run_sequence
        return compiled.memory_analysis().temp_size_in_bytes - outputs

    assert scratch(500) <= 1.05 * scratch(50) + 1024


def test_what_is_refused():
    net = network(CELLS["snu"])
    params = rules.parameters(net)
    with pytest.raises(ValueError, match=r"sltt\(k=0\)"):
        rules.sltt(net, LOSS, k=0)
    rule = rules.sltt(net, LOSS, k=5)
    with pytest.raises(ValueError, match=r"sltt\(k=5\) draws its steps and found key=None"):
        rule.init(params, XS)
    with pytest.raises(ValueError, match=r"sltt\(k=5\) was given a chunk of 2 steps"):
        rule.step(params, rule.init(params, XS, jax.random.key(0)), XS[:2], TARGETS[:2])
    with pytest.raises(ValueError, match=r"ostl\(scope='some'\).*'full', 'unit'"):
        rules.ostl(net, LOSS, scope="some")

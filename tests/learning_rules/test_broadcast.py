"""E-prop against its published equations and against BPTT; target projection against Jacobians."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from spikebit import learning_rules as rules
from spikebit.simulator import ALIFCell, LeakyReadout, LIFCell, Network, SNUCell, SoftSNUCell

pytestmark = pytest.mark.usefixtures("compile_quickly")
STEPS, BATCH, N_IN, N, N_OUT = 12, 3, 5, 6, 4
XS = 2 * jax.random.normal(jax.random.key(0), (STEPS, BATCH, N_IN))
TARGETS = jax.random.randint(jax.random.key(1), (STEPS, BATCH), 0, N_OUT)
LOSS = rules.losses.cross_entropy
LIF = partial(LIFCell, recurrent=True, detach_reset=True, tau=8e-3)
ALIF = partial(ALIFCell, recurrent=True, detach_reset=True, tau=8e-3, tau_adapt=20e-3, beta=0.4)
LEAKY = partial(LeakyReadout, tau=5e-3)


def network(*cells, readout=LEAKY):
    layers = [c(N_IN if i == 0 else N, N, rngs=nnx.Rngs(i)) for i, c in enumerate(cells)]
    return Network([*layers, readout(N, N_OUT, rngs=nnx.Rngs(9))])


def gradient(rule, net, chunk=None):
    run = partial(rules.run_sequence, rule, xs=XS, targets=TARGETS, chunk=chunk)
    return jax.jit(lambda params: run(params=params).grads)(rules.parameters(net))


def assert_leaves(grads, expected, tolerance=1e-5):
    pairs = zip(jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(expected), strict=True)
    for (path, g), e in pairs:
        assert np.any(np.asarray(e)), jax.tree_util.keystr(path)
        assert rules.relative_error(g, e) <= tolerance, jax.tree_util.keystr(path)


def published(cell, readout, feedback, beta, rho):
    """The gradient of w, h and the readout's w by the equations of the paper, step by step."""
    w, h, out = (np.asarray(p[...], np.float64) for p in (cell.w, cell.h, readout.w))
    bias, b = np.asarray(readout.b[...], np.float64), np.asarray(feedback, np.float64)
    alpha, kappa, threshold = cell.decay, readout.decay, cell.threshold
    slope = jax.jit(jax.vmap(jax.grad(lambda x: cell.surrogate(x).sum())))
    grads = [np.zeros_like(p) for p in (w, h, out)]
    for xs, labels in zip(
        np.asarray(XS, np.float64).swapaxes(0, 1), np.asarray(TARGETS).T, strict=True
    ):
        v, a, z, y = np.zeros(N), np.zeros(N), np.zeros(N), np.zeros(N_OUT)
        trace, sums = np.zeros(N_IN + N), np.zeros(N)
        adapted, filtered = np.zeros((N_IN + N, N)), np.zeros((N_IN + N, N))
        for x, label in zip(xs, labels, strict=True):
            v, a = alpha * (v - threshold * z) + x @ w + z @ h, rho * a + z
            trace = alpha * trace + np.concatenate([x, z])
            excess = v - threshold - beta * a
            z = (excess > 0).astype(float)
            psi = np.asarray(slope(jnp.asarray(excess, jnp.float32)), np.float64)
            eligible = psi * (trace[:, None] - beta * adapted)
            adapted = (rho - beta * psi) * adapted + psi * trace[:, None]
            filtered, sums = kappa * filtered + eligible, kappa * sums + z
            y = kappa * y + z @ out
            p = np.exp(y + bias)
            error = (p / p.sum() - np.eye(N_OUT)[label]) / BATCH
            both = filtered * (error @ b)
            for total, g in zip(
                grads, (both[:N_IN], both[N_IN:], sums[:, None] * error), strict=True
            ):
                total += g
    return grads


@pytest.mark.parametrize(("cell", "chunk"), [(LIF, 1), (ALIF, 4)])
def test_e_prop_is_its_published_equations(cell, chunk):
    net = network(cell)
    (feedback,) = rules.broadcast_weights(net, jax.random.key(3))
    hidden, readout = net.layers
    beta, rho = (hidden.beta, hidden.adaptation_decay) if cell is ALIF else (0.0, 0.0)
    for given, b in (([feedback], feedback), ("symmetric", readout.w[...].T)):
        grads = gradient(rules.eprop(net, LOSS, feedback=given), net, chunk)["layers"]
        expected = published(hidden, readout, b, beta, rho)
        found = [grads[0]["w"], grads[0]["h"], grads[1]["w"]]
        assert_leaves([g[...] for g in found], expected)


@pytest.mark.parametrize(
    ("cell", "readout", "chunk"),
    [(LIF, nnx.Linear, 1), (partial(SNUCell, recurrent=True), LEAKY, 4), (nnx.GRUCell, LEAKY, 4)],
)
def test_symmetric_e_prop_is_ostl_without_h_through_the_leak_of_the_readout(cell, readout, chunk):
    net = network(cell, readout=readout)
    expected = gradient(rules.ostl(net, LOSS, scope="no_h", cross_layer="chunk"), net)
    assert_leaves(gradient(rules.eprop(net, LOSS), net, chunk), expected)


def test_symmetric_e_prop_is_bptt_without_recurrence():
    net = network(partial(SoftSNUCell, train_decay=True))
    assert_leaves(gradient(rules.eprop(net, LOSS), net, 3), gradient(rules.bptt(net, LOSS), net))


def test_adaptive_feedback_learns_what_the_readout_learns():
    net = rules.with_feedback(network(LIF), jax.random.key(4))
    params, rule = rules.parameters(net), rules.eprop(net, LOSS, feedback="adaptive")
    grads = gradient(rule, net, 4)
    feedback, readout = grads["feedback"][0][...], grads["layers"][1]["w"][...]
    np.testing.assert_array_equal(feedback, readout.T)
    fixed = rules.eprop(network(LIF), LOSS, feedback=[params["feedback"][0][...]])
    assert_leaves(grads["layers"], gradient(fixed, network(LIF), 4)["layers"])
    decay, rate = 0.1, 0.5  # both decay, so that they come to agree by this share each step
    tx = optax.chain(optax.add_decayed_weights(decay), optax.sgd(rate))
    new = optax.apply_updates(params, tx.update(grads, tx.init(params), params)[0])

    def apart(params):
        return params["feedback"][0][...] - params["layers"][1]["w"][...].T

    np.testing.assert_allclose(apart(new), (1 - rate * decay) * apart(params), atol=1e-6)


def test_target_projection_is_the_target_times_the_exact_jacobian_of_each_layer():
    net = network(partial(SNUCell, recurrent=True), nnx.LSTMCell, readout=nnx.Linear)
    feedback = rules.broadcast_weights(net, jax.random.key(5))
    grads = gradient(rules.osttp(net, LOSS, feedback), net, 4)["layers"]
    below, labels = XS, jax.nn.one_hot(TARGETS, N_OUT)
    for i, (cell, b) in enumerate(zip(net.layers[:2], feedback, strict=True)):
        graphdef, params, rest = nnx.split(cell, nnx.Param, ...)
        first = cell.initialize_carry(below.shape[1:], rngs=nnx.Rngs(0))

        def outputs(params, graphdef=graphdef, rest=rest, first=first, below=below):
            return jax.lax.scan(nnx.merge(graphdef, params, rest), first, below)[1]

        @jax.jit
        def backward(params, signal, outputs=outputs):
            ys, pull = jax.vjp(outputs, params)
            return ys, pull(signal)[0]

        ys, expected = backward(params, labels @ b / BATCH)
        assert_leaves(grads[i], nnx.to_pure_dict(expected))
        below = ys
    expected = gradient(rules.bptt(net, LOSS), net)["layers"][2]
    assert_leaves(grads[2], expected)


def test_targets_of_osttp_are_class_numbers_vectors_or_weighted():
    net = network(LIF, readout=nnx.Linear)
    feedback = rules.broadcast_weights(net, jax.random.key(6))
    params, vectors = rules.parameters(net), jax.nn.one_hot(TARGETS, N_OUT)

    def hidden(loss, targets):
        rule = rules.osttp(net, loss, feedback, scope="no_h")
        run = jax.jit(lambda params: rules.run_sequence(rule, params, XS, targets).grads)
        return run(params)["layers"][0]

    numbers = hidden(LOSS, TARGETS)
    assert_leaves(numbers, hidden(rules.losses.squared_error, vectors))
    weights = jnp.full(TARGETS.shape, 0.5)
    assert_leaves(
        jax.tree.map(lambda g: 0.5 * g, numbers),
        hidden(rules.losses.weighted(LOSS), (TARGETS, weights)),
    )
    with pytest.raises(ValueError, match=r"targets of shape \(12, 3, 1\) are neither"):
        hidden(lambda y, t: y.sum(-1), vectors[..., :1])


def test_what_a_rule_cannot_send_to_is_named():
    plain, deep = network(LIF), network(LIF, LIF)
    for build, words in (
        (lambda: rules.eprop(plain, LOSS, feedback="random"), "'symmetric', 'adaptive', and arr"),
        (lambda: rules.eprop(plain, LOSS, feedback="adaptive"), "with_feedback"),
        (lambda: rules.eprop(deep, LOSS), "one hidden layer.*broadcast_weights"),
        (lambda: rules.eprop(deep, LOSS, feedback=[jnp.ones((4, 6))]), r"needs \[\(4, 6\), \(4, 6"),
        (lambda: rules.osttp(plain, LOSS, [jnp.ones((6, 4))]), r"shapes \[\(6, 4\)\] and needs"),
        (lambda: rules.osttp(plain, LOSS, [], scope="none"), "'full', 'unit', 'no_h'"),
        (lambda: rules.with_feedback(deep, jax.random.key(0)), "one hidden layer"),
        (lambda: rules.eprop(LIF(3, 4, rngs=nnx.Rngs(0)), LOSS), "1 layers with parameters"),
        (
            lambda: rules.eprop(network(LIF, readout=partial(LEAKY, train_decay=True)), LOSS),
            "one fixed decay",
        ),
        (
            lambda: rules.eprop(network(LIF, readout=partial(LEAKY, recurrent=True)), LOSS),
            "is recurrent",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            build()

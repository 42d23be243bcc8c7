"""What holds for every scope: streams, batches, formats, float64, and e-prop's identity."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spikebit import learning_rules as rules
from spikebit.quant.state_formats import state_formats
from spikebit.simulator import LeakyReadout, LIFCell, Network, SNUCell, experiment
from spikebit.simulator.build import make_rule
from spikebit.simulator.job import Purpose, key_for

pytestmark = pytest.mark.usefixtures("compile_quickly")
STEPS, BATCH, N_IN, N, N_OUT = 12, 3, 5, 6, 4
LOSS = rules.losses.cross_entropy
LIF = partial(LIFCell, detach_reset=True, recurrent=True, tau=5e-3)
SNU = partial(SNUCell, recurrent=True)
RULES = {
    "unit": (partial(rules.ostl, scope="unit"), nnx.GRUCell),
    "sltt": (rules.sltt, SNU),
    "ottt": (rules.ottt, LIF),
    "rtrl": (rules.rtrl, nnx.SimpleCell),
}


def network(*cells, **settings):
    layers = [
        c(N_IN if i == 0 else N, N, rngs=nnx.Rngs(i), **settings) for i, c in enumerate(cells)
    ]
    return Network([*layers, nnx.Linear(N, N_OUT, rngs=nnx.Rngs(9), **settings)])


def data(dtype=None):
    xs = 2 * jax.random.normal(jax.random.key(0), (STEPS, BATCH, N_IN), dtype)
    return xs, jax.random.randint(jax.random.key(1), (STEPS, BATCH), 0, N_OUT)


def gradient(rule, net, sequence, chunk=None, key=None):
    @jax.jit
    def run(params):
        return rules.run_sequence(rule, params, *sequence, chunk=chunk, key=key).grads

    return run(rules.parameters(net))


def assert_leaves(grads, expected, tolerance=1e-5):
    pairs = zip(jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(expected), strict=True)
    for (path, g), e in pairs:
        assert rules.relative_error(g, e) <= tolerance, jax.tree_util.keystr(path)


@pytest.mark.parametrize("name", RULES)
def test_a_stream_in_two_calls_of_unequal_length_is_one(name):
    make, cell = RULES[name]
    net = network(cell, cell)
    rule, params, (xs, targets) = make(net, LOSS), rules.parameters(net), data()

    @jax.jit
    def run(params):
        state, first = rule.step(params, rule.init(params, xs), xs[:5], targets[:5])
        _, second = rule.step(params, state, xs[5:], targets[5:])
        return jax.tree.map(jnp.add, first, second._replace(outputs=first.outputs))

    parts = run(params)
    whole = jax.jit(lambda p: rules.run_sequence(rule, p, xs, targets, chunk=1))(params)
    np.testing.assert_allclose(parts.loss, whole.loss, rtol=1e-6)
    assert_leaves(parts.grads, whole.grads)


@pytest.mark.parametrize("name", RULES)
def test_a_batch_is_the_mean_of_its_samples(name):
    make, cell = RULES[name]
    net = network(cell)
    rule, params = make(net, LOSS), rules.parameters(net)

    @jax.jit
    def run(params, xs, targets):
        return rules.run_sequence(rule, params, xs, targets, chunk=4).grads

    xs, targets = data()
    singles = [run(params, xs[:, i : i + 1], targets[:, i : i + 1]) for i in range(BATCH)]
    mean = jax.tree.map(lambda *g: sum(g) / BATCH, *singles)
    assert_leaves(run(params, xs, targets), mean)


def test_a_unit_without_memory_has_the_same_step_gradient_in_every_scope():
    net = network(partial(SNUCell, decay=0.0))
    expected = gradient(rules.sltt(net, LOSS), net, data())
    assert_leaves(expected, gradient(rules.bptt(net, LOSS), net, data()))
    for scope in ("full", "unit", "no_h"):
        assert_leaves(gradient(rules.ostl(net, LOSS, scope=scope), net, data(), 1), expected)


@pytest.mark.parametrize("name", ["ottt", "rtrl"])
def test_one_step_is_bptt_for_these_rules_too(name):
    make, cell = RULES[name]
    net, (xs, targets) = network(cell, cell), data()
    one = xs[:1], targets[:1]
    assert_leaves(gradient(make(net, LOSS), net, one), gradient(rules.bptt(net, LOSS), net, one))


@pytest.mark.parametrize(
    ("make", "cell"),
    [
        (rules.rtrl, nnx.LSTMCell),
        (rules.ottt, partial(LIFCell, detach_reset=True)),
        (partial(rules.ostl, scope="unit"), SNUCell),
    ],
    ids=["rtrl", "ottt", "unit"],
)
def test_what_is_exact_is_so_in_float64(make, cell):
    with jax.enable_x64(True):
        settings = {"param_dtype": jnp.float64}
        settings |= {"dtype": jnp.float64} if cell is nnx.LSTMCell else {}
        layers = [cell(N_IN, N, rngs=nnx.Rngs(0), **settings)]
        net = Network([*layers, nnx.Linear(N, N_OUT, rngs=nnx.Rngs(9), param_dtype=jnp.float64)])
        sequence = data(jnp.float64)
        exact = gradient(rules.bptt(net, LOSS), net, sequence)
        assert_leaves(gradient(make(net, LOSS), net, sequence, 3), exact, 1e-12)


def total_learning_signal(cell, xs, weights):
    """dE/dy_t with every later effect of y_t, E = sum(weights * y): zeros added to y, in BPTT."""
    carry = cell.initialize_carry(xs.shape[1:], nnx.Rngs(0))

    def energy(shifts):
        def step(carry, inputs):
            x, shift, weight = inputs
            new, y = cell(carry, x)
            if isinstance(new, tuple) and hasattr(new, "_replace"):  # ours end with y
                new = new._replace(y=y + shift)
            else:  # the last of an LSTM's (c, h), or the hidden state alone, is y
                new = (*new[:-1], y + shift) if isinstance(new, tuple) else y + shift
            return new, (weight * (y + shift)).sum()

        return jax.lax.scan(step, carry, (xs, shifts, weights))[1].sum()

    return jax.jit(jax.grad(energy))(jnp.zeros((*xs.shape[:2], N)))


@pytest.mark.parametrize(
    ("make", "cell"),
    [
        (rules.ottt, LIF),
        (partial(rules.ostl, scope="no_h"), partial(LIF, refractory=2)),
        (partial(rules.ostl, scope="no_h"), partial(LeakyReadout, recurrent=True)),
        (partial(rules.ostl, scope="no_h"), nnx.LSTMCell),
        (partial(rules.ostl, scope="no_h"), nnx.OptimizedLSTMCell),
        (rules.sltt, nnx.SimpleCell),
    ],
    ids=["ottt lif", "lif", "leaky readout", "lstm", "optimized lstm", "sltt simple"],
)
def test_local_traces_with_the_total_learning_signal_are_exact(make, cell):
    """E-prop's identity, where y acts on the next step through the recurrent kernel alone."""
    cell, (xs, _) = cell(N_IN, N, rngs=nnx.Rngs(0)), data()
    weights = jax.random.normal(jax.random.key(2), (STEPS, BATCH, N))

    def linear(y, weight):
        return (y * weight).sum(-1)

    signal = total_learning_signal(cell, xs, weights)
    assert rules.relative_error(signal, weights) > 1e-2  # there are later effects
    exact = gradient(rules.bptt(cell, linear), cell, (xs, weights))
    assert_leaves(gradient(make(cell, linear), cell, (xs, signal), 4), exact)
    short = gradient(make(cell, linear), cell, (xs, weights), 4)
    assert rules.relative_error(short, exact) > 1e-3  # with dE/dy of the step alone it is not


@pytest.mark.parametrize("make", [rules.rtrl, rules.ottt], ids=["rtrl", "ottt"])
def test_a_membrane_rounded_at_random_draws_the_noise_of_bptt(make):
    cell = LIFCell(N_IN, N, detach_reset=True, rngs=nnx.Rngs(0))
    cell = state_formats(cell, {"membrane": "fixed12.6"}, rounding="stochastic")
    net, key = Network([cell, nnx.Linear(N, N_OUT, rngs=nnx.Rngs(1))]), jax.random.key(3)
    exact = gradient(rules.bptt(net, LOSS), net, data(), key=key)
    assert_leaves(gradient(make(net, LOSS), net, data(), 4, key), exact)
    with pytest.raises(ValueError, match="rounds its state stochastically and found no key"):
        make(net, LOSS).init(rules.parameters(net), data()[0])


def test_rtrl_takes_layers_that_count_on_a_batch():
    rngs = nnx.Rngs(0)
    layers = [nnx.Conv(1, 2, (3, 3), rngs=rngs), SNUCell(None, 2, rngs=rngs)]
    net = Network([*layers, lambda y: y.reshape(len(y), -1), nnx.Linear(32, N_OUT, rngs=rngs)])
    sequence = 3 * jax.random.normal(jax.random.key(0), (4, 2, 4, 4, 1)), data()[1][:4, :2]
    exact = gradient(rules.bptt(net, LOSS), net, sequence)
    assert_leaves(gradient(rules.rtrl(net, LOSS), net, sequence, 2), exact)


def test_ottt_online_and_accumulated_by_a_loop_in_numpy():
    """One layer, E = sum of weights * y; O changes the weights at each step, A at the end."""
    cell = LIFCell(N_IN, N, detach_reset=True, tau=5e-3, rngs=nnx.Rngs(0))
    rule = rules.ottt(cell, lambda y, weight: (y * weight).sum(-1))
    params, (xs, _) = rules.parameters(cell), data()
    weights = jax.random.normal(jax.random.key(2), (STEPS, BATCH, N))
    decay, w0, rate = float(np.exp(-1e-3 / 5e-3)), np.asarray(params["w"][...], np.float64), 0.05
    online = w0.copy()
    total, v, a = 0.0, np.zeros((BATCH, N)), np.zeros((BATCH, N_IN))
    v_online, y, y_online = v, v, v
    for x, weight in zip(np.asarray(xs, np.float64), np.asarray(weights), strict=True):
        a = decay * a + x
        v, v_online = decay * (v - y) + x @ w0, decay * (v_online - y_online) + x @ online
        y, y_online = (v > 1) * 1.0, (v_online > 1) * 1.0
        total = total + a.T @ (weight * np.maximum(0, 1 - abs(v - 1))) / BATCH
        online = online - rate * a.T @ (weight * np.maximum(0, 1 - abs(v_online - 1))) / BATCH
    grads = gradient(rule, cell, (xs, weights), 3)
    assert rules.relative_error(grads, total) <= 1e-5
    step, state, now = jax.jit(rule.step), rule.init(params, xs), params
    for t in range(STEPS):
        state, out = step(now, state, xs[t : t + 1], weights[t : t + 1])
        now = jax.tree.map(lambda p, g: p - rate * g, now, out.grads)
    assert rules.relative_error(jax.tree.map(jnp.subtract, now, params), online - w0) <= 1e-4


def with_drawn(make):
    """The rule with the feedback weights of a run of seed 0."""

    def rule(net, loss):
        key = key_for(0, Purpose.FEEDBACK)
        return make(net, loss, feedback=rules.broadcast_weights(net, key))

    return rule


@pytest.mark.parametrize(
    ("settings", "make"),
    [
        ({"name": "rtrl"}, rules.rtrl),
        ({"scope": "unit"}, partial(rules.ostl, scope="unit")),
        ({"scope": "none"}, rules.sltt),
        ({"scope": "none", "sltt_steps": 2}, partial(rules.sltt, k=2)),
        ({"scope": "pre"}, rules.ottt),
        ({"name": "eprop"}, rules.eprop),
        ({"name": "eprop", "feedback": "random"}, with_drawn(rules.eprop)),
        ({"name": "osttp", "scope": "unit"}, with_drawn(partial(rules.osttp, scope="unit"))),
    ],
)
def test_an_experiment_names_each_rule(settings, make):
    """The program is the same, number for number; that two rules have two is seen too."""
    net, key = network(partial(LIFCell, detach_reset=True)), jax.random.key(5)

    def program(rule):
        def run(params):
            return rules.run_sequence(rule, params, *data(), chunk=4, key=key).grads

        return jax.jit(run).lower(rules.parameters(net)).as_text()

    rule = make_rule(experiment.Experiment(rule=experiment.Rule(**settings)).rule)(net, LOSS)
    found = program(rule)
    assert found == program(make(net, LOSS))
    assert found != program(rules.bptt(net, LOSS))


def test_settings_of_another_rule_are_refused_and_bptt_ignores_them():
    bad = [
        ({"sltt_steps": 2}, r'sltt_steps = 2 does not apply to rule\.scope = "no_h"'),
        ({"name": "rtrl", "scope": "none", "sltt_steps": 2}, r'apply to rule\.name = "rtrl"'),
        ({"name": "rtrl", "trace_format": "e5m2"}, r'apply to rule\.name = "rtrl", which keeps no'),
        ({"scope": "pre", "trace_format": "e5m2"}, r'apply to rule\.scope = "pre", which keeps no'),
        ({"feedback": "random"}, r'feedback = "random" does not apply to rule\.name = "ostl"'),
        ({"name": "osttp", "scope": "pre"}, r'apply to rule\.name = "osttp": choose "full"'),
        ({"name": "eprop", "trace_format": "e5m2"}, r'apply to rule\.name = "eprop", which keeps'),
    ]
    for settings, message in bad:
        with pytest.raises(ValueError, match=message):
            experiment.Experiment(rule=experiment.Rule(**settings))
        plain = experiment.Rule(**settings | {"name": "bptt"})
        rule = experiment.resolve(experiment.Experiment(rule=plain)).rule
        assert (rule.sltt_steps, rule.trace_format) == (0, None)

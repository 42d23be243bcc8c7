"""Formats on states and traces under the rules: exact where they should be, bounded elsewhere."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spikebit import learning_rules as rules
from spikebit.learning_rules.ostl import OSTLState
from spikebit.learning_rules.rule import run_with_state
from spikebit.quant.state_formats import state_formats
from spikebit.simulator import (
    ALIFCell,
    LeakyReadout,
    LIFCell,
    Network,
    SNUCell,
    SynapticLIFCell,
)

N_IN, N, N_OUT, BATCH, STEPS = 5, 6, 3, 2, 24
LOSS = rules.losses.cross_entropy
CELLS = {
    "snu": (partial(SNUCell, recurrent=True), {"membrane": "fixed12.6"}),
    "lif": (partial(LIFCell, recurrent=True), {"membrane": "fixed8.3"}),
    "synaptic lif": (
        partial(SynapticLIFCell, recurrent=True),
        {"membrane": "fixed12.6", "synaptic_current": "e5m2"},
    ),
    "alif": (
        partial(ALIFCell, recurrent=True, beta=0.5, tau_adapt=20e-3),
        {"membrane": "fixed12.6", "adaptation": "fixed8.4"},
    ),
    "leaky": (LeakyReadout, {"membrane": "fixed8.4"}),
    "lstm": (nnx.LSTMCell, {"cell": "fixed8.4", "hidden": "e4m3fn"}),
    "gru": (nnx.GRUCell, {"hidden": "fixed8.6"}),
}


pytestmark = pytest.mark.usefixtures("compile_quickly")


def make(cell, formats=None, rounding="nearest_even"):
    """A network of this cell, 5 inputs, 6 units, and a dense readout of 3."""
    layer = cell(N_IN, N, rngs=nnx.Rngs(0))
    if formats is not None:
        layer = state_formats(layer, formats, rounding=rounding)
    return Network([layer, nnx.Linear(N, N_OUT, rngs=nnx.Rngs(1))])


def data(steps=STEPS):
    keys = jax.random.split(jax.random.key(1), 2)
    xs = 2 * jax.random.normal(keys[0], (steps, BATCH, N_IN))
    return xs, jax.random.randint(keys[1], (steps, BATCH), 0, N_OUT)


def gradient(rule, network, chunk=None, key=None, steps=STEPS):
    params = rules.parameters(network)

    @jax.jit
    def run(p, key):
        return rules.run_sequence(rule, p, *data(steps), chunk=chunk, key=key).grads

    return run(params, key)


def state_after(rule, network, chunk):
    run = jax.jit(lambda p: run_with_state(rule, p, *data(), chunk=chunk)[0])
    return run(rules.parameters(network))


def worst(grads, exact):
    pairs = zip(jax.tree.leaves(grads), jax.tree.leaves(exact), strict=True)
    return max(rules.relative_error(g, e) for g, e in pairs)


@pytest.mark.parametrize(
    ("name", "rounding"),
    [(name, "nearest_even") for name in ("snu", "synaptic lif", "gru")]
    + [(name, "stochastic") for name in ("lif", "alif", "lstm")],
)
def test_ostl_is_bptt_also_with_formats_on_the_states(name, rounding):
    cell, formats = CELLS[name]
    network, key = make(cell, formats, rounding), jax.random.key(3)
    exact = gradient(rules.bptt(network, LOSS), network, key=key)
    # rounding is a staircase: only an exact forward pass stays on the same stairs
    assert worst(gradient(rules.ostl(network, LOSS), network, 6, key), exact) <= 1e-5


@pytest.mark.parametrize(("name", "scope"), [("snu", "full"), ("alif", "no_h"), ("gru", "full")])
def test_a_float32_trace_changes_no_bit(name, scope):
    network = make(CELLS[name][0])
    plain = rules.ostl(network, LOSS, scope=scope)
    stored = rules.ostl(network, LOSS, scope=scope, trace_format="float32")
    for a, b in zip(
        jax.tree.leaves(gradient(plain, network, 4)),
        jax.tree.leaves(gradient(stored, network, 4)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("name", "scope"), [("snu", "full"), ("synaptic lif", "no_h"), ("gru", "full")]
)
def test_the_kept_traces_are_on_the_grid(name, scope):
    network = make(CELLS[name][0])
    rule = rules.ostl(network, LOSS, scope=scope, trace_format="fixed12.6")
    trace = state_after(rule, network, 6).traces[0]
    kept = trace if name == "gru" else (trace.kernels, trace.units)
    for leaf in jax.tree.leaves(kept):
        assert float(jnp.abs(leaf).max()) > 0
        np.testing.assert_array_equal(leaf * 64, jnp.round(leaf * 64))


def test_the_error_of_a_fixed_point_trace_is_within_a_bound_that_halves_with_each_bit():
    r"""Of v = k v + W x, y = v + b: with a rounding error of at most D / 2 at each of the chunk
    borders j before step t, the trace of W is off by at most D / 2 sum_j k^(t - j), and so the
    gradient sum_t mean_B L_t eps_t by at most sum_t mean_B |L_t| of it.
    """
    network, chunk = make(partial(LeakyReadout, tau=5e-3)), 6
    xs, targets = data()
    cell, dense = network.layers
    decay = float(cell.decay)
    exact = gradient(rules.ostl(network, LOSS), network, chunk)["layers"][0]["w"][...]

    @jax.jit
    def errors_of_outputs(params):
        outputs = rules.run_sequence(rules.bptt(network, LOSS), params, xs, targets).outputs
        return jax.vmap(jax.grad(lambda o, t: LOSS(o, t).mean()))(outputs, targets)

    dlogits = errors_of_outputs(rules.parameters(network))
    signal = np.abs(np.asarray(dlogits @ dense.kernel[...].T)).sum(1)  # (T, n)
    borders = np.arange(chunk, STEPS, chunk)
    # from the border before step j on, k^(t - j + 1) of an error is in the trace at t >= j
    lag = np.arange(STEPS)[:, None] - borders[None]
    off = np.where(lag >= 0, decay ** (lag + 1.0), 0).sum(1)  # (T,)
    bound_of_unit_step = 0.5 * off @ signal  # (n,)
    slack = 1e-5 * float(jnp.abs(exact).max())  # float32 sums in another order
    errors = []
    for fraction in (4, 7):
        rule = rules.ostl(network, LOSS, trace_format=f"fixed16.{fraction}")
        got = gradient(rule, network, chunk)["layers"][0]["w"][...]
        error = np.abs(np.asarray(got - exact))
        assert np.all(error <= 2.0**-fraction * bound_of_unit_step + slack)
        errors.append(error.max() / (2.0**-fraction * bound_of_unit_step.max()))
    assert max(errors) > 0.05, "a bound that far off proves nothing"


@pytest.mark.parametrize(("name", "scope"), [("snu", "no_h"), ("gru", "full")])
def test_stochastic_traces_give_the_exact_gradient_on_average(name, scope):
    """Seen along random directions: of single numbers that rarely round up too little is seen."""
    network, draws = make(CELLS[name][0]), 300
    exact = gradient(rules.ostl(network, LOSS, scope=scope), network, 4, steps=8)
    rule = rules.ostl(
        network, LOSS, scope=scope, trace_format="fixed12.3", trace_rounding="stochastic"
    )
    params = rules.parameters(network)

    def one(key):
        return rules.run_sequence(rule, params, *data(8), chunk=4, key=key).grads

    many = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(7), draws))
    nearest = rules.ostl(network, LOSS, scope=scope, trace_format="fixed12.3")
    biased = gradient(nearest, network, 4, steps=8)
    rng, bias = np.random.default_rng(0), []
    for got, e, b in zip(*map(jax.tree.leaves, (many, exact, biased)), strict=True):
        signs = rng.choice([-1.0, 1.0], (e.size, 8))
        got = np.asarray(got, np.float64).reshape(draws, -1) @ signs
        e, b = (np.asarray(x, np.float64).ravel() @ signs for x in (e, b))
        sigma = got.std(0) / np.sqrt(draws)
        slack = 1e-5 * np.abs(e).max()  # float32 sums in another order
        assert np.all(np.abs(got.mean(0) - e) <= 4.5 * sigma + slack)
        bias.append(np.max(np.abs(b - e) / (sigma + slack)))
    assert max(bias) > 10, "the bias of rounding to nearest must be seen"


def test_noise_of_a_rule_is_that_of_its_key():
    network = make(CELLS["snu"][0])
    rule = rules.ostl(network, LOSS, trace_format="fixed8.3", trace_rounding="stochastic")

    # the same stream in two calls is one stream
    params, (xs, targets) = rules.parameters(network), data(12)
    state = rule.init(params, xs, jax.random.key(5))
    run = jax.jit(lambda key: run_with_state(rule, params, xs, targets, chunk=6, key=key))
    whole, out = run(jax.random.key(5))
    again, other = (run(jax.random.key(seed))[1].grads for seed in (5, 6))
    for a, b in zip(*map(jax.tree.leaves, (out.grads, again)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(
        np.any(a != c) for a, c in zip(*map(jax.tree.leaves, (out.grads, other)), strict=True)
    )
    for part in (slice(0, 6), slice(6, 12)):
        state, _ = jax.jit(rule.step)(params, state, xs[part], targets[part])
    assert isinstance(state, OSTLState)
    np.testing.assert_array_equal(jax.random.key_data(state.key), jax.random.key_data(whole.key))
    np.testing.assert_allclose(state.traces[0].kernels, whole.traces[0].kernels, atol=1e-6)


def test_a_cell_with_a_trace_format_of_its_own_keeps_it():
    rngs = nnx.Rngs(0)
    own = state_formats(SNUCell(N_IN, N, rngs=rngs), {"eligibility_trace": "fixed12.6"})
    network = Network([own, LIFCell(N, N, rngs=rngs), nnx.Linear(N, N_OUT, rngs=rngs)])
    rule = rules.ostl(network, LOSS, trace_format="fixed8.2")
    state = state_after(rule, network, 4)
    for trace, unit in zip(state.traces[:2], (64, 4), strict=True):
        assert np.all(trace.kernels * unit % 1 == 0)
    assert np.any(state.traces[0].kernels * 4 % 1 != 0)


def test_what_a_trace_loses_is_counted():
    """The trace of W of a unit that keeps nothing is x itself."""
    network = make(partial(LeakyReadout, tau=1e-3, dt=1e-3))
    xs = jnp.zeros((2, 1, N_IN)).at[:, 0].set(jnp.array([0.1, 0.0, 2.0, 40.0, -40.0]))
    targets = jnp.zeros((2, 1), jnp.int32)
    rule = rules.ostl(network, LOSS, trace_format="fixed8.2")  # -32 to 31.75, steps of 1/4
    params = rules.parameters(network)
    state, _ = run_with_state(rule, params, xs[:1], targets[:1], chunk=1)
    numbers = N * N_IN + N  # traces of W, and the zero ones of b
    np.testing.assert_allclose(state.lost[0].lost.saturated, 2 * N / numbers, rtol=1e-6)
    np.testing.assert_allclose(state.lost[0].lost.underflowed, N / numbers, rtol=1e-6)
    assert state.lost[1] == ()
    # in the second step 0.1 is there again, and the saturated traces are 32 k + 40 still beyond
    state, _ = run_with_state(rule, params, xs, targets, chunk=1)
    np.testing.assert_allclose(state.lost[0].lost.saturated, 2 * N / numbers, rtol=1e-6)
    assert float(state.lost[0].chunks) == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"formats": {"membrane": "e5m2"}}, "is the text 'e5m2'; give a list"),
        ({"formats": {"stdp_trace": ["e5m2"]}}, "rule 'ostl' keeps no stdp_trace"),
        ({"xs": jnp.zeros((0, BATCH, N_IN))}, "at least one time step"),
        (
            {"xs": jnp.full((4, BATCH, N_IN), jnp.nan)},
            "gradient of ostl without formats is not fin",
        ),
        ({"network": "e5m2"}, "keeps membrane in a format already"),
    ],
)
def test_format_cost_says_what_cannot_be_compared(change, said):
    network, (xs, targets) = make(CELLS["snu"][0]), data()
    if "network" in change:
        network = state_formats(network, {"membrane": change.pop("network")})
    given = {"formats": {"membrane": ["fixed8.4"]}, "xs": xs[:4]} | change
    steps = given["xs"].shape[0]
    with pytest.raises(ValueError, match=said):
        rules.format_cost(
            network,
            LOSS,
            given["xs"],
            targets[:steps],
            given["formats"],
            rules={"ostl": rules.ostl},
        )


def test_format_cost_measures_what_it_says():
    network, (xs, targets) = make(CELLS["snu"][0]), data()
    tried = {"membrane": ["fixed8.4"], "s": ["float32"], "eligibility_trace": ["e5m2"]}
    rows = rules.format_cost(network, LOSS, xs, targets, tried, chunk=6)
    leaves = len(jax.tree.leaves(rules.parameters(network)))
    assert len(rows) == (2 + 2 + 1) * (leaves + 1)
    table = {(r["role"], r["format"], r["rule"], r["parameter"]): r for r in rows}
    for (_, fmt, _, _), row in table.items():
        if fmt == "float32":
            assert row["relative_error"] < 1e-6
            assert row["saturated"] == row["underflowed"] == 0
    # independent: the same networks by hand
    wrapped = state_formats(network, {"membrane": "fixed8.4"})
    exact = gradient(rules.bptt(network, LOSS), network)
    got = gradient(rules.bptt(wrapped, LOSS), wrapped)
    row = table["membrane", "fixed8.4", "bptt", "all"]
    np.testing.assert_allclose(row["relative_error"], rules.relative_error(got, exact), rtol=1e-3)
    np.testing.assert_allclose(row["cosine"], rules.cosine(got, exact), rtol=1e-3)
    leaf = table["membrane", "fixed8.4", "bptt", "layers.0.h"]
    by_hand = rules.relative_error(got["layers"][0]["h"], exact["layers"][0]["h"])
    np.testing.assert_allclose(leaf["relative_error"], by_hand, rtol=1e-3)
    assert 0 < row["underflowed"] < 1
    # OSTL in one layer has BPTT's gradient with and without the format
    np.testing.assert_allclose(
        table["membrane", "fixed8.4", "ostl", "all"]["relative_error"],
        row["relative_error"],
        rtol=1e-3,
    )
    assert table["eligibility_trace", "e5m2", "ostl", "layers.0.w"]["relative_error"] > 1e-3
    assert not any(k[2] == "bptt" for k in table if k[0] == "eligibility_trace")


def test_integers_in_a_carry_go_along_under_ostl():
    class Counting(nnx.RNNCellBase):
        """An integrator that forgets all at every third step, which it counts."""

        def __init__(self, rngs):
            self.dense = nnx.Linear(N_IN, N, rngs=rngs)

        def __call__(self, carry, x):
            count, v = carry
            v = jnp.where(count[..., None] % 3 == 0, 0, v) + self.dense(x)
            return (count + 1, v), jnp.tanh(v)

        def initialize_carry(self, input_shape, rngs=None, carry_init=None):
            batch = input_shape[:-1]
            return jnp.zeros(batch, jnp.int32), jnp.zeros((*batch, N))

        @property
        def num_feature_axes(self):
            return 1

    network = Network([Counting(nnx.Rngs(0)), nnx.Linear(N, N_OUT, rngs=nnx.Rngs(1))])
    exact = gradient(rules.bptt(network, LOSS), network)
    for chunk, scope in ((1, "full"), (4, "no_h")):
        rule = rules.ostl(network, LOSS, scope=scope)
        assert worst(gradient(rule, network, chunk), exact) <= 1e-5


def test_what_is_wrong_is_named():
    network, (xs, targets) = make(CELLS["snu"][0]), data()
    params = rules.parameters(network)
    with pytest.raises(ValueError, match=r"ostl\(trace_format='int8'\): int8 takes its scale"):
        rules.ostl(network, LOSS, trace_format="int8")
    with pytest.raises(ValueError, match=r"ostl\(trace_format='e5m'\): .*nearest names are e5m2"):
        rules.ostl(network, LOSS, trace_format="e5m")
    with pytest.raises(ValueError, match=r"trace_format='e5m2'\): rounding is 'odd'"):
        rules.ostl(network, LOSS, trace_format="e5m2", trace_rounding="odd")
    noisy = rules.ostl(network, LOSS, trace_format="e5m2", trace_rounding="stochastic")
    with pytest.raises(ValueError, match=r"found key=None: call rule.init\(params, batch, key="):
        noisy.init(params, xs)
    wrapped = make(*CELLS["snu"], rounding="stochastic")
    for rule in (rules.bptt(wrapped, LOSS), rules.ostl(wrapped, LOSS)):
        with pytest.raises(ValueError, match=r"Layer 0 \(SNUCellInFormats\) rounds its state"):
            rule.init(params, xs)
    with pytest.raises(ValueError, match="has no state 'current'"):
        rules.format_cost(network, LOSS, xs, targets, {"current": ["e5m2"]})

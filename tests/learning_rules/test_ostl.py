"""OSTL against BPTT, against BPTT with paths cut by hand, and against itself in other chunks.

In chunks of several steps, and each option of a cell once: `test_every_cell` takes every cell one
step at a time.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spikebit import learning_rules as rules
from spikebit.simulator.lif import ALIFCell, LIFCell, SynapticLIFCell
from spikebit.simulator.network import Network
from spikebit.simulator.readout import LeakyReadout
from spikebit.simulator.snu import SNUCell, SoftSNUCell

N_IN, N, N_OUT, BATCH, STEPS = 5, 7, 3, 3, 50
LOSS = rules.losses.cross_entropy

RECURRENT_SNU = partial(SNUCell, recurrent=True)
# thresholds low enough that every unit fires now and then; sums of |z| stay near 1
OURS = {
    "snu recurrent": RECURRENT_SNU,
    "snu trained decay": partial(SNUCell, train_decay=True),
    "soft snu trained decay recurrent": partial(SoftSNUCell, train_decay=True, recurrent=True),
    "lif zero recurrent": partial(LIFCell, reset="zero", tau=5e-3, recurrent=True),
    "lif refractory recurrent": partial(LIFCell, refractory=3, train_decay=True, recurrent=True),
    "lif detached reset": partial(LIFCell, detach_reset=True),
    "synaptic lif": SynapticLIFCell,
    "alif recurrent": partial(ALIFCell, beta=0.5, tau_adapt=20e-3, recurrent=True),
    "alif refractory": partial(ALIFCell, refractory=2),
    "leaky readout recurrent": partial(LeakyReadout, recurrent=True),
}
FLAX = {"lstm": nnx.LSTMCell, "gru": nnx.GRUCell, "simple": nnx.SimpleCell}
CELLS = [pytest.param(cell, id=name) for name, cell in (OURS | FLAX).items()]
SNU_AND_LSTM = [pytest.param(RECURRENT_SNU, id="snu"), pytest.param(nnx.LSTMCell, id="lstm")]


pytestmark = pytest.mark.usefixtures("compile_quickly")


def make(*cells, dtype=jnp.float32):
    """A network of these cells, 5 inputs, 7 units each, and a dense readout of 3."""
    settings = {"rngs": nnx.Rngs(0), "param_dtype": dtype}

    def layer(cell, n_in):
        more = {"dtype": dtype} if cell in FLAX.values() else {}  # what a Flax cell computes in
        return cell(n_in, N, **settings, **more)

    layers = [layer(cell, N_IN if i == 0 else N) for i, cell in enumerate(cells)]
    return Network([*layers, nnx.Linear(N, N_OUT, **settings)])


def make_data(seed=1, steps=STEPS, batch=BATCH, dtype=None):
    keys = jax.random.split(jax.random.key(seed), 2)
    xs = 2 * jax.random.normal(keys[0], (steps, batch, N_IN), dtype)
    return xs, jax.random.randint(keys[1], (steps, batch), 0, N_OUT)


def errors(grads, exact):
    """The relative error of every leaf by name; a leaf that BPTT leaves at zero must be zero."""
    out = {}
    pairs = zip(jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(exact), strict=True)
    for (path, g), e in pairs:
        out[jax.tree_util.keystr(path)] = rules.relative_error(g, e)
    return out


def gradient(rule, network, data, chunk=None):
    params = rules.parameters(network)
    return jax.jit(lambda p: rules.run_sequence(rule, p, *data, chunk=chunk).grads)(params)


def plain_bptt(network, xs, targets, loss=LOSS, cut=lambda carry: carry):
    """BPTT by jax.grad through a scan over `Network.__call__`: shares nothing with the rules."""
    graphdef, params, rest = nnx.split(network, nnx.Param, ...)
    carry = network.initialize_carry(xs.shape[1:])

    def total(params):
        net = nnx.merge(graphdef, params, rest)

        def step(carry, inputs):
            x, target = inputs
            carry, y = net(cut(carry), x)
            return carry, loss(y, target).mean()

        return jax.lax.scan(step, carry, (xs, targets))[1].sum()

    return jax.jit(jax.grad(total))(params)


@cache
def bptt_of_one_layer(cell):
    """BPTT of `make(cell)` on the usual data, which several tests compare with."""
    return plain_bptt(make(cell), *make_data())


@pytest.mark.parametrize("cell", CELLS)
def test_one_layer_full_and_bptt_are_exact_for_every_leaf(cell):
    network, data, exact = make(cell), make_data(), bptt_of_one_layer(cell)
    for rule, chunk in ((rules.ostl(network, LOSS), 10), (rules.bptt(network, LOSS), None)):
        for name, error in errors(gradient(rule, network, data, chunk), exact).items():
            assert error <= 1e-5, f"{rule.init.__qualname__} {name}"
    norms = [float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(exact)]
    assert min(norms) > 0, "a dead leaf proves nothing"


@pytest.mark.parametrize("cell", SNU_AND_LSTM)
@pytest.mark.parametrize("remat", [1, 10])
def test_rematerialised_bptt_is_plain_bptt(cell, remat):
    network, data = make(cell), make_data()
    grads = gradient(rules.bptt(network, LOSS, remat_every=remat), network, data)
    assert max(errors(grads, bptt_of_one_layer(cell)).values()) <= 1e-5


class CutProduct(nnx.Module):
    """A recurrent kernel that passes no gradient to what it multiplies."""

    def __init__(self, dense):
        self.dense = dense

    def __call__(self, y):
        return self.dense(jax.lax.stop_gradient(y))


@pytest.mark.parametrize(
    ("name", "chunk"),
    list(zip([name for name in OURS if "recurrent" in name], [1, 10, 1, 10, 1, 10], strict=True)),
)
def test_no_h_is_bptt_with_y_constant_in_the_recurrent_product(name, chunk, monkeypatch):
    network, data = make(OURS[name]), make_data()
    grads = gradient(rules.ostl(network, LOSS, scope="no_h"), network, data, chunk)
    kind = type(network.layers[0])

    def drive(self, carry, x, **_):
        return x @ self.w[...] + jax.lax.stop_gradient(carry.y) @ self.h[...]

    monkeypatch.setattr(kind, "drive", drive)
    assert max(errors(grads, plain_bptt(network, *data)).values()) <= 1e-5


@pytest.mark.parametrize(("name", "chunk"), [("simple", 1), ("lstm", 10), ("gru", 10)])
def test_no_h_of_flax_cells_is_bptt_with_their_kernels_cut(name, chunk):
    network, data = make(FLAX[name]), make_data()
    rule = rules.ostl(network, LOSS, scope="no_h")
    grads = gradient(rule, network, data, chunk)["layers"][0]
    cell = network.layers[0]
    hidden = {"simple": ["dense_h"], "lstm": ["hf", "hi", "hg", "ho"], "gru": ["dense_h"]}[name]
    for attribute in hidden:
        setattr(cell, attribute, CutProduct(getattr(cell, attribute)))
    exact = plain_bptt(network, *data)
    cut = {**exact["layers"][0]}
    for attribute in hidden:  # one level deeper, for the wrapper
        cut[attribute] = cut[attribute]["dense"]
    assert max(errors(grads, nnx.State(cut)).values()) <= 1e-5


@pytest.mark.parametrize("chunk", [1, 10])
def test_full_and_no_h_agree_where_there_is_no_recurrent_kernel(chunk):
    network, data = make(partial(SNUCell)), make_data()
    full = gradient(rules.ostl(network, LOSS, scope="full"), network, data, chunk)
    no_h = gradient(rules.ostl(network, LOSS, scope="no_h"), network, data, chunk)
    for a, b in zip(jax.tree.leaves(full), jax.tree.leaves(no_h), strict=True):
        np.testing.assert_array_equal(a, b)


def test_stateless_layers_above_stay_exact():
    rngs = nnx.Rngs(3)
    cell = SoftSNUCell(N_IN, N, recurrent=True, rngs=rngs)
    layers = [cell, nnx.Linear(N, 6, rngs=rngs), jnp.tanh, nnx.Linear(6, N_OUT, rngs=rngs)]
    network, data = Network(layers), make_data()
    grads = gradient(rules.ostl(network, LOSS), network, data, 5)
    assert max(errors(grads, plain_bptt(network, *data)).values()) <= 1e-5


STACKS = {
    "snu": [partial(SNUCell, recurrent=True)] * 3,
    "soft snu, lstm, gru": [partial(SoftSNUCell, recurrent=True), nnx.LSTMCell, nnx.GRUCell],
    "gru, alif, leaky": [nnx.GRUCell, partial(ALIFCell, recurrent=True), LeakyReadout],
}


@pytest.mark.parametrize("chunk", [1, 5])
def test_deep_stack_is_bptt_with_the_carries_above_stopped(chunk):
    """Of three spiking layers; `test_every_cell` has mixed ones."""
    network, data = make(*STACKS["snu"]), make_data(steps=20)
    got = gradient(rules.ostl(network, LOSS), network, data, chunk)["layers"]
    for layer in range(3):
        exact = bptt_of_a_stack_below(layer)["layers"][layer]
        assert max(errors(got[layer], exact).values()) <= 1e-5, layer


@cache
def bptt_of_a_stack_below(layer):
    """BPTT with the carries above the layer held constant."""

    def stop_above(carry):
        return (*carry[: layer + 1], *jax.lax.stop_gradient(carry[layer + 1 :]))

    return plain_bptt(make(*STACKS["snu"]), *make_data(steps=20), cut=stop_above)


@pytest.mark.parametrize("stack", STACKS.values(), ids=STACKS)
def test_deep_stack_in_one_chunk_with_cross_layer_chunk_is_bptt(stack):
    network, data = make(*stack), make_data(steps=20)
    rule = rules.ostl(network, LOSS, cross_layer="chunk")
    assert max(errors(gradient(rule, network, data), plain_bptt(network, *data)).values()) <= 1e-5


@pytest.mark.parametrize("cell", SNU_AND_LSTM)
def test_a_network_taken_as_one_cell_is_bptt_on_all_layers(cell):
    class OneCell(nnx.RNNCellBase):
        """Hides the layers, so that the rule sees one carry."""

        def __init__(self, inner):
            self.inner = inner

        def __call__(self, carry, x):
            return self.inner(carry, x)

        def initialize_carry(self, input_shape, rngs=None, carry_init=None):
            return self.inner.initialize_carry(input_shape)

        @property
        def num_feature_axes(self):
            return 1

    network, data = make(cell, cell), make_data(steps=20)
    whole = gradient(rules.ostl(OneCell(network), LOSS), OneCell(network), data, 1)
    exact = plain_bptt(network, *data)
    assert max(errors(whole["inner"], exact).values()) <= 1e-5


def test_neurons_behind_a_convolution_are_exact_above_it():
    rngs = nnx.Rngs(0)
    conv = nnx.Conv(1, 2, (3, 3), rngs=rngs)
    cell = SNUCell(None, 2, train_decay=True, rngs=rngs)
    layers = [conv, cell, lambda y: y.reshape(y.shape[0], -1), nnx.Linear(32, N_OUT, rngs=rngs)]
    network = Network(layers)
    xs = 3 * jax.random.normal(jax.random.key(0), (12, 2, 4, 4, 1))
    targets = jnp.zeros((12, 2), jnp.int32)
    exact = plain_bptt(network, xs, targets)
    for chunk in (1, 4):
        grads = gradient(rules.ostl(network, LOSS), network, (xs, targets), chunk)
        for layer in (1, 3):
            assert max(errors(grads["layers"][layer], exact["layers"][layer]).values()) <= 1e-5


@pytest.mark.parametrize("cell", SNU_AND_LSTM)
@pytest.mark.parametrize("scope", ["full", "no_h"])
def test_stream_split_into_calls_is_one_stream(cell, scope):
    network, (xs, targets) = make(cell), make_data(steps=12)
    rule, params = rules.ostl(network, LOSS, scope=scope), rules.parameters(network)
    step = jax.jit(rule.step)
    state = rule.init(params, xs)
    one_state, one = step(params, state, xs, targets)
    state, first = step(params, state, xs[:5], targets[:5])
    state, second = step(params, state, xs[5:], targets[5:])
    added = jax.tree.map(jnp.add, first.grads, second.grads)
    assert max(errors(added, one.grads).values()) <= 1e-5
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(one_state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * float(jnp.abs(b).max() + 1))


@pytest.mark.parametrize("scope", ["full", "no_h"])
def test_batch_is_the_mean_of_its_samples(scope):
    network, (xs, targets) = make(RECURRENT_SNU), make_data()
    rule = rules.ostl(network, LOSS, scope=scope)
    whole = gradient(rule, network, (xs, targets), 10)
    alone = jax.jit(lambda p, *d: rules.run_sequence(rule, p, *d, chunk=10).grads)
    params = rules.parameters(network)
    singles = [alone(params, xs[:, i : i + 1], targets[:, i : i + 1]) for i in range(BATCH)]
    mean = jax.tree.map(lambda *g: sum(g) / BATCH, *singles)
    assert max(errors(whole, mean).values()) <= 1e-5


@pytest.mark.parametrize("cell", [partial(ALIFCell, recurrent=True), nnx.GRUCell])
@pytest.mark.parametrize("scope", ["full", "no_h"])
def test_one_step_is_bptt_in_every_scope(cell, scope):
    network, data = make(cell), make_data(steps=1)
    grads = gradient(rules.ostl(network, LOSS, scope=scope), network, data, 1)
    assert max(errors(grads, plain_bptt(network, *data)).values()) <= 1e-5


@pytest.mark.parametrize(
    ("cell", "scope"),
    [(RECURRENT_SNU, "full"), (RECURRENT_SNU, "no_h"), (nnx.LSTMCell, "full")],
    ids=["snu", "snu without h", "lstm"],
)
def test_memory_does_not_grow_with_time(cell, scope):
    """The scratch of the compiled gradient at T and 10 T, beside inputs and outputs of length T.

    XLA lays out its scratch before it writes machine code, so compiling quickly changes it little.
    """
    network = make(cell)
    params = rules.parameters(network)

    def scratch(rule, steps, chunk):
        xs = jax.ShapeDtypeStruct((steps, BATCH, N_IN), jnp.float32)
        targets = jax.ShapeDtypeStruct((steps, BATCH), jnp.int32)

        def run(p, xs, targets):
            return rules.run_sequence(rule, p, xs, targets, chunk=chunk).grads

        compiled = jax.jit(run).lower(params, xs, targets).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    rule = rules.ostl(network, LOSS, scope=scope)
    short, long = scratch(rule, 100, 5), scratch(rule, 1000, 5)
    outputs = 4 * BATCH * N_OUT * 900  # a scan may keep the outputs it stacks
    assert long - short <= 0.05 * short + outputs
    if scope == "full":
        growth = [scratch(rules.bptt(network, LOSS), steps, None) for steps in (100, 1000)]
        assert growth[1] > 5 * growth[0], "the measure must see growth"


def test_bad_settings_are_named():
    network = make(RECURRENT_SNU)
    with pytest.raises(ValueError, match=r"ostl\(scope='half'\)"):
        rules.ostl(network, LOSS, scope="half")
    with pytest.raises(ValueError, match=r"ostl\(cross_layer='no'\)"):
        rules.ostl(network, LOSS, cross_layer="no")
    with pytest.raises(ValueError, match="remat_every=0"):
        rules.bptt(network, LOSS, remat_every=0)
    params, (xs, targets) = rules.parameters(network), make_data()
    with pytest.raises(ValueError, match="chunk=7"):
        rules.run_sequence(rules.ostl(network, LOSS), params, xs, targets, chunk=7)
    with pytest.raises(ValueError, match=r"remat_every=7\) does not divide a chunk of 50"):
        rules.run_sequence(rules.bptt(network, LOSS, remat_every=7), params, xs, targets)
    for empty in (xs[:0], xs[0, 0]):
        with pytest.raises(ValueError, match="at least one time step"):
            rules.ostl(network, LOSS).init(params, empty)
    with pytest.raises(ValueError, match=r"Layer 0 \(SNUCell\) does not fit its input"):
        rules.ostl(network, LOSS).init(params, xs[..., :4])
    summed = rules.bptt(network, lambda y, t: LOSS(y, t).mean())
    with pytest.raises(ValueError, match="one number a sample"):
        rules.run_sequence(summed, params, xs, targets)
    twice = nnx.Linear(5, 5, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"holds the same layer twice"):
        rules.ostl(Network([twice, twice]), LOSS)
    with pytest.raises(ValueError, match="pass parameters"):
        rules.ostl(network, LOSS).init({"other": jnp.zeros(3)}, xs)


def test_a_cell_that_carries_whole_numbers_alone_is_refused():
    class Counting(nnx.RNNCellBase):
        """Counts its steps."""

        def __call__(self, carry, x):
            return carry + 1, x

        def initialize_carry(self, input_shape, rngs=None, carry_init=None):
            return jnp.zeros((*input_shape[:-1], 1), jnp.int32)

        @property
        def num_feature_axes(self):
            return 1

    network = Network([Counting(), nnx.Linear(N_IN, N_OUT, rngs=nnx.Rngs(0))])
    rule = rules.ostl(network, LOSS)
    with pytest.raises(ValueError, match=r"Layer 0 \(Counting\) carries no array of floats"):
        rule.init(rules.parameters(network), make_data()[0])

"""Every cell in float64: full OSTL is BPTT to 1e-12 in every leaf, and the slope of the loss.

What holds for each cell on its own, in stacks of cells and with e-prop's learning signal belongs
here; chunks, streams, memory and the approximate scopes have files of their own.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from spikebit import learning_rules as rules
from spikebit import simulator
from spikebit.simulator import (
    ALIFCell,
    DelayLine,
    LeakyReadout,
    LIFCell,
    Network,
    SNUCell,
    SoftSNUCell,
    SynapticLIFCell,
)

pytestmark = pytest.mark.usefixtures("compile_quickly")
N_IN, N, N_OUT, BATCH, STEPS = 4, 5, 3, 2, 12
LOSS = rules.losses.cross_entropy


class MGUCell(nnx.RNNCellBase):
    """Flax's minimal gated unit, which it offers for Linen only, as a cell for NNX."""

    def __init__(self, n_in, n, *, rngs, **settings):
        self.cell = linen.MGUCell(n, **settings)
        at_rest = jnp.zeros((1, n)), jnp.zeros((1, n_in))
        self.weights = nnx.data(
            jax.tree.map(nnx.Param, self.cell.init(rngs.params(), *at_rest)["params"])
        )

    def __call__(self, carry, x):
        return self.cell.apply({"params": nnx.as_pure(self.weights)}, carry, x)

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return self.cell.initialize_carry(jax.random.key(0), input_shape)

    @property
    def num_feature_axes(self):
        return 1


# thresholds are low beside the inputs, so that units fire and are reset
OURS = {
    "snu": (SNUCell, {}),
    "snu recurrent": (SNUCell, {"recurrent": True, "train_decay": True}),
    "soft snu": (SoftSNUCell, {}),
    "soft snu recurrent": (SoftSNUCell, {"recurrent": True, "train_decay": True}),
    "lif": (LIFCell, {"train_decay": True}),
    "lif recurrent": (LIFCell, {"recurrent": True}),
    "lif recurrent, zero": (LIFCell, {"recurrent": True, "reset": "zero", "train_decay": True}),
    "lif recurrent, none": (LIFCell, {"recurrent": True, "reset": "none", "tau": 3e-3}),
    "lif recurrent, detached": (LIFCell, {"recurrent": True, "detach_reset": True}),
    "lif recurrent, refractory": (LIFCell, {"recurrent": True, "refractory": 2}),
    "synaptic lif": (SynapticLIFCell, {"reset": "zero", "train_decay": True}),
    "synaptic lif recurrent": (SynapticLIFCell, {"recurrent": True, "refractory": 1}),
    "alif": (ALIFCell, {"beta": 0.5, "refractory": 1}),
    "alif recurrent": (
        ALIFCell,
        {"recurrent": True, "beta": 0.5, "threshold": 0.3, "train_decay": True},
    ),
    "alif recurrent, detached": (ALIFCell, {"recurrent": True, "detach_reset": True}),
    "leaky readout": (LeakyReadout, {}),
    "leaky readout recurrent": (
        LeakyReadout,
        {"recurrent": True, "train_decay": True, "tau": 2e-3},
    ),
}
FLAX = {
    "lstm": (nnx.LSTMCell, {}),
    "optimized lstm": (nnx.OptimizedLSTMCell, {}),
    "gru": (nnx.GRUCell, {}),
    "simple": (nnx.SimpleCell, {}),
    "simple residual": (nnx.SimpleCell, {"residual": True}),
    "mgu": (MGUCell, {}),
    "mgu without reset gate": (MGUCell, {"reset_gate": False}),
}
CELLS = OURS | FLAX
# of Flax's cells two: how JAX differentiates them is no question
SMOOTH = [n for n in CELLS if CELLS[n][0] in (SoftSNUCell, LeakyReadout)] + ["lstm", "gru"]


def make(*names):
    """A network of these cells and a dense readout, in JAX's default float."""
    rngs, dtype = nnx.Rngs(3), jnp.result_type(float)
    layers = []
    for i, name in enumerate(names):
        kind, settings = CELLS[name]
        more = {"dtype": dtype} if name in FLAX else {}  # what a Flax cell computes in
        n_in = N if i else N_IN
        layers.append(kind(n_in, N, rngs=rngs, param_dtype=dtype, **more, **settings))
    return Network([*layers, nnx.Linear(N, N_OUT, rngs=rngs, param_dtype=dtype)])


def make_data():
    xs = 2 * jax.random.normal(jax.random.key(1), (STEPS, BATCH, N_IN))
    return xs, jax.random.randint(jax.random.key(2), (STEPS, BATCH), 0, N_OUT)


def energy(network, xs, targets):
    """The loss as a function of the parameters, by `Network.__call__` in a scan: no rule in it."""
    graphdef, _, rest = nnx.split(network, nnx.Param, ...)

    def total(params, cut=lambda carry: carry):
        def step(carry, inputs):
            carry, y = nnx.merge(graphdef, params, rest)(cut(carry), inputs[0])
            return carry, LOSS(y, inputs[1]).mean()

        start = network.initialize_carry(xs.shape[1:], rngs=nnx.Rngs(0))
        return jax.lax.scan(step, start, (xs, targets))[1].sum()

    return total


def gradient(rule, network, data, chunk):
    @jax.jit
    def run(params):
        return rules.run_sequence(rule, params, *data, chunk=chunk).grads

    return run(rules.parameters(network))


def assert_leaves(grads, exact, tolerance):
    """Every leaf on its own, and none of them zero: two zeros would agree and prove nothing."""
    pairs = zip(jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(exact), strict=True)
    for (path, got), expected in pairs:
        name = jax.tree_util.keystr(path)
        assert got.dtype == expected.dtype == jnp.result_type(float), name
        assert np.linalg.norm(got) > 0, name
        assert np.linalg.norm(expected) > 0, name
        assert rules.relative_error(got, expected) <= tolerance, name


def check_full(name, tolerance):
    network, data = make(name), make_data()
    exact = jax.jit(jax.grad(energy(network, *data)))(rules.parameters(network))
    assert_leaves(gradient(rules.ostl(network, LOSS), network, data, 1), exact, tolerance)


@pytest.mark.parametrize("name", CELLS)
def test_full_ostl_is_bptt_in_every_leaf(name):
    with jax.enable_x64(True):
        check_full(name, 1e-12)


@pytest.mark.parametrize("name", ["mgu"])
def test_full_ostl_is_bptt_in_float32(name):
    check_full(name, 1e-5)


def test_every_cell_is_in_the_table():
    def cells(module):
        kinds = [k for k in vars(module).values() if isinstance(k, type)]
        return {k for k in kinds if issubclass(k, nnx.RNNCellBase)} - {nnx.RNNCellBase}

    known = {kind for kind, _ in CELLS.values()}
    # a network is made of cells, and a delay line has no parameter
    assert cells(simulator) - {Network, DelayLine} <= known
    assert cells(nnx) <= known


@pytest.mark.parametrize("name", SMOOTH)
def test_ostl_is_the_slope_of_the_loss_of_a_smooth_cell(name):
    """Differences of fourth order along one random unit direction in each leaf."""
    h = 1e-4
    with jax.enable_x64(True):
        network, data = make(name), make_data()
        leaves, tree = jax.tree.flatten(rules.parameters(network))
        rng = np.random.default_rng(0)
        along = [rng.normal(size=leaf.shape) for leaf in leaves]
        along = [v / np.linalg.norm(v) for v in along]
        steps = h * np.array([1, -1, 2, -2])
        moves = [  # leaf i moves where it is its turn, and stays in the turns of the others
            np.stack([d * v * (i == turn) for turn in range(len(leaves)) for d in steps])
            for i, v in enumerate(along)
        ]
        moved = tree.unflatten([leaf + m for leaf, m in zip(leaves, moves, strict=True)])
        losses = np.asarray(jax.jit(jax.vmap(energy(network, *data)))(moved)).reshape(-1, 4)
        grads = jax.tree.leaves(gradient(rules.ostl(network, LOSS), network, data, STEPS // 2))
    slopes = losses @ np.array([8, -8, -1, 1]) / (12 * h)
    # the losses are sums, off by a few roundings; what is left of the curvature is of order h^4
    error = 5 * np.finfo(np.float64).eps * losses.max() / h
    got = [np.vdot(g, v) for g, v in zip(grads, along, strict=True)]
    np.testing.assert_allclose(got, slopes, rtol=0, atol=error)
    assert np.abs(slopes).min() > 1e5 * error, "a slope that is nearly 0 proves nothing"


STACKS = {
    "snu, lstm, soft snu": ("snu recurrent", "lstm", "soft snu recurrent"),
    "mgu, alif, gru": ("mgu", "alif recurrent", "gru"),
    "optimized lstm, synaptic lif, leaky": (
        "optimized lstm",
        "synaptic lif recurrent",
        "leaky readout",
    ),
}


@pytest.mark.parametrize("names", STACKS.values(), ids=STACKS)
def test_deep_stack_is_bptt_with_the_carries_above_stopped(names):
    with jax.enable_x64(True):
        network, data = make(*names), make_data()
        total = energy(network, *data)

        @jax.jit
        @partial(jax.vmap, in_axes=(0, None))
        def oracle(is_open, params):
            """BPTT with the carries of the layers that are not open held constant."""

            def cut(carry):
                def one(share, c):
                    return share * c + jax.lax.stop_gradient((1 - share) * c)

                return tuple(
                    jax.tree.map(partial(one, share), c)
                    for share, c in zip(is_open, carry, strict=True)
                )

            return jax.grad(partial(total, cut=cut))(params)

        exact = oracle(jnp.tril(jnp.ones((4, 4))), rules.parameters(network))["layers"]
        got = gradient(rules.ostl(network, LOSS), network, data, 4)["layers"]
        for layer in range(4):
            of_layer = jax.tree.map(lambda g, i=layer: g[i], exact[layer])
            assert_leaves(got[layer], of_layer, 1e-12)


def shifted(carry, y):
    """The carry with another output; the last entry of the carries here."""
    return carry._replace(y=y) if hasattr(carry, "_replace") else (*carry[:-1], y)


@pytest.mark.parametrize(
    "name",
    [
        "lif recurrent, none",
        "lif recurrent, detached",
        "leaky readout recurrent",
        "lstm",
        "optimized lstm",
    ],
)
def test_local_traces_with_the_total_learning_signal_are_exact(name):
    """E-prop's identity, for cells in which y acts on the next step through H alone.

    The signal is dE/dy_t with every later effect of y_t: BPTT to zeros that are added to y.
    """
    with jax.enable_x64(True):
        cell, (xs, _) = make(name).layers[0], make_data()
        weights = jax.random.normal(jax.random.key(4), (STEPS, BATCH, N))

        @jax.jit
        @jax.grad
        def signal(shifts):
            def step(carry, inputs):
                x, shift, weight = inputs
                carry, y = cell(carry, x)
                return shifted(carry, y + shift), (weight * (y + shift)).sum()

            carry = cell.initialize_carry(xs.shape[1:], rngs=nnx.Rngs(0))
            return jax.lax.scan(step, carry, (xs, shifts, weights))[1].sum()

        def linear(y, weight):
            return (y * weight).sum(-1)

        learning = signal(jnp.zeros((STEPS, BATCH, N)))
        assert rules.relative_error(learning, weights) > 1e-2  # there are later effects
        exact = gradient(rules.bptt(cell, linear), cell, (xs, weights), STEPS)
        rule = rules.ostl(cell, linear, scope="no_h")
        assert_leaves(gradient(rule, cell, (xs, learning), 4), exact, 1e-12)

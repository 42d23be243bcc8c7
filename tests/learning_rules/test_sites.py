"""Cells taken apart: which are unit-wise, and gradients of cells that share, mix or nest kernels.

Flax's cells, and every scope against its reference, stand in `test_every_cell.py` and
`test_scopes.py`; here are the sizes of traces and the shapes of cells that users write.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spikebit import learning_rules as rules
from spikebit.simulator import Network

pytestmark = pytest.mark.usefixtures("compile_quickly")
N_IN, N, BATCH, STEPS = 4, 5, 2, 8
LOSS = rules.losses.squared_error
XS = jax.random.normal(jax.random.key(0), (STEPS, BATCH, N_IN))
TARGETS = jax.random.normal(jax.random.key(1), (STEPS, BATCH, N))


def kernel(key, rows, columns=N):
    return nnx.Param(jax.random.normal(jax.random.key(key), (rows, columns)) / 2)


class Cell(nnx.RNNCellBase):
    """A carry (memory, y) and `update(memory, y, x, hold)`; `hold` marks y in a product."""

    hold = staticmethod(lambda y: y)

    def __call__(self, carry, x):
        memory, y = self.update(*carry, x)
        return (memory, y), y

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return jnp.zeros((*input_shape[:-1], N)), jnp.zeros((*input_shape[:-1], N))

    @property
    def num_feature_axes(self):
        return 1


class Concatenated(Cell):
    """One kernel for [x, y], as many write it."""

    def __init__(self):
        self.kernel, self.bias = kernel(2, N_IN + N), nnx.Param(jnp.full(N, 0.3))

    def update(self, memory, y, x):
        z = jnp.concatenate([x, self.hold(y)], -1) @ self.kernel[...]
        memory = 0.7 * memory + z + self.bias[...]
        return memory, jnp.tanh(memory)


class Shared(Cell):
    """One kernel in two products, and a decay of each unit."""

    def __init__(self):
        self.w, self.h = kernel(2, N_IN), kernel(3, N)
        self.decay = nnx.Param(jnp.linspace(0.1, 0.9, N))

    def update(self, memory, y, x):
        h = self.h[...]
        z = x @ self.w[...] + self.hold(y) @ h + jnp.sin(self.hold(memory)) @ h
        memory = jax.nn.sigmoid(self.decay[...]) * memory + jax.nn.softplus(z)
        return memory, jax.nn.relu(memory - 1)


class Gated(Cell):
    """Gates of one wide kernel, in turn by unit: a reshape tells which is whose."""

    def __init__(self):
        self.w, self.h = kernel(2, N_IN, 2 * N), kernel(3, N, 2 * N)

    def update(self, memory, y, x):
        z = x @ self.w[...] + self.hold(y) @ self.h[...]
        gate, new = jnp.split(z, 2, -1)
        memory = memory + jax.nn.sigmoid(gate) * (jnp.tanh(new) - memory)
        return memory, jnp.cos(memory)


class ReadOut(Gated):
    """Gated units seen through a product of their own; the state does not see it."""

    def __init__(self):
        super().__init__()
        self.out, self.gain = kernel(4, N), nnx.Param(jnp.array(1.5))

    def __call__(self, carry, x):
        memory, y = self.update(*carry, x)
        return (memory, y), self.gain[...] * (y @ self.out[...])


class Nested(Cell):
    """The reset gate of the first GRU: a product of what was itself learnt at this step."""

    def __init__(self):
        self.w, self.r, self.h = kernel(2, N_IN), kernel(3, N), kernel(4, N)

    def update(self, memory, y, x):
        r = jax.nn.sigmoid(self.hold(y) @ self.r[...])
        memory = 0.8 * memory + x @ self.w[...] + (r * self.hold(y)) @ self.h[...]
        return memory, jnp.tanh(memory)


class Interleaved(Gated):
    """Gates that lie side by side for each unit."""

    def update(self, memory, y, x):
        z = x @ self.w[...] + self.hold(y) @ self.h[...]
        gate, new = jnp.moveaxis(z.reshape(*z.shape[:-1], N, 2), -1, 0)
        memory = memory + jax.nn.sigmoid(gate) * (jnp.tanh(new) - memory)
        return memory, jnp.cos(memory)


class Normalised(Cell):
    """Units share their mean, and the kernel is used outside of its product as well."""

    def __init__(self):
        self.w, self.h, self.scale = kernel(2, N_IN), kernel(3, N), nnx.Param(jnp.array(0.8))

    def update(self, memory, y, x):
        w = self.w[...] / jnp.linalg.norm(self.w[...])
        memory = 0.5 * memory + self.scale[...] * (x @ w + self.hold(y) @ self.h[...])
        return memory, jnp.tanh(memory - memory.mean(-1, keepdims=True))


class FeedForward(Cell):
    """No path from unit to unit."""

    def __init__(self):
        self.w = kernel(2, N_IN)

    def update(self, memory, y, x):
        memory = 0.6 * memory * (1 - y) + x @ self.w[...]
        return memory, jax.nn.sigmoid(memory)


UNIT_WISE = {
    "concatenated": Concatenated,
    "shared": Shared,
    "gated": Gated,
    "read out": ReadOut,
    "feed-forward": FeedForward,
}
MIXED = {"nested": Nested, "interleaved": Interleaved, "normalised": Normalised}
CELLS = UNIT_WISE | MIXED


def backpropagated(network):
    graphdef, params, rest = nnx.split(network, nnx.Param, ...)

    def total(params):
        def step(carry, inputs):
            carry, y = nnx.merge(graphdef, params, rest)(carry, inputs[0])
            return carry, LOSS(y, inputs[1]).mean()

        return jax.lax.scan(step, network.initialize_carry(XS.shape[1:]), (XS, TARGETS))[1].sum()

    return jax.jit(jax.grad(total))(params)


def online(network, scope, chunk):
    rule = rules.ostl(network, LOSS, scope=scope)

    def run(params):
        return rules.run_sequence(rule, params, XS, TARGETS, chunk=chunk).grads

    return jax.jit(run)(rules.parameters(network))


def assert_leaves(grads, expected, tolerance=1e-5):
    pairs = zip(jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(expected), strict=True)
    for (path, g), e in pairs:
        assert np.linalg.norm(e) > 0, jax.tree_util.keystr(path)
        assert rules.relative_error(g, e) <= tolerance, jax.tree_util.keystr(path)


def rows(network, scope):
    trace = rules.ostl(network, LOSS, scope=scope).init(rules.parameters(network), XS).traces[0]
    assert jax.tree.leaves(trace)
    return {leaf.shape[1] for leaf in jax.tree.leaves(trace)}


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("chunk", [1, 4])
def test_full_is_bptt_however_a_cell_is_written(name, chunk):
    network = Network([CELLS[name]()])
    assert_leaves(online(network, "full", chunk), backpropagated(network))


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("chunk", [1, 4])
def test_without_h_is_bptt_with_the_state_held_in_products(name, chunk):
    network, held = Network([CELLS[name]()]), Network([CELLS[name]()])
    held.layers[0].hold = jax.lax.stop_gradient
    assert_leaves(online(network, "no_h", chunk), backpropagated(held))
    if name != "feed-forward":
        difference = rules.relative_error(backpropagated(held), backpropagated(network))
        assert difference > 1e-3  # there was something to leave out


@pytest.mark.parametrize("name", ["concatenated", "shared", "gated"])
def test_a_unit_still_tells_itself_what_it_did(name):
    """SnAp-1 of a network without influence between units is exact, and only that is left out."""
    network = Network([CELLS[name]()])
    cell = network.layers[0]
    recurrent = cell.kernel if name == "concatenated" else cell.h
    w = np.array(recurrent[...])
    own = np.arange(N)[:, None] == np.arange(w.shape[1]) % N
    if name == "concatenated":
        own = np.concatenate([np.ones((N_IN, N), bool), own])
    recurrent[...] = jnp.where(own, w, 0)
    exact = backpropagated(network)
    assert_leaves(online(network, "unit", 4), exact)
    assert rules.relative_error(online(network, "no_h", 4), exact) > 1e-3


def test_a_trace_has_a_row_for_each_array_where_units_are_alone():
    for name, kind in UNIT_WISE.items():
        network = Network([kind()])
        assert rows(network, "no_h") == rows(network, "unit") == {2}, name
        assert rows(network, "full") == ({2} if name == "feed-forward" else {2 * N}), name
    for name, kind in MIXED.items():
        assert rows(Network([kind()]), "no_h") == {2 * N}, name
    for kind, arrays in {
        nnx.LSTMCell: 2,
        nnx.OptimizedLSTMCell: 2,
        nnx.GRUCell: 1,
        nnx.SimpleCell: 1,
    }.items():
        network = Network([kind(N_IN, N, rngs=nnx.Rngs(0))])
        assert rows(network, "no_h") == rows(network, "unit") == {arrays}
        assert rows(network, "full") == {arrays * N}


def sizes_in_loops(jaxpr, length, inside=False):
    """The sizes of all that the steps of a loop of this length compute."""
    for eqn in jaxpr.eqns:
        within = inside or eqn.params.get("length") == length
        if within:
            yield from (v.aval.size for v in eqn.outvars if eqn.primitive.name != "scan")
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from sizes_in_loops(inner, length, within)


@pytest.mark.parametrize("scope", ["full", "no_h", "unit"])
@pytest.mark.parametrize("kind", [nnx.LSTMCell, nnx.OptimizedLSTMCell, nnx.GRUCell])
def test_no_step_of_a_chunk_computes_a_derivative_in_the_shape_of_a_kernel(kind, scope):
    n, steps, batch = 32, 7, 3
    network = Network([kind(n, n, rngs=nnx.Rngs(0))])
    rule, params = rules.ostl(network, LOSS, scope=scope), rules.parameters(network)
    xs = jnp.zeros((steps, batch, n))
    state = rule.init(params, xs)
    jaxpr = jax.make_jaxpr(rule.step)(params, state, xs, xs).jaxpr
    largest_kernel = max(leaf.size for leaf in jax.tree.leaves(params))
    # each with a signal for all products, (4 n,), and one more for the gradient of the chunk
    rows = 2 * (n if scope == "full" else 1) + 1
    sizes = list(sizes_in_loops(jaxpr, steps))
    assert sizes
    assert max(sizes) <= max(batch * rows * 4 * n, largest_kernel)

"""Cells taken apart: which are unit-wise, and gradients of cells that share, mix or nest kernels.

Flax's cells, and every scope against its reference, stand in `test_every_cell.py` and
`test_scopes.py`; here are the sizes of traces and the shapes of cells that users write.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree

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


class Rows(Cell):
    """Parameters of units that have a first axis of 1."""

    def __init__(self):
        self.w, self.h = kernel(2, N_IN), kernel(3, N)
        self.bias, self.decay = nnx.Param(jnp.full((1, N), 0.2)), kernel(5, 1)

    def update(self, memory, y, x):
        memory = jax.nn.sigmoid(self.decay[...]) * memory + x @ self.w[...] + self.bias[...]
        memory = memory + self.hold(y) @ self.h[...]
        return memory, jnp.tanh(memory)


class Centred(Cell):
    """Units that see each other's outputs less their mean, and in another order."""

    def __init__(self):
        self.w, self.h, self.g = kernel(2, N_IN), kernel(3, N), kernel(4, N)

    def update(self, memory, y, x):
        y = self.hold(y)
        seen = (y - y.mean(-1, keepdims=True)) @ self.h[...] + y[..., ::-1] @ self.g[...]
        memory = 0.8 * memory + x @ self.w[...] + seen
        return memory, jnp.tanh(memory)


class Rotating(Cell):
    """Complex units, each of which turns and decays by itself; the output is a product."""

    def __init__(self):
        self.w, self.c = kernel(2, N_IN), kernel(3, N)
        self.nu = nnx.Param(jnp.linspace(-1.0, 0.5, N))
        self.theta = nnx.Param(jnp.linspace(0.1, 2.0, N))

    def __call__(self, carry, x):
        turn = jnp.exp(jax.lax.complex(-jnp.exp(self.nu[...]), self.theta[...]))
        z = turn * carry + (x @ self.w[...]).astype(jnp.complex64)
        return z, z.real @ self.c[...]

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return jnp.zeros((*input_shape[:-1], N), jnp.complex64)


class Clocked(Gated):
    """Counts steps: one clock for all samples, and what is left of each unit's silence."""

    def __init__(self):
        super().__init__()
        self.layers = nnx.List([nnx.Linear(N, N, rngs=nnx.Rngs(0))])

    def __call__(self, carry, x):
        (memory, y), clock, silent = carry
        x = x * jnp.cos(0.1 * clock.astype(jnp.float32))
        memory, y = self.update(memory, jnp.where(silent > 0, 0, y), x)
        silent = jnp.where(y > 0.9, 2, jnp.maximum(silent - 1, 0))
        return ((memory, y), clock + 1, silent), self.layers[0](y)

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        carry = super().initialize_carry(input_shape)
        return carry, jnp.zeros((), jnp.int32), jnp.zeros((*input_shape[:-1], N), jnp.int32)


UNIT_WISE = {
    "concatenated": Concatenated,
    "shared": Shared,
    "gated": Gated,
    "read out": ReadOut,
    "feed-forward": FeedForward,
    "rows": Rows,
    "centred": Centred,
}
MIXED = {"nested": Nested, "interleaved": Interleaved, "normalised": Normalised}
CELLS = UNIT_WISE | MIXED
ONE_PATH = {"complex": Rotating, "clocked": Clocked}  # without a `hold`


def backpropagated(network):
    graphdef, params, rest = nnx.split(network, nnx.Param, ...)

    def total(params):
        def step(carry, inputs):
            carry, y = nnx.merge(graphdef, params, rest)(carry, inputs[0])
            return carry, LOSS(y, inputs[1]).mean()

        return jax.lax.scan(step, network.initialize_carry(XS.shape[1:]), (XS, TARGETS))[1].sum()

    return jax.jit(jax.grad(total))(params)


@cache
def exact(name):
    """BPTT of a network of this cell, which two tests compare with."""
    return backpropagated(Network([(CELLS | ONE_PATH)[name]()]))


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


@pytest.mark.parametrize("name", CELLS | ONE_PATH)
def test_full_is_bptt_however_a_cell_is_written(name):
    network = Network([(CELLS | ONE_PATH)[name]()])
    assert_leaves(online(network, "full", 2), exact(name))


@pytest.mark.parametrize("name", CELLS)
def test_without_h_is_bptt_with_the_state_held_in_products(name):
    network, held = Network([CELLS[name]()]), Network([CELLS[name]()])
    held.layers[0].hold = jax.lax.stop_gradient
    expected = backpropagated(held)
    assert_leaves(online(network, "no_h", 2), expected)
    if name != "feed-forward":  # there was something to leave out
        assert rules.relative_error(expected, exact(name)) > 1e-3


@pytest.mark.parametrize("name", ["concatenated", "shared", "gated", "rows"])
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
    expected = backpropagated(network)
    assert_leaves(online(network, "unit", 4), expected)
    assert rules.relative_error(online(network, "no_h", 4), expected) > 1e-3


def test_a_trace_has_a_row_for_each_array_where_units_are_alone():
    for name, kind in UNIT_WISE.items():
        network = Network([kind()])
        assert rows(network, "no_h") == {2}, name
        assert rows(network, "unit") == ({2 * N} if name == "centred" else {2}), name
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


@pytest.mark.parametrize(("kind", "scope"), [(nnx.LSTMCell, "no_h"), (nnx.GRUCell, "full")])
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


def test_units_that_see_a_mean_keep_what_they_tell_themselves_by_it():
    """SnAp-1 by a loop: the influence of a unit's state on any other is dropped at each step."""
    cell = Centred()
    graphdef, params, rest = nnx.split(cell, nnx.Param, ...)
    theta, unravel = ravel_pytree(params)
    own = np.arange(2 * N) % N
    same = own[:, None] == own

    def step(theta, s, x):
        carry, y = nnx.merge(graphdef, unravel(theta), rest)((s[None, :N], s[None, N:]), x[None])
        return jnp.concatenate(carry, -1)[0], y[0]

    @jax.jit
    def sample(xs, targets):
        def body(state, inputs):
            s, eps = state
            x, target = inputs
            (direct, a), (d, c) = jax.jacrev(step, (0, 1))(theta, s, x)
            new, y = step(theta, s, x)
            signal = jax.grad(lambda y: LOSS(y, target))(y)
            gradient = signal @ (jnp.where(same[:N], c, 0) @ eps + d)
            return (new, jnp.where(same, a, 0) @ eps + direct), gradient

        start = jnp.zeros(2 * N), jnp.zeros((2 * N, theta.size))
        return jax.lax.scan(body, start, (xs, targets))[1].sum(0)

    total = sum(sample(XS[:, b], TARGETS[:, b]) for b in range(BATCH))
    assert_leaves(online(cell, "unit", 4), unravel(total / BATCH))


def test_all_that_a_cell_counts_begins_anew_with_a_sequence():
    network = Network([Clocked()])
    params, rule = rules.parameters(network), rules.ostl(network, LOSS)
    resets = jnp.zeros((STEPS, BATCH), bool).at[4].set(True)
    xs = XS.at[4:].set(0)  # the clock goes on, but tells nothing here

    @partial(jax.jit, static_argnames=("rule", "chunk"))
    def run(rule, xs, targets, resets, chunk=None):
        return rules.run_sequence(rule, params, xs, targets, resets=resets, chunk=chunk)

    stream = run(rule, xs, TARGETS, resets, chunk=4)
    new = jnp.zeros((4, BATCH), bool)
    pieces = [run(rule, xs[p], TARGETS[p], new) for p in (np.s_[:4], np.s_[4:])]
    np.testing.assert_allclose(stream.loss, sum(p.loss for p in pieces), rtol=1e-6)
    by_bptt = run(rules.bptt(network, LOSS), xs, TARGETS, resets)
    assert_leaves(stream.grads, by_bptt.grads)
    assert_leaves(stream.grads, jax.tree.map(jnp.add, *(p.grads for p in pieces)))


def test_kernels_of_another_width_than_the_state():
    class Narrow(Gated):
        def update(self, memory, y, x):
            w, h = self.w[...].astype(jnp.bfloat16), self.h[...].astype(jnp.bfloat16)
            z = x.astype(w.dtype) @ w + self.hold(y).astype(w.dtype) @ h
            gate, new = jnp.split(z.astype(memory.dtype), 2, -1)
            memory = memory + jax.nn.sigmoid(gate) * (jnp.tanh(new) - memory)
            return memory, jnp.cos(memory)

    class Stored(Narrow):
        def __init__(self):
            super().__init__()
            self.w = nnx.Param(self.w[...].astype(jnp.bfloat16))
            self.h = nnx.Param(self.h[...].astype(jnp.bfloat16))

    for kind in (Narrow, Stored):
        network = Network([kind()])
        grads, expected = online(network, "full", 4), backpropagated(network)
        for g, p in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
            assert g.dtype == p.dtype
            assert rules.relative_error(g, p) < 0.02  # sums of roundings of 2^-9


def test_what_is_refused():
    class OneKey(Cell):
        def __init__(self):
            self.w = kernel(2, N_IN)

        def __call__(self, carry, x):
            key, memory = carry
            return (jax.random.split(key)[0], memory + x @ self.w[...]), memory

        def initialize_carry(self, input_shape, rngs=None, carry_init=None):
            return jax.random.key(0), jnp.zeros((*input_shape[:-1], N))

    class LearntStart(FeedForward):
        def __init__(self):
            super().__init__()
            self.start = kernel(4, 1)

        def initialize_carry(self, input_shape, rngs=None, carry_init=None):
            memory, y = super().initialize_carry(input_shape)
            return memory + self.start[...], y

    for kind, message in (
        (OneKey, r"carries an array key<fry>\[\] for a batch of 2: .*random keys too"),
        (LearntStart, r"a carry that depends on its parameters, which no rule would learn"),
    ):
        network = Network([kind()])
        with pytest.raises(ValueError, match=message):
            rules.ostl(network, LOSS).init(rules.parameters(network), XS)
    network = Network([FeedForward()])
    with pytest.raises(
        ValueError, match=r"at least one time step and one sample; got shape \(8, 0"
    ):
        rules.ostl(network, LOSS).init(rules.parameters(network), XS[:, :0])

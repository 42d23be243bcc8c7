"""State variables in formats: what is stored, what stays as it was, what is refused."""

from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spikebit.learning_rules.stack import UnitwiseCell
from spikebit.quant import parse
from spikebit.quant.state_formats import state_formats, state_losses, trace_storage
from spikebit.quant.storage import storage
from spikebit.simulator import (
    ALIFCell,
    LeakyReadout,
    LIFCell,
    Network,
    SNUCell,
    SoftSNUCell,
    SynapticLIFCell,
    simulate,
)

N_IN, N, BATCH, STEPS = 5, 7, 3, 20
CELLS = {
    "snu": (SNUCell, {"membrane": "s"}),
    "soft snu": (SoftSNUCell, {"membrane": "s"}),
    "lif": (LIFCell, {"membrane": "v"}),
    "lif refractory": (partial(LIFCell, refractory=2), {"membrane": "v"}),
    "synaptic lif": (SynapticLIFCell, {"membrane": "v", "synaptic_current": "i"}),
    "alif": (ALIFCell, {"membrane": "v", "adaptation": "a"}),
    "leaky readout": (LeakyReadout, {"membrane": "v"}),
}
FLAX = {
    "lstm": (nnx.LSTMCell, {"cell": 0, "hidden": 1}),
    "optimized lstm": (nnx.OptimizedLSTMCell, {"cell": 0, "hidden": 1}),
    "gru": (nnx.GRUCell, {"hidden": None}),
    "simple": (nnx.SimpleCell, {"hidden": None}),
}


@pytest.fixture(autouse=True)
def _compile_quickly():
    """These tests compile a lot and compute little."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def make(name):
    if name in FLAX:
        return FLAX[name][0](N_IN, N, rngs=nnx.Rngs(0))
    return CELLS[name][0](N_IN, N, recurrent=True, rngs=nnx.Rngs(0))


def inputs(steps=STEPS, seed=0):
    return 3 * jax.random.normal(jax.random.key(seed), (steps, BATCH, N_IN))


def run(cell, xs, rngs=None):
    """Carries of all steps and outputs."""
    carry = cell.initialize_carry(xs.shape[1:], rngs or nnx.Rngs(0))

    def step(carry, x):
        carry, y = cell(carry, x)
        return carry, (carry, y)

    return jax.lax.scan(step, carry, xs)[1]


def variable(carry, place):
    if place is None:
        return carry
    return carry[place] if isinstance(place, int) else getattr(carry, place)


@pytest.mark.parametrize("name", [*CELLS, *FLAX])
def test_without_formats_and_in_float32_all_bits_stay(name):
    """Step by step: in a compiled loop the compiler is free to fuse the two differently."""
    cell, roles = make(name), {**CELLS, **FLAX}[name][1]
    for formats in ({}, dict.fromkeys(roles, "float32")):
        wrapped = state_formats(cell, formats)
        carry = other = cell.initialize_carry((BATCH, N_IN), nnx.Rngs(0))
        for x in inputs(6):
            carry, y = cell(carry, x)
            other, same = wrapped(other, x)
            for a, b in zip(
                jax.tree.leaves((carry, y)), jax.tree.leaves((other, same)), strict=True
            ):
                np.testing.assert_array_equal(a, b)
    assert nnx.to_pure_dict(nnx.state(wrapped)).keys() == nnx.to_pure_dict(nnx.state(cell)).keys()
    assert isinstance(wrapped, type(cell))
    assert isinstance(wrapped, UnitwiseCell) == isinstance(cell, UnitwiseCell)


@pytest.mark.parametrize(
    ("name", "rounding"),
    [(name, "nearest_even") for name in (*CELLS, *FLAX)]
    + [(name, "stochastic") for name in ("synaptic lif", "lif refractory", "lstm")],
)
def test_the_named_variables_are_on_their_grids_and_only_they(name, rounding):
    cell, roles = make(name), {**CELLS, **FLAX}[name][1]
    for role, place in roles.items():
        wrapped = state_formats(cell, {role: "fixed8.4"}, rounding=rounding)
        carries = run(wrapped, inputs())[0]
        carries = getattr(carries, "carry", carries)
        for other in roles.values():
            x = np.asarray(variable(carries, other)) * 16
            assert np.any(x != 0)
            assert np.all(x == np.round(x)) == (other == place), (role, other)


@pytest.mark.parametrize("name", CELLS)
def test_a_step_is_the_cells_then_rounding_then_fire(name):
    cell, roles = make(name), CELLS[name][1]
    fmt = parse("fixed8.3")
    wrapped = state_formats(cell, dict.fromkeys(roles, fmt))
    carry = cell.initialize_carry((BATCH, N_IN))
    for x in inputs():
        new = cell.charge(carry, cell.drive(carry, x))
        new = new._replace(**{f: fmt.decode(fmt.encode(getattr(new, f))) for f in roles.values()})
        new = new._replace(y=cell.fire(new))
        got, y = wrapped(carry, x)
        for a, b in zip(got, new, strict=True):
            np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(y, new.y)
        carry = new


@pytest.mark.parametrize("name", FLAX)
def test_the_output_of_a_flax_cell_is_the_stored_state(name):
    wrapped = state_formats(make(name), {"hidden": "fixed8.4"})
    carries, ys = run(wrapped, inputs())
    place = FLAX[name][1]["hidden"]
    np.testing.assert_array_equal(variable(carries, place), ys)


def test_the_derivative_is_straight_through_inside_and_zero_where_it_saturates():
    cell = LeakyReadout(None, 3, tau=10e-3)
    wrapped = state_formats(cell, {"membrane": "fixed4.1"})  # -4 to 3.5
    carry = cell.initialize_carry((3,))
    x = jnp.array([0.3, 3.0, 9.0])

    def potential(v):
        return wrapped(carry._replace(v=v), x)[0].v

    v = jnp.array([1.0, 1.0, 1.0])
    np.testing.assert_array_equal(potential(v), [1.0, 3.5, 3.5])
    decay = jnp.float32(cell.decay)
    # 0.905 + 3 lies beyond the range of 3.5
    np.testing.assert_array_equal(jax.jacobian(potential)(v), jnp.diag(jnp.array([decay, 0, 0])))


def test_losses_are_counted_by_role():
    cell = SynapticLIFCell(None, 4)
    formats = {"membrane": "fixed4.1", "synaptic_current": "fixed8.1"}
    wrapped = state_formats(cell, formats)
    carry = cell.initialize_carry((4,))
    # the current is x, and so is the potential: -4 .. 3.5 in steps of 1/2, or -64 .. 63.5
    lost = state_losses(wrapped, carry, jnp.array([0.1, 0.0, 5.0, 100.0]))
    np.testing.assert_allclose(lost["membrane"], [0.5, 0.25])
    np.testing.assert_allclose(lost["synaptic_current"], [0.25, 0.25])
    assert state_losses(cell, carry, jnp.zeros(4)) == {}


@pytest.mark.parametrize("name", ["lif", "lstm"])
def test_stochastic_rounding_is_unbiased_independent_and_reproducible(name):
    cell = make(name)
    role = next(iter({**CELLS, **FLAX}[name][1]))
    wrapped = state_formats(cell, {role: "fixed8.2"}, rounding="stochastic")
    x = jnp.broadcast_to(inputs(1)[0, :1], (5000, N_IN))  # one sample many times
    exact = variable(cell(cell.initialize_carry(x.shape, nnx.Rngs(0)), x)[0], _place(name))[0]

    def stored(seed):
        carry = wrapped(wrapped.initialize_carry(x.shape, rngs=nnx.Rngs(seed)), x)[0]
        return np.asarray(variable(getattr(carry, "carry", carry), _place(name)))

    got = stored(1)
    part = np.asarray(exact) * 4 % 1
    sigma = np.sqrt(part * (1 - part) / len(x)) / 4
    assert np.all(np.abs(got.mean(0) - exact) <= 4.5 * sigma + 1e-6)
    np.testing.assert_array_equal(got, stored(1))
    assert np.any(got != stored(2))
    up = got > np.asarray(exact)
    # neighbours among samples and units agree no more often than chance
    for a, b in ((up[1:], up[:-1]), (up[:, 1:], up[:, :-1])):
        expected = a.mean(0) * b.mean(0)
        assert np.all(np.abs((a & b).mean(0) - expected) <= 4.5 * np.sqrt(0.25 / len(x)))


def _place(name):
    return next(iter({**CELLS, **FLAX}[name][1].values()))


def test_noise_goes_on_from_step_to_step():
    """A constant potential of a quarter step, rounded anew at each step."""
    wrapped = state_formats(
        SNUCell(None, 1, decay=0.0, bias=-100.0), {"membrane": "fixed8.0"}, rounding="stochastic"
    )
    xs = jnp.full((4000, 1, 1), 0.25)
    s = np.asarray(run(wrapped, xs, nnx.Rngs(3))[0].s).ravel()
    assert set(s) == {0.0, 1.0}
    bound = 4.5 * np.sqrt(0.25 * 0.75 / len(s))
    assert abs(s.mean() - 0.25) <= bound
    assert abs((s[1:] * s[:-1]).mean() - 0.0625) <= bound


def test_formats_add_up_over_calls_and_the_cell_stays_as_it_is():
    cell = make("synaptic lif")
    one = state_formats(cell, {"membrane": "fixed8.4"})
    two = state_formats(one, {"synaptic_current": "fixed8.2"}, rounding="stochastic")
    assert type(two) is type(one) is not type(cell)
    assert not hasattr(cell, "storages")
    carry = run(two, inputs())[0]
    for name, unit in (("v", 16), ("i", 4)):
        x = np.asarray(getattr(carry, name)) * unit
        np.testing.assert_array_equal(x, np.round(x))
    one.w[...] = one.w[...] + 1
    assert np.all(np.asarray(one.w[...]) != np.asarray(cell.w[...]))


def test_a_network_gives_each_cell_the_roles_it_has():
    rngs = nnx.Rngs(0)
    layers = [SynapticLIFCell(N_IN, N, rngs=rngs), nnx.LSTMCell(N, N, rngs=rngs)]
    network = Network([*layers, nnx.Linear(N, N, rngs=rngs), LeakyReadout(N, 2, rngs=rngs)])
    wrapped = state_formats(
        network, {"membrane": "fixed8.4", "cell": "fixed8.5", "eligibility_trace": "e5m2"}
    )
    records = simulate(wrapped, inputs(), record=["0.v", "0.i", "1", "3.v"]).records
    on_grid = {
        "v": bool(jnp.all(records["0.v"] * 16 % 1 == 0)),
        "i": bool(jnp.all(records["0.i"] * 16 % 1 == 0)),
        "cell": bool(jnp.all(records["1"][0] * 32 % 1 == 0)),
        "hidden": bool(jnp.all(records["1"][1] * 32 % 1 == 0)),
        "readout": bool(jnp.all(records["3.v"] * 16 % 1 == 0)),
    }
    assert on_grid == {"v": True, "i": False, "cell": True, "hidden": False, "readout": True}
    traces = [trace_storage(layer, "eligibility_trace") for layer in wrapped.layers]
    assert [t and t.fmt.name for t in traces] == ["e5m2", "e5m2", None, "e5m2"]
    assert trace_storage(wrapped.layers[0], "stdp_trace") is None
    assert type(network.layers[0]) is SynapticLIFCell


class Named(nnx.RNNCellBase):
    """A cell of somebody else, whose carry is a dictionary."""

    roles: ClassVar = {"membrane": "v"}

    def __call__(self, carry, x):
        v = 0.5 * carry["v"] + x
        return {"v": v, "n": carry["n"] + 1}, v

    def initialize_carry(self, input_shape, rngs=None, carry_init=None):
        return {"v": jnp.zeros(input_shape), "n": jnp.zeros(input_shape[:-1], jnp.int32)}

    @property
    def num_feature_axes(self):
        return 1


def test_any_cell_that_declares_its_roles():
    carry, ys = run(state_formats(Named(), {"membrane": "fixed8.1"}), inputs())
    np.testing.assert_array_equal(carry["v"], ys)
    np.testing.assert_array_equal(carry["v"] * 2, jnp.round(carry["v"] * 2))
    np.testing.assert_array_equal(carry["n"][-1], STEPS)

    class Wrong(Named):
        roles: ClassVar = {"membrane": "u"}

    with pytest.raises(ValueError, match=r"declares a state at 'u', .* the leaves 'n', 'v'"):
        run(state_formats(Wrong(), {"membrane": "fixed8.1"}), inputs())


@pytest.mark.parametrize("rounding", ["nearest_even", "stochastic"])
def test_under_flax_rnn_jit_vmap_and_feature_maps(rounding):
    wrapped = state_formats(make("lif"), {"membrane": "fixed8.4"}, rounding=rounding)
    xs = inputs()
    ys = run(wrapped, xs, nnx.Rngs(4))[1]
    carry = wrapped.initialize_carry(xs.shape[1:], rngs=nnx.Rngs(4))
    flax = nnx.RNN(wrapped, time_major=True, rngs=False)(xs, initial_carry=carry)
    np.testing.assert_array_equal(flax, ys)
    singles = jax.vmap(lambda c, x: wrapped(c, x)[1])(carry, xs[0])
    np.testing.assert_array_equal(singles, ys[0])
    maps = state_formats(SNUCell(None, 2), {"membrane": "fixed8.4"}, rounding=rounding)
    x = jax.random.normal(jax.random.key(1), (2, 4, 4, 2))
    got = maps(maps.initialize_carry(x.shape, rngs=nnx.Rngs(0)), x)[0]
    assert got.s.shape == x.shape
    np.testing.assert_array_equal(got.s * 16, jnp.round(got.s * 16))


def test_equal_cells_share_a_compiled_function():
    traced = []

    @jax.jit
    def step(cell, carry, x):
        traced.append(cell)
        return cell(carry, x)[1]

    for seed in (0, 1):
        cell = SNUCell(N_IN, N, rngs=nnx.Rngs(seed))
        wrapped = state_formats(cell, {"membrane": "fixed8.4"})
        step(wrapped, wrapped.initialize_carry((BATCH, N_IN)), inputs()[0])
    assert len(traced) == 1


def test_what_is_wrong_is_named():
    snu, lstm = make("snu"), make("lstm")
    with pytest.raises(ValueError, match=r"SNUCell has no state 'membrame'; did you mean membrane"):
        state_formats(snu, {"membrame": "fixed8.4"})
    with pytest.raises(ValueError, match=r"LSTMCell has no state 'membrane'; .* cell, hidden"):
        state_formats(lstm, {"membrane": "fixed8.4"})
    with pytest.raises(ValueError, match=r"Network has no state 'adaptation'"):
        state_formats(Network([snu]), {"adaptation": "fixed8.4"})
    with pytest.raises(ValueError, match=r"\(membrane='int8'\): int8 takes its scale.*fixed8\.4"):
        state_formats(snu, {"membrane": "int8"})
    with pytest.raises(ValueError, match=r"membrane='fixd8.4'.*fixed8\.4"):
        state_formats(snu, {"membrane": "fixd8.4"})
    with pytest.raises(ValueError, match=r"rounding is 'up and down'; choose one of nearest_even"):
        state_formats(snu, {"membrane": "fixed8.4"}, rounding="up and down")
    with pytest.raises(ValueError, match=r"trace: rounding is 'no'"):
        storage("trace", "e5m2", "no")
    noisy = state_formats(snu, {"membrane": "fixed8.4"}, rounding="stochastic")
    with pytest.raises(ValueError, match=r"give rngs=nnx.Rngs\(seed\)"):
        noisy.initialize_carry((BATCH, N_IN))
    with pytest.raises(ValueError, match=r"Layer 0 \(SNUCellInFormats\) rounds its state"):
        simulate(Network([noisy]), inputs())

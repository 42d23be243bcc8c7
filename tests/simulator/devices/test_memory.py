"""Weights in memristive cells: the contract, the pair, what is written when, what is counted."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spikebit.quant.memory import WeightMemory, losses
from spikebit.simulator.build import make_memory
from spikebit.simulator.devices import Pair, Single, at, memristive, pcm, pulsed, set_pcm
from spikebit.simulator.devices.pulsed import NONE
from spikebit.simulator.devices.set_pulses import SetPCMParameters
from spikebit.simulator.experiment import Experiment, Memory, resolve

EXACT = pcm(programming_noise=0, drift=0, read_noise=0)
IDEAL = pulsed(step=0.01, reference=0.0, variation=NONE)
pytestmark = pytest.mark.usefixtures("compile_quickly")
PARAMS = {"w": jnp.array([[0.5, -0.25], [0.0, 0.125]]), "b": jnp.array([1.0, -2.0])}


def in_cells(*device, **settings):
    """The memory, each of its functions one program."""
    return WeightMemory(*map(jax.jit, memristive(*device, **settings)))


def key(seed=0):
    return jax.random.key(seed)


def assert_same(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def test_exact_cells_are_float32_up_to_rounding():
    memory = in_cells(EXACT)
    state = memory.init(PARAMS, key())
    assert_same(memory.read(state, key()), PARAMS, rtol=1e-6)
    updates = {"w": jnp.array([[-0.3, 0.0], [0.1, 0.2]]), "b": jnp.array([-0.5, 0.5])}
    state = memory.update(state, updates, key())
    assert_same(
        memory.read(state, key()), optax.apply_updates(PARAMS, updates), rtol=2e-6, atol=1e-7
    )
    counts = losses(state)
    assert counts["w"]["writes"] == 4 + 3
    assert counts["b"]["saturated"] == 0


def test_zeros_and_dtypes_come_back():
    params = {"a": jnp.zeros(3), "b": jnp.array([0.5, -1.0], jnp.bfloat16)}
    for device in (EXACT, IDEAL):
        memory = in_cells(device)
        read = memory.read(memory.init(params, key()))
        assert_same(read, params, atol=0.01)
        assert {k: v.dtype for k, v in read.items()} == {k: v.dtype for k, v in params.items()}


def test_updates_beyond_the_longest_train_are_cut_and_counted_or_kept_for_later():
    up = {"w": jnp.full((2, 2), 0.1), "b": jnp.zeros(2)}
    start = {"w": jnp.zeros((2, 2)), "b": jnp.zeros(2)}
    for writing, after in (("pulses", 0.04), ("mixed_precision", 0.08)):
        memory = in_cells(IDEAL, writing=writing, length=4, rounding="nearest")
        state = memory.update(memory.init(start, key()), up, key(1))
        np.testing.assert_allclose(memory.read(state)["w"], 0.04, rtol=1e-5)
        state = memory.update(state, jax.tree.map(jnp.zeros_like, up), key(2))
        np.testing.assert_allclose(memory.read(state)["w"], after, rtol=1e-5)
        cuts = losses(state)
        assert cuts["w"]["cut"] == (4 if writing == "pulses" else 8)
        assert cuts["b"]["cut"] == 0


def test_swapping_the_cells_of_a_pair_turns_the_weight_round():
    memory = in_cells(pcm())
    state = memory.init(PARAMS, key())
    swapped = state._replace(cells=jax.tree.map(lambda a: a[..., ::-1], state.cells))
    read, turned = memory.read(state), memory.read(swapped)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, -y), read, turned)


def test_programming_noise_is_that_of_both_cells():
    weights = {"w": jnp.full(50_000, 0.5).at[0].set(1.0)}
    memory = in_cells(pcm(drift=0))
    error = np.asarray(memory.read(memory.init(weights, key()))["w"], float)[1:] - 0.5
    used = 0.26348 + 1.9650 * 0.5 - 1.1731 * 0.25
    idle = 0.26348**2 * (0.5 - 0.5 / np.pi)  # of N(0, s) cut at 0
    expected = np.sqrt(used**2 + idle) / 25
    assert error.std() == pytest.approx(expected, rel=4 / np.sqrt(2 * 50_000))
    bias = -0.26348 / np.sqrt(2 * np.pi) / 25
    assert abs(error.mean() - bias) < 4 * expected / np.sqrt(50_000)


def test_time_goes_on_and_weights_drift():
    memory = in_cells(pcm(programming_noise=0, read_noise=0), dt=60.0)
    state = memory.init(PARAMS, key())
    nothing = jax.tree.map(jnp.zeros_like, PARAMS)
    for _ in range(3):
        state = memory.update(state, nothing, key())
    assert float(state.t) == 180.0
    year = memory.read(at(state, 3.15e7))
    shrunk = np.abs(np.asarray(year["b"])) / np.abs(np.asarray(PARAMS["b"]))
    nu = np.asarray(state.cells["b"].nu)[[0, 1], [0, 1]]  # of G+ of 1, and of G- of -2
    np.testing.assert_allclose(shrunk, (3.15e7 / 20 + 1) ** -nu, rtol=1e-4)
    written = memory.update(at(state, 3.15e7), {"w": nothing["w"], "b": jnp.ones(2)}, key())
    assert_same(memory.read(written)["b"], year["b"] + 1, rtol=1e-4)  # from what was there


def test_mixed_precision_loses_nothing_but_what_waits():
    """All pulses times their step and what is pending are the sum of the updates."""
    memory = in_cells(IDEAL, headroom=2.0)
    state = memory.init(PARAMS, key())
    start, total = memory.read(state), jax.tree.map(jnp.zeros_like, PARAMS)
    for i in range(30):
        updates = jax.tree.map(lambda p, i=i: 0.004 * jax.random.normal(key(i), p.shape), PARAMS)
        total = jax.tree.map(jnp.add, total, updates)
        state = memory.update(state, updates, key(i))
    moved = jax.tree.map(jnp.subtract, memory.read(state), start)
    waiting = jax.tree.map(lambda s, chi: s * chi, state.scale, state.pending)
    assert_same(jax.tree.map(jnp.add, moved, waiting), total, atol=2e-6)
    for leaf in jax.tree.leaves(state.pending):
        assert np.abs(np.asarray(leaf)).max() < 0.01
    assert losses(state)["w"]["pulses"] > 0
    assert losses(state)["w"]["stagnated"] > 0  # most updates wait


def test_stochastic_pulses_are_the_update_on_average():
    n = 40_000
    memory = in_cells(IDEAL, writing="pulses")
    state = memory.init({"w": jnp.zeros(n).at[0].set(1.0)}, key())
    new = memory.update(state, {"w": jnp.full(n, 0.0137).at[0].set(0)}, key(3))
    moved = np.asarray(memory.read(new)["w"], float)[1:]
    np.testing.assert_allclose(np.unique(np.round(moved, 5)), [0.01, 0.02])
    assert abs(moved.mean() - 0.0137) < 4 * moved.std() / np.sqrt(n)


def test_a_pair_of_set_cells_goes_down_by_the_other_cell_and_is_refreshed():
    device = set_pcm(SetPCMParameters(), noise=0)
    up, down = jnp.array([3, 0]), jnp.array([0, -3])
    state = device.init((2, 2), key(), 0.0)
    for counts in (up, down):
        state, due = Pair().pulse(device, state, counts, key(), 1.0)
    assert not np.asarray(due).any()
    w = np.asarray(Pair().decode(state.g))
    assert w[0] == pytest.approx(-w[1])
    full = state._replace(g=jnp.array([[10.0, 9.0], [10.0, 2.0]]))
    new, due = Pair().pulse(device, full, jnp.array([0, 0]), key(), 1.0)
    assert np.asarray(due).tolist() == [True, False]
    assert (np.asarray(new.g[1]) == np.asarray(full.g[1])).all()
    assert new.g[0, 1] == pytest.approx(0.1)  # RESET, and nothing written to it
    assert 1.0 < float(new.g[0, 0]) < 10


def test_first_weights_and_refreshes_of_set_cells_are_right_on_average():
    """Within half of the largest step between two pulses, 1.8 uS, and the error of a mean."""
    device, n = set_pcm(), 4000
    w = jnp.linspace(-8, 8, n)
    start, write, again = jax.random.split(key(), 3)
    state = Pair().start(device, Pair().init(device, (n,), start, 0.0), w, write, 0.0)
    parts = np.asarray(Pair().read(device, state, None, 0.0) - w).reshape(8, -1)
    assert (np.abs(parts.mean(1)) < 0.9 + 4 * parts.std(1) / np.sqrt(n / 8)).all()
    full = state._replace(g=jnp.stack([jnp.full(n, 11.0), jnp.linspace(4.0, 9, n)], -1))
    before = Pair().read(device, full, None, 0.0)
    new, due = Pair().pulse(device, full, jnp.zeros(n, int), again, 0.0)
    assert due.mean() > 0.99  # by what a read sees
    parts = np.asarray(Pair().read(device, new, None, 0.0) - before).reshape(8, -1)
    assert (np.abs(parts.mean(1)) < 0.9 + 4 * parts.std(1) / np.sqrt(n / 8)).all()


def test_what_cannot_be_held_is_counted():
    memory = in_cells(EXACT)
    state = memory.init(PARAMS, key())
    updates = {"w": jnp.array([[5.0, 0.0], [jnp.nan, 0.0]]), "b": jnp.zeros(2)}
    state = memory.update(state, updates, key())
    counts = losses(state)["w"]
    assert (counts["saturated"], counts["nan"]) == (1, 1)
    read = memory.read(state)["w"]
    assert read[0, 0] == pytest.approx(0.5)  # max |p| at init
    assert read[1, 0] == 0


@pytest.mark.parametrize("device", [pcm(), set_pcm()])
def test_a_state_has_one_structure_and_many_instances(device):
    memory = memristive(device)
    first, second, third = jax.random.split(key(), (3, 3))
    params = {"b": PARAMS["b"]}
    states = jax.jit(jax.vmap(lambda k: memory.init(params, k)))(first)
    updates = jax.tree.map(lambda p: 0.1 * p, params)
    new = jax.jit(jax.vmap(lambda s, k: memory.update(s, updates, k)))(states, second)
    assert jax.tree.structure(new) == jax.tree.structure(states)
    alike = jax.tree.map(lambda a, b: a.shape == b.shape and a.dtype == b.dtype, new, states)
    assert all(jax.tree.leaves(alike))
    read = jax.jit(jax.vmap(memory.read))(new, third)["b"]
    assert np.isfinite(np.asarray(read)).all()
    assert len(np.unique(np.asarray(read)[:, 0])) == 3


def test_what_is_refused():
    with pytest.raises(
        ValueError, match=r"this device cannot do writing='pulses'; it can do 'prog"
    ):
        memristive(pcm(), writing="pulses")
    with pytest.raises(ValueError, match=r"cannot do writing='program'"):
        memristive(set_pcm(), writing="program")
    with pytest.raises(ValueError, match=r"dt is 0; it must be above 0"):
        memristive(pcm(), dt=0)
    with pytest.raises(ValueError, match=r"A single cell of pcm holds 0 to 25 uS.*take Pair"):
        memristive(pcm(), Single())
    with pytest.raises(ValueError, match=r"a parameter is int32; weights are floats"):
        memristive(pcm()).init({"w": jnp.ones(2, int)}, key())


def begun(memory):
    """The shapes of a new state."""
    return jax.eval_shape(memory.init, PARAMS, key())


def test_an_experiment_names_its_device():
    memory = make_memory(Memory(device="idealized", writing="pulses", step_seconds=0.5))
    state = jax.jit(lambda p: memory.update(memory.init(p, key()), p, key(1)))(PARAMS)
    assert float(state.t) == 0.5
    with pytest.raises(ValueError, match=r"memory.device: 'memristor' is no device; known are pcm"):
        make_memory(Memory(device="memristor"))
    assert begun(memristive("pcm")).cells["b"].g.shape == (2, 2)
    with pytest.raises(ValueError, match=r"^'memristor' is no device"):
        memristive("memristor")
    with pytest.raises(ValueError, match=r"memory.writing: .* cannot do writing='pulses'"):
        make_memory(Memory(device="pcm", writing="pulses"))
    with pytest.raises(
        ValueError, match=r"memory.transfer: tiki_taka\(set_pcm\): sums of gradients"
    ):
        make_memory(Memory(device="set_pcm", transfer="agad"))
    with pytest.raises(ValueError, match=r"memory.cells, .*A single cell of pcm holds 0 to 25"):
        make_memory(Memory(device="pcm", cells="single"))
    many = make_memory(Memory(device="pcm", cells="many"))
    assert begun(many).cells["b"].cells.g.shape == (2, 8)
    two = make_memory(Memory(device="pcm", cells="many", pairs=2))
    assert begun(two).cells["b"].cells.g.shape == (2, 4)
    sliced = make_memory(Memory(device="pcm", cells="sliced", significances=(16, 4, 1)))
    assert len(begun(sliced).cells["b"]) == 3
    with pytest.raises(ValueError, match=r"memory.cells, .*Sliced\(\(3, 2\)\)"):
        make_memory(Memory(device="pcm", cells="sliced", significances=(3, 2)))
    for wrong in ({"pairs": 2}, {"significances": (4, 1), "cells": "many"}):
        with pytest.raises(ValueError, match=r"memory.(pairs|significances) is for memory.cells ="):
            Experiment(memory=Memory(device="pcm", **wrong))
    kept = Memory(device="pcm", cells="many", pairs=2)
    assert resolve(Experiment(memory=kept)).memory == kept
    chopped = make_memory(Memory(device="ecram", transfer="chopped"))
    assert begun(chopped).gradients[1].mean.shape == (2, 2)
    with pytest.raises(
        ValueError, match=r"memory.cells, writing, transfer and step_seconds need memory.dev"
    ):
        Experiment(memory=Memory(writing="pulses"))
    memory = resolve(Experiment(memory=Memory(device="pcm", format="e4m3fn"))).memory
    assert memory == Memory(device="pcm")  # the format of a file gives way

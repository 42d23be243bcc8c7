"""A training on instruments: the same numbers on all of them, shapes, losses amid an update."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.quant.memory import losses
from spikebit.simulator.devices import memristive, pcm, pulsed, set_pcm
from spikebit.simulator.devices.pulsed import NONE
from spikebit.simulator.instruments import (
    InstrumentLost,
    SimulatedArray,
    on_instruments,
    record,
    replay,
    serving,
    visa,
)

pytestmark = pytest.mark.usefixtures("compile_quickly")
PARAMS = {"b": jnp.array([0.5, -1.0]), "w": jnp.array([[0.5, -0.25], [0.0, 0.125], [1.0, -1.0]])}
EXACT = pcm(programming_noise=0, drift=0, read_noise=0)
X = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
TEACHER = np.array([[1.0, -1.0], [0.5, 0.25], [-0.5, 0.0]], np.float32)


def key(i=0):
    return jax.random.key(i)


def array(device, seed=0):
    return SimulatedArray(device, (3, 4), key(seed))


@jax.jit
def slope(params):
    error = X @ params["w"] + params["b"] - X @ TEACHER
    return jnp.mean(error**2), {"w": X.T @ error / 8, "b": error.mean(0)}


class Training:
    """Steps of gradient descent on weights that are read anew each time; may be taken up again."""

    def __init__(self, memory):
        self.memory, self.state, self.read, self.seen = memory, None, None, []

    def run(self, steps):
        if self.state is None:
            self.state = self.memory.init(PARAMS, key(1))
        while len(self.seen) < steps:
            if self.read is None:
                self.read = self.memory.read(self.state, None)
            updates = jax.tree.map(lambda g: -0.3 * g, slope(self.read)[1])
            self.state = self.memory.update(self.state, updates, key(2 + len(self.seen)))
            self.seen.append(self.read)
            self.read = None
        return self.seen


def weights(seen):
    return np.array([np.asarray(params["w"]) for params in seen])


@pytest.mark.parametrize("device", [pcm(), set_pcm()], ids=["pcm", "set_pcm"])
def test_one_training_gives_the_same_numbers_on_every_instrument(
    device, tmp_path, proxy_to, faults
):
    alone = Training(on_instruments({"w": array(device)})).run(3)
    with record(array(device), tmp_path / "a.h5") as recorder:
        recorded = Training(on_instruments({"w": recorder})).run(3)
    player = replay(tmp_path / "a.h5")
    replayed = Training(on_instruments({"w": player})).run(3)
    with serving(array(device)) as resource:
        bench = visa(resource)
        served = Training(on_instruments({"w": bench})).run(3)
        bench.close()
    with serving(warm(array(device))) as resource:
        proxy = proxy_to(resource)
        bench = visa(proxy.resource, timeout=0.1, attempts=12, pause=0.01)
        proxy.faults = [None, *faults[:4], None, None, *faults[4:]]
        disturbed = Training(on_instruments({"w": bench})).run(3)
        bench.close()
    for seen in (recorded, replayed, served):
        jax.tree.map(np.testing.assert_array_equal, seen, alone)
    assert player.remaining == 0
    assert proxy.faults == []
    other = Training(on_instruments({"w": warm(array(device))})).run(3)  # with its key one call on
    jax.tree.map(np.testing.assert_array_equal, disturbed, other)


def warm(instrument):
    """Compiles what would look like a timeout."""
    if instrument.capabilities.pulses:
        instrument.apply_pulses(np.zeros((3, 4), bool), 1, 0, 0.0)
    else:
        instrument.program(np.full((3, 4), np.nan), 0.0)
    instrument.read(0.0)
    return instrument


def test_exact_cells_learn_as_float32_does():
    seen = Training(on_instruments({"w": array(EXACT)}, headroom=4.0)).run(15)
    w, b = np.asarray(PARAMS["w"]), np.asarray(PARAMS["b"])
    for params in seen:
        np.testing.assert_allclose(params["w"], w, atol=1e-2)  # 0.01 uS of 25 for 4
        error = X @ w + b - X @ TEACHER
        w, b = w - 0.3 * X.T @ error / 8, b - 0.3 * error.mean(0)
    assert slope(seen[-1])[0] < 0.2 * slope(seen[0])[0]


def test_it_is_memristive_with_the_cells_behind_calls():
    """Cells without noise: the same weights as the device in this process, and the same counts."""
    device = pulsed(step=0.01, reference=0.0, variation=NONE)
    instrument = SimulatedArray(device, (3, 2), key())
    memory, near = on_instruments({"w": instrument}), memristive(device)
    state, twin = memory.init(PARAMS, key(1)), near.init({"w": PARAMS["w"]}, key(2))
    for i in range(4):
        u = jax.random.normal(key(i), (3, 2)) / 30
        state = memory.update(state, {"w": u, "b": jnp.ones(2)}, key(7))
        twin = near.update(twin, {"w": u}, key(8))
    read = memory.read(state)
    np.testing.assert_allclose(read["w"], near.read(twin)["w"], atol=1e-6)
    np.testing.assert_array_equal(read["b"], PARAMS["b"] + 4)
    assert losses(state)["w"] == losses(twin)["w"]
    assert losses(state)["b"]["writes"] == 10
    at_first = 50 + 25 + 100 + 100  # |w| / step
    middle = instrument.pulses.sum() - at_first - losses(state)["w"]["pulses"]
    assert middle in (12, 13)  # of 0.125, half a step beside both


def test_an_update_is_finished_after_the_bench_was_lost(proxy_to):
    """Reported, taken up again by the same call, to the same numbers and pulses as without."""
    device = set_pcm()
    served, alone = warm(array(device)), warm(array(device))
    with serving(served) as resource:
        proxy = proxy_to(resource)
        bench = visa(proxy.resource, timeout=0.3, attempts=1)
        training, lost = Training(on_instruments({"w": bench})), 0
        for fault in ("lose the answer", "lose the line", "cut the answer"):
            proxy.faults += [None, fault, None, None]
        while len(training.seen) < 4:
            try:
                training.run(4)
            except InstrumentLost:
                lost += 1
        bench.close()
    assert lost >= 3
    reference = Training(on_instruments({"w": alone}))
    jax.tree.map(np.testing.assert_array_equal, training.seen, reference.run(4))
    np.testing.assert_array_equal(served.pulses, alone.pulses)
    assert served.calls == alone.calls


def test_an_unfinished_update_comes_first():
    class Dead(SimulatedArray):
        alive = True

        def _do(self, call):
            if call.op == "program" and not self.alive:
                raise InstrumentLost("dead")
            return super()._do(call)

    instrument = Dead(pcm(), (3, 4), key())
    memory = on_instruments({"w": instrument})
    state = memory.init(PARAMS, key(1))
    memory.read(state)
    instrument.alive = False
    with pytest.raises(InstrumentLost):
        memory.update(state, PARAMS, key(2))
    instrument.alive = True
    with pytest.raises(
        ValueError, match=r"the instrument of 'w' was lost after read at 1.0 s, and"
    ):
        memory.read(state)
    state = memory.update(state, PARAMS, key(2))
    memory.read(state)


@pytest.mark.parametrize(
    ("instruments", "words"),
    [
        ({"w": (8, 8)}, r"'w' has shape \(8, 8\), and the layer of shape \(3, 2\) .* \(3, 4\)"),
        ({"w": (3, 2)}, r"has shape \(3, 2\), .* with 2 cells a weight needs \(3, 4\)"),
        ({"w": (3, 4), "b": (3,)}, r"'b' has shape \(3,\), .* needs \(4,\)"),
        ({"w": (3, 4), "kernel": (3, 4)}, "no weights 'kernel'; there are b, w"),
    ],
)
def test_an_instrument_that_does_not_fit_stops_all_before_anything_is_written(instruments, words):
    arrays = {n: SimulatedArray(pcm(), s, key(i)) for i, (n, s) in enumerate(instruments.items())}
    with pytest.raises(ValueError, match=words):
        on_instruments(arrays).init(PARAMS, key(3))
    assert all(a.calls == 0 for a in arrays.values())


def test_there_is_no_way_back_and_no_jit():
    memory = on_instruments({"w": array(EXACT)})
    first = memory.init(PARAMS, key(1))
    second = memory.update(first, PARAMS, key(2))
    with pytest.raises(ValueError, match=r"weights 'w' after 1 writes are asked, .* has seen 2"):
        memory.read(first)
    memory.read(second)
    for call in (
        lambda: jax.jit(memory.read)(second),
        lambda: jax.jit(memory.update)(second, PARAMS, key(3)),
        lambda: jax.jit(memory.init)(PARAMS, key(4)),
    ):
        with pytest.raises(ValueError, match="outside of jit"):
            call()


def test_a_checkpoint_of_the_state_goes_on_in_a_new_process():
    instrument = array(EXACT)
    state = on_instruments({"w": instrument}).init(PARAMS, key(1))
    memory = on_instruments({"w": instrument})  # of the new process
    np.testing.assert_allclose(memory.read(state)["w"], PARAMS["w"], atol=1e-3)
    again = memory.update(state, PARAMS, key(2))
    np.testing.assert_allclose(memory.read(again)["w"][0], 2 * PARAMS["w"][0], atol=1e-3)


def test_targets_that_look_like_siemens_are_the_lowest_conductance():
    instrument = array(EXACT)
    memory = on_instruments({"w": instrument})
    state = memory.init(PARAMS, key(1))
    only = jnp.zeros((3, 2)).at[0, 0].set(-0.4999)  # leaves 0.0025 uS in one cell, alone
    state = memory.update(state, {"w": only, "b": jnp.zeros(2)}, key(2))
    assert memory.read(state)["w"][0, 0] == 0


def test_a_cell_that_cannot_be_measured_is_reported():
    class Blind(SimulatedArray):
        def _do(self, call):
            reading = super()._do(call)
            return None if reading is None else np.full_like(reading, np.nan)

    memory = on_instruments({"w": Blind(pcm(), (3, 4), key())})
    with pytest.raises(ValueError, match="'w': 12 cells could not be measured"):
        memory.read(memory.init(PARAMS, key(1)))

"""Tiki-Taka: what lines hand on, the signs and means of the chopped ways, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.quant.memory import float32, losses
from spikebit.simulator.devices import at, memristive, pulsed, set_pcm, tiki_taka, with_leak
from spikebit.simulator.devices.pulsed import NONE, soft_bounds

pytestmark = pytest.mark.usefixtures("compile_quickly")
FINE = pulsed(step=1e-4, low=-100, high=100, reference=0.0, variation=NONE)
ZERO = {"w": jnp.zeros((3, 2))}


def moves(memory, updates, seed=0, offset=None):
    """The weights after each of the updates; cells begin beside their zero by the offset."""
    start, along = jax.random.split(jax.random.key(seed))
    state = memory.init(ZERO, start)
    if offset is not None:
        (line,) = state.gradients
        cells = line.cells._replace(w=line.cells.w + offset, shown=line.cells.shown + offset)
        state = state._replace(gradients=(line._replace(cells=cells),))

    def step(state, given):
        u, key = given
        state = memory.update(state, {"w": u}, key)
        return state, memory.read(state, None)["w"]

    run = jax.jit(lambda s, u, k: jax.lax.scan(step, s, (u, k)))
    return np.asarray(run(state, updates, jax.random.split(along, len(updates)))[1])


def test_a_line_in_turn_hands_on_the_sum_of_its_updates():
    """Cells without noise whose largest update is 20,000 pulses: the sums are exact to a pulse."""
    u = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (12, 3, 2)), jnp.float32)
    u = u.at[:, 0, 0].set(1.0)  # so that the unit stays
    memory = tiki_taka(float32(), FINE, pulses=20_000, length=10**6, every=2, lines=2, rate=0.5)
    w = moves(memory, u)
    sums, wanted = np.cumsum(np.asarray(u, float), 0), np.zeros((3, 2))
    for turn in range(12):
        if turn % 2 == 1:
            for row in (turn - 1) % 3, turn % 3:  # two lines a turn: 0 and 1, then 2 and 0, ...
                wanted[row] += 0.5 * sums[turn, row]
        np.testing.assert_allclose(w[turn], wanted, atol=2e-3)


def test_chopped_is_plain_until_a_line_turns_its_sign():
    u = jax.random.normal(jax.random.key(1), (60, 3, 2))
    plain = moves(tiki_taka(float32(), FINE), u)
    rarely = moves(tiki_taka(float32(), FINE, "chopped", flip=1e-6), u)
    np.testing.assert_allclose(rarely, plain, rtol=1e-5, atol=1e-5)
    often = moves(tiki_taka(float32(), FINE, "chopped", flip=0.5), u)
    assert np.abs(often - plain).max() > 0.1


@pytest.mark.parametrize("transfer", ["plain", "chopped", "agad"])
def test_an_offset_of_the_cells_goes_out_where_signs_are_chopped(transfer):
    """No gradient but the first, of the size of a pulse, and cells 40 pulses beside zero."""
    turns = 3 * 2000
    u = jnp.zeros((turns, 3, 2)).at[0].set(1.0)
    u = jnp.concatenate([u, jnp.zeros((0, 3, 2))])
    memory = tiki_taka(float32(), FINE, transfer, flip=0.5, pulses=1)
    offset, none = moves(memory, u, offset=40e-4), moves(memory, u)
    by_offset = offset[-1] - none[-1]
    # the unit decays with the maximum of late: what a read of one pulse is worth, summed
    worth = np.sum(0.99 ** np.arange(turns).reshape(-1, 3), 0)[:, None]
    if transfer == "plain":
        np.testing.assert_allclose(by_offset, np.broadcast_to(40 * worth, (3, 2)), rtol=1e-3)
    elif transfer == "chopped":  # a sum of independent signs
        spread = 40 * np.sqrt(np.sum(0.99 ** (2 * np.arange(turns)).reshape(-1, 3), 0))[:, None]
        assert (np.abs(by_offset) < 4 * spread).all()
        assert (4 * spread < 40 * worth / 2).all()
    else:
        np.testing.assert_allclose(by_offset, 0, atol=1e-3)


@pytest.mark.parametrize("transfer", ["plain", "chopped", "agad"])
def test_a_target_is_found_where_steps_up_and_down_differ(transfer):
    """Cells 1/3 beside their symmetry point: pulses on the weights themselves end far beside.

    Plain reads need that point for their zero, chopped ones may be a few pulses off.
    """
    uneven = pulsed(soft_bounds, step=0.01, asymmetry=0.5, reference=0.0, variation=NONE)
    reference = {"plain": None, "chopped": 1 / 3 + 0.01, "agad": 0.0}[transfer]
    cells = pulsed(soft_bounds, step=0.01, asymmetry=0.5, reference=reference, variation=NONE)
    memory = tiki_taka(float32(), cells, transfer, rate=0.05, pulses=2, lines=3, flip=0.02)
    direct = memristive(uneven, writing="pulses")
    target = jnp.array([[0.3, -0.2], [0.1, 0.4], [-0.3, 0.0]])

    def error(memory):
        def run(key):
            state = memory.init({"w": jnp.zeros((3, 2))}, key)

            def step(state, i):
                for_noise, for_update = jax.random.split(jax.random.fold_in(key, i + 1))
                w = memory.read(state, None)["w"]
                noisy = w - target + 0.5 * jax.random.normal(for_noise, w.shape)
                return memory.update(state, {"w": -0.05 * noisy}, for_update), w

            w = jax.lax.scan(step, state, jnp.arange(6000))[1]
            return jnp.abs(jnp.mean(w[-4000:], 0) - target).max()

        return float(jax.jit(run)(jax.random.key(3)))

    assert error(memory) < 0.5 * error(direct)


def test_leaves_of_any_shape_and_a_nan_that_is_counted():
    params = {"b": jnp.ones(4), "conv": jnp.ones((2, 2, 3, 5)), "s": jnp.ones(())}
    memory = tiki_taka(float32(), pulsed(step=0.01, reference=0.0), "agad")
    state = memory.init(params, jax.random.key(0))
    updates = jax.tree.map(jnp.zeros_like, params) | {"b": jnp.array([0.1, jnp.nan, 0.0, 0.0])}
    state = jax.jit(memory.update)(state, updates, jax.random.key(1))
    assert jax.tree.map(jnp.shape, memory.read(state)) == jax.tree.map(jnp.shape, params)
    assert losses(state)["b"]["nan"] == 1
    assert all(np.isfinite(np.asarray(a)).all() for a in jax.tree.leaves(state.gradients))


def test_time_goes_on_for_the_weights_behind_the_sums():
    memory = tiki_taka(memristive(with_leak(FINE, 10.0)), FINE)
    state = memory.init({"w": jnp.ones((2, 2))}, jax.random.key(0))
    later = memory.read(at(state, 10.0))["w"]
    np.testing.assert_allclose(later, memory.read(state)["w"] / np.e, rtol=1e-5)
    with pytest.raises(ValueError, match=r"holds no cells, so time does not matter"):
        at(float32().init(ZERO, None), 1.0)


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"no gradual pulses of both signs"):
        tiki_taka(float32(), set_pcm())
    with pytest.raises(ValueError, match=r"flip is 0.0; a probability"):
        tiki_taka(float32(), FINE, flip=0.0)
    with pytest.raises(ValueError, match=r"every is 0; it must be above 0"):
        tiki_taka(float32(), FINE, every=0)

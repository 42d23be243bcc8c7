"""Weights of cells that do not count alike, of a shared reference, and of a counted choice."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.quant.memory import losses
from spikebit.simulator.devices import (
    Device,
    Many,
    Pair,
    ReferenceColumn,
    Single,
    Sliced,
    memristive,
    pcm,
    pulsed,
    set_pcm,
)
from spikebit.simulator.devices.pulsed import NONE, Affine

pytestmark = pytest.mark.usefixtures("compile_quickly")
EXACT = pcm(programming_noise=0, drift=0, read_noise=0)
STEADY = pulsed(step=0.01, low=0.0, high=1.0, reference=0.0, variation=NONE)
SPREAD, CELLS = 0.3, 40_000


class Held(NamedTuple):
    g: jax.Array


def gaussian() -> Device:
    """Cells written and read with Gaussian errors of one size, at any conductance."""

    def program(state, target, key, t):
        new = target + SPREAD * jax.random.normal(key, target.shape)
        return Held(jnp.where(jnp.isnan(target), state.g, new))

    def read(state, key, t):
        noise = 0.0 if key is None else SPREAD * jax.random.normal(key, state.g.shape)
        return state.g + noise

    return Device(
        "gaussian", 0.0, 16.0, lambda shape, key, t: Held(jnp.zeros(shape)), read, program,
        spread=lambda state, t: jnp.full_like(state.g, SPREAD),
    )  # fmt: skip


@pytest.mark.parametrize("cells", [Sliced((16, 4, 1)), ReferenceColumn(), Many(3, increment=2)])
def test_exact_cells_hold_what_is_written_and_keep_the_rest(cells):
    memory = memristive(EXACT, cells, writing="program")
    w = {"w": jnp.array([[0.5, -0.25, 0.0], [1.0, -1.0, 0.125]]), "zero": jnp.zeros(4)}
    state = memory.init(w, jax.random.key(0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), memory.read(state), w)
    moved = memory.update(
        state,
        {"w": jnp.zeros((2, 3)).at[0, 1].set(0.5), "zero": jnp.zeros(4)},
        jax.random.key(1),
    )
    wanted = w["w"].at[0, 1].add(0.5)
    np.testing.assert_allclose(memory.read(moved)["w"], wanted, atol=2e-6)
    assert losses(moved)["w"]["writes"] == 6 + 1


def test_spans_are_those_of_the_parts():
    assert Sliced((16, 4, 1)).span(EXACT) == 21 * Pair().span(EXACT)
    assert ReferenceColumn().span(EXACT) == Pair().span(EXACT) / 2
    assert (Sliced((16, 4, 1)).cells, ReferenceColumn().cells) == (6, 1)


def test_the_error_of_slices_is_that_of_the_last_one():
    """A pair's two errors of writing; what the read before it missed adds eight such of reading."""
    device, slices = gaussian(), Sliced((8, 1))
    w = jnp.linspace(-100.0, 100.0, CELLS)
    init, write, read, again = jax.random.split(jax.random.key(0), 4)
    empty = slices.init(device, w.shape, init, 0.0)
    held = slices.program(device, empty, w, write, 0.0)
    error = slices.read(device, held, None, 0.0) - w
    # the last slice is off by 2 errors of writing, the read of the first by 2 x 8^2 of reading
    wanted = SPREAD**2 * (2 + 2 * 64)
    assert float(jnp.var(error)) == pytest.approx(wanted, rel=4 * np.sqrt(2 / CELLS))
    own, shared = slices.variances(device, held, 0.0)
    np.testing.assert_allclose(own, SPREAD**2 * 2 * (64 + 1), rtol=1e-5)
    assert shared is None
    seen = slices.read(device, held, read, 0.0) - slices.read(device, held, None, 0.0)
    assert float(jnp.var(seen)) == pytest.approx(float(own[0]), rel=4 * np.sqrt(2 / CELLS))
    silent = device._replace(read=lambda state, key, t: state.g)
    held = slices.program(silent, empty, w, again, 0.0)
    error = slices.read(silent, held, None, 0.0) - w
    assert float(jnp.var(error)) == pytest.approx(2 * SPREAD**2, rel=4 * np.sqrt(2 / CELLS))


def test_pulses_are_counted_out_by_significance_and_carried():
    slices, device = Sliced((10, 1)), STEADY
    counts = jnp.array([7, -7, 23, -123, 0])
    state = slices.init(device, counts.shape, jax.random.key(0), 0.0)
    state, carried = slices.pulse(device, state, counts, jax.random.key(1), 0.0)
    parts = [Pair().read(device, s, None, 0.0) for s in state]
    np.testing.assert_allclose(parts[0], [0, 0, 0.02, -0.12, 0], atol=1e-6)
    np.testing.assert_allclose(parts[1], [0.07, -0.07, 0.03, -0.03, 0], atol=1e-6)
    assert not carried.any()
    total = counts
    for i in range(12):  # the last slice alone would be full at 100
        more = jnp.array([9, -9, 9, 9, 0])
        state, now = slices.pulse(device, state, more, jax.random.key(2 + i), 0.0)
        total, carried = total + more, carried | now
        np.testing.assert_allclose(
            slices.read(device, state, None, 0.0),
            0.01 * np.asarray(total),
            atol=1e-5,
            err_msg=f"pulse {i}",
        )
    np.testing.assert_array_equal(carried, [True, True, True, True, False])


def test_a_row_of_weights_shares_the_error_of_its_reference():
    device, layout = gaussian(), ReferenceColumn()
    rows = CELLS // 2
    init, write, read = jax.random.split(jax.random.key(3), 3)
    state = layout.init(device, (rows, 2), init, 0.0)
    held = layout.program(device, state, jnp.zeros((rows, 2)), write, 0.0)
    np.testing.assert_array_equal(held.references.g, state.references.g)
    seen = layout.read(device, held, read, 0.0)
    own, shared = layout.variances(device, held, 0.0)
    assert (own.shape, shared.shape) == ((rows, 2), (rows, 1))
    for error in (
        layout.read(device, held, None, 0.0),  # as written
        seen - layout.read(device, held, None, 0.0),  # as read
    ):
        covariance = np.cov(np.asarray(error).T)
        wanted = np.asarray(own[0, 0] * np.eye(2) + shared[0, 0])
        np.testing.assert_allclose(wanted, SPREAD**2 * np.array([[2, 1], [1, 2]]), rtol=1e-5)
        # the standard error of a variance v is v sqrt(2 / n), and less of a covariance
        np.testing.assert_allclose(covariance, wanted, atol=4 * wanted[0, 0] * np.sqrt(2 / rows))


def test_a_reference_column_takes_pulses_of_both_signs():
    layout = ReferenceColumn()
    state = layout.init(STEADY, (3, 2), jax.random.key(0), 0.0)
    np.testing.assert_allclose(layout.read(STEADY, state, None, 0.0), 0, atol=1e-6)
    np.testing.assert_allclose(STEADY.read(state.references, None, 0.0), 0.5, atol=1e-6)
    counts = jnp.array([[1, -1], [20, -20], [0, 5]])
    state, _ = layout.pulse(STEADY, state, counts, jax.random.key(1), 0.0)
    np.testing.assert_allclose(
        layout.read(STEADY, state, None, 0.0), 0.01 * np.asarray(counts), atol=1e-6
    )
    for cells in (layout, Sliced()):
        with pytest.raises(ValueError, match=r"set_pcm knows RESET only; take Pair\(\)"):
            memristive(set_pcm(), cells)
    with pytest.raises(ValueError, match=r"a single number has no column"):
        layout.init(STEADY, (), jax.random.key(0), 0.0)


def test_a_counter_goes_round_all_pairs():
    many, chosen = Many(3, increment=2), []
    state = many.init(STEADY, (4,), jax.random.key(0), 0.0)
    for i in range(6):
        before = STEADY.read(state.cells, None, 0.0)
        state, _ = many.pulse(STEADY, state, jnp.full(4, 2), jax.random.key(i), 0.0)
        moved = (STEADY.read(state.cells, None, 0.0) - before).reshape(4, 3, 2)[..., 0]
        chosen += [int(jnp.argmax(moved[0]))]
        assert (jnp.argmax(moved, 1) == chosen[-1]).all()
    assert chosen == [0, 2, 1, 0, 2, 1]
    np.testing.assert_allclose(many.read(STEADY, state, None, 0.0), 0.12, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Many(4, increment=6), r"increment=6 the counter leaves some pairs out"),
        (lambda: Many(0), r"Many\(0\): give a whole number of pairs, at least 1"),
        (lambda: Pair(full=0.2, empty=0.5), r"empty is below full"),
        (lambda: Sliced((8, 1), full=-1.0), r"full=-1.0\): a share of a slice's range"),
        (lambda: Sliced((1, 8)), r"\(1, 8\)\): significances are whole numbers that fall to 1"),
        (lambda: Sliced((12, 8, 1)), r"each a multiple of the next"),
        (lambda: Sliced(()), r"significances are whole numbers"),
    ],
)
def test_arrangements_that_are_none_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_first_weights_are_approached_by_pulses_and_reads():
    """A step up is up to half smaller, so a round leaves at most half of the error and one step."""
    falling = Affine(lambda state, up: jnp.where(up, 0.5, -0.5))
    device = pulsed(falling, step=0.002, reference=0.0, variation=NONE)
    w = {"w": jnp.linspace(-0.9, 0.9, 50)}
    memory = memristive(device, Single())
    held = memory.read(memory.init(w, jax.random.key(0)))["w"]
    error = np.abs(np.asarray(held - w["w"]))
    assert (error <= np.abs(np.asarray(w["w"])) / 2**4 + 0.002).all()

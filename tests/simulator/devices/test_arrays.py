"""Several pairs a weight, stuck cells, and devices from a file of curves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.quant.memory import losses
from spikebit.simulator.devices import (
    Many,
    Pair,
    from_csv,
    memristive,
    pcm,
    pulsed,
    set_pcm,
    stuck_share,
    with_stuck_cells,
)
from spikebit.simulator.devices.pulsed import NONE

pytestmark = pytest.mark.usefixtures("compile_quickly")
EXACT = pcm(programming_noise=0, drift=0, read_noise=0)
CURVE = "g_uS,up_uS,down_uS\n1,0.4,0.0\n5,0.2,0.1\n11,0.0,0.3\n"


def test_exact_pairs_hold_a_weight_together():
    w = {"w": jnp.array([[0.5, -0.25, 0.0], [1.0, -1.0, 0.125]])}
    memory = memristive(EXACT, Many(3))
    np.testing.assert_allclose(
        memory.read(memory.init(w, jax.random.key(0)))["w"], w["w"], rtol=1e-6
    )
    assert Many(3).span(EXACT) == 3 * Pair().span(EXACT)


def test_the_spread_of_a_weight_falls_with_the_root_of_the_pairs():
    """Relative to the range; every pair is written to the same share, 0.6 of its range."""
    w, spreads = {"w": jnp.full(20_000, 0.6).at[0].set(1.0)}, []
    for pairs in (1, 4):
        memory = memristive(pcm(drift=0, read_noise=0), Many(pairs))
        held = memory.read(memory.init(w, jax.random.key(pairs)))["w"][1:]
        spreads.append(float(jnp.std(held)))
    assert spreads[0] / spreads[1] == pytest.approx(2, rel=4 / np.sqrt(20_000))


def test_an_update_goes_to_one_pair_and_full_pairs_are_refreshed():
    device = pulsed(step=0.01, low=0.0, high=1.0, reference=0.0, variation=NONE)
    many, key = Many(4), jax.random.key(0)
    state = many.init(device, (1000,), key, 0.0)
    new, refreshed = many.pulse(device, state, jnp.full(1000, 3), jax.random.key(1), 0.0)
    g = np.asarray(device.read(new.cells, None, 0.0)).reshape(1000, 4, 2)
    np.testing.assert_allclose(g[..., 0].sum(1), 0.03, rtol=1e-5)
    assert ((g[..., 0] > 0).sum(1) == 1).all()
    chosen = (g[..., 0] > 0).sum(0)
    assert (np.abs(chosen - 250) < 4 * np.sqrt(1000 * 0.25 * 0.75)).all()
    assert not refreshed.any()
    cells, two = set_pcm(), Many(2)
    empty = two.init(cells, (50,), jax.random.key(2), 0.0)
    filled = cells.pulse(empty.cells, jnp.full((50, 4), 40), jax.random.key(3), 0.0)
    filled = empty._replace(cells=filled)
    kept, refreshed = two.pulse(cells, filled, jnp.zeros(50, int), jax.random.key(4), 0.0)
    assert refreshed.mean() > 0.5
    before, after = (cells.read(a.cells, None, 0.0) for a in (filled, kept))
    untouched = ~np.asarray(refreshed)
    np.testing.assert_array_equal(before[untouched], after[untouched])
    moved = np.abs(np.asarray((after - before).sum(-1)))
    assert (moved[~untouched] > 5).all()  # two cells above 9 uS between them were RESET


def test_a_pulse_moves_a_pair_by_one_step_on_both_sides_of_0():
    """Down as far as up, from any weight, and through 0; only one cell holds anything then."""
    device = pulsed(step=0.01, low=0.0, high=1.0, reference=0.0, variation=NONE)
    state, total = Pair().init(device, (5,), jax.random.key(0), 0.0), np.zeros(5, int)
    for i, counts in enumerate(([30, -30, 1, 0, 5], [-1, 1, -1, -2, -9], [-40, 40, 3, 1, 9])):
        state, _ = Pair().pulse(device, state, jnp.array(counts), jax.random.key(i + 1), 0.0)
        total += np.array(counts)
        np.testing.assert_allclose(Pair().read(device, state, None, 0.0), 0.01 * total, atol=1e-6)
        g = np.asarray(device.read(state, None, 0.0))
        np.testing.assert_allclose(g.min(-1), 0, atol=1e-6)


def test_stuck_cells_keep_their_value_and_are_counted():
    device = with_stuck_cells(pcm(), low=0.1, high=0.2, anywhere=0.05)
    for_cells, for_writing, for_read = jax.random.split(jax.random.key(0), 3)
    state = device.init((20_000,), for_cells, 0.0)
    state = device.program(state, jnp.full(20_000, 10.0), for_writing, 0.0)
    error = 4 * np.sqrt(0.35 * 0.65 / 20_000)
    assert float(stuck_share(state)) == pytest.approx(0.35, abs=error)
    g, stuck = np.asarray(device.read(state, for_read, 3600.0)), ~np.isnan(np.asarray(state.stuck))
    np.testing.assert_array_equal(g[stuck], np.asarray(state.stuck)[stuck])
    assert (g == 25).mean() == pytest.approx(0.2, abs=4 * np.sqrt(0.2 * 0.8 / 20_000))
    assert (np.asarray(state.stuck) == 0).mean() == pytest.approx(0.1, abs=error)
    assert np.abs(g[~stuck] - 7.8).mean() < 2  # the others drift as ever
    assert (np.asarray(device.spread(state, 1.0)) == 0).sum() == stuck.sum()
    memory = memristive(with_stuck_cells(EXACT, high=1.0), writing="program")
    held = memory.init({"w": jnp.full(4, 0.5)}, jax.random.key(1))
    held = memory.update(held, {"w": jnp.full(4, 0.1)}, jax.random.key(2))
    assert losses(held)["w"]["stagnated"] == 4
    with pytest.raises(ValueError, match=r"shares low=0.8, high=0.3"):
        with_stuck_cells(pcm(), low=0.8, high=0.3)
    with pytest.raises(ValueError, match=r"shares low=nan"):
        with_stuck_cells(pcm(), low=float("nan"))


def test_a_curve_from_a_file_is_followed(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text(CURVE)
    device = from_csv(path, variation=NONE)
    assert (device.name, device.g_min, device.g_max) == ("mine", 1, 11)
    assert device.step == pytest.approx((np.interp(6, [1, 5, 11], [0.4, 0.2, 0]) + 2 / 15) / 2)
    state, g = device.init((1,), jax.random.key(0), 0.0), 1.0
    for i, way in enumerate([1] * 9 + [-1] * 4):
        size = np.interp(g, [1, 5, 11], [0.4, 0.2, 0.0] if way > 0 else [0.0, 0.1, 0.3])
        g += way * size
        state = device.pulse(state, jnp.array([way]), jax.random.key(i), 0.0)
        assert float(device.read(state, None, 0.0)[0]) == pytest.approx(g, rel=1e-5)


def test_a_file_may_say_how_pulses_vary(tmp_path):
    """Mean and spread of one pulse at two places; the file's spread is that of a Gaussian."""
    path, n = tmp_path / "noisy.csv", 20_000
    path.write_text("g_uS,up_uS,down_uS,up_std_uS,down_std_uS\n0,1,1,0.2,0.0\n100,1,1,0.6,0.4\n")
    device = from_csv(path, variation=NONE._replace(pulse=9.0))
    start = device.init((3, n), jax.random.key(0), 0.0)
    start = start._replace(w=start.w.at[1:].set(50.0), shown=start.shown.at[1:].set(50.0))
    counts = jnp.broadcast_to(jnp.array([[2], [1], [-1]]), (3, n))
    moved = device.pulse(start, counts, jax.random.key(1), 0.0).w - start.w
    # a second pulse from about 1 has a spread of 0.204
    for found, mean, std in zip(np.asarray(moved), (2, 1, -1), (0.2857, 0.4, 0.2), strict=True):
        assert found.mean() == pytest.approx(mean, abs=4 * std / np.sqrt(n))
        assert found.std() == pytest.approx(std, rel=4 / np.sqrt(2 * n))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CURVE.replace("S\n", "S,up_std_uS\n"), r"has no column down_std_uS; a curve has g_uS, up"),
        (CURVE.replace("down_uS", "down"), r"mine.csv: has no column down_uS; a curve has g_uS"),
        (CURVE.replace("5,", "0.5,", 1), r"line 3: g_uS is 0.5 after 1; conductances increase"),
        (CURVE.replace("0.2", "x"), r"line 3: expected finite numbers"),
        (CURVE.replace("0.2", "-0.2"), r"a step or a spread is below 0"),
        ("g_uS,up_uS,down_uS\n1e-6,1e-7,1e-7\n2e-5,1e-7,1e-7\n", r"looks like siemens"),
        ("g_uS,up_uS,down_uS\n1,2,3\n", r"at least two lines"),
        ("g_uS,up_uS,down_uS\n-1,2,3\n4,2,3\n", r"g_uS is -1; a conductance is not below 0"),
        ("g_uS,up_uS,down_uS\n1,2e-7,2e-7\n9,2e-7,2e-7\n", r"largest step is 2e-07 uS in a ran"),
    ],
)
def test_a_curve_that_is_none_is_refused(tmp_path, text, message):
    path = tmp_path / "mine.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        from_csv(path)

"""Fits recover what traces were made with, their errors are honest, a device file keeps both."""

import csv
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.simulator.cli import main
from spikebit.simulator.devices import Variation, by_name, device_file, memristive, pulsed
from spikebit.simulator.devices.fit import Population, fit
from spikebit.simulator.devices.kalman import SoftBounds, log_likelihood
from spikebit.simulator.devices.pulse_traces import Traces, as_rows, read
from spikebit.simulator.devices.pulsed import soft_bounds

CELLS, PULSES = 12, 50  # up and down, twice; few enough to stay off the bounds
TRUE = Population(0.02, 0.024, 1.25, -0.75, 0.2, 0.0, 0.0, 0.0, 0.5, 0.05)


def device(true=TRUE, reference=0.0):
    """The simulator's own cells; up is smaller than down."""
    step = true.down
    spreads = (true.step_spread * (true.up + true.down) / 2 / step, true.high_spread)
    variation = Variation(*spreads, true.low_spread, 0.0, 0.0, true.pulse, true.read / step)
    bounds = {"low": true.low, "high": true.high, "reference": reference}
    return pulsed(
        soft_bounds, step=step, asymmetry=true.up / step - 1, additive=True, variation=variation,
        **bounds,
    )  # fmt: skip


@jax.jit
def reads(key):
    for_cells, for_pulses = jax.random.split(key)
    model = device()

    def one(state, i):
        counts = jnp.full(CELLS, 1) * jnp.where(i // PULSES % 2 == 0, 1, -1)
        state = model.pulse(state, counts, jax.random.fold_in(for_pulses, i), 0.0)
        return state, model.read(state, None, 0.0)

    return jax.lax.scan(one, model.init((CELLS,), for_cells, 0.0), jnp.arange(4 * PULSES))[1]


def measured(seed, shift=0.0, unit="1"):
    g = np.asarray(reads(jax.random.key(seed)), float) + shift
    signs = np.where(np.arange(4 * PULSES) // PULSES % 2 == 0, 1.0, -1.0)
    pulses = np.tile(signs[:, None], CELLS)
    fresh = np.zeros(g.shape, bool)
    fresh[0] = True
    return Traces("made", unit, tuple(f"c{k}" for k in range(CELLS)), pulses, g, fresh, 0)


@functools.cache
def fitted(seed):
    return fit(measured(seed).over(0.0))


@pytest.fixture
def fits():
    """Independent sets of traces, fitted."""
    return [fitted(seed) for seed in range(6)]


def test_parameters_are_recovered_and_errors_are_the_spread_of_the_estimates(fits):
    assert all(one.converged for one in fits)
    values = np.array([one.values for one in fits])
    errors = np.array([one.errors for one in fits])
    told = np.array(TRUE) != 0
    z = (values - TRUE)[:, told] / errors[:, told]
    assert (np.abs(z) < 4).all()  # 42 of them: one in 370 sets has one beyond
    assert np.abs(z.mean(0)).max() < 4 / np.sqrt(len(fits))
    # the mean square of 6 standard normal numbers is beyond each of these once in a thousand
    squares = (z**2).mean(0)
    assert (squares > 0.063).all()
    assert (squares < 3.75).all()
    symmetry = (TRUE.up - TRUE.down) / (TRUE.up / TRUE.high - TRUE.down / TRUE.low)
    z = [(one.symmetry - symmetry) / one.symmetry_error for one in fits]
    assert np.abs(z).max() < 4


def test_a_regression_is_biased_where_the_fit_is_not(fits):
    """Of the change on the read before, whose noise is in both."""
    found = []
    for seed in range(3):
        g, up = measured(seed).g, measured(seed).pulses[1:] > 0
        slope, step = np.polyfit(g[:-1][up], np.diff(g, axis=0)[up], 1)
        found.append((step, -step / slope))
    step, high = np.mean(found, 0)
    errors = fits[0].errors
    assert abs(high - TRUE.high) > 4 * errors.high
    assert abs(np.mean([one.values.high for one in fits]) - TRUE.high) < 2 * errors.high
    assert step > 1.2 * TRUE.up


def test_the_maximum_is_above_the_truth():
    """Of cells that are alike: with known parameters the likelihood needs no sum over draws."""
    alone = measured(0)
    one = alone._replace(**{k: getattr(alone, k)[:, :1] for k in ("pulses", "g", "fresh")})
    found = fit(one.over(0.0))
    assert np.isnan(found.errors.step_spread)  # one cell tells nothing of spreads
    with jax.enable_x64(True):
        trace = one.over(0.0)
        mine = [found.cells, SoftBounds(*TRUE[:4], *TRUE[8:])]
        sets = SoftBounds(
            *(jnp.array([[float(np.ravel(v)[0])] for v in p]) for p in zip(*mine, strict=True))
        )
        shared = type(trace)(*map(jnp.asarray, trace))
        at_fit, at_truth = np.asarray(log_likelihood(sets, shared))[:, 0]
    assert at_fit == pytest.approx(found.log_likelihood, abs=1e-6)
    assert 0 <= at_fit - at_truth < 16  # half a chi-square of six degrees


def test_a_fit_does_not_depend_on_zero_or_unit():
    there, values = measured(0), fitted(0).values
    found = fit(there._replace(g=7 + 5 * there.g).over(7.0))
    scale = np.array([5, 5, 5, 5, 1, 1, 1, 1, 1, 5])
    np.testing.assert_allclose(found.values, scale * values, rtol=1e-4, atol=1e-6)


@pytest.fixture
def written(tmp_path):
    source = device_file.Source(file="made.csv", cells=CELLS, reads=10, log_likelihood=1.0)
    path = tmp_path / "mine.json"
    device_file.write(path, device_file.of_fit(fitted(0), "uS", 20.0, source))
    return path


def test_a_device_file_is_the_population_that_was_fitted(written):
    content, values = device_file.load(written), fitted(0).values
    assert [getattr(content.values, k) for k in Population._fields] == list(values)
    assert content.errors.up == fitted(0).errors.up
    found = by_name(str(written))
    assert found.name == "mine"
    assert (found.g_min, found.g_max) == pytest.approx((20 + values.low, 20 + values.high))
    state = found.init((20_000,), jax.random.key(0), 0.0)
    error = 5 * values.step_spread / np.sqrt(20_000)
    for name in ("up", "down"):
        assert np.mean(getattr(state, name)) == pytest.approx(getattr(values, name), rel=error)
    spread = np.std((state.up + state.down) / 2) / ((values.up + values.down) / 2)
    assert spread == pytest.approx(values.step_spread, rel=0.03)
    at_low = found.read(state, None, 0.0)  # as a conductance: cells begin at their lower bounds
    np.testing.assert_allclose(at_low, 20 + state.low, rtol=1e-6)
    up = found.pulse(state, jnp.ones(20_000, int), jax.random.key(1), 1.0)
    moved = state.up * (1 - state.low / state.high)
    noise = np.hypot(values.read, values.pulse * values.up) * 5 / np.sqrt(20_000)
    assert abs(np.mean(found.read(up, None, 1.0) - at_low - moved)) < noise


def test_a_fitted_device_trains(written, compile_quickly):
    """Weights in pairs of cells whose range is far from 0 come to a target."""
    memory = memristive(by_name(str(written)))
    target = {"w": jnp.linspace(-0.5, 0.5, 32)}
    state = memory.init({"w": jnp.linspace(0.5, -0.5, 32)}, jax.random.key(0))

    @jax.jit
    def step(state, key):
        wrong = memory.read(state)["w"] - target["w"]
        return memory.update(state, {"w": -0.2 * wrong}, key), jnp.abs(wrong).mean()

    errors = []
    for i in range(60):
        state, error = step(state, jax.random.fold_in(jax.random.key(1), i))
        errors.append(float(error))
    assert np.mean(errors[-10:]) < 0.3 * errors[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, 'is no device file, which has format "spikebit device"'),
        ({"version": 9}, "is of version 9; read is 1"),
        ({"model": "exp"}, "model is 'exp'"),
        ({"values": {}}, "values.up is {}: Field required"),
        ({"more": 1}, "more is 1"),
        ({"reference": "0"}, "reference is '0'"),
    ],
)
def test_bad_device_files_are_refused(written, change, message):
    written.write_text(json.dumps(json.loads(written.read_text()) | change))
    with pytest.raises(ValueError, match=r"mine.json: ") as error:
        by_name(str(written))
    assert message in str(error.value)


def test_other_files_are_no_devices(written, tmp_path):
    values = json.loads(written.read_text())
    values["values"]["low"] = 0.5
    written.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"values.low is 0.5: Input should be less than 0"):
        device_file.load(written)
    written.write_text("{")
    with pytest.raises(ValueError, match=r"mine.json: this is no JSON"):
        device_file.load(written)
    with pytest.raises(ValueError, match=r"is there and no device file; choose another"):
        device_file.check_free(written)
    with pytest.raises(ValueError, match=r"there is no such device file"):
        by_name(str(tmp_path / "other.json"))
    with pytest.raises(ValueError, match=r"has a name that ends in .json"):
        device_file.check_free(tmp_path / "other.toml")


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = list(as_rows(measured(0)))
    with (tmp_path / "traces.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    again = read("traces.csv")
    for name in ("pulses", "g", "fresh"):
        np.testing.assert_array_equal(getattr(again, name), getattr(measured(0), name))
    assert main(["devices", "fit", "traces.csv", "--json", "--out", "mine.json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    up = found["parameters"][0]
    assert up["parameter"] == "up"
    assert abs(up["value"] - TRUE.up) < 4 * up["error"]
    assert found["innovation_std"] == pytest.approx(1, abs=4 / np.sqrt(2 * found["reads"]))
    assert found["mean_in_band"] > 0.7
    page = (tmp_path / found["run"] / "report.html").read_text()
    for title in ("Mean of the cells", "Spread between cells", "Symmetry points of the cells"):
        assert f"<h2>{title}</h2>" in page
    assert by_name("mine.json").step == pytest.approx(
        max(found["parameters"][k]["value"] for k in (0, 1))
    )
    assert main(["devices", "fit", "none.csv"]) == 2
    assert "none.csv: No such file" in capsys.readouterr().err

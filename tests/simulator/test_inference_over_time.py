"""The study of a year of inference: the network on exact tiles, what is measured and drawn."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.simulator.devices import pcm
from spikebit.simulator.devices.tile import Tile
from spikebit.simulator.studies import inference_over_time as study

pytestmark = pytest.mark.usefixtures("compile_quickly")
SMALL = study.Settings(
    data="fashion_mnist_sample",
    limit=300,
    runs=2,
    writings=1,
    times=(0, 31_536_000),
    hidden=(24,),
    epochs=15,
    batch=30,
    learning_rate=0.003,
    rows=400,
    columns=16,
    calibration=50,
    noise=0.04,
)


def test_on_exact_tiles_the_network_is_what_was_trained():
    """Two tiles of rows by two of columns, and one."""
    rng = np.random.default_rng(0)
    layers = [
        (
            jnp.asarray(rng.normal(size=(n_in, n_out)) / 9, jnp.float32),
            jnp.asarray(rng.normal(size=n_out), jnp.float32),
        )
        for n_in, n_out in ((784, 24), (24, 10))
    ]
    x = jnp.asarray(rng.uniform(size=(20, 784)), jnp.float32)
    built = Tile(pcm(programming_noise=0, drift=0, read_noise=0), dac=None, adc=None)
    settings = dataclasses.replace(SMALL, input_quantile=1.0)
    write, age, classify = study._on_tiles(settings, built)
    held = write(layers, study._digital(layers, x), jax.random.key(0))
    assert [(len(t.parts), len(t.parts[0])) for t in held] == [(2, 2), (1, 1)]
    (w1, b1), (w2, b2) = ((np.asarray(w, float), np.asarray(b, float)) for w, b in layers)
    inside = np.maximum(np.asarray(x, float) @ w1 + b1, 0)
    np.testing.assert_allclose(held[1].reach[0], inside.max(), rtol=1e-5)
    logits = classify(age(held, jnp.zeros(()), compensate=False), layers, x, jax.random.key(1))
    np.testing.assert_allclose(logits, inside @ w2 + b2, rtol=1e-3, atol=1e-3)


def test_a_run_trains_writes_and_reads_at_all_times():
    case = {"training": "hardware_aware", "run": 0}
    with jax.numpy_dtype_promotion("standard"):  # for Adam of optax
        row = study.measure(SMALL, 0, case)
    print(row)
    assert row["digital"] > 0.5  # of ten classes
    assert [len(row[name]) for name in study.READINGS] == [2, 2]
    assert abs(row["as_is"][0] - row["digital"]) < 0.1  # right after writing
    assert row["compensated"][1] > 0.5


def test_cases_summary_and_picture():
    cases = study.cases(SMALL, 0)
    assert len(cases) == 2 * 2
    rows = [
        c | {"digital": 0.9, "as_is": [0.8, 0.3], "compensated": [0.8, 0.6 + 0.2 * c["run"]]}
        for c in cases
    ]
    found = study.summary(SMALL, rows)["accuracy"]["plain"]
    assert found["compensated"] == {"0": 0.8, "3.1536e+07": 0.7}
    assert (found["digital"], found["as_is"]["3.1536e+07"]) == (0.9, 0.3)
    ax = study.pictures(SMALL, rows)["accuracy"]
    assert len(ax.containers) == 4
    assert ax.get_xscale() == "log"


def test_what_is_refused():
    for settings, words in (
        ({"device": "ecram"}, "study.device: ecram takes pulses only"),
        ({"device": "memristor"}, "study.device: 'memristor' is no device"),
        ({"device": "reram_wan"}, r"study.times: 3.1536e\+07 s, and reram_wan is known up to 172"),
        ({"input_quantile": 0.0}, "study.input_quantile is 0"),
    ):
        with pytest.raises(ValueError, match=words):
            study.cases(dataclasses.replace(SMALL, **settings), 0)

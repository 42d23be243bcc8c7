"""The study of 4-bit training: its cases, its switch, its rows; small."""

import jax
import optax
import pytest
from flax import nnx

from spikebit.quant.training.products import Maximum, quantize_products
from spikebit.simulator import experiment_file
from spikebit.simulator.studies import luq_convnet as study

# Adam of optax counts steps in int32 and multiplies them with floats
pytestmark = pytest.mark.usefixtures("standard_promotion", "compile_quickly")
TINY = {"width": 4, "blocks": 1, "epochs": 2, "limit": 100, "batch": 25, "seeds": 1}


def test_every_mode_learns_and_the_summary_compares_them():
    modes = ("float32", "luq_all_fnt")
    settings = study.Settings(modes=modes, **TINY)
    rows = [case | dict(study.measure(settings, 3, case)) for case in study.cases(settings, 3)]
    assert [(r["mode"], r["seed"]) for r in rows] == [(mode, 3) for mode in modes]
    assert all(row["train_loss"][1] < row["train_loss"][0] for row in rows)
    assert len({tuple(row["train_loss"]) for row in rows}) == 2
    assert [len(row["train_loss"]) for row in rows] == [2, 3]  # one is tuned after training
    # tuning goes on from what was learned: an epoch from the start has about the first loss again
    first, last, tuned = rows[1]["train_loss"]
    assert abs(tuned - last) < abs(tuned - first)
    summary = study.summary(settings, rows)
    expected = 100 * (rows[0]["test_accuracy"] - rows[1]["test_accuracy"])
    assert summary["points_lost"]["luq_all_fnt"] == pytest.approx(expected, abs=1e-3)
    assert set(study.pictures(settings, rows)) == {"accuracy", "loss"}


def test_the_first_maximum_in_hindsight_is_that_of_the_step():
    settings = study.Settings(modes=("luq_all",), **(TINY | {"epochs": 1, "batch": 100}))

    def losses(mode):
        return study.measure(settings, 3, {"mode": mode, "seed": 3})["train_loss"]

    assert losses("luq_all_hindsight") == losses("luq_all")


@pytest.mark.parametrize("mode", ["luq_all", "luq_all_hindsight"])
def test_maxima_are_kept_in_hindsight_only(mode):
    settings = study.Settings(**(TINY | {"batch": 100}))
    (images, labels), _, classes = study._data(settings)
    network = study.Convnet(settings.width, settings.blocks, classes, rngs=nnx.Rngs(0))
    network = quantize_products(network, study.MODES[mode].products, first_and_last=True)
    key, rate = jax.random.key(0), optax.constant_schedule(1e-3)
    study._train(network, settings, images, labels, key, rate, 1, study.MODES[mode])
    maxima = [float(m) for m in jax.tree.leaves(nnx.state(network, Maximum))]
    assert len(maxima) == 4
    assert all((m > 0) == (mode == "luq_all_hindsight") for m in maxima)


def no_network(*args, **settings):
    raise OSError("no network")


def test_what_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.toml"
    path.write_text('[study]\nname = "luq_convnet"\nmodes = ["float16"]\n')
    with pytest.raises(ValueError, match=r"study\.modes"):
        experiment_file.load(path)
    with pytest.raises(ValueError, match=r"study\.batch = 500 is more than the 100"):
        study.cases(study.Settings(**(TINY | {"batch": 500})), 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("SPIKEBIT_DATA", raising=False)
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    with pytest.raises((ValueError, OSError), match=r"images-idx3-ubyte.* was not found"):
        study.cases(study.Settings(data="fashion_mnist"), 0)

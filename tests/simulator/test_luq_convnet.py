"""The study of 4-bit training: its cases, its switch, its rows; small."""

import jax
import pytest

from spikebit.simulator import experiment_file
from spikebit.simulator.studies import luq_convnet as study

# Adam of optax counts steps in int32 and multiplies them with floats
pytestmark = pytest.mark.usefixtures("standard_promotion")
TINY = {"width": 4, "blocks": 1, "epochs": 2, "limit": 100, "batch": 25, "seeds": 1}


@pytest.fixture
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"):
        yield


def test_every_mode_learns_and_the_summary_compares_them():
    settings = study.Settings(modes=("float32", "luq", "nearest_all"), **TINY)
    rows = [case | dict(study.measure(settings, 3, case)) for case in study.cases(settings, 3)]
    assert [(r["mode"], r["seed"]) for r in rows] == [
        ("float32", 3),
        ("luq", 3),
        ("nearest_all", 3),
    ]
    assert all(row["train_loss"][1] < row["train_loss"][0] for row in rows)
    assert len({tuple(row["train_loss"]) for row in rows}) == 3
    again = study.measure(settings, 3, study.cases(settings, 3)[1])
    assert again["train_loss"] == rows[1]["train_loss"]  # a row is a function of its case
    summary = study.summary(settings, rows)
    expected = 100 * (rows[0]["test_accuracy"] - rows[1]["test_accuracy"])
    assert summary["points_lost"]["luq"] == pytest.approx(expected, abs=1e-3)
    assert set(study.pictures(settings, rows)) == {"accuracy", "loss"}


def test_what_is_refused(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text('[study]\nname = "luq_convnet"\nmodes = ["float16"]\n')
    with pytest.raises(ValueError, match=r"study\.modes"):
        experiment_file.load(path)
    with pytest.raises(ValueError, match=r"study\.batch = 500 is more than the 100"):
        study.measure(study.Settings(**(TINY | {"batch": 500})), 0, {"mode": "float32", "seed": 0})

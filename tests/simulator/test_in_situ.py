"""The study of learning in memory cells: what is trained, read later, drawn and refused."""

import numpy as np
import pytest

from spikebit.simulator.build import build
from spikebit.simulator.studies import in_situ as study
from spikebit.simulator.studies._variants import variant

pytestmark = pytest.mark.usefixtures("compile_quickly", "standard_promotion")
FIXED = {
    "data.limit": 60, "encoder.steps": 2, "network.hidden": [8], "rule.chunk": 1,
    "rule.update_every": 1, "train.epochs": 2, "train.batch": 20,
}  # fmt: skip
SMALL = study.Settings(
    memories={
        "float32": {"format": "float32", "rounding": "nearest_even"},
        "pcm": {"device": "pcm", "writing": "program"},
    },
    grapes=(True,),
    times=(1e-3, 1e9),
    fixed=FIXED,
    seeds=2,
)


def test_cells_are_read_again_later_and_formats_are_not():
    """Capacitors have leaked after 10^6 of their lifetimes: without weights, all is class 0."""
    leaky = {"device": "capacitor", "writing": "pulses"}
    settings = study.Settings(
        **{**vars(SMALL), "memories": SMALL.memories | {"pcm": leaky}, "times": (1e-3, 1e12)}
    )
    case = {"memory": "pcm", "grapes": True, "seed": 0}
    cells = study.measure(settings, 0, case)
    assert len(cells["accuracy"]) == 2
    targets = build(variant("fashion_snu", FIXED, source="test")).dataset.test.targets
    assert cells["later"] == pytest.approx([cells["accuracy"][-1], np.mean(targets == 0)])
    assert cells["accuracy"][-1] != cells["later"][1]
    assert cells["writes"] > 0
    plain = study.measure(SMALL, 0, case | {"memory": "float32"})
    assert plain["later"] is None
    assert plain["accuracy"] != cells["accuracy"]


def test_cases_pictures_and_summary():
    cases = study.cases(SMALL, 5)
    assert [(c["memory"], c["seed"]) for c in cases] == [
        ("float32", 5), ("float32", 6), ("pcm", 5), ("pcm", 6),
    ]  # fmt: skip
    rows = [
        c
        | {
            "accuracy": [0.2, 0.1 * c["seed"]],
            "later": [0.4, 0.3] if c["memory"] == "pcm" else None,
        }
        for c in cases
    ]
    drawn = study.pictures(SMALL, rows)
    np.testing.assert_allclose(drawn["learning"].lines[0].get_ydata(), [0.2, 0.55])
    assert [line.get_label() for line in drawn["afterwards"].lines] == ["pcm + GRAPES"]
    assert study.summary(SMALL, rows) == {
        "accuracy": {"float32+grapes": 0.55, "pcm+grapes": 0.55},
        "at_the_last_time": {"pcm+grapes": 0.3},
    }


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"memories": {"x": {"device": "nothing"}}}, r"nothing.* is no device"),
        ({"memories": {"x": {"bits": 3}}}, r"memory.bits is not a known key"),
        ({"experiment": "device"}, r"is a study: give an experiment to train"),
    ],
)
def test_what_cannot_be_trained_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        study.cases(study.Settings(**{**vars(SMALL), **changed}), 0)

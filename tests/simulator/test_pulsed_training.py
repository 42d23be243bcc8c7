"""The study of ways to train on uneven devices: what it measures, chooses, draws and refuses."""

import pytest

from spikebit.simulator.studies import pulsed_training as study

pytestmark = pytest.mark.usefixtures("compile_quickly")
SMALL = study.Settings(
    rates=(1e-6, 0.1), transfer_rates=(0.5,), iterations=120, inputs=4, outputs=3, seeds=3
)


def test_a_way_that_works_is_found_with_the_rate_that_works():
    """The rate of a millionth leaves the error where it began: at 1, the whole signal."""
    row = study.measure(SMALL, 0, {"way": "mixed_precision", "reference_error": 0.0})
    assert row["rate"] == 0.1
    assert row["error"] < 0.2
    assert row["error"] == pytest.approx(sum(row["errors"]) / 3, rel=1e-6)
    assert row["transfer_rate"] is None
    none = study.Settings(**{**vars(SMALL), "rates": (1e-6,)})
    still = study.measure(none, 0, {"way": "mixed_precision", "reference_error": 0.0})
    assert still["error"] == pytest.approx(1, abs=1e-3)
    trains = study.measure(SMALL, 0, {"way": "trains", "reference_error": 0.0})
    assert trains["error"] < 0.6
    again = study.measure(SMALL, 0, {"way": "agad", "reference_error": 0.2})
    assert again["transfer_rate"] == 0.5
    assert again["error"] < 1


def test_cases_summary_and_picture():
    cases = study.cases(SMALL, 0)
    assert len(cases) == 2 * len(study.WAYS) - 2
    rows = [c | {"error": 0.5, "std": 0.1, "errors": [0.4, 0.6]} for c in cases]
    assert study.summary(SMALL, rows)["error_over_signal"]["agad"] == {"0": 0.5, "0.2": 0.5}
    drawn = study.pictures(SMALL, rows)["errors"]
    assert len(drawn.get_xticks()) == len(study.WAYS)
    with pytest.raises(ValueError, match=r"study.flip is 2.0; a probability"):
        study.cases(study.Settings(flip=2.0), 0)

"""The report of a device: its reads against the analytic moments, what is drawn, the command."""

import json

import numpy as np
import pytest

from spikebit.simulator.cli import main
from spikebit.simulator.devices import expected_read, pcm
from spikebit.simulator.devices.pcm import MILLION_CELLS
from spikebit.simulator.studies import device as study

pytestmark = pytest.mark.usefixtures("compile_quickly")
FEW = {"cells": 4000, "pulses": 12, "rows": 24, "columns": 16, "vectors": 8}


def rows_of(**settings):
    wanted = study.Settings(**FEW | settings)
    return wanted, [c | study.measure(wanted, 0, c) for c in study.cases(wanted, 0)]


def test_reads_have_the_moments_of_the_model_and_a_tile_ages():
    settings, rows = rows_of(targets=(2, 20), times=(0, 1, 31_536_000))
    for row in rows:
        if row["shows"] != "reads" or row["time_s"] == 0:
            continue
        mean, std = expected_read(MILLION_CELLS, row["target_uS"], row["time_s"])
        assert abs(row["mean_uS"] - mean) < 4 * std / np.sqrt(row["n"])
        assert abs(row["std_uS"] - std) < 4 * std / np.sqrt(row["n"])  # kurtosis up to 4
    first = next(row for row in rows if (row["target_uS"], row["time_s"]) == (20, 0))
    r = 20 / 25  # no read, no drift: the noise of programming alone
    wanted = 0.26348 + 1.9650 * r - 1.1731 * r**2
    assert abs(first["std_uS"] - wanted) < 4 * wanted / np.sqrt(2 * first["n"])
    product = [row for row in rows if row["shows"] == "product"]
    assert product[-1]["error"] > 1.5 * product[-1]["error_compensated"] > product[1]["error"]
    assert set(study.pictures(settings, rows)) == {"drift", "programming", "product"}
    assert study.summary(settings, rows)["device"] == "pcm"


def test_times_and_targets_are_those_of_the_model():
    cases = study.cases(study.Settings(device="reram_wan"), 0)
    assert {c["time_s"] for c in cases} == {0, 1, 3600, 86_400}  # a year was not measured
    assert max(c["target_uS"] or 0 for c in cases) == 40
    reads = study.cases(study.Settings(device="reram_milo"), 0)
    assert {c["target_uS"] for c in reads} == {None, 60, 80, 120, 200}


@pytest.mark.parametrize("name", ["ecram", "set_pcm"])
def test_cells_that_take_pulses_show_their_curves(name):
    settings, rows = rows_of(device=name)
    assert [row["shows"] for row in rows] == ["pulses"]
    (row,) = rows
    resets = name == "set_pcm"
    assert len(row["mean"]) == 1 + 12 + (1 if resets else 12)
    assert row["mean"][12] > row["mean"][-1]
    assert (row["down"] == []) == resets
    assert all(a <= b <= c for a, b, c in zip(row["low"], row["mean"], row["high"], strict=True))
    # after the last pulse a SET cell loses (t / 38.6 s + 1)^-0.04, an ECRAM nothing
    times, means, _ = np.array(row["kept"]).T
    decay = (1 + times / 38.6) ** (-0.04 * resets)
    error = 4 * 0.5 / np.sqrt(2000)  # a read is off by 0.5 uS at most
    np.testing.assert_allclose(means, row["mean"][12] * decay, atol=error * resets, rtol=1e-6)
    drawn = {"curve", "steps", "kept"} if resets else {"curve", "steps"}
    assert set(study.pictures(settings, rows)) == drawn


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["devices", "report", "hermes", "--json", "--cells", "500"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert list(lines[0]) == ["target_uS", "time_s", "mean_uS", "std_uS", "n"]
    assert len(lines) == 3 * 5  # 2, 5 and 10 uS are in the range of this chip
    assert main(["devices", "report", "ecram", "--json"]) == 2
    assert "takes pulses only" in capsys.readouterr().err
    assert main(["devices", "report", "memristor"]) == 2
    assert "'memristor' is no device" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"study.targets: none is in the range of pcm, 0 to 25 uS"):
        study.cases(study.Settings(targets=(30,)), 0)
    assert pcm().program is not None

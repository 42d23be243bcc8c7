"""The benchmark of rounding without its timings: ratios, the table, the file it writes."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("quantize")


@pytest.fixture
def measured(benchmark, monkeypatch):
    """Puts made-up times in the place of those measured; torchao's nvfp4 is missing."""
    samples = {(c.name, o): [s, s, 9.0] for c in benchmark.CASES for o, s in OUTPUTS.items()}
    samples |= {(benchmark.MEMORY, output): [0.001] for output in OUTPUTS}
    samples |= {"ml_dtypes": [0.3, 0.3, 0.1], "torchao mxfp4": [0.6]}
    equal = {case.name: 1.0 for case in benchmark.CASES if case.peer in samples}
    monkeypatch.setattr(benchmark, "measure", lambda rounds, say: (samples, equal))
    return samples


OUTPUTS = {"fresh": 0.02, "donated": 0.01}


def cells(line):
    return [c.strip() for c in line.strip().strip("|").split("|")]


def test_the_table_has_medians_ratios_and_targets(benchmark, measured, capsys):
    assert benchmark.main([]) == 0
    lines = [cells(line) for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    rows = {line[0]: line[1:] for line in lines[2:]}
    assert rows["e4m3fn"][1].startswith("300.0 (")
    assert rows["e4m3fn"][3::2] == ["15.0 (target 2.5)", "30.0 (target 20)"]
    assert rows["e4m3fn, stochastic"][3::2] == ["15.0", "30.0 (target 15)"]
    assert rows["mxfp4"][3] == "30.0 (target 2)"
    assert rows["nvfp4"][1] == "not installed"
    assert rows["nvfp4"][3::2] == ["", ""]


def test_json_is_one_object_a_line(benchmark, measured, capsys):
    assert benchmark.main(["--json"]) == 0
    first, *lines = map(json.loads, capsys.readouterr().out.splitlines())
    assert "numpy" in first["versions"]
    assert sum("ms" in line for line in lines) == len(measured)
    ratios = {line["name"]: line["ratios"] for line in lines if "ratios" in line}
    assert ratios["e4m3fn"] == pytest.approx({"fresh": 15, "donated": 30})
    assert ratios["nvfp4"] == {"fresh": None, "donated": None}


def test_write_replaces_its_section_and_refuses_a_broken_file(
    benchmark, measured, tmp_path, capsys
):
    path = tmp_path / "RESULTS.md"
    path.write_text("# Results\n")
    for _ in range(2):
        assert benchmark.main(["--write", str(path)]) == 0
        assert path.read_text().count("<!-- begin quantize -->") == 1
    path.write_text(path.read_text().replace("<!-- end quantize -->", ""))
    capsys.readouterr()
    assert benchmark.main(["--write", str(path)]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert len(err.splitlines()) == 1


def test_wrong_options_end_with_code_2(benchmark):
    with pytest.raises(SystemExit) as stop:
        benchmark.parse(["--rounds", "0"])
    assert stop.value.code == 2


def test_it_sees_a_number_that_is_not_equal(benchmark):
    x = np.random.default_rng(0).standard_normal((4, 64), np.float32)
    case, stochastic = benchmark.CASES[:2]
    theirs = benchmark.by_ml_dtypes(x)
    assert benchmark.share_equal(case, x, theirs) == 1
    theirs[0, :8] += 1
    assert benchmark.share_equal(case, x, theirs) == 1 - 8 / 256
    assert benchmark.share_equal(stochastic, x, theirs) == 1

"""The benchmark of devices without its timings: cases at tiny sizes, ratios, the file it writes."""

import importlib
import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
pytestmark = pytest.mark.usefixtures("compile_quickly")


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("devices")


@pytest.fixture
def side(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER / "peers"))
    module = importlib.import_module("devices_spikebit")
    monkeypatch.setattr(module, "keep_memory", lambda: None)  # of the whole process
    return module


@pytest.fixture
def measured(benchmark, monkeypatch):
    """Puts made-up times in the place of those measured; in one case aihwkit is missing."""
    times = {"jit": [0.01, 0.02, 0.01], "compressed": [0.08, 0.2, 0.09], "bits": [0.5, 0.5, 0.5]}

    def run_case(rows, rounds, pythons, say):
        done = []
        for row in rows:
            missing = (row.library, row.case) == ("aihwkit", "age")
            facts = {"check": 0.125, "versions": {row.library: "1.0"}}
            facts = {"error": "not installed (No module)"} if missing else facts
            cpu = [] if missing else times[row.variant]
            done.append(row._replace(cpu=cpu, wall=cpu, facts=facts))
        return done

    monkeypatch.setattr(benchmark, "run_case", run_case)


def cells(line):
    return [c.strip() for c in line.strip().strip("|").split("|")]


@pytest.mark.parametrize(
    ("case", "low", "high"),
    [
        ("product", 0.02, 0.3),
        ("program", 0.02, 0.3),
        ("age", 0.02, 0.3),
        ("full_constant", 0.9, 1.1),
        ("short_soft", 0.8, 1.1),
        ("normals", 0.9, 1.1),
        ("gemm", 0.0, 0.0),
    ],
)
def test_each_case_does_what_it_says(side, case, low, high):
    sizes = importlib.import_module("devices_workload").Sizes(24, 3, 12, 2)
    run = side.build(case, "jit", sizes)
    run.call()
    assert low <= run.check() <= high


def test_ratios_are_those_of_rounds_and_the_faster_way_of_the_other_counts(
    benchmark, measured, capsys
):
    given = ["product", "age", "full_soft"]
    assert benchmark.main(["--only", *given]) == 0
    lines = [cells(line) for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    rows = {line[0]: line[1:] for line in lines[2:]}
    product, age, trains = (rows[benchmark.CASES[case].text] for case in given)
    assert product[0].startswith("10.00 (")
    assert product[1] == "error of y 0.125"
    assert product[4:] == ["9.00 (8.50 to 9.50)", "6"]
    assert trains[2].startswith("90.00 (")  # not those of the other way
    assert trains[4:] == ["9.00 (8.50 to 9.50)", "3"]
    assert age[2:] == ["not installed", "", "", "5"]
    assert benchmark.main(["--json", "--only", *given]) == 0
    objects = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    ratios = {o["case"]: o["ratio"] for o in objects if "ratio" in o}
    assert ratios["age"] is None
    assert ratios["product"] == pytest.approx([8.5, 9.0, 9.5])


def test_write_replaces_its_section_and_refuses_a_broken_file(
    benchmark, measured, tmp_path, capsys
):
    path = tmp_path / "RESULTS.md"
    path.write_text("# Results\n")
    given = ["--only", "gemm", "--write", str(path)]
    for _ in range(2):
        assert benchmark.main(given) == 0
        text = path.read_text()
        assert text.startswith("# Results\n")
        assert text.count("<!-- begin devices -->") == 1
    path.write_text(text.replace("<!-- end devices -->", ""))
    capsys.readouterr()
    assert benchmark.main(given) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_library_that_cannot_be_started_is_not_installed(benchmark, tmp_path):
    plan = benchmark.plan(["gemm"], ["aihwkit"])
    assert [row.variant for row in plan] == ["compressed"]
    assert len(benchmark.plan(["tiny_soft"], ["aihwkit", "spikebit"])) == 3
    unknown = [plan[0]._replace(library="unknown")]
    for rows, python in ((plan, str(tmp_path / "no")), (unknown, sys.executable)):
        pythons = dict.fromkeys(("aihwkit", "unknown"), python)
        found = benchmark.run_case(rows, 1, pythons, lambda line: None)
        assert found[0].facts["error"].startswith("not installed")
        assert not found[0].cpu
    with pytest.raises(SystemExit) as stop:
        benchmark.parse(["--rounds", "0"])
    assert stop.value.code == 2

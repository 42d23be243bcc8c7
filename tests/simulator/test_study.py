"""Studies from end to end on one that only adds: rows, resume, report, and what is refused."""

import base64
import json
import os
import re
import signal
import subprocess
import sys

import pytest

from spikebit.simulator import experiment_file, studies
from spikebit.simulator.cli import main

ADDING = '''
"""Adds numbers."""
import os
from pydantic import Field
from pydantic.dataclasses import dataclass
from spikebit.simulator import plots
from spikebit.simulator.experiment import STRICT, Count

TITLES = {"sums": "Sums & more"}
TEXT = "What <adding> gives."


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Settings:
    numbers: tuple[Count, ...] = (1, 2, 3)
    words: tuple[str, ...] = ("a", "b")
    spoil: str = ""


def cases(settings, seed):
    if 13 in settings.numbers:
        raise ValueError("study.numbers has 13, which brings bad luck: leave it out")
    return [{"word": w, "number": n} for w in settings.words for n in settings.numbers]


def measure(settings, seed, case):
    if settings.spoil == "stop" and case["number"] == 3 and "GO_ON" not in os.environ:
        raise KeyboardInterrupt
    if settings.spoil == "fail":
        raise ValueError("it went wrong")
    wrong = {"no_number": float("nan"), "object": object()}
    return {"sum": wrong.get(settings.spoil, 0.1 + seed + case["number"])}


def pictures(settings, rows):
    ax = plots.new_axes()
    ax.plot([r["number"] for r in rows], [r["sum"] for r in rows])
    return {"sums": ax}


def summary(settings, rows):
    return {"total": sum(r["sum"] for r in rows)}
'''


@pytest.fixture(autouse=True)
def adding(tmp_path, monkeypatch):
    """A study of its own kind, found like all others, and a file that asks for it."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "adding.py").write_text(ADDING)
    (folder / "_helper.py").write_text("")
    monkeypatch.setattr(studies, "__path__", [*studies.__path__, str(folder)])
    file = tmp_path / "file.toml"
    file.write_text('[run]\nname = "sums"\nseed = 4\n[study]\nname = "adding"\n')
    yield file
    sys.modules.pop("spikebit.simulator.studies.adding", None)
    studies.schema.cache_clear()


def lines_of(text):
    return [json.loads(line) for line in text.splitlines()]


def without_times(rows):
    return [{k: v for k, v in row.items() if k not in ("seconds", "run")} for row in rows]


def run(file, folder, *overrides, exit_code=0):
    sets = [part for s in (f"run.dir={folder}", *overrides) for part in ("--set", s)]
    assert main(["run", str(file), *sets, "--json"]) == exit_code


def test_a_study_prints_a_row_a_case_and_its_summary(adding, tmp_path, capsys):
    folder = tmp_path / "run"
    run(adding, folder, "study.words=['x']", "study.numbers=[5, 7]")
    captured = capsys.readouterr()
    *rows, last = lines_of(captured.out)
    assert without_times(rows) == [
        {"word": "x", "number": 5, "sum": 9.1},
        {"word": "x", "number": 7, "sum": 11.1},
    ]
    assert list(last) == ["run", "study", "seconds", "total"]
    assert (last["run"], last["total"]) == (str(folder), 9.1 + 11.1)
    assert lines_of((folder / "metrics.jsonl").read_text()) == rows
    assert json.loads((folder / "result.json").read_text()) == last
    assert json.loads((folder / "run.json").read_text())["state"] == "complete"
    assert "case 1 of 2" in captured.err
    saved = experiment_file.load(folder / "experiment.toml")
    assert isinstance(saved, studies.Study)
    assert (saved.settings.numbers, saved.run.seed) == ((5, 7), 4)


def test_the_report_has_pictures_rows_and_settings(adding, tmp_path):
    folder = tmp_path / "run"
    run(adding, folder)
    page = (folder / "report.html").read_text()
    (data,) = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert base64.b64decode(data) == (folder / "sums.png").read_bytes()
    for text in ("Sums &amp; more", "What &lt;adding&gt;", "study.numbers", "jaxlib", "total"):
        assert text in page
    assert page.count("<td>b</td>") == 3  # a line for each case


@pytest.mark.parametrize("torn", [False, True])
def test_a_study_that_stopped_goes_on_with_the_missing_cases(
    adding, tmp_path, capsys, monkeypatch, torn
):
    run(adding, tmp_path / "whole")
    *whole, whole_result = lines_of(capsys.readouterr().out)
    folder = tmp_path / "run"
    run(adding, folder, "study.spoil=stop", exit_code=130)
    assert f"spikebit resume {folder}" in capsys.readouterr().err.replace("\n", " ")
    assert json.loads((folder / "run.json").read_text())["state"] == "interrupted"
    metrics = folder / "metrics.jsonl"
    done = metrics.read_text()
    assert without_times(lines_of(done)) == without_times(whole[:2])
    if torn:
        metrics.write_text(done + '{"word": "a", "numb')
    monkeypatch.setenv("GO_ON", "1")
    assert main(["resume", str(folder), "--json"]) == 0
    *rest, result = lines_of(capsys.readouterr().out)
    assert without_times(rest) == without_times(whole[2:])
    assert without_times([result]) == without_times([whole_result])
    assert metrics.read_text().startswith(done)  # what was measured is not measured again
    assert without_times(lines_of(metrics.read_text())) == without_times(whole)
    before = metrics.stat().st_mtime_ns
    assert main(["resume", str(folder), "--json"]) == 0
    assert lines_of(capsys.readouterr().out) == [result]
    assert metrics.stat().st_mtime_ns == before


def test_a_killed_study_loses_no_row(adding, tmp_path, capsys):
    folder, modules = tmp_path / "run", tmp_path / "modules"
    code = f"""
import sys, time
from spikebit.simulator import studies
from spikebit.simulator.cli import main
studies.__path__.append({str(modules)!r})
adding = studies.find("adding")
measure = adding.measure
def slow(settings, seed, case):
    if case == {{"word": "b", "number": 2}}:
        print("now", flush=True)
        time.sleep(600)
    return measure(settings, seed, case)
adding.measure = slow
main(["run", {str(adding)!r}, "--set", "run.dir={folder}"])
"""
    command = [sys.executable, "-P", "-c", code]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=dict(os.environ))
    assert process.stdout is not None
    assert process.stdout.readline() == b"now\n"
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    done = (folder / "metrics.jsonl").read_text()
    assert len(lines_of(done)) == 4
    assert main(["resume", str(folder)]) == 0
    run(adding, tmp_path / "whole")
    rows = [lines_of((tmp_path / f / "metrics.jsonl").read_text()) for f in ("run", "whole")]
    assert (folder / "metrics.jsonl").read_text().startswith(done)
    assert without_times(rows[0]) == without_times(rows[1])
    assert "report.html" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "overrides", "said"),
    [
        ('[study]\nname = "ading"', [], 'study.name = "ading": did you mean adding? known'),
        ('[study]\nname = "_helper"', [], "known studies are adding"),
        ("[study]\nnumbers = [3]", [], "study.name is missing: known studies are adding"),
        ("[study]\nname = 3", [], "study.name = 3: known studies are"),
        ("study = 3", [], "study = 3: expected a table of settings"),
        ('[study]\nname = "adding"\nnumber = [3]', [], "study.number is not a known key: did you"),
        ('[study]\nname = "adding"\nnumbers = [0]', [], "study.numbers.0 = 0: must be >= 1"),
        ('[study]\nname = "adding"\n[train]\nepochs = 3', [], "train is not a known section"),
        ('[study]\nname = "adding"\nnumbers = [13]', [], "brings bad luck"),
        ('[study]\nname = "adding"\nnumbers = []', [], "these settings leave no case"),
        ('[study]\nname = "adding"\nnumbers = [1, 1]', [], '"word": "a"} occurs twice'),
        ('[study]\nname = "adding"', ["study.words=3"], "--set study.words=3: study.words = 3"),
        ('[study]\nname = "adding"', ["study.name=x"], '--set study.name=x: study.name = "x"'),
    ],
)  # fmt: skip
def test_a_wrong_study_is_refused_in_one_line(adding, tmp_path, capsys, text, overrides, said):
    adding.write_text(text)
    run(adding, tmp_path / "run", *overrides, exit_code=2)
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert said in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ("fail", "it went wrong"),
        ("no_number", 'what was measured for {"word": "a", "number": 1} is not JSON'),
        ("object", "give finite plain values or None"),
    ],
)
def test_a_measurement_that_fails_fails_the_run(adding, tmp_path, capsys, spoil, said):
    run(adding, tmp_path / "run", f"study.spoil={spoil}", exit_code=2)
    assert said in capsys.readouterr().err
    state = json.loads((tmp_path / "run" / "run.json").read_text())
    assert state["state"] == "failed"
    assert said in state["why"]


def test_rows_of_other_cases_are_not_taken_for_these(adding, tmp_path, capsys):
    folder = tmp_path / "run"
    run(adding, folder, "study.spoil=stop", exit_code=130)
    path = folder / "experiment.toml"
    path.write_text(path.read_text().replace("[1, 2, 3]", "[1, 4, 3]"))
    capsys.readouterr()
    assert main(["resume", str(folder)]) == 2
    assert "metrics.jsonl: line 2 is not of case 2" in capsys.readouterr().err


def test_compare_says_that_a_study_has_no_learning_curve(adding, tmp_path, capsys):
    folder = tmp_path / "run"
    run(adding, folder)
    capsys.readouterr()
    out = tmp_path / "both.png"
    assert main(["compare", str(folder), "--out", str(out)]) == 2
    err = capsys.readouterr().err
    assert "study adding, which has no learning curve" in err
    assert str(folder / "report.html") in err
    assert not out.exists()

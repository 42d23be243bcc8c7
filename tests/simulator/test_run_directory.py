"""The folder of a run: it appears whole or not at all, and nothing is mistaken for one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from spikebit.simulator import run_directory as rd
from spikebit.simulator.experiment import Experiment, Run


@pytest.fixture(autouse=True)
def in_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def names(folder="."):
    return sorted(p.name for p in Path(folder).iterdir())


def at(path, **run):
    return Experiment(run=Run(dir=str(path), **run))


def test_a_new_run_holds_its_settings_versions_and_state(tmp_path):
    run = rd.create(at("a/b", seed=7))
    assert run.path == Path("a/b")
    assert names("a") == ["b"]
    assert names("a/b") == [
        "checkpoints", "experiment.toml", "run.json", "versions.json",
    ]  # fmt: skip
    assert rd.open_run("a/b").experiment() == at("a/b", seed=7)
    assert run.state()["state"] == "running"
    assert run.result() is None
    assert set(run.versions()) >= {"spikebit", "jax", "flax", "numpy", "python", "devices"}


def test_without_a_place_runs_are_numbered():
    made = [rd.create(Experiment(run=Run(name="x"))).path for _ in range(3)]
    assert made == [Path("runs/x-1"), Path("runs/x-2"), Path("runs/x-3")]
    (Path("runs") / "x-4").mkdir()
    assert rd.create(Experiment(run=Run(name="x"))).path == Path("runs/x-5")


def test_an_empty_folder_may_be_used():
    Path("a").mkdir()
    assert rd.create(at("a")).path == Path("a")


@pytest.mark.parametrize("function", [rd.create, rd.check_free])
def test_a_place_that_is_taken_is_refused_and_left_as_it_is(function):
    rd.create(at("run"))
    before = {p: p.read_bytes() for p in Path("run").iterdir() if p.is_file()}
    with pytest.raises(ValueError, match=r"run.dir = run already holds a run.*spikebit resume run"):
        function(at("run"))
    assert before == {p: p.read_bytes() for p in Path("run").iterdir() if p.is_file()}
    Path("full").mkdir()
    Path("full/mine.txt").write_text("x")
    with pytest.raises(ValueError, match=r"run.dir = full is not empty"):
        function(at("full"))
    with pytest.raises(ValueError, match=r"run.dir = full.mine.txt is a file"):
        function(at(Path("full/mine.txt")))
    assert names("full") == ["mine.txt"]


def test_a_place_that_cannot_be_written_is_named():
    Path("file").write_text("x")
    with pytest.raises(OSError, match=r"run.dir: cannot write in .*file.*--set run.dir=DIR"):
        rd.create(at("file/below/run"))
    assert names() == ["file"]


def test_nothing_is_left_when_making_a_run_fails(monkeypatch):
    def fail():
        raise OSError("disk full")

    monkeypatch.setattr(rd, "versions", fail)
    with pytest.raises(OSError, match="disk full"):
        rd.create(at("a"))
    assert names() == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "has no run.json, so it is not a run"),
        ("", "run.json is damaged"),
        ("{", "run.json is damaged"),
        ("[]", "state is not one of"),
        ('{"state": "done"}', "state is not one of"),
    ],
)
def test_what_is_not_a_run_is_not_opened(content, said):
    Path("a").mkdir()
    if content is not None:
        Path("a/run.json").write_text(content)
    with pytest.raises(ValueError, match=said):
        rd.open_run("a")


def test_a_place_that_does_not_exist_is_not_opened():
    with pytest.raises(ValueError, match="nowhere is not a folder"):
        rd.open_run("nowhere")


def test_metrics_are_cut_to_what_a_checkpoint_knows():
    run = rd.create(at("a"))
    for i in range(4):
        run.append_metrics({"i": i})
    with Path("a/metrics.jsonl").open("a") as file:
        file.write('{"i": 4')  # killed here
    assert [m["i"] for m in run.metrics()] == [0, 1, 2, 3]
    run.cut_metrics(2)
    assert Path("a/metrics.jsonl").read_text() == '{"i": 0}\n{"i": 1}\n'
    with pytest.raises(ValueError, match=r"metrics.jsonl has 2 lines .* after 3"):
        run.cut_metrics(3)
    with pytest.raises(ValueError, match="not JSON"):
        run.append_metrics({"loss": float("nan")})
    assert len(run.metrics()) == 2


def test_files_are_replaced_in_one_piece(monkeypatch):
    rd.write_json(Path("x.json"), {"a": 1})

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(rd.os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        rd.write_json(Path("x.json"), {"a": 2})
    assert rd.read_json(Path("x.json")) == {"a": 1}


def test_two_processes_do_not_work_on_one_run():
    run = rd.create(at("a"))
    code = (
        "from spikebit.simulator.run_directory import open_run\nwith open_run('a').locked(): pass"
    )
    again = [sys.executable, "-P", "-c", code]
    with run.locked():
        other = subprocess.run(again, capture_output=True, text=True, check=False)
    assert "another process is working on this run" in other.stderr
    with run.locked():
        pass  # the lock is free again


def test_a_lost_file_of_a_run_is_named():
    run = rd.create(at("a"))
    run.set_state("complete")
    with pytest.raises(ValueError, match=r"result.json is missing"):
        run.result()
    assert json.loads(Path("a/run.json").read_text())["state"] == "complete"

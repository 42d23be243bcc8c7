"""The commands from end to end on a tiny experiment, and what happens when a run is cut short."""

import base64
import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from spikebit.simulator import launch
from spikebit.simulator.cli import main

TINY = """
[run]
name = "tiny"
[data]
limit = 40
[encoder]
name = "poisson"
steps = 2
max_rate = 500.0
[network]
hidden = [8]
[rule]
chunk = 1
[memory]
format = "e4m3fn"
rounding = "stochastic"
[train]
epochs = 2
batch = 10
log_every = 3
checkpoint_every = 2
"""  # 4 batches an epoch; checkpoints after batches 2, 4, 6, 8
PICTURES = ("confusion_matrix", "learning_curve", "lost", "potentials", "raster", "weights")


@pytest.fixture(autouse=True)
def as_users_have_it():
    """Optax's adam relies on dtype promotion."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    path = tmp_path_factory.mktemp("experiment") / "tiny.toml"
    path.write_text(TINY)
    return str(path)


@pytest.fixture(scope="module")
def whole(experiment, tmp_path_factory):
    """A run that was never interrupted, and what it printed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    out, err = io.StringIO(), io.StringIO()
    with (
        jax.numpy_dtype_promotion("standard"),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        assert main(["run", experiment, "--set", f"run.dir={folder}", "--json"]) == 0
    return folder, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module", autouse=True)
def compile_once(tmp_path_factory):
    """The program of the tiny experiment is compiled once for all runs of this file."""
    names = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.5,
    }
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in names.items():
        jax.config.update(name, value)
    jax.config.update("jax_disable_most_optimizations", True)
    names["jax_disable_most_optimizations"] = True
    yield {name.upper(): str(value) for name, value in names.items()}
    jax.config.update("jax_disable_most_optimizations", False)
    for name, value in before.items():
        jax.config.update(name, value)


def lines_of(text):
    return [json.loads(line) for line in text.splitlines()]


def results(folder):
    """Everything that must not depend on interruptions."""
    lines = lines_of((folder / "metrics.jsonl").read_text())
    result = json.loads((folder / "result.json").read_text())
    with ocp.StandardCheckpointer() as checkpointer:
        arrays = checkpointer.restore((folder / "checkpoints" / "00000008").absolute())
    bits = {k: (str(a.dtype), np.asarray(a).tobytes()) for k, a in arrays.items()}
    for row in (*lines, result):
        del row["seconds"]
    del result["run"]
    return lines, result, bits


def test_run_prints_json_lines_and_leaves_a_whole_run(whole):
    folder, out, _ = whole
    *metrics, last = lines_of(out)
    assert last["run"] == str(folder)
    assert 0 <= last["test_accuracy"] <= 1
    assert last["seconds"] > 0
    assert [m["step"] for m in metrics] == [3, 4, 7, 8]
    assert metrics == lines_of((folder / "metrics.jsonl").read_text())
    assert last == json.loads((folder / "result.json").read_text())
    assert last["test_accuracy"] == metrics[-1]["test_accuracy"]
    assert last["parameters"] == 784 * 8 + 8 * 8 + 8 + 8 * 10 + 10
    assert json.loads((folder / "run.json").read_text())["state"] == "complete"


def test_where_nobody_looks_progress_is_a_line_an_epoch(whole):
    folder, out, err = whole
    first, *epochs = err.splitlines()
    assert str(folder) in first
    assert "40 train + 40 test samples" in first
    for number, (line, metrics) in enumerate(
        zip(epochs, lines_of(out)[1:4:2], strict=True), start=1
    ):
        accuracy = metrics["test_accuracy"]
        assert line.startswith(f"epoch {number}: train loss {metrics['train_loss']:.3f}")
        assert line.endswith(f"accuracy {accuracy:.1%}")


def test_the_report_inlines_every_picture(whole):
    folder, _, _ = whole
    page = (folder / "report.html").read_text()
    inlined = {base64.b64decode(d) for d in re.findall(r"data:image/png;base64,([^\"]+)", page)}
    files = {(folder / f"{name}.png").read_bytes() for name in PICTURES}
    assert inlined == files
    assert len(files) == len(PICTURES)
    assert all(data.startswith(b"\x89PNG") for data in files)
    for text in ("e4m3fn", "rule.chunk", "jaxlib", "stagnated", "0.w"):
        assert text in page


def test_a_complete_run_is_not_run_again(whole, capsys):
    folder, out, _ = whole
    before = sorted((p, p.stat().st_mtime_ns) for p in folder.rglob("*"))
    assert main(["resume", str(folder), "--json"]) == 0
    captured = capsys.readouterr()
    assert lines_of(captured.out) == lines_of(out)[-1:]
    assert "complete already" in captured.err.replace("\n", " ")
    assert sorted((p, p.stat().st_mtime_ns) for p in folder.rglob("*")) == before


def test_a_killed_run_goes_on_to_the_same_bits(experiment, whole, tmp_path, capsys, compile_once):
    folder = tmp_path / "run"
    code = f"""
import jax, sys, time
from spikebit.simulator import checkpoint
from spikebit.simulator.cli import main
saved = checkpoint.save
def save(folder, step, tree, notes):
    saved(folder, step, tree, notes)
    if step == 6:  # metrics of batch 7 are not written yet, those of 3 and 4 are
        print("now", flush=True)
        time.sleep(600)
checkpoint.save = save
jax.config.update("jax_debug_key_reuse", True)  # as in these tests
main(["run", {experiment!r}, "--set", "run.dir={folder}"])
"""
    command = [sys.executable, "-P", "-c", code]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | compile_once)
    assert process.stdout is not None
    assert process.stdout.readline() == b"now\n"
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    # what a later moment of death would have left: a line more, and half a checkpoint
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "train_loss": 1e9}\n{"st')
    shutil.copytree(folder / "checkpoints" / "00000006", folder / "checkpoints" / "00000008")
    # the newest whole checkpoint is damaged, the one before is used
    victim = max((folder / "checkpoints" / "00000006").rglob("d/*"), key=lambda p: p.stat().st_size)
    victim.write_bytes(victim.read_bytes()[:-1])

    assert main(["resume", str(folder)]) == 0
    captured = capsys.readouterr()
    assert "going on from the checkpoint before" in captured.err.replace("\n", " ")
    assert "00000006" in captured.err
    assert results(folder) == results(whole[0])
    assert not list(folder.parent.glob(".spikebit*"))


def copy_of(whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole[0], folder)
    (folder / "run.json").write_text('{"state": "running"}')
    return folder


def test_a_run_without_a_whole_checkpoint_is_refused_in_one_line(whole, tmp_path, capsys):
    folder = copy_of(whole, tmp_path)
    for listing in (folder / "checkpoints").glob("*.json"):
        listing.write_text("{}")
    assert main(["resume", str(folder), "--json"]) == 2
    captured = capsys.readouterr()
    assert "no checkpoint is whole" in captured.err
    assert lines_of(captured.out) == [{"error": captured.err.removeprefix("spikebit: ").strip()}]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / "run.json").unlink(), "not a run"),
        (lambda f: (f / "run.json").write_text('{"state": "run'), "run.json is damaged"),
        (lambda f: (f / "experiment.toml").write_text("[train"), "this is not TOML"),
        (lambda f: (f / "experiment.toml").unlink(), "experiment.toml"),
        (lambda f: (f / "versions.json").unlink(), "versions.json is missing"),
        (lambda f: (f / "metrics.jsonl").write_text(""), "metrics.jsonl has 0 lines"),
        (lambda f: (f / "experiment.toml").write_text(TINY.replace("[8]", "[9]")), "does not fit"),
    ],
)
def test_a_damaged_run_is_refused_in_one_line(whole, tmp_path, capsys, spoil, said):
    folder = copy_of(whole, tmp_path)
    spoil(folder)
    assert main(["resume", str(folder)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("spikebit: ")
    assert captured.err.count("\n") == 1
    assert said in captured.err
    assert str(folder) in captured.err


def test_a_run_directory_that_cannot_be_used_is_refused(experiment, whole, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    for folder, said in (
        (whole[0], "already holds a run"),
        (tmp_path / "file", "is a file"),
        (tmp_path / "file" / "run", "cannot write in"),
        (tmp_path, "is not empty"),
    ):
        assert main(["run", experiment, "--set", f"run.dir={folder}"]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("memory.format=e9m9", "memory.format"),
        ("encoder.name=none", "choose direct or poisson or latency"),
        ("encoder.max_rate=5000", "encoder.max_rate = 5000.0"),
        ("train.batch=41", "train.batch = 41 is more than the 40 training samples"),
        ("network.surrogate=box", "network.surrogate: there is no surrogate"),
        ("train.loss=cross_entropi", "did you mean cross_entropy"),
        ('network.state_formats={mem = "e5m2"}', "has no state 'mem'; it has membrane"),
        (
            'network.state_formats={membrane = "int8"}',
            "int8 takes its scale",
        ),
        ("rule.trace_format=int8", "rule.trace_format = 'int8': int8 takes its scale"),
        ("network.products=luq", 'or choose "luq_all", which takes these too'),
    ],
)
def test_what_does_not_fit_is_said_before_a_run_exists(
    experiment, tmp_path, capsys, override, said
):
    folder = tmp_path / "run"
    assert main(["run", experiment, "--set", f"run.dir={folder}", "--set", override]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_loss_that_is_no_number_fails_the_run_and_keeps_its_checkpoint(
    experiment, tmp_path, capsys
):
    folder = tmp_path / "run"
    sets = ["run.dir=" + str(folder), "rule.name=bptt", "memory.format=float32"]
    sets += ["train.loss=squared_error", "optimizer.name=sgd", "optimizer.learning_rate=1e12"]
    sets += ["train.checkpoint_every=1", "train.log_every=1"]
    assert main(["run", experiment, *(part for s in sets for part in ("--set", s))]) == 2
    error = capsys.readouterr().err
    assert re.search(r"not finite in epoch 1, batch [234] of 4: try a smaller", error)
    assert "Traceback" not in error
    state = json.loads((folder / "run.json").read_text())
    assert state["state"] == "failed"
    assert "TrainingDiverged" in state["why"]
    assert list((folder / "checkpoints").glob("*.json"))
    assert not (folder / "result.json").exists()
    assert not (folder / "report.html").exists()


def test_ctrl_c_leaves_a_run_that_can_be_resumed(experiment, tmp_path, capsys, monkeypatch):
    def interrupt(job, **_):
        raise KeyboardInterrupt

    monkeypatch.setattr(launch, "train", interrupt)
    folder = tmp_path / "run"
    assert main(["run", experiment, "--set", f"run.dir={folder}"]) == 130
    error = capsys.readouterr().err.replace("\n", " ")
    assert f"spikebit resume {folder}" in error
    assert json.loads((folder / "run.json").read_text())["state"] == "interrupted"


def test_compare_prints_a_row_a_run_and_draws_one_plot(whole, tmp_path, capsys):
    other = copy_of(whole, tmp_path)
    text = (other / "experiment.toml").read_text().replace("seed = 0", "seed = 1")
    (other / "experiment.toml").write_text(text)
    picture = tmp_path / "both.png"
    assert main(["compare", str(whole[0]), str(other), "--out", str(picture), "--json"]) == 0
    rows = lines_of(capsys.readouterr().out)
    assert [(r["run.seed"], r["state"]) for r in rows] == [(0, "complete"), (1, "running")]
    assert rows[0]["test_accuracy"] == rows[1]["test_accuracy"] is not None
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main(["compare", str(whole[0]), str(tmp_path / "none"), "--out", str(picture)]) == 2
    assert "none" in capsys.readouterr().err


def test_rules_compares_gradients_with_bptt(capsys):
    sizes = "--inputs 3 --hidden 4 --outputs 2 --steps 6 --batch 2 --seed 1".split()
    assert main(["rules", "--cell", "soft_snu", *sizes, "--rules", "bptt,ostl", "--json"]) == 0
    bptt, ostl = lines_of(capsys.readouterr().out)
    assert bptt["exact"] == ostl["exact"] == "exact for every leaf"
    assert [leaf["leaf"] for leaf in ostl["leaves"]][-2:] == ["layers.1.bias", "layers.1.kernel"]
    assert (bptt["rule"], bptt["relative_error"], ostl["rule"]) == ("bptt", 0, "ostl")
    assert 0 < ostl["relative_error"] < 1e-5
    assert ostl["cosine"] == pytest.approx(1, abs=1e-6)
    assert ostl["step_ms"] > 0
    assert ostl["peak_bytes"] > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [("--rules bptt,magic", "known are bptt, ostl"), ("--steps 0", "--steps = 0")],
)
def test_rules_names_a_wrong_argument(capsys, arguments, said):
    assert main(["rules", *arguments.split()]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["walk"], ["run"], ["rules", "--cell", "brain"]])
def test_wrong_usage_exits_with_2(arguments, capsys):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert err.startswith("spikebit: ")
    assert err.count("\n") == 1
    assert "--help" in err
    assert bool(out) == ("--json" in arguments)

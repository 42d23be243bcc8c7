"""The benchmark of online learning at tiny sizes: opponents agree, tables and file are right."""

import importlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    module = importlib.import_module("online_learning")
    # of the whole process, and the other tests are in it
    monkeypatch.setattr(module, "keep_memory", lambda: None)
    monkeypatch.setattr(importlib.import_module("peers.rounds"), "MIN_SECONDS", 0.0)
    return module


@pytest.fixture
def gradients(benchmark):
    return importlib.import_module("peers.gradients")


def columns(table):
    """A Markdown table as a dictionary from the first cell of a line to its other cells."""
    lines = [[c.strip() for c in line.strip("| ").split(" | ")] for line in table.splitlines()]
    return {line[0]: line[1:] for line in lines}


def test_all_exact_ways_give_one_gradient(gradients):
    cell = gradients.snu(5, recurrent=True)
    task = gradients.task(cell, 12, 2, 5, 5, rate=0.4)
    ways = {**gradients.bptts(cell), **gradients.chunked(cell, (4,))}
    found = {k: way(task.params, task.xs, task.targets) for k, way in ways.items()}
    first = found["BPTT, jax.grad of lax.scan"]
    assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(first))
    for gradient in found.values():
        assert gradients.error(gradient, first) < 1e-5


def test_times_are_of_one_run_each_and_every_run_has_its_turn(benchmark):
    rounds = importlib.import_module("peers.rounds")
    called = []
    runs = {name: lambda name=name: called.append(name) for name in "abc"}
    times = rounds.in_turns(runs, 3)
    assert {len(t.wall) for t in times.values()} == {3}
    assert {len(t.cpu) for t in times.values()} == {3}
    assert called[:6] == list("aabbcc")  # warm-up and the count
    assert called[6:] == list("abcbcacab")  # each round begins with another
    assert rounds.Times([3.0, 1.0, 2.0], [5.0]).median("wall") == 2.0


def test_a_part_is_written_into_the_file_and_the_rest_stays(
    benchmark, tmp_path, capsys, monkeypatch
):
    sizes = benchmark.Sizes(rounds=1, feedforward=(4, 2, 20), chunks=(5,), memory=(20,))
    path = tmp_path / "RESULTS.md"
    path.write_text("# Results\n")
    # which is another process
    monkeypatch.setattr(benchmark, "ProcessPoolExecutor", lambda *_, **__: ThreadPoolExecutor(1))
    given = ["--only", "feedforward", "--write", str(path)]
    assert benchmark.main(given, sizes) == 0
    text = path.read_text()
    assert text.startswith("# Results\n")
    assert text.count("<!-- begin online_learning -->") == 1
    assert capsys.readouterr().out.count("| OSTL, K = 5") == 4
    rows = columns(text.partition("spike:")[2].partition("The inputs")[0])
    exact = rows["OSTL, K = 5"]
    assert float(exact[-1]) < 1e-5
    ratios = [float(rows[k][1]) for k in rows if k.startswith("BPTT")]
    assert min(ratios) == 1.0  # the fastest BPTT is what is compared with


def test_the_problem_given_to_others_is_the_one_that_is_run(benchmark):
    plastic = importlib.import_module("plastic_synapses")
    problem = plastic.Problem(20, 1, 30.0, 2.0, use=0.5)
    events = problem.events()
    state, fired = problem.compiled(events)()
    assert events.first.shape == (2001,)
    assert fired.shape == (2000, 1)
    # the threshold is the mean drive: rate / (1 + U rate tau_F), times the weights, times tau
    assert problem.threshold == pytest.approx(20 * 30 / (1 + 0.5 * 30 * 0.2) * 0.5 * 0.01)
    assert np.asarray(state.weights).min() >= 0


def test_wrong_options_and_files_are_refused(benchmark, tmp_path, capsys):
    for options in (["--rounds", "0"], ["--only", "nothing"]):
        with pytest.raises(SystemExit) as stop:
            benchmark.parse(options)
        assert stop.value.code == 2
    capsys.readouterr()
    assert benchmark.main(["--write", str(tmp_path / "no" / "RESULTS.md")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1

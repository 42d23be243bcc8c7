"""Sweeps: which runs there are, what a run gives, how it is drawn, what is refused."""

import dataclasses
import functools
import itertools
import json
import re

import numpy as np
import pytest

from spikebit.simulator import experiment_file, plots, report
from spikebit.simulator.build import build
from spikebit.simulator.cli import main
from spikebit.simulator.state_losses import lost_in_formats
from spikebit.simulator.studies import sweep
from spikebit.simulator.train import initial_state, read_parameters, train

pytestmark = pytest.mark.usefixtures("compile_quickly")

SMALL = """
[run]
name = "small"
[data]
limit = 60
[encoder]
steps = 4
[network]
hidden = [16]
[network.state_formats]
membrane = "fixed8.4"
[rule]
chunk = 1
trace_format = "fixed8.2"
[optimizer]
name = "sgd"
learning_rate = 0.1
[train]
epochs = 1
batch = 20
"""


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return str(path)


def settings(small, **over):
    return sweep.Settings(experiment=small, over=over.pop("over"), **over)


OVER = {"memory.format": ("float32", "int4"), "rule.trace_format": ("float32", "fixed8.1", "e5m2")}


def test_cases_are_all_combinations_each_with_its_seeds(small):
    got = sweep.cases(settings(small, over=OVER, seeds=2), seed=5)
    wanted = [
        {"memory.format": a, "rule.trace_format": b, "run.seed": s}
        for a, b, s in itertools.product(*OVER.values(), (5, 6))
    ]
    assert got == wanted


def test_a_case_is_the_experiment_with_its_settings(small):
    given = settings(
        small,
        over={"network.state_formats.membrane": ("fixed12.6",), "network.hidden": ([3, 4],)},
        fixed={"train.epochs": 7},
    )
    (case,) = sweep.cases(given, seed=1)
    base = experiment_file.load(small)
    found = sweep.experiment_of(given, case)
    changed = {
        "run": dataclasses.replace(base.run, seed=1),
        "network": dataclasses.replace(
            base.network, hidden=(3, 4), state_formats={"membrane": "fixed12.6"}
        ),
        "train": dataclasses.replace(base.train, epochs=7),
    }
    assert found == dataclasses.replace(base, **changed)


def test_a_row_is_what_the_run_by_itself_gives(small):
    given = settings(small, over=OVER)
    case = {"memory.format": "int4", "rule.trace_format": "e5m2", "run.seed": 3}
    row = sweep.measure(given, 3, case)
    job = build(sweep.experiment_of(given, case))
    lines = []
    train(job, on_metrics=lines.append)
    assert row["test_accuracy"] == lines[-1]["test_accuracy"]
    assert row["test_loss"] == lines[-1]["test_loss"]
    counts = lines[-1]["lost"].values()
    share = sum(c["stagnated"] for c in counts) / sum(c["writes"] for c in counts)
    assert row["weights_stagnated"] == share > 0
    assert 0 < row["membrane_underflowed"] < 1
    assert set(row) >= {"membrane_saturated", "eligibility_trace_saturated", "train_loss"}


def test_losses_of_states_are_those_of_the_settings(small):
    job = build(experiment_file.load(small))
    params = read_parameters(job, initial_state(job).memory)
    lost = lost_in_formats(job, params, job.dataset.test)
    assert set(lost) == {"membrane", "eligibility_trace"}
    without = ["network.state_formats={}", "rule.name=bptt", "rule.trace_format=float32"]
    plain = build(experiment_file.load(small, without))
    assert lost_in_formats(plain, params, job.dataset.test) == {}


def fake(over, seeds=2):
    """Rows whose accuracy is known: the sum of the places of the values, and the seed / 100."""
    rows = []
    for place in np.ndindex(*(len(v) for v in over.values())):
        for seed in range(seeds):
            case = {k: v[i] for (k, v), i in zip(over.items(), place, strict=True)}
            found = {"test_accuracy": sum(place) + seed / 100, "test_loss": 1.0}
            rows.append(case | {"run.seed": seed} | found)
    return rows


def test_two_settings_make_a_heat_map_of_means_and_three_one_for_each_value_of_the_third(small):
    three = OVER | {"rule.chunk": (1, 2)}
    given = settings(small, over=OVER, seeds=2)
    (ax,) = sweep.pictures(given, fake(OVER)).values()
    values = np.asarray(ax.images[0].get_array())
    np.testing.assert_allclose(values, np.add.outer(np.arange(3), np.arange(2)) + 0.005)
    assert (ax.get_xlabel(), ax.get_ylabel()) == tuple(OVER)
    assert [t.get_text() for t in ax.get_xticklabels()] == ["float32", "int4"]
    assert report.png(ax).startswith(b"\x89PNG")
    many = sweep.pictures(settings(small, over=three, seeds=2), fake(three))
    titles = [ax.get_title() for ax in many.values()]
    assert titles == ["rule.chunk = 1", "rule.chunk = 2"]
    for k, ax in enumerate(many.values()):
        np.testing.assert_allclose(np.asarray(ax.images[0].get_array()), values + k)


def test_one_setting_makes_a_line_with_the_spread_over_seeds(small):
    over = {"rule.chunk": (1, 2, 4)}
    (ax,) = sweep.pictures(settings(small, over=over, seeds=2), fake(over)).values()
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [0.005, 1.005, 2.005])
    bars = ax.collections[0].get_segments()
    np.testing.assert_allclose([b[1, 1] - b[0, 1] for b in bars], 0.01)


def test_the_summary_names_the_best_and_the_worst_by_their_means(small):
    given = settings(small, over=OVER, seeds=2)
    told = sweep.summary(given, fake(OVER))
    assert told["runs"] == 12
    best = {"memory.format": "int4", "rule.trace_format": "e5m2", "test_accuracy": 3.005}
    assert told["best"] == best
    assert told["worst"]["test_accuracy"] == 0.005
    rows = [row | {"test_accuracy": None, "test_loss": row["test_accuracy"]} for row in fake(OVER)]
    told = sweep.summary(given, rows)
    assert (told["best"]["test_loss"], told["worst"]["test_loss"]) == (0.005, 3.005)


def test_a_heat_map_leaves_out_what_is_not_known():
    ax = plots.heat_map(np.array([[0.5, np.nan]]), ["r"], ["a", "b"], spread=np.zeros((1, 2)))
    assert [t.get_text() for t in ax.texts] == ["0.5\n± 0"]


def test_from_the_command_line_to_the_report(small, tmp_path, capsys):
    path, run = tmp_path / "sweep.toml", tmp_path / "run"
    path.write_text(
        f'[study]\nname = "sweep"\nexperiment = {json.dumps(small)}\n[study.over]\n'
        '"rule.trace_format" = ["float32", "fixed8.1"]\n'
    )
    assert main(["run", str(path), "--set", f"run.dir={run}", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["rule.trace_format"] for row in lines[:-1]] == ["float32", "fixed8.1"]
    lost = [row["eligibility_trace_underflowed"] for row in lines[:-1]]
    assert lost[0] == 0 < lost[1]
    assert lines[-1]["runs"] == 2
    assert (run / "sweep.png").exists()
    assert "weights_stagnated" in (run / "report.html").read_text()
    loaded = experiment_file.load(run / "experiment.toml")
    assert loaded.settings.over == {"rule.trace_format": ("float32", "fixed8.1")}


BAD = {
    "experiment": ({"experiment": "nowhere", "over": OVER}, "nowhere: this experiment file does"),
    "section": ({"over": {"memry.format": ("e5m2",)}}, "memry is not a known section: did you"),
    "key": ({"over": {"memory.fmt": ("e5m2",)}}, "memory.fmt is not a known key"),
    "value": ({"over": {"train.epochs": ("many",)}}, 'train.epochs = "many": expected a whole'),
    "no section": ({"over": {"format": ("e5m2",)}}, '"format" is not a setting: write'),
    "format": ({"over": {"memory.format": ("e5m",)}}, "memory.format = 'e5m'"),
    "trace": ({"over": {"rule.trace_format": ("int8",)}}, "rule.trace_format = 'int8': int8 takes"),
    "trace of bptt": (
        {"over": {"rule.name": ("ostl", "bptt")}, "fixed": {"rule.trace_format": "e5m2"}},
        'only ostl keeps traces in a format, and rule.name = "bptt"',
    ),
    "state": (
        {"over": {"network.state_formats": ({"membran": "e5m2"},)}},
        "network.state_formats: ",
    ),
    "seed": ({"over": {"run.seed": (1, 2)}}, "set study.seeds"),
    "fixed": ({"over": OVER, "fixed": {"a.b": 1}}, "a is not a known section"),
}


@pytest.mark.parametrize(("given", "said"), BAD.values(), ids=BAD)
def test_what_cannot_be_run_is_named_before_anything_runs(small, given, said):
    made = sweep.Settings(**({"experiment": small} | given))
    with pytest.raises(ValueError, match=re.escape(said)):
        sweep.cases(made, 0)


def test_a_sweep_of_a_study_is_refused(small, tmp_path):
    path = tmp_path / "study.toml"
    path.write_text('[study]\nname = "sweep"\nexperiment = "x"\nover = {"a.b" = [1]}\n')
    with pytest.raises(ValueError, match="is a study: give an experiment to train"):
        sweep.cases(sweep.Settings(experiment=str(path), over=OVER), 0)


def test_a_wrong_file_is_named_in_one_line(tmp_path, capsys):
    write = functools.partial((tmp_path / "x.toml").write_text, encoding="utf-8")
    for text, said in (
        ('experiment = "fashion_snu"', "study.over"),
        ('experiment = "fashion_snu"\nover = {}', "study.over"),
        ('experiment = "fashion_snu"\nover = {"rule.chunk" = []}', "study.over.rule.chunk"),
        ('experiment = "fashion_snu"\nover = {"rule.chunk" = 1}', "study.over.rule.chunk"),
    ):
        write(f'[study]\nname = "sweep"\n{text}\n')
        assert main(["run", str(tmp_path / "x.toml")]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert said in err

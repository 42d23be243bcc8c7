"""The training benchmark without its timings: options, statistics, tables, the file it writes."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("snn_training")


@pytest.fixture
def results(benchmark):
    return importlib.import_module("peers.results")


@pytest.fixture
def row(results):
    def make(library, wall, cpu, variant="eager", **facts):
        given = {
            "loss": 1.0,
            "gradient_norms": {"w0": 1.0},
            "firing_rates": [0.05],
            "problem": None,
            "versions": {library: "1.0"},
        }
        return results.Row("a", library, variant, 2, wall, cpu, given | facts)

    return make


def cells(line):
    return [c.strip() for c in line.strip().strip("|").split("|")]


@pytest.mark.parametrize("n", [1, 2, 7, 8])
def test_spread_is_the_percentiles(results, n):
    samples = np.random.default_rng(n).random(n).tolist()
    np.testing.assert_allclose(results.spread(samples), np.percentile(samples, [25, 50, 75]))


def test_ratio_compares_the_fastest_medians_of_each_clock(results, row):
    rows = [
        row("spikebit", [2.0, 9.0, 1.0], [4.0, 4.0, 4.0]),  # medians 2 and 4
        row("norse", [8.0, 7.0, 0.1], [5.0, 6.0, 99.0]),  # medians 7 and 6
        row("norse", [9.0, 3.0, 3.0], [8.0, 8.0, 8.0], "torch.compile"),  # medians 3 and 8
    ]
    assert results.fastest(rows, "norse", "wall").variant == "torch.compile"
    assert results.fastest(rows, "norse", "cpu").variant == "eager"
    assert results.ratio(rows, "norse", "wall") == pytest.approx(3 / 2)
    assert results.ratio(rows, "norse", "cpu") == pytest.approx(6 / 4)
    assert results.ratio(rows, "spikebit", "wall") == 1
    assert results.ratio(rows[1:], "norse", "wall") is None
    assert results.ratio(rows, "spyx", "wall") is None


def test_a_run_with_dead_gradients_or_an_error_does_not_count(results, row):
    rows = [
        row("spikebit", [1.0], [1.0]),
        row("norse", [2.0], [2.0]),
        row("norse", [0.1], [0.1], problem="zero or non-finite gradients of w0"),
        row("norse", [0.1], [0.1], error="no answer in 300 s"),
    ]
    assert results.ratio(rows, "norse", "wall") == 2
    assert results.ratio(rows[:1] + rows[2:], "norse", "wall") is None


def test_table_holds_every_cell_in_its_place(results):
    header, lines = ["name", "x", "y"], [["a|b", "1", ""], ["", "long cell", "2"]]
    shown = results.table(header, lines).replace("\\|", "¦").splitlines()
    assert [cells(line) for line in shown] == [
        header,
        ["-" * 4, "-" * 8 + ":", "--:"],
        ["a¦b", "1", ""],
        ["", "long cell", "2"],
    ]
    assert len({len(line) for line in shown[:2] + shown[3:]}) == 1


def test_summary_shows_milliseconds_ratios_and_reasons(results, row):
    rows = [
        row("spikebit", [0.010, 0.020, 0.030], [0.040] * 3),
        row("norse", [0.050] * 3, [0.060] * 3),
        row("spyx", [], [], error="not installed (No module named 'spyx')"),
    ]
    header, _, ours, norse, spyx = map(cells, results.summary_table(rows).splitlines())
    assert len(header) == 7
    assert ours == ["spikebit", "20.0", "eager, 2 cores", "1.00", "40.0", "eager, 2 cores", "1.00"]
    assert norse == ["norse", "50.0", "eager, 2 cores", "2.50", "60.0", "eager, 2 cores", "1.50"]
    assert spyx == ["spyx", "", "not installed", "", "", "", ""]
    details = [cells(line) for line in results.detail_table(rows).splitlines()[2:]]
    assert details[0][1:4] == ["20.0 (15.0 to 25.0)", "40.0 (40.0 to 40.0)", "5.0"]
    assert details[2][:2] == ["spyx, eager, 2 cores", "not installed"]


BEGIN, END = "<!-- begin mine -->", "<!-- end mine -->"


def test_replace_section_touches_nothing_else(results):
    before, after = (
        "# Results\n\nkeep | this \n",
        "\n\n<!-- begin other -->\nx\n<!-- end other -->\n",
    )
    text = f"{before}{BEGIN}\nold\n{END}{after}"
    new = results.replace_section(text, "mine", "new")
    assert new.startswith(f"{before}{BEGIN}")
    assert new.endswith(f"{END}{after}")
    assert "old" not in new
    assert new[len(before) : -len(after)].split() == [*BEGIN.split(), "new", *END.split()]
    assert results.replace_section(new, "mine", "new") == new


@pytest.mark.parametrize("text", ["", "# Results\n", f"{BEGIN.replace('mine', 'other')}\n"])
def test_replace_section_adds_a_section_that_is_not_there(results, text):
    new = results.replace_section(text, "mine", "body")
    assert new.startswith(text.rstrip())
    assert new[len(text.rstrip()) :].split() == [*BEGIN.split(), "body", *END.split()]


@pytest.mark.parametrize(
    "text",
    [BEGIN, END, f"{END}\n{BEGIN}", f"{BEGIN}\n{BEGIN}\n{END}", f"{BEGIN}\n{END}\n{END}"],
    ids=["no end", "no begin", "wrong order", "two begins", "two ends"],
)
def test_replace_section_refuses_broken_markers(results, text):
    with pytest.raises(ValueError, match=f"{BEGIN} once and after it the line {END} once"):
        results.replace_section(text, "mine", "body")


def test_trying_to_write_a_section_leaves_nothing_behind(results, tmp_path):
    results.write_section(tmp_path / "RESULTS.md", "mine", None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options", [["--repeats", "0"], ["--only", "c"], ["--libraries", "nengo"], ["--unknown"]]
)
def test_wrong_options_end_with_code_2(benchmark, options):
    with pytest.raises(SystemExit) as stop:
        benchmark.parse(options)
    assert stop.value.code == 2


def test_defaults_time_everything(benchmark):
    args = benchmark.parse([])
    assert (args.only, args.libraries, args.json, args.write) == (
        None,
        ["spikebit", "snntorch", "spikingjelly", "norse", "spyx"],
        False,
        None,
    )
    assert args.repeats >= 7


@pytest.fixture
def timed(benchmark, monkeypatch):
    """Puts made-up times in the place of the processes; returns the plans it was given."""
    plans = []

    def run(plan, repeats, env, say):
        plans.append(plan)
        facts = {
            "loss": 1.0,
            "gradient_norms": {"w0": 1.0},
            "firing_rates": [0.05],
            "problem": None,
            "versions": {"numpy": "2"},
        }
        seconds = {"spikebit": 0.01}
        return [
            row._replace(
                wall=[seconds.get(row.library, 0.03)] * repeats, cpu=[0.02] * repeats, facts=facts
            )
            for row in plan
        ]

    monkeypatch.setattr(benchmark, "run_network", run)
    return plans


def test_json_is_one_object_a_line(benchmark, timed, capsys):
    assert benchmark.main(["--json", "--libraries", "spikebit", "norse", "--repeats", "7"]) == 0
    machine, *lines = map(json.loads, capsys.readouterr().out.splitlines())
    assert machine["versions"] == {"numpy": "2"}
    runs = [line for line in lines if "variant" in line]
    assert len(runs) == sum(map(len, timed))
    assert {line["network"] for line in runs} == {"a", "b"}
    assert all(len(line["wall_ms_rounds"]) == 7 for line in runs)
    assert {line["wall_ms"] for line in runs if line["library"] == "norse"} == {30.0}
    ratios = {
        (line["network"], line["library"]): (line["wall_ratio"], line["cpu_ratio"])
        for line in lines
        if "wall_ratio" in line
    }
    assert ratios["a", "norse"] == pytest.approx((3, 1))
    assert ratios["b", "spikebit"] == (1, 1)


@pytest.mark.parametrize(
    ("facts", "code"),
    [
        ({"error": "not installed (No module named 'norse')"}, 0),
        ({"error": "RuntimeError: no"}, 1),
        ({"problem": "zero or non-finite gradients of w0", "gradient_norms": {"w0": 0.0}}, 1),
    ],
)
def test_exit_code_tells_a_failure_from_a_library_that_is_missing(
    benchmark, row, monkeypatch, capsys, facts, code
):
    rows = [row("spikebit", [1.0], [1.0]), row("norse", [1.0], [1.0], **facts)]
    monkeypatch.setattr(benchmark, "run_network", lambda *_: rows)
    assert benchmark.main(["--only", "a"]) == code
    assert next(iter(facts.values())).split(" (")[0] in capsys.readouterr().out


def test_quick_leaves_compilation_and_single_cores_out(benchmark, timed):
    benchmark.main(["--quick", "--only", "b"])
    (plan,) = timed
    assert {row.library for row in plan} == set(benchmark.LIBRARIES)
    assert {row.cores for row in plan} == {benchmark.cores()}
    assert not any(row.variant == benchmark.COMPILED for row in plan)


def test_write_replaces_its_section_and_refuses_a_broken_file(benchmark, timed, tmp_path, capsys):
    path = tmp_path / "RESULTS.md"
    path.write_text("# Results\n\nother text\n")
    for _ in range(2):
        assert benchmark.main(["--write", str(path), "--only", "a"]) == 0
        text = path.read_text()
        assert text.startswith("# Results\n\nother text\n")
        assert text.count("<!-- begin snn_training -->") == 1
        assert text.count("| norse ") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["RESULTS.md"]
    broken = text.replace("<!-- end snn_training -->", "")
    path.write_text(broken)
    capsys.readouterr()
    for target in (path, tmp_path / "no" / "RESULTS.md"):
        assert benchmark.main(["--write", str(target)]) == 2
        out, err = capsys.readouterr()
        assert not out
        assert len(err.splitlines()) == 1
        assert str(target) in err
    assert path.read_text() == broken


@pytest.fixture
def worker(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER / "peers"))
    module = importlib.import_module("worker")
    monkeypatch.setattr(module, "MIN_SECONDS", 0.0)
    return module


class Library:
    """Stands for a side; `steps` holds what its next steps return, the last one for ever."""

    def __init__(self, *steps):
        self.steps = list(steps)

    def step(self):
        return self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]

    def spikes(self):
        return [np.array([[0.0, 1.0], [0.0, 0.0]])]


def test_check_tells_norms_rates_and_dead_or_broken_layers(worker):
    grads = {"w0": np.array([[3.0, 4.0]]), "w1": np.zeros((2, 2)), "h0": np.array([[np.nan]])}
    found = worker.check(Library((2.5, grads)))
    assert (found["loss"], found["gradient_norms"]["w0"], found["firing_rates"]) == (2.5, 5, [0.25])
    assert found["problem"] == "zero or non-finite gradients of w1, h0"
    assert worker.check(Library((2.5, {"w0": grads["w0"]})))["problem"] is None


@pytest.mark.parametrize("later", [(2.6, 1.0), (2.5, 1.1), (2.5, np.nan)], ids=str)
def test_measure_refuses_results_that_change_from_step_to_step(worker, later):
    first, other = ((loss, {"w0": np.array([g])}) for loss, g in ((2.5, 1.0), later))
    side = Library(first, first, other)
    checked = worker.check(side)
    assert worker.measure(side, checked)["error"].startswith("not reproducible")
    steady = worker.measure(Library(first), checked)
    assert steady["wall"] > 0
    assert steady["cpu"] >= 0


def test_a_library_that_is_not_installed_is_said_to_be(benchmark, results):
    plan = [results.Row("a", "no_such_library", "eager", 1, [], [], {})]
    (found,) = benchmark.run_network(plan, 2, {}, lambda line: None)
    assert found.facts["error"].startswith("not installed")
    assert cells(results.summary_table([found]).splitlines()[2])[2] == "not installed"

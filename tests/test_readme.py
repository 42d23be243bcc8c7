"""What the README says holds: its commands, its example, its links and its map of the folders."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from spikebit.quant import parse

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
FOLDERS = ("kernels", "quant", "learning_rules", "simulator", "tests", "notebooks", "benchmarks")


def block(name: str) -> str:
    """Gives the fenced block that follows the comment `<!-- ci: name -->`."""
    found = re.findall(
        rf"^<!-- ci: {name} -->\n```\w+\n(.*?)^```$", README, re.MULTILINE | re.DOTALL
    )
    assert len(found) == 1, f"README.md needs one block under <!-- ci: {name} -->"
    return found[0]


@pytest.mark.parametrize(
    ("name", "target", "program"), [("run", ".", "spikebit"), ("test", ".[dev]", "pytest")]
)
def test_a_command_does_all_the_set_up(name, target, program):
    steps = [shlex.split(step) for step in block(name).strip().split(" && ")]
    assert steps[0] == ["python3", "-m", "venv", ".venv"]
    assert steps[1] == [".venv/bin/pip", "install", "-e", target]
    assert steps[2][0] == f".venv/bin/{program}"
    assert len(steps) == 3


def test_the_main_job_names_an_experiment_that_is_there():
    path = ROOT / shlex.split(block("run"))[-1]
    assert path.suffix == ".toml"
    tomllib.loads(path.read_text())


def test_ci_runs_the_commands_of_the_readme():
    script = (ROOT / ".ci" / "run").read_text()
    assert 'mark="<!-- ci: $1 -->"' in script
    for name in ("run", "test"):
        assert f"from_readme {name}" in script


def test_the_example_of_formats_runs_and_its_names_are_read(capsys):
    exec(compile(block("formats"), "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("4.25 ")
    table = README.split("## Number formats")[1].split("```")[0]
    names = [n for n in re.findall(r"`([a-z][a-z0-9_.]+)`", table) if n not in ("numpy", "jit")]
    assert len(names) > 20
    for name in names:
        assert parse(name).name == name


def test_the_comparison_of_rules_runs_and_tells_the_exact_one(capsys, compile_quickly):
    exec(compile(block("compare"), "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[::2]] == ["ostl", "snap1", "eprop", "sltt"]
    exact = ["exact for every leaf" in line for line in lines[1::2]]
    assert exact == [True, False, False, False]


def test_the_example_runs_and_its_loss_falls(capsys):
    exec(compile(block("python"), "README.md", "exec"), {})
    losses = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert len(losses) == 20
    assert sum(losses[-5:]) < sum(losses[:5])


def test_the_training_on_an_instrument_is_replayed_to_the_bit(
    capsys, tmp_path, monkeypatch, compile_quickly
):
    monkeypatch.chdir(tmp_path)
    exec(compile(block("instruments"), "README.md", "exec"), {})
    assert capsys.readouterr().out == "True\n"


def test_the_map_names_every_folder():
    rows = re.findall(r"^\| \[`(\w+)/`\]\((\w+)\) \|", README, re.MULTILINE)
    assert tuple(text for text, _ in rows) == FOLDERS
    assert all(text == target for text, target in rows)
    with_code = {p.parent.name for p in ROOT.glob("[a-z]*/*.py")}
    assert with_code <= {*FOLDERS, "spikebit"}


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_every_link_leads_to_something(page):
    targets = re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text())
    missing = [t for t in targets if "://" not in t and not (ROOT / t).exists()]
    assert missing == []


def test_the_table_lists_the_commands_of_the_program(capsys):
    from spikebit.simulator.cli import main

    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    offered = re.findall(r"^    (\w+)", capsys.readouterr().out, re.MULTILINE)
    assert re.findall(r"^\| `spikebit (\w+)", README, re.MULTILINE) == offered

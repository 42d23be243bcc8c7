"""Runs side by side: which settings differ, what came out, and their learning curves."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from . import plots
from .experiment import differences
from .run_directory import RunDirectory
from .studies import Study

RESULTS = ("test_accuracy", "test_loss", "train_accuracy", "train_loss", "seconds")
_NOT_SETTINGS = ("run.dir",)


def rows(runs: Sequence[RunDirectory]) -> list[dict[str, Any]]:
    """One row a run: run, state, the settings in which they differ, and results.

    The results of a run that is not complete are those of its last line of metrics; what is not
    known yet is None.

    Raises:
        ValueError: a run of a study.
    """
    experiments = []
    for run in runs:
        experiment = run.experiment()
        if isinstance(experiment, Study):
            raise ValueError(
                f"{run.path} is a run of the study {experiment.name}, which has no learning curve "
                f"to compare: see {run.path / 'report.html'}, or give runs of experiments"
            )
        experiments.append(experiment)
    settings = differences(experiments)
    table = []
    for i, run in enumerate(runs):
        row: dict[str, Any] = {"run": str(run.path), "state": run.state()["state"]}
        row |= {k: v[i] for k, v in settings.items() if k not in _NOT_SETTINGS}
        known: dict[str, Any] = {}
        for line in run.metrics():
            known |= line
        known |= run.result() or {}
        table.append(row | {name: known.get(name) for name in RESULTS})
    return table


def as_text(table: Sequence[dict[str, Any]], *, upright: bool = False) -> str:
    """The rows in aligned columns; what has no value in any row is left out.

    Args:
        table: rows with the same keys.
        upright: each row becomes a column, better for few rows of many fields.
    """
    names = [name for name in table[0] if any(row[name] is not None for row in table)]
    cells = [names, *([_cell(row[name]) for name in names] for row in table)]
    if upright:
        cells = [list(column) for column in zip(*cells, strict=True)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in cells]
    return "\n".join(line.rstrip() for line in lines)


def plot(runs: Sequence[RunDirectory], *, ax: Axes | None = None) -> Axes:
    """The learning curves of all runs."""
    ax = ax or plots.new_axes(8, 5)
    for i, run in enumerate(runs):
        plots.learning_curve(run.metrics(), label=Path(run.path).name, ax=ax, colour=i)
    return ax


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value is None else str(value)

"""The page of a run: result, settings and pictures in one HTML file, and the pictures beside it.

What a picture shows is said in `plots.py`.
"""

import base64
import dataclasses
import html
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import PyTree
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from . import plots
from .evaluate import Evaluation, look_inside
from .job import Job
from .run_directory import RunDirectory, replace_text
from .train import named_leaves

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { text-align: left; padding: 0.2rem 1rem 0.2rem 0; border-bottom: 1px solid #ddd; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
img { max-width: 100%; }
"""


def write(
    run: RunDirectory, job: Job, params: PyTree, evaluation: Evaluation, result: Mapping[str, Any]
) -> Path:
    """Writes report.html and the PNG files into a run directory.

    Args:
        run: the directory; its metrics are read.
        job: what was trained.
        params: the weights after it.
        evaluation: how they do on the test split.
        result: what stands at the top.

    Returns:
        The path of report.html.
    """
    pictures = draw(job, params, evaluation, run.metrics(), result["lost"])
    images = {}
    for name, ax in pictures.items():
        images[name] = png(ax)
        (run.path / f"{name}.png").write_bytes(images[name])
    path = run.path / "report.html"
    replace_text(path, page(run, result, images))
    return path


def draw(
    job: Job,
    params: PyTree,
    evaluation: Evaluation,
    metrics: list[dict[str, Any]],
    lost: Mapping[str, Mapping[str, int]],
) -> dict[str, Axes]:
    """All pictures of a run by name."""
    inside = look_inside(job, params, job.dataset.test)
    weights = {name: np.asarray(leaf) for name, leaf in named_leaves(params).items()}
    kernels = {name: w for name, w in weights.items() if w.ndim > 1}
    pictures = {
        "learning_curve": plots.learning_curve(metrics),
        "raster": plots.raster(
            inside.inputs, {f"layer {name}": y for name, y in inside.outputs.items()}
        ),
        "weights": plots.histogram(kernels, xlabel="weight"),
        "lost": plots.losses(lost),
    }
    if inside.potentials:
        layers = {f"layer {name}": v for name, v in inside.potentials.items()}
        pictures["potentials"] = plots.histogram(layers, xlabel="membrane potential")
    if evaluation.predictions is not None:
        labels = np.asarray(job.dataset.test.targets)
        pictures["confusion_matrix"] = plots.confusion_matrix(
            labels, evaluation.predictions, job.dataset.classes
        )
    return pictures


_TITLES = {
    "learning_curve": "Learning curve",
    "confusion_matrix": "Confusion matrix",
    "raster": "Input and spikes",
    "weights": "Weights",
    "potentials": "Membrane potentials",
    "lost": "What the weight memory lost",
}


def page(run: RunDirectory, result: Mapping[str, Any], images: Mapping[str, bytes]) -> str:
    """The HTML text; everything that came from outside is escaped."""
    experiment = run.experiment()
    shown = {k: v for k, v in result.items() if not isinstance(v, Mapping) and v is not None}
    shown |= {f"output of layer {k}, mean a step": v for k, v in result["activity"].items()}
    parts = [f"<h1>{_text(experiment.run.name)}</h1>", _table(shown.items())]
    for name, title in _TITLES.items():
        if name in images:
            data = base64.b64encode(images[name]).decode()
            parts.append(f"<h2>{title}</h2>")
            parts.append(f'<img alt="{title}" src="data:image/png;base64,{data}">')
    parts.append(_lost_table(result["lost"]))
    settings = {
        f"{section}.{key}": value
        for section, inner in dataclasses.asdict(experiment).items()
        for key, value in inner.items()
        if value is not None
    }
    parts += ["<h2>Settings</h2>", _table(settings.items())]
    parts += ["<h2>Versions</h2>", _table(run.versions().items())]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{_text(experiment.run.name)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def png(ax: Axes) -> bytes:
    """The figure of some axes as a PNG file."""
    figure = ax.get_figure()
    assert isinstance(figure, Figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _lost_table(lost: Mapping[str, Mapping[str, int]]) -> str:
    kinds = list(next(iter(lost.values()), {}))
    rows = ["<tr><th>parameter</th>" + "".join(f"<th>{_text(k)}</th>" for k in kinds) + "</tr>"]
    for name, counts in lost.items():
        cells = "".join(f'<td class="number">{counts[kind]:,}</td>' for kind in kinds)
        rows.append(f"<tr><td>{_text(name)}</td>{cells}</tr>")
    return "<table>\n" + "\n".join(rows) + "\n</table>"


def _table(rows: Iterable[tuple[str, Any]]) -> str:
    lines = (f"<tr><th>{_text(k)}</th><td>{_text(_number(v))}</td></tr>" for k, v in rows)
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _text(value: Any) -> str:
    return html.escape(str(value))

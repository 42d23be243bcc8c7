"""The page of a run: result, settings and pictures in one HTML file, and the pictures beside it.

The pages of training runs stand here whole; `study.py` puts its own together from the parts. What a
picture shows is said in `plots.py` and in the studies.
"""

import base64
import html
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    return save_page(run, training_parts(result, save_pictures(run, pictures)))


def save_pictures(run: RunDirectory, pictures: Mapping[str, Axes]) -> dict[str, bytes]:
    """Writes <name>.png into a run directory for each picture, and gives the files' content."""
    images = {name: png(ax) for name, ax in pictures.items()}
    for name, image in images.items():
        (run.path / f"{name}.png").write_bytes(image)
    return images


def save_page(run: RunDirectory, parts: Iterable[str]) -> Path:
    """Writes report.html from pieces of HTML, with name, settings and versions of the run around.

    Returns:
        Its path.
    """
    path = run.path / "report.html"
    replace_text(path, _document(run, parts))
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
    if any("diagnostics" in line for line in metrics):
        pictures["diagnostics"] = plots.diagnostics(metrics)
    return pictures


_TITLES = {
    "learning_curve": "Learning curve",
    "confusion_matrix": "Confusion matrix",
    "raster": "Input and spikes",
    "weights": "Weights",
    "potentials": "Membrane potentials",
    "lost": "What the weight memory lost",
    "diagnostics": "What number formats do to gradients and weights",
}


def training_parts(result: Mapping[str, Any], images: Mapping[str, bytes]) -> list[str]:
    """What stands on the page of a training run; everything that came from outside is escaped."""
    shown = {k: v for k, v in result.items() if not isinstance(v, Mapping) and v is not None}
    shown |= {f"output of layer {k}, mean a step": v for k, v in result["activity"].items()}
    lost = [{"parameter": name} | counts for name, counts in result["lost"].items()]
    parts = [table(shown.items()), *inlined(images, _TITLES), rows_table(lost)]
    states = [{"state": k} | v for k, v in result.get("lost_in_states", {}).items()]
    if states:
        parts += ["<h2>What the formats of states and traces lost</h2>", rows_table(states)]
    found = [{"parameter": k} | v for k, v in result.get("diagnostics", {}).items()]
    if found:
        parts += ["<h2>Gradients and updates at the end</h2>", rows_table(found)]
    return parts


def _document(run: RunDirectory, parts: Iterable[str]) -> str:
    experiment = run.experiment()
    settings = {
        f"{section}.{key}": value
        for section, inner in experiment.sections().items()
        for key, value in inner.items()
        if value is not None
    }
    name = _text(experiment.run.name)
    parts = [f"<h1>{name}</h1>", *parts]
    parts += ["<h2>Settings</h2>", table(settings.items())]
    parts += ["<h2>Versions</h2>", table(run.versions().items())]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{name}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def inlined(images: Mapping[str, bytes], titles: Mapping[str, str]) -> Iterator[str]:
    """A heading and the picture itself, for those that have a title, in the order of the titles."""
    for name, title in titles.items():
        if name in images:
            data = base64.b64encode(images[name]).decode()
            yield f"<h2>{_text(title)}</h2>"
            yield f'<img alt="{_text(title)}" src="data:image/png;base64,{data}">'


def png(ax: Axes) -> bytes:
    """The figure of some axes as a PNG file."""
    figure = ax.get_figure()
    assert isinstance(figure, Figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def paragraph(text: str) -> str:
    """A piece of prose."""
    return f"<p>{_text(text)}</p>"


def rows_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line a row and a column for each key that occurs; what a row does not have stays empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["<tr>" + "".join(f"<th>{_text(name)}</th>" for name in names) + "</tr>"]
    for row in rows:
        lines.append("<tr>" + "".join(_cell(row.get(name)) for name in names) + "</tr>")
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def table(rows: Iterable[tuple[str, Any]]) -> str:
    """Names and values, one pair a line."""
    lines = (f"<tr><th>{_text(k)}</th><td>{_text(_number(v))}</td></tr>" for k, v in rows)
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _cell(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return f"<td>{'' if value is None else _text(value)}</td>"
    text = f"{value:,}" if isinstance(value, int) else _number(value)
    return f'<td class="number">{text}</td>'


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _text(value: Any) -> str:
    return html.escape(str(value))

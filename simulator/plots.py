"""Pictures of a run, one function each: arrays in, the axes out. No file is written here.

Colours are those of Okabe and Ito, which colour-blind people can tell apart.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

_SEPARATE = 60  # time steps up to which a raster shows each step apart
_GAP = 6  # the gap between two of them is one part in so many
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")


def learning_curve(
    metrics: Sequence[Mapping[str, Any]],
    *,
    label: str = "",
    ax: Axes | None = None,
    colour: int = 0,
) -> Axes:
    """Accuracy, or loss where there is no accuracy, of train and test samples over epochs.

    Args:
        metrics: lines as `train` gives them.
        label: name of the run in the legend.
        ax: where to draw; None makes a new figure.
        colour: number of the colour.
    """
    ax = ax or new_axes()
    quantity = "accuracy" if any(m["train_accuracy"] is not None for m in metrics) else "loss"
    per_epoch = max((m["batch"] for m in metrics), default=1)
    shade = COLOURS[colour % len(COLOURS)]
    for part, style in (
        ("train", {"lw": 1, "alpha": 0.5, "marker": "."}),
        ("test", {"lw": 2, "marker": "o"}),
    ):
        points = [m for m in metrics if m.get(f"{part}_{quantity}") is not None]
        x = [m["epoch"] - 1 + m["batch"] / per_epoch for m in points]
        y = [m[f"{part}_{quantity}"] for m in points]
        ax.plot(x, y, color=shade, ms=4, label=f"{label} {part}".strip(), **style)
    ax.set(xlabel="epoch", ylabel=quantity)
    ax.grid(alpha=0.3)
    ax.legend(frameon=False)
    return ax


def raster(
    inputs: Float[np.ndarray, "time features"],
    outputs: Mapping[str, Float[np.ndarray, "time units"]],
    *,
    ax: Axes | None = None,
    most: int = 100,
) -> Axes:
    """What a sample puts in, and what each layer makes of it, over time.

    Darker is more; a spike is a dark field.

    Args:
        inputs: input of each feature at each step.
        outputs: by layer, the output of each unit at each step.
        ax: where to draw; None makes a new figure.
        most: features or units shown of each; evenly chosen where there are more.
    """
    ax = ax or new_axes(height=6)
    rows, labels, borders, top = [], [], [], 0
    for name, values in {"input": inputs, **outputs}.items():
        chosen = np.unique(np.linspace(0, values.shape[1] - 1, most).astype(int))
        shown = values[:, chosen].T
        scale = np.abs(shown).max()
        rows.append(np.abs(shown) / (scale if scale > 0 else 1))
        labels.append((top + len(chosen) / 2, f"{name}\n{len(chosen)} of {values.shape[1]}"))
        top += len(chosen)
        borders.append(top - 0.5)
    steps = len(inputs)
    if steps <= _SEPARATE:  # a white gap after each step
        rows = [np.repeat(row, _GAP, axis=1) for row in rows]
        for row in rows:
            row[:, _GAP - 1 :: _GAP] = 0
    ax.imshow(
        np.concatenate(rows),
        aspect="auto",
        cmap="Greys",
        interpolation="nearest",
        vmin=0,
        extent=(-0.5, steps - 0.5, top - 0.5, -0.5),
    )
    for border in borders[:-1]:
        ax.axhline(border, color=COLOURS[1], lw=1)
    ax.set_yticks([y for y, _ in labels], [text for _, text in labels])
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="time step", title="one test sample")
    return ax


def histogram(
    values: Mapping[str, np.ndarray],
    *,
    xlabel: str,
    ax: Axes | None = None,
    bins: int = 100,
    log: bool = True,
) -> Axes:
    """How often values occur, one line a name.

    Args:
        values: by name.
        xlabel: what they are.
        ax: where to draw; None makes a new figure.
        bins: how many.
        log: whether counts are on a logarithmic axis.
    """
    ax = ax or new_axes()
    everything = np.concatenate([np.ravel(v) for v in values.values()] or [np.zeros(1)])
    edges = np.histogram_bin_edges(everything[np.isfinite(everything)], bins).tolist()
    for i, (name, v) in enumerate(values.items()):
        ax.hist(
            np.ravel(v),
            edges,
            histtype="step",
            color=COLOURS[i % len(COLOURS)],
            label=name,
            log=log,
        )
    ax.set(xlabel=xlabel, ylabel="count")
    if values:
        ax.legend(frameon=False)
    return ax


def confusion_matrix(
    labels: Int[np.ndarray, "n"],
    predictions: Int[np.ndarray, "n"],
    classes: Sequence[str],
    *,
    ax: Axes | None = None,
) -> Axes:
    """How often each class (row) was taken for each class (column)."""
    ax = ax or new_axes(width=6.4, height=5.6)
    counts = np.zeros((len(classes), len(classes)), int)
    np.add.at(counts, (labels, predictions), 1)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.argwhere(counts):
        ax.text(
            j, i, str(counts[i, j]), ha="center", va="center", fontsize=8,
            color="white" if shares[i, j] > 0.5 else "black",
        )  # fmt: skip
    ticks = range(len(classes))
    ax.set_xticks(ticks, classes, rotation=45, ha="right")
    ax.set_yticks(ticks, classes)
    ax.set(xlabel="taken for", ylabel="class")
    return ax


def heat_map(
    values: Float[np.ndarray, "rows columns"],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    spread: Float[np.ndarray, "rows columns"] | None = None,
    unit: str = "",
    ax: Axes | None = None,
) -> Axes:
    """A number for each pair of settings, written into a field of its colour.

    Args:
        values: the numbers; NaN leaves a field empty.
        rows: names of the rows.
        columns: names of the columns.
        spread: written behind the numbers as ±.
        unit: what the numbers are.
        ax: where to draw; None makes a new figure.
    """
    ax = ax or new_axes(width=2.5 + 1.1 * len(columns), height=1.6 + 0.6 * len(rows))
    low, high = np.nanmin(values), np.nanmax(values)
    image = ax.imshow(values, cmap="Blues", vmin=low, vmax=high, aspect="auto")
    for i, j in np.argwhere(np.isfinite(values)):
        text = f"{values[i, j]:.3g}" + ("" if spread is None else f"\n± {spread[i, j]:.1g}")
        dark = values[i, j] > (low + high) / 2
        ax.text(j, i, text, ha="center", va="center", fontsize=8, color="w" if dark else "k")
    ax.set_xticks(range(len(columns)), columns, rotation=45, ha="right")
    ax.set_yticks(range(len(rows)), rows)
    bar = ax.get_figure().colorbar(image, ax=ax, label=unit)  # pyright: ignore[reportOptionalMemberAccess]
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    return ax


def losses(lost: Mapping[str, Mapping[str, int]], *, ax: Axes | None = None) -> Axes:
    """What share of the writes to each parameter lost something.

    Args:
        lost: parameter -> "writes" and kinds of loss -> how many numbers, as `train.count_lost`
            gives them.
        ax: where to draw; None makes a new figure.
    """
    ax = ax or new_axes()
    ax.set_yscale("log")
    ax.set_ylim(1e-4, 100)
    kinds = sorted({kind for counts in lost.values() for kind in counts} - {"writes"})
    width = 0.8 / max(len(kinds), 1)
    for i, kind in enumerate(kinds):
        x = np.arange(len(lost)) + (i - (len(kinds) - 1) / 2) * width
        shares = [100 * counts[kind] / max(counts["writes"], 1) for counts in lost.values()]
        ax.bar(x, shares, width, color=COLOURS[i % len(COLOURS)], label=kind)
    ax.set_xticks(range(len(lost)), list(lost))
    ax.set(xlabel="parameter", ylabel="share of writes [%]")
    if kinds:
        ax.legend(frameon=False, ncols=len(kinds), loc="lower center", bbox_to_anchor=(0.5, 1))
    return ax


def diagnostics(metrics: Sequence[Mapping[str, Any]]) -> Axes:
    """What number formats do to gradients and weights over batches, one line a parameter.

    Args:
        metrics: lines as `train` gives them, with diagnostics.
    """
    kinds = {
        "cosine": "cosine of the gradient\nwith that in float32",
        "gradient_underflowed": "entries of the gradient\nthat became 0",
        "stagnated": "updates that changed\nnothing",
        "saturated": "updates that\nsaturated",
    }
    lines = [m for m in metrics if "diagnostics" in m]
    fields = Figure(figsize=(8, 6), layout="constrained").subplots(2, 2, sharex=True)
    for ax, (kind, text) in zip(fields.flat, kinds.items(), strict=True):
        for i, name in enumerate(lines[0]["diagnostics"]):
            y = [m["diagnostics"][name][kind] for m in lines]
            colour = COLOURS[i % len(COLOURS)]
            ax.plot([m["step"] for m in lines], y, ".-", ms=4, lw=1, color=colour, label=name)
        ax.set_ylabel(text)
        ax.grid(alpha=0.3)
    for ax in fields[1]:
        ax.set_xlabel("batch")
    fields[0, 0].legend(frameon=False, fontsize=8)
    return fields[0, 0]


def new_axes(width: float | int = 6.4, height: float | int = 4.0) -> Axes:
    """Axes in a figure of their own [inches], without pyplot and its global state."""
    return Figure(figsize=(width, height), layout="constrained").subplots()

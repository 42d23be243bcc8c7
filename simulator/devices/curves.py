"""Devices from measured curves: the step of a pulse against where the cell is, out of a CSV file.

A file gives means; how cells and pulses differ is told beside it. Fits of models to traces do not
belong here.
"""

import csv
import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from .device import SIEMENS_AT_MOST, Cells, Device
from .pulsed import SPREAD, PulsedState, Shape, Up, Variation, pulsed

COLUMNS = ("g_uS", "up_uS", "down_uS")
SPREADS = ("up_std_uS", "down_std_uS")  # not in every file
_LARGEST = 10**7  # bytes of a file of curves


def table(places: np.ndarray, up: np.ndarray, down: np.ndarray, step: float) -> Shape:
    """Steps given at increasing places, linear between them and constant beyond.

    Args:
        places: where the cell is (n,).
        up: size of a step up there (n,).
        down: of a step down (n,).
        step: that of the device, which the sizes are divided by.
    """
    at, rise, fall = (jnp.asarray(a, jnp.float32) for a in (places, up / step, down / step))

    def size(state: PulsedState, w: Cells, going_up: Up) -> Cells:
        del state
        return jnp.where(going_up, jnp.interp(w, at, rise), jnp.interp(w, at, fall))

    return size


def from_csv(path: str | Path, *, variation: Variation = SPREAD) -> Device:
    """Pulsed cells whose steps are a table in a file.

    The file has a line of names and the columns `g_uS` (conductance, increasing), `up_uS` and
    `down_uS` (size of a step up and of one down there, not negative). If it has `up_std_uS` and
    `down_std_uS` too, they are the standard deviations from pulse to pulse, in place of
    `variation.pulse`. Other columns are left alone. The range of the cells is that of `g_uS`; their
    step is the mean of both columns in the middle.

    Args:
        path: the file.
        variation: how cells and pulses differ.

    Raises:
        ValueError: a missing column, a line that cannot be read, conductances that do not increase
            or look like siemens, negative steps, fewer than two lines.
        OSError: no such file.
    """
    path = Path(path)
    places, up, down, *spreads = _columns(path)
    if len(places) < 2:
        raise ValueError(f"{path.name}: a curve has at least two lines of numbers.")
    falls = np.flatnonzero(np.diff(places) <= 0)
    if len(falls):
        raise ValueError(
            f"{path.name}, line {falls[0] + 3}: g_uS is {places[falls[0] + 1]:g} after "
            f"{places[falls[0]]:g}; conductances increase from line to line."
        )
    if 0 < places[-1] < SIEMENS_AT_MOST:
        raise ValueError(
            f"{path.name}: the largest g_uS is {places[-1]:g} uS; it looks like siemens: multiply "
            "all columns by 1e6."
        )
    if min(column.min() for column in (up, down, *spreads)) < 0:
        raise ValueError(
            f"{path.name}: a step or a spread is below 0; give sizes, down_uS without its sign."
        )
    if places[0] < 0:
        raise ValueError(f"{path.name}: g_uS is {places[0]:g}; a conductance is not below 0.")
    wide, largest = places[-1] - places[0], max(up.max(), down.max())
    if not 1e-6 * wide < largest <= wide:
        raise ValueError(
            f"{path.name}: the largest step is {largest:g} uS in a range of {wide:g} uS; give both "
            "in microsiemens."
        )
    middle = (places[0] + places[-1]) / 2
    step = float(np.interp(middle, places, up) + np.interp(middle, places, down)) / 2
    if step <= 0:
        raise ValueError(f"{path.name}: steps in the middle of the range are 0; nothing can move.")
    low, high = float(places[0]), float(places[-1])
    return pulsed(
        table(places, up, down, step),
        step=step,
        low=low,
        high=high,
        reference=0.0,
        spread=table(places, spreads[0], spreads[1], step) if spreads else None,
        variation=variation,
        name=path.stem,
    )


def _columns(path: Path) -> list[np.ndarray]:
    """Those of `COLUMNS`, and of `SPREADS` where the file has them."""
    if path.stat().st_size > _LARGEST:
        raise ValueError(f"{path.name}: {path.stat().st_size} bytes are too many for a curve.")
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        there = reader.fieldnames or ()
        wanted = COLUMNS + (SPREADS if any(name in there for name in SPREADS) else ())
        missing = [name for name in wanted if name not in there]
        if missing:
            raise ValueError(
                f"{path.name}: has no column {', '.join(missing)}; a curve has {', '.join(wanted)}."
            )
        rows = []
        for number, row in enumerate(reader, start=2):
            try:
                values = [float(row[name]) for name in wanted]
            except (TypeError, ValueError):
                values = [math.nan]
            if not all(math.isfinite(v) for v in values):
                raise ValueError(f"{path.name}, line {number}: expected finite numbers.")
            rows.append(values)
    return list(np.array(rows, float).reshape(-1, len(wanted)).T)

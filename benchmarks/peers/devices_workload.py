"""The cases of `../devices.py`: sizes, numbers and settings that every library gets alike.

What belongs here: numpy and plain numbers; no library that is measured.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

DAC_LEVELS = 254  # 8 bit: steps from bound to bound
ADC_LEVELS = 254
ADC_BOUND = 10.0  # in units of the largest |w| and |x|
OUTPUT_NOISE = 0.04  # in that unit
G_MAX = 25.0  # uS
T0 = 20.0  # [s] between programming and the first read
DAY = 86_400.0  # [s]
PULSE = 0.001  # step of a pulsed cell
BOUND = 0.6  # of its weight
SPREAD = 0.3  # of steps, bounds and pulses
LENGTH = 31  # of a train at most
RATE = 0.031  # so that the largest product is worth 31 pulses


class Sizes(NamedTuple):
    """How large everything is; the tests have smaller ones."""

    tile: int = 1024
    vectors: int = 64
    cells: int = 256
    samples: int = 32


class Case(NamedTuple):
    """What is done once, what to hold it against, and which number shows that it was done."""

    text: str
    check: str
    target: float | None = None  # aihwkit's CPU time over spikebit's, at least


CASES = {
    "product": Case("product, PCM read noise, 8-bit DAC and ADC", "error of y", 6.0),
    "product_new": Case("the same at a time of its own, drift included", "error of y"),
    "program": Case("programming of pairs", "error of w", 1 / 1.6),
    "age": Case("drift to one day, with compensation", "error of w", 5.0),
    "age_alone": Case("drift to one day, without compensation", "error of w"),
    "full_constant": Case("trains of 31 pulses, constant step", "slope", 3.0),
    "short_constant": Case("trains of one pulse, constant step", "slope", 0.5),
    "tiny_constant": Case("trains for a thousandth of a pulse, constant step", "slope", 0.5),
    "full_soft": Case("trains of 31 pulses, soft bounds", "slope", 3.0),
    "short_soft": Case("trains of one pulse, soft bounds", "slope", 0.5),
    "tiny_soft": Case("trains for a thousandth of a pulse, soft bounds", "slope", 0.5),
    "gemm": Case("the bare matrix product, float32", "error of y"),
    "normals": Case("as many normal numbers as programming draws", "spread"),
}
SCALES = {"full": 1.0, "short": 1 / 31, "tiny": 1e-3 / 31}  # of the derivatives


class Run(NamedTuple):
    """A case in a library: each call does it once and waits; `check` gives its number."""

    call: Callable[[], Any]
    check: Callable[[], float]


def tile_numbers(sizes: Sizes) -> tuple[np.ndarray, np.ndarray]:
    """Weights (inputs, outputs) up to 1 and inputs (vectors, inputs)."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((sizes.tile, sizes.tile)).clip(-2.5, 2.5) / 2.5
    x = np.random.default_rng(1).standard_normal((sizes.vectors, sizes.tile))
    return w.astype(np.float32), x.astype(np.float32)


def train_numbers(sizes: Sizes, length: str) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and derivatives (samples, lines), evenly from -1 to 1 times the scale."""
    rng = np.random.default_rng(2)
    x, d = rng.uniform(-1, 1, (2, sizes.samples, sizes.cells))
    return x.astype(np.float32), (SCALES[length] * d).astype(np.float32)


def error(found: np.ndarray, exact: np.ndarray) -> float:
    """The norm of the difference over that of what is exact."""
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def slope(change: np.ndarray, x: np.ndarray, d: np.ndarray) -> float:
    """The change (inputs, outputs) over the step of gradient descent, by least squares."""
    wanted = -RATE * x.T @ d
    return float(np.sum(change * wanted) / np.sum(wanted * wanted))

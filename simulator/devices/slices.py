"""Bit slicing: weights made of cells that do not count alike, w = sum over k of F_k w_k.

A slice is an arrangement of its own, of less significance than the one before. What it is made of
stands in `cells.py`.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp

from .cells import Arrangement, Counts, Pair, Pulsed, Variances, Weights
from .device import Device, Key

_PAIR = Pair()


@dataclass(frozen=True)
class Sliced:
    """Slices of falling significance, the most significant first; each holds what is still missing.

    Programming writes a slice, reads it, and leaves the difference to the next one, so that its
    error is that of the last slice as long as that can hold the errors of those before it. Pulses
    are counted out from the most significant slice down, a whole number to each; where a less
    significant one is nearly full, its content is carried over.

    Attributes:
        significances: F, whole numbers that fall to 1, each a multiple of the next.
        each: how the cells of a slice make its part of the weight.
        full: share of a slice's range beyond which its content is carried over.

    Raises:
        ValueError: significances that are none.
    """

    significances: tuple[int, ...] = (8, 1)
    each: Arrangement = _PAIR
    full: float = 0.75

    def __post_init__(self):
        """Checks the settings."""
        f = self.significances
        if not 0 < self.full <= 1:
            raise ValueError(f"Sliced(full={self.full}): a share of a slice's range, above 0.")
        falls = all(a > b > 0 and a % b == 0 for a, b in pairwise(f))
        if not f or f[-1] != 1 or not falls:
            raise ValueError(
                f"Sliced({f}): significances are whole numbers that fall to 1, each a multiple of "
                "the next, such as (16, 4, 1)."
            )

    @property
    def cells(self) -> int:
        """Cells a weight."""
        return self.each.cells * len(self.significances)

    def span(self, device: Device) -> float:
        """That of all slices.

        Raises:
            ValueError: a device whose pulses go up only.
        """
        if device.resets:
            raise ValueError(
                f"Sliced: a carry takes pulses of both signs, and {device.name} knows RESET only; "
                "take Pair() or Many(...)."
            )
        return sum(self.significances) * self.each.span(device)

    def init(self, device: Device, shape: tuple[int, ...], key: Key, t: Any) -> tuple[Any, ...]:
        """New cells: a state for each slice."""
        keys = jax.random.split(key, len(self.significances))
        return tuple(self.each.init(device, shape, k, t) for k in keys)

    def read(self, device: Device, state: tuple[Any, ...], key: Key | None, t: Any) -> Weights:
        """The sum of the slices by their significance."""
        keys = [None] * len(state) if key is None else list(jax.random.split(key, len(state)))
        parts = zip(self.significances, state, keys, strict=True)
        return sum((f * self.each.read(device, s, k, t) for f, s, k in parts), start=jnp.zeros(()))

    def variances(self, device: Device, state: tuple[Any, ...], t: Any) -> Variances | None:
        """Those of the slices by the squares of their significance."""
        found = [self.each.variances(device, s, t) for s in state]
        parts = [(f * f, v) for f, v in zip(self.significances, found, strict=True) if v]
        if not parts:
            return None
        own = sum((f * v[0] for f, v in parts), start=jnp.zeros(()))
        shared = [f * v[1] for f, v in parts if v[1] is not None]
        return own, sum(shared, start=jnp.zeros(())) if shared else None

    def program(
        self, device: Device, state: tuple[Any, ...], w: Weights, key: Key, t: Any
    ) -> tuple[Any, ...]:
        """Writes and reads slice after slice; weights that are NaN are not written."""
        new, left, reach = [], w, self.each.span(device)
        for i, (f, slice_) in enumerate(zip(self.significances, state, strict=True)):
            for_writing, for_reading = jax.random.split(jax.random.fold_in(key, i))
            part = jnp.clip(left / f, -reach, reach)
            new.append(self.each.program(device, slice_, part, for_writing, t))
            left = left - f * self.each.read(device, new[-1], for_reading, t)
        return tuple(new)

    def start(
        self, device: Device, state: tuple[Any, ...], w: Weights, key: Key, t: Any
    ) -> tuple[Any, ...]:
        """Brings new cells to weights near w, slice after slice."""
        if device.program is not None:
            return self.program(device, state, w, key, t)
        new, left, reach = [], w, self.each.span(device)
        for i, (f, slice_) in enumerate(zip(self.significances, state, strict=True)):
            part = jnp.clip(left / f, -reach, reach)
            new.append(self.each.start(device, slice_, part, jax.random.fold_in(key, i), t))
            left = left - f * self.each.read(device, new[-1], None, t)
        return tuple(new)

    def pulse(
        self, device: Device, state: tuple[Any, ...], counts: Counts, key: Key, t: Any
    ) -> Pulsed:
        """Pulses by significance, then the carries; says where there were some."""
        cells, left = list(state), counts
        keys = jax.random.split(key, 4 * len(cells)).reshape(4, -1)
        for i, f in enumerate(self.significances):
            whole = jnp.sign(left) * (jnp.abs(left) // f)
            cells[i], _ = self.each.pulse(device, cells[i], whole, keys[0, i], t)
            left = left - f * whole
        step, limit = device.step or 1.0, self.full * self.each.span(device)
        carried = jnp.zeros(counts.shape, bool)
        for i in reversed(range(1, len(cells))):
            held = self.each.read(device, cells[i], keys[1, i], t)
            ratio = self.significances[i - 1] // self.significances[i]
            number = jnp.where(jnp.abs(held) > limit, jnp.trunc(held / (ratio * step)), 0)
            number = number.astype(counts.dtype)
            cells[i - 1], _ = self.each.pulse(device, cells[i - 1], number, keys[2, i], t)
            cells[i], _ = self.each.pulse(device, cells[i], -ratio * number, keys[3, i], t)
            carried |= number != 0
        return tuple(cells), carried

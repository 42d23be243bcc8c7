"""Cells that make a weight together: w = sum over d of c_d G_d, and which of them are written.

A conductance has no sign, a weight has: two cells hold its parts, or one cell of a kind that is
read against a reference. Here are the arrangements; where weights live between two steps of a
training is `memory.py`'s.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .device import Device, Key

Weights = Float[Array, "*weights"]  # in the unit of the device [uS]
Conductances = Float[Array, "*weights cells"]
Counts = Int[Array, "*weights"]
Pulsed = tuple[Any, Bool[Array, "*weights"]]


@runtime_checkable
class Arrangement(Protocol):
    """How many cells a weight has, and what is done to them."""

    @property
    def cells(self) -> int:
        """Cells a weight."""
        ...

    def span(self, device: Device) -> float:
        """The largest |w| that can be held [uS]."""
        ...

    def decode(self, g: Conductances) -> Weights:
        """The weights of conductances."""
        ...

    def targets(self, device: Device, w: Weights) -> Conductances:
        """The conductances that a weight is written as."""
        ...

    def pulse(self, device: Device, state: Any, counts: Counts, key: Key, t: Any) -> Pulsed:
        """Moves weights by that many pulses: the cells, and where they were refreshed."""
        ...


class Single(NamedTuple):
    """One cell a weight, of a kind whose range reaches to both sides of 0."""

    cells: int = 1

    def span(self, device: Device) -> float:
        """The nearer of both bounds."""
        if not device.g_min < 0 < device.g_max:
            raise ValueError(
                f"A single cell of {device.name} holds {device.g_min:g} to {device.g_max:g} uS, "
                "and a weight has a sign: take Pair()."
            )
        return min(-device.g_min, device.g_max)

    def decode(self, g: Conductances) -> Weights:
        """The conductance itself."""
        return g[..., 0]

    def targets(self, device: Device, w: Weights) -> Conductances:
        """The weight itself."""
        return w[..., None]

    def pulse(self, device: Device, state: Any, counts: Counts, key: Key, t: Any) -> Pulsed:
        """Pulses of both signs on the one cell."""
        return give(device)(state, counts[..., None], key, t), jnp.zeros(counts.shape, bool)


class Pair(NamedTuple):
    """Two cells, w = G+ - G-; the one that is not needed idles at the lowest conductance.

    Pulses go to G+ or to G-, always up where a cell knows only RESET as a way down. Such a pair is
    refreshed where a cell is nearly full and the weight could be held with less: it is read, both
    cells are RESET, and the weight is written anew with pulses on one of them.

    Attributes:
        full: share of the range above which a cell is nearly full.
        small: share of the range up to which a weight is held with less.
    """

    full: float = 0.75
    small: float = 0.1875
    cells: int = 2

    def span(self, device: Device) -> float:
        """The width of the range."""
        return device.g_max - device.g_min

    def decode(self, g: Conductances) -> Weights:
        """The difference of both."""
        return g[..., 0] - g[..., 1]

    def targets(self, device: Device, w: Weights) -> Conductances:
        """The parts of the weight above and below 0, over the lowest conductance."""
        return jnp.stack([jax.nn.relu(w), jax.nn.relu(-w)], -1) + device.g_min

    def pulse(self, device: Device, state: Any, counts: Counts, key: Key, t: Any) -> Pulsed:
        """Pulses up, on G+ or G-, and a refresh where it is due."""
        signs = jnp.stack([counts, -counts], -1)
        if not device.resets:
            return give(device)(state, signs, key, t), jnp.zeros(counts.shape, bool)
        for_pulses, for_reading, for_reset, for_rewriting = jax.random.split(key, 4)
        pulse = give(device)
        state = pulse(state, jnp.maximum(signs, 0), for_pulses, t)
        g = device.read(state, for_reading, t)
        w = self.decode(g)
        due = (g.max(-1) > self.full * device.g_max) & (jnp.abs(w) < self.small * device.g_max)
        clear = -jnp.broadcast_to(due[..., None], g.shape).astype(counts.dtype)
        state = pulse(state, clear, for_reset, t)
        again = jnp.where(due, jnp.trunc(w / (device.step or 1)), 0).astype(counts.dtype)
        again = jnp.maximum(jnp.stack([again, -again], -1), 0)
        return pulse(state, again, for_rewriting, t), due


class Many(NamedTuple):
    """Several pairs a weight, all summed; an update goes to one of them, drawn anew for each.

    Independent errors of cells average out: relative to the range, the spread of a weight falls
    with the root of the number of pairs, the smallest step with the number itself.

    Attributes:
        pairs: how many.
        pair: how each is pulsed and refreshed.

    References:
        Boybat et al., Neuromorphic computing with multi-memristive synapses, Nature Communications
        9:2514 (2018).
    """

    pairs: int
    pair: Pair = Pair()

    @property
    def cells(self) -> int:
        """Cells a weight."""
        return 2 * self.pairs

    def span(self, device: Device) -> float:
        """That of all pairs."""
        return self.pairs * self.pair.span(device)

    def decode(self, g: Conductances) -> Weights:
        """The sum of the pairs."""
        return self.pair.decode(self._split(g)).sum(-1)

    def targets(self, device: Device, w: Weights) -> Conductances:
        """The same share of the weight for each pair."""
        each = self.pair.targets(device, w / self.pairs)
        return jnp.concatenate([each] * self.pairs, -1)

    def pulse(self, device: Device, state: Any, counts: Counts, key: Key, t: Any) -> Pulsed:
        """Pulses on one pair of each weight."""
        for_choice, for_pulses = jax.random.split(key)
        chosen = jax.random.randint(for_choice, counts.shape, 0, self.pairs)
        own = jnp.arange(self.pairs) == chosen[..., None]
        given = jnp.where(own, counts[..., None], 0)
        apart = jax.tree.map(self._split, state)
        apart, refreshed = self.pair.pulse(device, apart, given, for_pulses, t)
        together = jax.tree.map(lambda new, old: new.reshape(old.shape), apart, state)
        return together, refreshed.any(-1)

    def _split(self, g: Array) -> Array:
        return g.reshape(*g.shape[:-1], self.pairs, 2)


def give(device: Device) -> Callable[..., Any]:
    """The pulses of a device.

    Raises:
        ValueError: it takes none.
    """
    if device.pulse is None:
        raise ValueError(f"{device.name} takes no pulses: it can be programmed only.")
    return device.pulse

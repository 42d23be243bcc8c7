"""Cells that make a weight together: how many there are, how they are read, which are written.

A conductance has no sign, a weight has: two cells hold its parts, or one cell of a kind that is
read against a reference. Here are the contract and the usual arrangements; those whose cells do not
count alike are in `slices.py`, those that share a reference in `reference_column.py`. Where weights
live between two steps of a training is `memory.py`'s.
"""

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from .device import Device, Key

Weights = Float[Array, "*weights"]  # in the unit of the device [uS]
Conductances = Float[Array, "*weights cells"]
Counts = Int[Array, "*weights"]
Pulsed = tuple[Any, Bool[Array, "*weights"]]
Variances = tuple[Float[Array, "*weights"], Float[Array, "*rows 1"] | None]
_ROUNDS = 3  # of pulses to approach a target: the first are off as steps differ from their mean


@runtime_checkable
class Arrangement(Protocol):
    """What weights made of cells of a device can do; the state is the arrangement's own."""

    @property
    def cells(self) -> int:
        """Cells a weight."""
        ...

    def span(self, device: Device) -> float:
        """The largest |w| that can be held [uS]."""
        ...

    def init(self, device: Device, shape: tuple[int, ...], key: Key, t: Any) -> Any:
        """New cells for weights of a shape."""
        ...

    def read(self, device: Device, state: Any, key: Key | None, t: Any) -> Weights:
        """What one read sees; without a key what the cells hold."""
        ...

    def variances(self, device: Device, state: Any, t: Any) -> Variances | None:
        """Of a read of each weight, and what weights of a row share; None: reads have no noise."""
        ...

    def program(self, device: Device, state: Any, w: Weights, key: Key, t: Any) -> Any:
        """Writes weights to near w; those that are NaN are not written."""
        ...

    def start(self, device: Device, state: Any, w: Weights, key: Key, t: Any) -> Any:
        """Brings new cells to weights near w: written, or by pulses where that is all there is."""
        ...

    def pulse(self, device: Device, state: Any, counts: Counts, key: Key, t: Any) -> Pulsed:
        """Moves weights by that many pulses: the state, and where they were refreshed."""
        ...


@dataclass(frozen=True)
class Alike(abc.ABC):
    """What arrangements share whose state is that of the device, arrays (*weights, cells)."""

    @property
    @abc.abstractmethod
    def cells(self) -> int:
        """Cells a weight."""

    @abc.abstractmethod
    def span(self, device: Device) -> float:
        """The largest |w| that can be held [uS]."""

    @abc.abstractmethod
    def decode(self, g: Conductances) -> Weights:
        """The weights of conductances."""

    @abc.abstractmethod
    def targets(self, device: Device, w: Weights) -> Conductances:
        """The conductances that weights are written as."""

    @abc.abstractmethod
    def pulse(self, device: Device, state: Any, counts: Counts, key: Key, t: Any) -> Pulsed:
        """Moves weights by that many pulses."""

    def init(self, device: Device, shape: tuple[int, ...], key: Key, t: Any) -> Any:
        """New cells for weights of a shape."""
        return device.init((*shape, self.cells), key, t)

    def read(self, device: Device, state: Any, key: Key | None, t: Any) -> Weights:
        """What one read sees; without a key what the cells hold."""
        return self.decode(device.read(state, key, t))

    def variances(self, device: Device, state: Any, t: Any) -> Variances | None:
        """Of a read of each weight; weights share no cell."""
        if device.spread is None:
            return None
        spread = device.spread(state, t)
        # not jnp.sum, into which XLA would fuse the spread, one cell after the other
        return sum(spread[..., d] ** 2 for d in range(1, self.cells)) + spread[..., 0] ** 2, None

    def program(self, device: Device, state: Any, w: Weights, key: Key, t: Any) -> Any:
        """Writes weights to near w; those that are NaN are not written."""
        return write(device)(state, self.targets(device, w), key, t)

    def start(self, device: Device, state: Any, w: Weights, key: Key, t: Any) -> Any:
        """Brings new cells to weights near w."""
        return start(self, device, state, w, key, t)


@dataclass(frozen=True)
class Single(Alike):
    """One cell a weight, of a kind whose range reaches to both sides of 0."""

    @property
    def cells(self) -> int:
        """One."""
        return 1

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


@dataclass(frozen=True)
class Pair(Alike):
    """Two cells, w = G+ - G-; the one that is not needed idles at the lowest conductance.

    A pulse moves one cell of them: that which holds the weight, up or down, and the other one up
    beyond 0. Where a cell knows only RESET as a way down, pulses go up, on G+ or G-; such a pair is
    refreshed where a cell is nearly full and the other one is not empty, so that the weight could
    be held with less: it is read, both cells are RESET, and it is written anew with pulses on one.

    Attributes:
        full: share of the range above which a cell is nearly full.
        empty: share of the range up to which the other one counts as empty.

    Raises:
        ValueError: shares that are none.
    """

    full: float = 0.75
    empty: float = 0.25

    def __post_init__(self):
        """Checks the shares."""
        if not 0 <= self.empty < self.full <= 1:
            raise ValueError(
                f"Pair(full={self.full}, empty={self.empty}): these are shares of the range, and "
                "empty is below full."
            )

    @property
    def cells(self) -> int:
        """Two."""
        return 2

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
        """Pulses on G+ or G-, and a refresh where it is due."""
        for_pulses, for_reading, for_reset, for_rewriting = jax.random.split(key, 4)
        pulse, up = give(device), jnp.maximum(jnp.stack([counts, -counts], -1), 0)
        if not device.resets:
            g = device.read(state, for_reading, t)
            held = jnp.round((g - device.g_min) / (device.step or 1)).astype(counts.dtype)
            down = jnp.clip(up[..., ::-1], 0, jnp.maximum(held, 0))
            given = up - down[..., ::-1] - down
            return pulse(state, given, for_pulses, t), jnp.zeros(counts.shape, bool)
        state = pulse(state, up, for_pulses, t)
        g = device.read(state, for_reading, t)
        w = self.decode(g)
        due = (g.max(-1) > self.full * device.g_max) & (g.min(-1) > self.empty * device.g_max)
        clear = -jnp.broadcast_to(due[..., None], g.shape).astype(counts.dtype)
        state = pulse(state, clear, for_reset, t)
        again = jnp.where(due, first_pulses(device, w), 0).astype(counts.dtype)
        again = jnp.maximum(jnp.stack([again, -again], -1), 0)
        return pulse(state, again, for_rewriting, t), due


class Counted(NamedTuple):
    """The state of `Many`: its cells, and how many updates there were."""

    cells: Any  # state of the device, arrays (*weights, cells)
    turn: Int[Array, ""]


@dataclass(frozen=True)
class Many:
    """Several pairs a weight, all summed; an update goes to one of them.

    Independent errors of cells average out: relative to the range, the spread of a weight falls
    with the root of the number of pairs, the smallest step with the number itself.

    Attributes:
        pairs: how many.
        pair: how each is pulsed and refreshed.
        increment: of a counter that all weights share and that says which pair is next; None: one
            is drawn at random for each weight.

    Raises:
        ValueError: no pairs, or an increment with a factor in common with their number: some would
            never be chosen.

    References:
        Boybat et al., Neuromorphic computing with multi-memristive synapses, Nature Communications
        9:2514 (2018).
    """

    pairs: int
    pair: Pair = Pair()
    increment: int | None = None

    def __post_init__(self):
        """Checks the number and the increment."""
        if not isinstance(self.pairs, int) or self.pairs < 1:
            raise ValueError(f"Many({self.pairs}): give a whole number of pairs, at least 1.")
        if self.increment is not None and math.gcd(self.increment, self.pairs) != 1:
            raise ValueError(
                f"Many({self.pairs} pairs): with increment={self.increment} the counter leaves "
                "some pairs out; take one without a common factor, such as 1."
            )

    @property
    def cells(self) -> int:
        """Cells a weight."""
        return 2 * self.pairs

    def span(self, device: Device) -> float:
        """That of all pairs."""
        return self.pairs * self.pair.span(device)

    def init(self, device: Device, shape: tuple[int, ...], key: Key, t: Any) -> Counted:
        """New cells, the counter at 0."""
        return Counted(device.init((*shape, self.cells), key, t), jnp.zeros((), jnp.int32))

    def read(self, device: Device, state: Counted, key: Key | None, t: Any) -> Weights:
        """The sum of the pairs."""
        g = device.read(state.cells, key, t)
        return self.pair.decode(self._split(g)).sum(-1)

    def variances(self, device: Device, state: Counted, t: Any) -> Variances | None:
        """Those of all cells."""
        return self.pair.variances(device, state.cells, t)

    def program(self, device: Device, state: Counted, w: Weights, key: Key, t: Any) -> Counted:
        """The same share of the weight to each pair."""
        each = self.pair.targets(device, w / self.pairs)
        targets = jnp.concatenate([each] * self.pairs, -1)
        return state._replace(cells=write(device)(state.cells, targets, key, t))

    def start(self, device: Device, state: Counted, w: Weights, key: Key, t: Any) -> Counted:
        """The same share of the weight to each pair."""
        if device.program is not None:
            return self.program(device, state, w, key, t)
        share = jnp.broadcast_to(w[..., None] / self.pairs, (*w.shape, self.pairs))
        apart = jax.tree.map(self._split, state.cells)
        apart = self.pair.start(device, apart, share, key, t)
        cells = jax.tree.map(lambda new, old: new.reshape(old.shape), apart, state.cells)
        return state._replace(cells=cells)

    def pulse(self, device: Device, state: Counted, counts: Counts, key: Key, t: Any) -> Pulsed:
        """Pulses on one pair of each weight."""
        for_choice, for_pulses = jax.random.split(key)
        if self.increment is None:
            chosen = jax.random.randint(for_choice, counts.shape, 0, self.pairs)
        else:
            chosen = jnp.broadcast_to(state.turn * self.increment % self.pairs, counts.shape)
        own = jnp.arange(self.pairs) == chosen[..., None]
        given = jnp.where(own, counts[..., None], 0)
        apart = jax.tree.map(self._split, state.cells)
        apart, refreshed = self.pair.pulse(device, apart, given, for_pulses, t)
        cells = jax.tree.map(lambda new, old: new.reshape(old.shape), apart, state.cells)
        # the counter starts anew in time, so that its products stay within 32 bits
        return Counted(cells, (state.turn + 1) % self.pairs), refreshed.any(-1)

    def _split(self, g: Array) -> Array:
        return g.reshape(*g.shape[:-1], self.pairs, 2)


def usual(g_min: float) -> Arrangement:
    """`Single` for cells of both signs, else `Pair`, by their lowest conductance [uS]."""
    return Single() if g_min < 0 else Pair()


def start(layout: Arrangement, device: Device, state: Any, w: Weights, key: Key, t: Any) -> Any:
    """New cells brought to weights w: programmed, or by pulses and what is read in between."""
    if device.program is not None:
        return layout.program(device, state, w, key, t)

    def seen(state: Any) -> Array:
        return layout.read(device, state, None, t)

    def moved(state: Any, counts: Array, key: Key) -> Any:
        return layout.pulse(device, state, counts, key, t)[0]

    for_first, for_others = jax.random.split(key)
    state = moved(state, first_pulses(device, w).astype(jnp.int32), for_first)
    return approach(w, state, seen, moved, for_others, device.step or 1)


def approach(
    target: Array,
    state: Any,
    read: Callable[..., Array],
    pulse: Callable[..., Any],
    key: Key,
    step: float | int,
) -> Any:
    """Pulses towards a target, by what is read in between: write and verify.

    Args:
        target: of what `read(state)` gives.
        state: what is written.
        read: what it holds.
        pulse: `pulse(state, counts, key) -> state`.
        key: for all pulses.
        step: of a pulse, in the unit of the target.
    """

    def once(i: int | Array, state: Any) -> Any:
        counts = jnp.round((target - read(state)) / step).astype(jnp.int32)
        return pulse(state, counts, jax.random.fold_in(key, i))

    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(state)):
        return jax.lax.fori_loop(0, _ROUNDS, once, state)  # a third of the program to compile
    for i in range(_ROUNDS):  # an instrument's calls cannot be traced
        state = once(i, state)
    return state


def first_pulses(device: Device, w: Weights) -> Array:
    """Pulses, whole numbers with the sign of w, that bring an empty pair or a cell at 0 to w."""
    if device.climb is None:
        return jnp.round(w / (device.step or 1))
    return jnp.sign(w) * device.climb(jnp.abs(w) + device.g_min).astype(w.dtype)


def give(device: Device) -> Callable[..., Any]:
    """The pulses of a device.

    Raises:
        ValueError: it takes none.
    """
    if device.pulse is None:
        raise ValueError(f"{device.name} takes no pulses: it can be programmed only.")
    return device.pulse


def write(device: Device) -> Callable[..., Any]:
    """The programming of a device.

    Raises:
        ValueError: it takes pulses only.
    """
    if device.program is None:
        raise ValueError(f"{device.name} takes pulses only: it cannot be programmed.")
    return device.program

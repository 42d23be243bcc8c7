"""Tiki-Taka: gradients are summed in cells of their own, and what those hold moves the weights.

Cells with steps up and down of different size drift to their symmetry point under a noisy gradient.
Here they drift with the sum of gradients, not with the weights: that is at home in `memory.py`, or
in any other memory.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, UInt32

from ...quant.memory import WeightMemory
from .cells import Arrangement, usual
from .device import Device
from .pulse_numbers import rounded

Transfer = Literal["plain", "chopped", "agad"]
TRANSFERS: tuple[Transfer, ...] = ("plain", "chopped", "agad")
_KEEP = 0.99  # of the running maximum of updates, from one to the next


class Line(NamedTuple):
    """The gradient cells of a leaf as a matrix, an input line a row, and how they are read."""

    cells: Any  # state of the arrangement of (inputs, outputs)
    most: Float[Array, ""]  # running maximum of |update|
    turn: Int[Array, ""]  # updates so far
    positive: Bool[Array, " inputs"]  # the sign with which a line is written and read
    mean: Float[Array, "inputs outputs"]  # of the reads since the sign changed [pulses]
    past: Float[Array, "inputs outputs"]  # that mean when the sign changed
    reads: Int[Array, " inputs"]  # since the sign changed
    begun: Bool[Array, " inputs"]  # whether the sign has changed once


class TikiTaka(NamedTuple):
    """The state of `tiki_taka`: all of it arrays."""

    weights: Any  # state of the memory of the weights
    gradients: tuple[Line, ...]  # for each leaf

    @property
    def lost(self) -> dict[str, PyTree[UInt32[Array, "2"]]]:
        """Counts of the memory of the weights, see `quant.memory.losses`."""
        return self.weights.lost


def tiki_taka(
    memory: WeightMemory,
    device: Device,
    transfer: Transfer = "plain",
    *,
    cells: Arrangement | None = None,
    rate: float | int = 1.0,
    pulses: float | int = 5.0,
    length: int = 31,
    every: int = 1,
    lines: int = 1,
    flip: float = 0.1,
    tail: float | int = 5.0,
) -> WeightMemory:
    r"""A memory whose updates go through cells that sum them up.

    An update is given as pulses to cells A, the largest of late about `pulses` of them. After each
    `every` updates the next `lines` input lines of A are read, in turn, and what is read updates
    the weights in `memory`. Weights in pulsed cells that are written with "pulses" make the first
    Tiki-Taka, those written with "mixed_precision", whose digital sum filters what is read, the
    second.

    - "plain": as read. The symmetry point of A has to be at its zero.
    - "chopped": each line is written and read with a sign that is flipped at random after a read:
      an offset of A goes out on average.
    - "agad": chopped, and less the mean of the reads with the last sign: an offset, even one that
      changes slowly, goes out within two flips. A line is not used before its first flip.

    Leaves of more than two dimensions have the last one as outputs, those of one a single line.

    Args:
        memory: of the weights.
        device: the cells A, with pulses of both signs.
        transfer: see above.
        cells: how cells of A make a number; None: as in `memristive`.
        rate: of what is read, what updates the weights.
        pulses: that the largest update is given as, on average.
        length: the most pulses a cell gets in an update.
        every: updates from read to read.
        lines: that are read then.
        flip: probability of a flip after a read; also the inverse of the longest mean of "agad",
            times `tail`.
        tail: weight of the newest read in that mean, relative to an even one.

    Raises:
        ValueError: an unknown transfer, a device without pulses of both signs, a setting out of
            range.

    References:
        Gokmen and Haensch, Algorithm for training neural networks on resistive device arrays,
        Frontiers in Neuroscience 14:103 (2020); Gokmen, Enabling training of neural networks on
        noisy hardware, Frontiers in Artificial Intelligence 4 (2021); Rasch et al., Fast and robust
        analog in-memory deep neural network training (2024).
    """
    who = f"tiki_taka({device.name})"
    numbers = {"rate": rate, "pulses": pulses, "length": length, "every": every, "lines": lines}
    _check(who, device, transfer, numbers, flip)
    layout = cells or usual(device.g_min)
    step = device.step or 1.0

    def init(params: PyTree, key: PRNGKeyArray) -> TikiTaka:
        for_weights, *keys = jax.random.split(key, 1 + len(jax.tree.leaves(params)))
        lines = []
        for p, own in zip(jax.tree.leaves(params), keys, strict=True):
            shape = _matrix(p).shape
            zeros = jnp.zeros(shape, jnp.float32)
            no = jnp.zeros(shape[0], bool)
            lines.append(
                Line(
                    layout.init(device, shape, own, 0.0),
                    jnp.zeros((), jnp.float32),
                    jnp.zeros((), jnp.int32),
                    ~no,
                    zeros,
                    zeros,
                    no.astype(jnp.int32),
                    no,
                )
            )
        return TikiTaka(memory.init(params, for_weights), tuple(lines))

    def read(state: TikiTaka, key: PRNGKeyArray | None = None) -> PyTree:
        return memory.read(state.weights, key)

    def update(state: TikiTaka, updates: PyTree, key: PRNGKeyArray) -> TikiTaka:
        leaves, tree = jax.tree.flatten(updates)
        for_weights, *keys = jax.random.split(key, 1 + len(leaves))
        lines, moves = [], []
        for line, u, own in zip(state.gradients, leaves, keys, strict=True):
            new, move = one(line, _matrix(u).astype(jnp.float32), own)
            lines.append(new)
            moves.append(move.reshape(u.shape).astype(u.dtype))
        weights = memory.update(state.weights, tree.unflatten(moves), for_weights)
        return TikiTaka(weights, tuple(lines))

    def one(line: Line, u: Array, key: PRNGKeyArray) -> tuple[Line, Array]:
        for_numbers, for_cells, for_read, for_flip = jax.random.split(key, 4)
        missing = jnp.isnan(u)  # goes on to the memory, which counts it
        u = jnp.where(missing, 0, u)
        most = jnp.maximum(_KEEP * line.most, jnp.max(jnp.abs(u), initial=0))
        unit = jnp.where(most > 0, most, 1) / pulses  # of the update, for one pulse
        sign = jnp.where(line.positive, 1.0, -1.0)[:, None]
        numbers = rounded(sign * u, unit, for_numbers, length)
        t = (line.turn + 1).astype(jnp.float32)
        grown = layout.pulse(device, line.cells, numbers, for_cells, t)[0]
        line = line._replace(cells=grown, most=most, turn=line.turn + 1)
        next_ = (line.turn // every - 1) * lines
        due = (line.turn % every == 0) & ((jnp.arange(len(u)) - next_) % len(u) < lines)
        seen = layout.read(device, grown, for_read, t) / step
        line, what = passed_on(line, seen, due, for_flip)
        move = jnp.where(due[:, None], rate * unit * what, 0)
        return line, jnp.where(missing, jnp.nan, move)

    def passed_on(line: Line, seen: Array, due: Array, key: PRNGKeyArray) -> tuple[Line, Array]:
        """What the reads [pulses] are worth, and the signs and means after them."""
        if transfer == "plain":
            return line, seen
        sign = jnp.where(line.positive, 1.0, -1.0)[:, None]
        turned = due & (jax.random.uniform(key, due.shape) < flip)
        after = line._replace(positive=line.positive ^ turned)
        if transfer == "chopped":
            return after, sign * seen
        what = jnp.where(line.begun[:, None], sign * (seen - line.past), 0)
        reads = line.reads + due.astype(line.reads.dtype)
        share = jnp.minimum(jnp.maximum(tail * flip, 1 / jnp.maximum(reads, 1)), 1)[:, None]
        mean = jnp.where(due[:, None], (1 - share) * line.mean + share * seen, line.mean)
        return after._replace(
            mean=mean,
            past=jnp.where(turned[:, None], mean, line.past),
            reads=jnp.where(turned, 0, reads),
            begun=line.begun | turned,
        ), what

    return WeightMemory(init, read, update)


def _matrix(leaf: Array) -> Array:
    return leaf.reshape(-1, leaf.shape[-1]) if leaf.ndim else leaf.reshape(1, 1)


def _check(
    who: str,
    device: Device,
    transfer: str,
    numbers: dict[str, float | int],
    flip: float,
) -> None:
    if transfer not in TRANSFERS:
        raise ValueError(f"{who}: transfer is {transfer!r}; choose one of {', '.join(TRANSFERS)}.")
    if device.pulse is None or device.resets:
        raise ValueError(
            f"{who}: sums of gradients go up and down, and this device has no gradual pulses of "
            "both signs; take a pulsed one."
        )
    for name, value in numbers.items():
        if not value > 0:
            raise ValueError(f"{who}: {name} is {value}; it must be above 0.")
    if not 0 < flip <= 1:
        raise ValueError(f"{who}: flip is {flip}; a probability above 0, at most 1.")

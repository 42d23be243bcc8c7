"""Weights of a training on instruments: how the weights of a layer are cells of an array.

The contract is `quant.memory.WeightMemory`; how an update becomes targets or pulses is
`devices.memory.memristive`'s, which sees an instrument here as one more device. An instrument is
not pure: this memory works outside of `jit` only, and knows no way back to earlier weights.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, UInt32

from ...quant.memory import WeightMemory, float32
from ..devices.cells import Arrangement, usual
from ..devices.device import SIEMENS_AT_MOST, Device
from ..devices.memory import memristive
from .instrument import Call, Instrument, perform


class InstrumentWeights(NamedTuple):
    """The state of `on_instruments`: what is kept beside the cells themselves."""

    parts: dict[str, Any]  # for each instrument, the state of its `memristive`
    others: Any  # the other leaves, in float32
    like: PyTree[Float[Array, ""]]  # a 0 for each leaf
    lost: dict[str, dict[str, UInt32[Array, "2"]]]


def on_instruments(
    instruments: Mapping[str, Instrument],
    *,
    cells: Arrangement | None = None,
    start: float | int = 0.0,
    **settings: Any,
) -> WeightMemory:
    """A weight memory that keeps some leaves on instruments, and the others in float32.

    An instrument has the shape of its leaf; for pairs of cells the last axis is twice as long, G+
    and G- side by side. Each read of weights is a read of the array, with its noise. Targets below
    0.01 uS, which a bench would take for siemens, are written as the lowest one.

    Where an instrument is lost amid `init`, `read` or `update`, the same call again finishes it:
    what was done by then is not done twice.

    Args:
        instruments: for each leaf by its path, such as "w" or "0.kernel", where it lives.
        cells: how cells make a weight; None: `Single` for signed cells, else `Pair`.
        start: time of the instruments when the clock of this memory is at 0 [s].
        settings: those of `memristive`.

    Raises:
        ValueError: by `init`, before anything is written: a leaf that is not there, an instrument
            whose shape differs from the layer. Under `jit`, and for weights of an earlier step.
        InstrumentLost: no answer.
    """
    journals = {name: Journal(name, i) for name, i in instruments.items()}
    layouts = {name: cells or usual(i.capabilities.g_min) for name, i in instruments.items()}
    memories = {
        name: memristive(_device(journal, layouts[name], float(start)), layouts[name], **settings)
        for name, journal in journals.items()
    }
    plain = float32()

    def init(params: PyTree, key: PRNGKeyArray) -> InstrumentWeights:
        leaves = _named(params)
        for name, instrument in instruments.items():
            _check_shape(name, instrument, leaves, layouts[name].cells)
        keys = jax.random.split(key, max(len(memories), 1))
        with _finishing(journals.values()):
            parts = {
                name: memory.init({name: leaves[name]}, k)
                for (name, memory), k in zip(memories.items(), keys, strict=False)
            }
        others = plain.init({n: leaf for n, leaf in leaves.items() if n not in instruments}, None)
        like = jax.tree.map(lambda p: jnp.zeros((), p.dtype), params)
        return InstrumentWeights(parts, others, like, _lost(parts, others))

    def read(state: InstrumentWeights, key: PRNGKeyArray | None = None) -> PyTree:
        del key  # the noise of a read is the instrument's own
        leaves = dict(plain.read(state.others, None))
        with _finishing(journals.values()):
            for name, memory in memories.items():
                leaves |= memory.read(state.parts[name])
        names = list(_named(state.like))
        return jax.tree.unflatten(jax.tree.structure(state.like), [leaves[n] for n in names])

    def update(state: InstrumentWeights, updates: PyTree, key: PRNGKeyArray) -> InstrumentWeights:
        steps = _named(updates)
        keys = jax.random.split(key, max(len(memories), 1))
        with _finishing(journals.values()):
            parts = {
                name: memory.update(state.parts[name], {name: steps[name]}, k)
                for (name, memory), k in zip(memories.items(), keys, strict=False)
            }
        others = {n: step for n, step in steps.items() if n not in instruments}
        others = plain.update(state.others, others, None)
        return InstrumentWeights(parts, others, state.like, _lost(parts, others))

    return WeightMemory(init, read, update)


class Journal:
    """The calls of one piece of work, so that it can be taken up where an instrument was lost."""

    def __init__(self, name: str, instrument: Instrument):
        """Begins with nothing done."""
        self.name, self.instrument = name, instrument
        self._done: list[tuple[Call, np.ndarray | None]] = []
        self._next = 0
        self._writes = self._before = None  # writes so far, now and when the work began

    def begin(self) -> None:
        """Takes up work from its beginning; what was done of it is answered from here."""
        self._next, self._writes = 0, self._before

    def end(self) -> None:
        """The work is done."""
        self._done, self._before = [], self._writes

    def state(self) -> Array:
        """What stands for the cells: the number of writes."""
        return jnp.asarray(self._writes or 0, jnp.int32)

    def do(self, state: Array, call: Call) -> np.ndarray | None:
        """Makes a call, unless it was done before.

        Raises:
            ValueError: the cells are no longer as in that state, or the work is another.
        """
        writes = int(state)
        if self._writes is None:  # a run that goes on from its checkpoint
            self._writes = self._before = writes
        if writes != self._writes:
            raise ValueError(
                f"on_instruments: weights {self.name!r} after {writes} writes are asked, and the "
                f"instrument has seen {self._writes}: it knows no way back."
            )
        if self._next == len(self._done):
            self._done.append((call, perform(self.instrument, call)))
        done, reading = self._done[self._next]
        if not done.same(call):
            raise ValueError(
                f"on_instruments: the instrument of {self.name!r} was lost after {done}, and "
                f"{call} is asked: repeat the call of the memory that was not finished."
            )
        self._next += 1
        self._writes += call.op != "read"
        return reading


@contextlib.contextmanager
def _finishing(journals: Iterable[Journal]) -> Iterator[None]:
    for journal in journals:
        journal.begin()
    yield
    for journal in journals:
        journal.end()


def _device(journal: Journal, layout: Arrangement, start: float) -> Device:
    """An instrument as a device whose functions are not pure."""
    who, declared = f"instrument {journal.name!r}", journal.instrument.capabilities
    *lead, last = declared.shape
    shape = (*lead, last // layout.cells, layout.cells)

    def outside(*values: Any) -> None:
        if any(isinstance(v, Tracer) for v in values):
            raise ValueError(
                f"on_instruments: {who} has an effect in the world; call the memory outside of jit."
            )

    def init(shape: tuple[int, ...], key: Any, t: Any = 0.0) -> Array:
        del shape, t
        outside(key)
        return journal.state()

    def program(state: Array, target: Array, key: Any, t: Any) -> Array:
        del key
        outside(state, target, t)
        g = np.asarray(target, np.float32).reshape(declared.shape)
        if declared.unit == "uS" and declared.g_max >= 1:
            g = np.where(g < SIEMENS_AT_MOST, np.float32(declared.g_min), g)
        journal.do(state, Call("program", start + float(t), g))
        return journal.state()

    def pulse(state: Array, counts: Array, key: Any, t: Any) -> Array:
        del key
        outside(state, counts, t)
        n = np.asarray(counts, np.int32).reshape(declared.shape)
        journal.do(state, Call("apply_pulses", start + float(t), n))
        return journal.state()

    def read(state: Array, key: Any, t: Any) -> Array:
        del key
        outside(state, t)
        g = np.asarray(journal.do(state, Call("read", start + float(t))))
        if np.isnan(g).any():
            raise ValueError(f"{who}: {np.isnan(g).sum()} cells could not be measured.")
        return jnp.asarray(g.reshape(shape))

    return Device(
        who,
        declared.g_min,
        declared.g_max,
        init,
        read,
        program if declared.programs else None,
        pulse if declared.pulses else None,
        declared.step,
        declared.resets,
    )


def _check_shape(
    name: str, instrument: Instrument, leaves: Mapping[str, Array], cells: int
) -> None:
    if name not in leaves:
        raise ValueError(
            f"on_instruments: there are no weights {name!r}; there are {', '.join(leaves)}."
        )
    shape, found = leaves[name].shape, instrument.capabilities.shape
    if not shape or found != (*shape[:-1], shape[-1] * cells):
        needed = (*shape[:-1], shape[-1] * cells) if shape else "at least one axis"
        raise ValueError(
            f"on_instruments: the instrument of {name!r} has shape {found}, and the layer of shape "
            f"{shape} with {cells} cells a weight needs {needed}."
        )


def _named(tree: PyTree) -> dict[str, Any]:
    """The leaves by their paths, as `quant.memory.losses` names them."""
    return {
        jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _lost(parts: Mapping[str, Any], others: Any) -> dict[str, dict[str, Any]]:
    counts: dict[str, dict[str, Any]] = {}
    for state in (*parts.values(), others):
        for name, words in state.lost.items():
            counts.setdefault(name, {}).update(words)
    return counts

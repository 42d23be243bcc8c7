"""The contract of an instrument: an array of memory cells, written, pulsed and read by calls.

Here are the protocol, what an instrument declares of itself, and the checks before anything is
sent; no instrument stands here. Arrays are numpy's, times are in seconds [s] on a clock that the
caller keeps. A call has an effect in the world, so none is made under `jit`.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ..devices.device import check_counts, check_targets, check_time

UNITS = ("uS", "1")  # microsiemens, or a number without a unit
MOST_CELLS = 2**24
MOST_PULSES = 2**24  # whole numbers up to here are exact in float32
_BEYOND = 10.0  # widths of the range that a reading may lie outside of it


class InstrumentLost(ConnectionError):
    """An instrument gave no answer; what was asked may have been done or not."""


@dataclass(frozen=True)
class Capabilities:
    """What an instrument declares of itself.

    Attributes:
        shape: of the array of cells.
        unit: of targets and readings, one of `UNITS`.
        g_min: lowest target, in that unit.
        g_max: highest target.
        programs: whether cells can be written to a target.
        pulses: whether cells take pulses.
        resets: whether a pulse down is a RESET, whatever the count.
        step: mean change by one pulse up at mid range; None if not known.
        most_pulses: for a cell in one call.
        latest: last time that the clock can show [s].
    """

    shape: tuple[int, ...]
    unit: str
    g_min: float
    g_max: float
    programs: bool
    pulses: bool
    resets: bool = False
    step: float | None = None
    most_pulses: int = 10_000
    latest: float = 1e10

    def __post_init__(self) -> None:
        for good, what in (
            (
                len(self.shape) > 0
                and all(n > 0 for n in self.shape)
                and math.prod(self.shape) <= MOST_CELLS,
                f"shape is {self.shape}; give 1 to {MOST_CELLS} cells",
            ),
            (self.unit in UNITS, f"unit is {self.unit!r}; known are {', '.join(UNITS)}"),
            (
                -math.inf < self.g_min < self.g_max < math.inf,
                f"the range is {self.g_min} to {self.g_max}; give two numbers that rise",
            ),
            (self.programs or self.pulses, "it takes neither targets nor pulses"),
            (
                self.step is None or 0 < self.step < math.inf,
                f"step is {self.step}; give a number above 0",
            ),
            (
                1 <= self.most_pulses <= MOST_PULSES,
                f"most_pulses is {self.most_pulses}; give 1 to {MOST_PULSES}",
            ),
            (0 < self.latest < math.inf, f"latest is {self.latest} s; give a time"),
        ):
            if not good:
                raise ValueError(f"Capabilities: {what}.")


@runtime_checkable
class Instrument(Protocol):
    """An array of cells behind calls.

    A call is checked as a whole before anything is done; what is refused has no effect. `time`
    None is the time of the call before.
    """

    @property
    def capabilities(self) -> Capabilities:
        """What it declares of itself."""
        ...

    @property
    def written(self) -> float:
        """Time of the last write [s]."""
        ...

    def identify(self) -> str:
        """Who it is: maker, model, serial number and version, with commas between."""
        ...

    def program(self, target: Any, time: Any = None) -> None:
        """Writes cells to a target; NaN where a cell is not written.

        Raises:
            ValueError: another shape, targets out of range or in siemens, a time before the last
                write, an instrument that takes no targets.
            InstrumentLost: no answer.
        """
        ...

    def apply_pulses(self, mask: Any, polarity: Any, count: Any, time: Any = None) -> None:
        """Gives pulses to the cells of a mask.

        Args:
            mask: bools of the shape of the array.
            polarity: 1 for up, -1 for down; one for all cells or one each.
            count: how many, at least 0; one for all cells or one each.
            time: [s].

        Raises:
            ValueError: as for `program`, and counts that are no whole numbers in range.
            InstrumentLost: no answer.
        """
        ...

    def read(self, time: Any = None) -> np.ndarray:
        """What one read of all cells sees, float32; NaN where a cell could not be measured."""
        ...


class Call(NamedTuple):
    """A call after its checks: what is recorded, compared and sent."""

    op: str  # "program", "apply_pulses" or "read"
    time: float  # [s]
    cells: np.ndarray | None = None  # targets in float32, signed counts in int32, None for a read

    def same(self, other: "Call") -> bool:
        """Whether both are equal to the bit."""
        if (self.op, self.time) != (other.op, other.time):
            return False
        if self.cells is None or other.cells is None:
            return self.cells is other.cells
        return self.cells.shape == other.cells.shape and not differences(self, other).size

    def __str__(self) -> str:
        return f"{self.op} at {self.time!r} s"


def differences(a: Call, b: Call) -> np.ndarray:
    """The cells, one a row, for which two calls of one op ask for something else."""
    x, y = np.asarray(a.cells), np.asarray(b.cells)
    return np.argwhere(x.view(np.uint32) != y.view(np.uint32))


def perform(instrument: Instrument, call: Call) -> np.ndarray | None:
    """Makes a call; the reading if it is one."""
    if call.op == "read":
        return instrument.read(call.time)
    if call.cells is None:
        raise ValueError(f"perform: {call.op} needs cells.")
    if call.op == "program":
        return instrument.program(call.cells, call.time)
    sign, count = np.where(call.cells < 0, -1, 1), np.abs(call.cells)
    return instrument.apply_pulses(call.cells != 0, sign, count, call.time)


class Checked:
    """An instrument that checks each call and then does it, by `_do`.

    Args:
        who: the instrument, for errors.
        identity: see `Instrument.identify`.
        capabilities: see `Capabilities`.
        written: time of the last write [s].
    """

    def __init__(self, who: str, identity: str, capabilities: Capabilities, written: float = 0.0):
        self.who, self.capabilities = who, capabilities
        self._identity, self.written, self._now = identity, written, written

    def identify(self) -> str:
        """See `Instrument`."""
        return self._identity

    def program(self, target: Any, time: Any = None) -> None:
        """See `Instrument`."""
        cells = check_target(self.who, self.capabilities, target)
        call = Call("program", self._time("program", time), cells)
        self._do(call)
        self._now = self.written = call.time

    def apply_pulses(self, mask: Any, polarity: Any, count: Any, time: Any = None) -> None:
        """See `Instrument`."""
        cells = check_pulses(self.who, self.capabilities, mask, polarity, count)
        call = Call("apply_pulses", self._time("apply_pulses", time), cells)
        self._do(call)
        self._now = self.written = call.time

    def read(self, time: Any = None) -> np.ndarray:
        """See `Instrument`."""
        call = Call("read", self._time("read", time))
        g = check_reading(self.who, self.capabilities, self._do(call))
        self._now = call.time
        return g

    def _time(self, what: str, time: Any) -> float:
        if isinstance(time, Tracer):
            raise _under_jit(self.who)
        t = self._now if time is None else time
        if np.ndim(t) or np.asarray(t).dtype.kind not in "iuf" or not math.isfinite(t):
            raise ValueError(f"{self.who}.{what}: time is {time!r}; give one number of seconds.")
        t = float(t)
        if not 0 <= t <= self.capabilities.latest:
            raise ValueError(
                f"{self.who}.{what}: time is {t:g} s; the clock shows 0 to "
                f"{self.capabilities.latest:g} s."
            )
        check_time(self.who, what, t, self.written)
        return t

    def _do(self, call: Call) -> Any:
        """Does a call that has passed the checks; the reading if it is one."""
        raise NotImplementedError


def check_target(who: str, declared: Capabilities, target: Any) -> np.ndarray:
    """Targets in float32, after all checks.

    Raises:
        ValueError: no targets are taken, no real numbers, another shape, out of range, siemens.
    """
    if not declared.programs:
        raise ValueError(f"{who}.program: this instrument takes pulses only.")
    values = _array(who, "program", target)
    if not (jnp.issubdtype(values.dtype, jnp.floating) or values.dtype.kind in "iu"):
        raise ValueError(f"{who}.program: targets are {values.dtype}; give real numbers.")
    _check_shape(who, "program: targets", declared, values)
    values = values.astype(np.float64)
    check_targets(who, values, declared.g_min, declared.g_max)
    return np.where(np.isnan(values), np.nan, values).astype(np.float32)  # one NaN for all


def check_pulses(
    who: str, declared: Capabilities, mask: Any, polarity: Any, count: Any
) -> np.ndarray:
    """Signed counts in int32, after all checks.

    Raises:
        ValueError: no pulses are taken, a mask of another shape or no bools, a polarity other than
            1 and -1, counts that are no whole numbers or out of range.
    """
    what = "apply_pulses"
    if not declared.pulses:
        raise ValueError(f"{who}.{what}: this instrument takes no pulses, it is programmed only.")
    m, p, n = (_array(who, what, a) for a in (mask, polarity, count))
    if m.dtype != bool:
        raise ValueError(f"{who}.{what}: the mask is {m.dtype}; give bools, True for a pulse.")
    _check_shape(who, f"{what}: a mask", declared, m)
    for name, a in (("polarity", p), ("count", n)):
        if a.ndim:
            _check_shape(who, f"{what}: {name}", declared, a)
    check_counts(who, n)
    if p.dtype.kind not in "iu" or not np.isin(p, (-1, 1)).all():
        raise ValueError(f"{who}.{what}: polarity is neither 1 (up) nor -1 (down) everywhere.")
    low, high = int(n.min()), int(n.max())
    if low < 0 or high > declared.most_pulses:
        raise ValueError(
            f"{who}.{what}: counts from {low} to {high}; a call gives 0 to {declared.most_pulses} "
            "pulses, and polarity says which way."
        )
    return np.where(m, p.astype(np.int32) * n.astype(np.int32), 0).astype(np.int32)


def check_reading(who: str, declared: Capabilities, reading: Any) -> np.ndarray:
    """A reading in float32.

    Raises:
        ValueError: of another shape, or with values that no cell of that range can have.
    """
    g = np.asarray(reading, np.float32)
    _check_shape(who, "read: a reading", declared, g)
    reach = _BEYOND * (declared.g_max - declared.g_min)
    wrong = ~np.isnan(g) & ~((g >= declared.g_min - reach) & (g <= declared.g_max + reach))
    if wrong.any():
        where = tuple(np.argwhere(wrong)[0].tolist())
        raise ValueError(
            f"{who}.read: cell {where} shows {g[where]:g} {declared.unit} where the range is "
            f"{declared.g_min:g} to {declared.g_max:g}; {wrong.sum()} cells are that far out: "
            "check the unit and the bench."
        )
    return g


def as_json(declared: Capabilities) -> dict[str, Any]:
    """Capabilities as JSON takes them."""
    return asdict(declared) | {"shape": list(declared.shape)}


def from_json(found: Any) -> Capabilities:
    """Capabilities of what `as_json` gave, or of what came from outside.

    Raises:
        ValueError: not these fields, or not of these types.
    """
    if not isinstance(found, Mapping) or set(found) != set(_KINDS):
        raise ValueError(f"Capabilities: expected the fields {', '.join(_KINDS)}.")
    for name, (kind, fits) in _KINDS.items():
        if not fits(found[name]):
            raise ValueError(f"Capabilities: {name} is {found[name]!r:.60}; expected {kind}.")
    numbers = {k: float(v) for k, v in found.items() if _KINDS[k][1] is _real}
    step = None if found["step"] is None else float(found["step"])
    return Capabilities(**{**found, **numbers, "step": step, "shape": tuple(found["shape"])})


def _array(who: str, what: str, values: Any) -> np.ndarray:
    if isinstance(values, Tracer):
        raise _under_jit(who)
    return np.asarray(values)


def _check_shape(who: str, what: str, declared: Capabilities, values: np.ndarray) -> None:
    if values.shape != declared.shape:
        raise ValueError(
            f"{who}.{what} of shape {values.shape} for an instrument of shape {declared.shape}."
        )


def _under_jit(who: str) -> ValueError:
    return ValueError(f"{who}: a call has an effect in the world; make it outside of jit.")


def _real(value: Any) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool) and abs(value) < math.inf


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


_KINDS = {
    "shape": ("a list of sizes", lambda v: isinstance(v, list) and all(map(_whole, v))),
    "unit": ("a name", lambda v: isinstance(v, str)),
    "g_min": ("a number", _real),
    "g_max": ("a number", _real),
    "programs": ("true or false", _flag),
    "pulses": ("true or false", _flag),
    "resets": ("true or false", _flag),
    "step": ("a number or null", lambda v: v is None or _real(v)),
    "most_pulses": ("a whole number", _whole),
    "latest": ("a number", _real),
}

"""Measured pulse traces: a CSV file of reads between pulses, read and checked.

Columns are found by their names, in any order; others are left alone:

    device       name of the cell
    g_uS         the read: also g (uS), g_nS, g_mS, g_S, r_ohm, r_kohm, r_Mohm, or w for a number
                 without a unit; empty or nan: not measured
    pulses       pulses since the row before, a whole number with its sign; or, in its place,
    pulse_index  the number of the pulse in the cycle, and
    polarity     of the pulses since the row before: 1 or -1, up or down, set or reset, + or -
    cycle        optional: what happened between two cycles is not known
    t            optional: time [s]
    amp, width   optional: of a pulse; one value for each polarity

Recordings of an instrument (`simulator/instruments/trace.py`, .h5) are read too. Models of the
traces do not belong here.
"""

import csv
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from .device import SIEMENS_AT_MOST
from .kalman import Trace

Unit = Literal["uS", "1"]
UNITS: dict[str, tuple[Unit, float, bool]] = {  # column: unit, factor, is it a resistance
    "g": ("uS", 1.0, False),
    "g_uS": ("uS", 1.0, False),
    "g_nS": ("uS", 1e-3, False),
    "g_mS": ("uS", 1e3, False),
    "g_S": ("uS", 1e6, False),
    "r_ohm": ("uS", 1e6, True),
    "r_kohm": ("uS", 1e3, True),
    "r_Mohm": ("uS", 1.0, True),
    "w": ("1", 1.0, False),
}
_UP = ("1", "+1", "+", "up", "set")
_DOWN = ("-1", "-", "down", "reset")
_LARGEST = 2 * 10**9  # bytes of a file of traces
_LARGEST_UNIT = 1e5  # uS; no cell conducts so well, so that it is another unit
_MOST = 10**6  # pulses from one read to the next
_FEWEST = 10  # steps that a fit is tried with
_MIXED = (10**4.5, 10**7.5)  # ratios of two cells that look like microsiemens beside siemens


class Traces(NamedTuple):
    """Traces of cells; in a row first pulses, then a read."""

    name: str  # of the file
    unit: Unit
    cells: tuple[str, ...]
    pulses: Float[np.ndarray, "rows cells"]  # signed; 0 beyond the end of a trace
    g: Float[np.ndarray, "rows cells"]  # NaN where nothing was measured
    fresh: Bool[np.ndarray, "rows cells"]  # what happened before is not known
    repeated: int  # reads that were left out, as they repeat the one before without a pulse

    @property
    def reference(self) -> float:
        """Where steps are quoted: 0 if reads lie on both sides of it, else their middle."""
        low, high = np.nanquantile(self.g, (0.05, 0.95))
        if low < 0 < high:
            return 0.0
        middle = (np.nanmin(self.g) + np.nanmax(self.g)) / 2
        return float(f"{middle:.2g}")

    def over(self, reference: float) -> Trace:
        """What a fit takes."""
        numbers, kind = np.unique(self.pulses, return_inverse=True)
        return Trace(numbers, kind.reshape(self.pulses.shape), self.g - reference, self.fresh)


class _Row(NamedTuple):
    device: str
    cycle: str
    pulses: int
    g: float


def read(path: str | Path) -> Traces:
    """Reads and checks a file of traces.

    Raises:
        ValueError: what is wrong, with the line: a missing column, a number that is none, a pulse
            count that is no integer, time or pulse numbers that go back, two units, a unit that
            does not fit the numbers, pulses of several amplitudes, too few pulses.
        OSError: no such file.
    """
    path = Path(path)
    if path.suffix in (".h5", ".hdf5"):
        found = _recorded(path)
    else:
        if path.stat().st_size > _LARGEST:
            raise ValueError(f"{path.name}: {path.stat().st_size} bytes are too many for traces.")
        unit, rows = _rows(path)
        found = _arranged(path.name, unit, rows)
    return _checked(found)


def _rows(path: Path) -> tuple[Unit, list[_Row]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        names = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = names
        value = _value_column(path.name, names)
        unit, factor, inverse = UNITS[value]
        state = _State(path.name, "pulses" in names)
        try:
            rows = []
            for row in reader:
                if None in row:
                    raise ValueError(
                        f"{path.name}, line {reader.line_num}: has more fields than the "
                        f"{len(names)} named in the first line."
                    )
                g = _number(path.name, reader.line_num, value, row[value])
                if inverse and g <= 0:
                    raise ValueError(
                        f"{path.name}, line {reader.line_num}: {value} is {g:g}; a resistance is "
                        "above 0."
                    )
                device, cycle, pulses = state.row(reader.line_num, row)
                rows.append(_Row(device, cycle, pulses, factor / g if inverse else factor * g))
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{path.name}: this is no CSV file: {error}.") from None
    return unit, rows


def _value_column(name: str, names: list[str]) -> str:
    twice = sorted({n for n in names if n and names.count(n) > 1})
    if twice:
        raise ValueError(f"{name}: has more than one column {', '.join(twice)}; keep one of them.")
    values = [n for n in names if n in UNITS]
    if len(values) > 1:
        raise ValueError(
            f"{name}: has the columns {', '.join(values)}, which are mixed units; keep one of them."
        )
    missing = [] if values else [f"a read ({', '.join(UNITS)})"]
    if "device" not in names:
        missing.append("device")
    if "pulses" not in names:
        missing += [n for n in ("pulse_index", "polarity") if n not in names]
    if missing:
        raise ValueError(
            f"{name}: has no column for {', '.join(missing)}; traces have device, g_uS and either "
            f"pulses, or pulse_index and polarity; found are {', '.join(names) or 'none'}."
        )
    return values[0]


class _State:
    """What the row before of each cell was: what a row means depends on it."""

    def __init__(self, name: str, counted: bool):
        self._name, self._counted = name, counted
        self._last: dict[str, tuple[str, int, float]] = {}  # device: cycle, index, time
        self._shapes: dict[tuple[int, str], str] = {}  # polarity, column: value
        self._rows: dict[str, dict[str, str | None]] = {}  # device: the row before

    def row(self, line: int, row: dict[str, str | None]) -> tuple[str, str, int]:
        """Device, cycle, and pulses since the row before."""
        device, cycle = (row.get("device") or "").strip(), (row.get("cycle") or "").strip()
        if not device:
            raise ValueError(f"{self._name}, line {line}: device is empty; name the cell.")
        before = self._last.get(device)
        same = before is not None and before[0] == cycle
        t = _number(self._name, line, "t", row.get("t"))
        if before is not None and t < before[2]:
            raise ValueError(
                f"{self._name}, line {line}: t is {t:g} s after {before[2]:g} s for device "
                f"{device}; the rows of a device are in the order of time."
            )
        t = t if not math.isnan(t) or before is None else before[2]
        index = 0
        if self._counted:
            pulses = _whole(self._name, line, "pulses", row["pulses"])
        else:
            index = _whole(self._name, line, "pulse_index", row["pulse_index"])
            given = index - before[1] if same and before is not None else 0
            if given < 0:
                raise ValueError(
                    f"{self._name}, line {line}: pulse_index is {index} after "
                    f"{index - given} for device {device}; pulses of a cycle are numbered upwards."
                )
            pulses = given * self._polarity(line, row["polarity"]) if given else 0
        if abs(pulses) > _MOST:
            raise ValueError(
                f"{self._name}, line {line}: {pulses} pulses from one read to the next; a fit "
                f"takes {_MOST} at most."
            )
        if pulses and (row.get("t") or "").strip() and row == self._rows.get(device):
            raise ValueError(
                f"{self._name}, line {line}: repeats the row before of device {device}, time "
                "included, so its pulses would count twice; write each row once."
            )
        self._last[device], self._rows[device] = (cycle, index, t), row
        self._one_shape(line, int(np.sign(pulses)), row)
        return device, cycle, pulses

    def _polarity(self, line: int, text: str | None) -> int:
        word = (text or "").strip().lower()
        if word in _UP or word in _DOWN:
            return 1 if word in _UP else -1
        raise ValueError(
            f"{self._name}, line {line}: polarity is {text!r:.40}; give 1 or -1, up or down."
        )

    def _one_shape(self, line: int, sign: int, row: dict[str, str | None]) -> None:
        """Pulses of one polarity must be alike, or steps would be mixed."""
        for column in ("amp", "width"):
            value = (row.get(column) or "").strip()
            if sign and value and self._shapes.setdefault((sign, column), value) != value:
                raise ValueError(
                    f"{self._name}, line {line}: {column} is {value} after "
                    f"{self._shapes[sign, column]} for pulses {'up' if sign > 0 else 'down'}; a "
                    "fit is of one kind of pulse: give each its own file."
                )


def _number(name: str, line: int, column: str, text: str | None) -> float:
    """A number; NaN where there is none."""
    try:
        value = float(text) if text and text.strip() else math.nan
    except ValueError:
        value = math.inf
    if math.isinf(value):
        raise ValueError(f"{name}, line {line}: {column} is {text!r:.40}; expected a number.")
    return value


def _whole(name: str, line: int, column: str, text: str | None) -> int:
    value = _number(name, line, column, text)
    if math.isnan(value) or value != int(value):
        raise ValueError(
            f"{name}, line {line}: {column} is {text!r:.40}; a pulse count is an integer."
        )
    return int(value)


def _arranged(name: str, unit: Unit, rows: Iterable[_Row]) -> Traces:
    """A column for each cell."""
    by_cell: dict[str, list[_Row]] = {}
    for row in rows:
        by_cell.setdefault(row.device, []).append(row)
    shape = (max((len(own) for own in by_cell.values()), default=0), len(by_cell))
    pulses, g, fresh = np.zeros(shape), np.full(shape, np.nan), np.zeros(shape, bool)
    for k, own in enumerate(by_cell.values()):
        n = len(own)
        pulses[:n, k], g[:n, k] = [row.pulses for row in own], [row.g for row in own]
        fresh[:n, k] = [i == 0 or own[i - 1].cycle != row.cycle for i, row in enumerate(own)]
    return Traces(name, unit, tuple(by_cell), pulses, g, fresh, 0)


def _recorded(path: Path) -> Traces:
    """The reads of a recording; a cell that was programmed may be anywhere."""
    from ..instruments import trace as recordings

    recording = recordings.Trace(path)
    try:
        declared = recording.header.capabilities
        given, reads = np.zeros(declared.shape), []
        anew = np.ones(declared.shape, bool)
        for i in range(recording.rows):
            call, seen = recording.row(i)
            if call.op == "read":
                reads.append((given, np.asarray(seen, float), anew))
                given, anew = np.zeros(declared.shape), np.zeros(declared.shape, bool)
            elif call.op == "apply_pulses":
                turned = given * np.asarray(call.cells) < 0
                if turned.any():
                    raise ValueError(
                        f"{path.name}: call {i} turns the pulses of a cell round without a read in "
                        "between; read before each change of polarity."
                    )
                given = given + np.asarray(call.cells)
            else:
                anew = anew | ~np.isnan(np.asarray(call.cells))
    finally:
        recording.close()
    if not reads:
        raise ValueError(f"{path.name}: has no read.")
    pulses, g, fresh = (np.stack(a).reshape(len(reads), -1) for a in zip(*reads, strict=True))
    cells = tuple(",".join(map(str, place)) for place in np.ndindex(*declared.shape))
    unit: Unit = "uS" if declared.unit == "uS" else "1"
    return Traces(path.name, unit, cells, pulses, g, fresh, 0)


def _checked(traces: Traces) -> Traces:
    """Without repeated reads; refuses what cannot be fitted."""
    name, g = traces.name, traces.g
    known = ~np.isnan(g)
    if not known.any():
        raise ValueError(f"{name}: has no read.")
    if traces.unit == "uS":
        _check_unit(traces)
    again = np.zeros(g.shape, bool)
    again[1:] = (traces.pulses[1:] == 0) & ~traces.fresh[1:] & (g[1:] == g[:-1])
    traces = traces._replace(g=np.where(again, np.nan, g), repeated=int(again.sum()))
    for sign, word in ((1, "up"), (-1, "down")):
        count = int((np.sign(traces.pulses) == sign).sum())
        if count < _FEWEST:
            raise ValueError(
                f"{name}: has {count} rows with pulses {word}; a fit of both directions needs at "
                f"least {_FEWEST} of each."
            )
    if np.nanmax(g) - np.nanmin(g) <= 0:
        raise ValueError(f"{name}: all reads are {np.nanmax(g):g}; nothing moves.")
    return traces


def _check_unit(traces: Traces) -> None:
    with np.errstate(all="ignore"):
        tops = np.nanmax(np.abs(np.where(np.isnan(traces.g), 0, traces.g)), axis=0)
    largest = float(tops.max())
    if 0 < largest < SIEMENS_AT_MOST:
        raise ValueError(
            f"{traces.name}: the largest read is {largest:g} uS; it looks like siemens: name the "
            "column g_S, or multiply it by 1e6."
        )
    if largest > _LARGEST_UNIT:
        raise ValueError(
            f"{traces.name}: the largest read is {largest:g} uS, more than a cell conducts; it "
            "looks like another unit: name the column after it, such as g_uS or r_ohm."
        )
    least = int(np.argmin(np.where(tops > 0, tops, np.inf)))
    most = int(np.argmax(tops))
    if _MIXED[0] < largest / max(float(tops[least]), 1e-300) < _MIXED[1]:
        raise ValueError(
            f"{traces.name}: device {traces.cells[least]} reads up to {tops[least]:g} uS and "
            f"device {traces.cells[most]} up to {largest:g}; these look like mixed units."
        )


def as_rows(traces: Traces) -> Iterable[dict[str, Any]]:
    """The rows of a file that `read` reads back, a cell after the other."""
    column = "w" if traces.unit == "1" else "g_uS"
    cycles = np.cumsum(traces.fresh, 0)
    for k, cell in enumerate(traces.cells):
        for i in range(len(traces.g)):
            g = traces.g[i, k]
            yield {
                "device": cell,
                "cycle": int(cycles[i, k]),
                "pulses": int(traces.pulses[i, k]),
                column: "" if np.isnan(g) else repr(float(g)),
            }

"""The file of a recorded instrument: HDF5, one row a call, readable up to its last whole call.

    header  attribute        JSON: format, version, identity, capabilities, written [s], position
    calls   (rows,)          op (an index into `OPS`), time [s], check (2^32 + a CRC-32 of the row)
    cells   (rows, *shape)   targets, signed pulse counts, or the reading; float32

The file is written so that it can be read at any moment (single writer, multiple readers); a row
whose check is wrong is not whole. Only this layout is read: no filters, no links, no pickles.
Which calls are recorded and replayed is `record.py`'s and `replay.py`'s.
"""

import json
import math
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .cut_file import CutFile
from .instrument import Call, Capabilities, as_json, from_json

OPS = ("program", "apply_pulses", "read")
FORMAT, VERSION = "spikebit instrument trace", 1
_CALL = np.dtype([("op", "u1"), ("time", "<f8"), ("check", "<u8")])
_CELL = np.dtype("<f4")
_LONGEST_HEADER = 2**16  # bytes
_LONGEST_NAME = 200  # of an identity, characters


class Position(NamedTuple):
    """Where a bench that outlives this process stands."""

    boot: str  # of the bench: another one after each start
    controller: str  # who makes the calls
    calls: int  # the number of the last one that was done


class Header(NamedTuple):
    """What was recorded."""

    identity: str
    capabilities: Capabilities
    written: float  # time of the last write before the first call [s]
    position: Position | None  # before the first call


class Writer:
    """A new trace; each row is in the file when `append` returns."""

    def __init__(self, path: str | Path, header: Header):
        """Makes the file.

        Raises:
            ValueError: it exists already.
        """
        if Path(path).exists():
            raise ValueError(
                f"record: {path} exists already; a trace is written once: choose another."
            )
        shape = header.capabilities.shape
        self._file = h5py().File(path, "w-", libver="latest")
        fields = json.dumps(
            {
                "format": FORMAT,
                "version": VERSION,
                "identity": header.identity,
                "capabilities": as_json(header.capabilities),
                "written": header.written,
                "position": header.position and header.position._asdict(),
            }
        )
        self._file.attrs["header"] = np.bytes_(fields.encode())  # in place: a heap has no checksum
        self._cells = self._file.create_dataset(
            "cells", (0, *shape), _CELL, maxshape=(None, *shape), chunks=(1, *shape)
        )
        self._calls = self._file.create_dataset(
            "calls", (0,), _CALL, maxshape=(None,), chunks=(1024,)
        )
        self._file.swmr_mode = True
        self.rows = 0

    def append(self, call: Call, reading: np.ndarray | None) -> None:
        """Writes a call that was made, and what it read."""
        i, op = self.rows, OPS.index(call.op)
        cells = np.asarray(reading if call.cells is None else call.cells, _CELL)
        self._cells.resize(i + 1, 0)
        self._cells[i] = cells
        self._cells.flush()  # before the row that says that it is there
        self._calls.resize(i + 1, 0)
        self._calls[i] = np.array((op, call.time, _check(i, op, call.time, cells)), _CALL)
        self._calls.flush()
        self.rows = i + 1

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class Trace:
    """A trace that is read.

    Attributes:
        name: of the file, for errors.
        header: see `Header`.
        rows: whole calls.
        cut: whether what follows them is not whole.
    """

    def __init__(self, path: str | Path):
        """Opens and checks a file.

        Raises:
            ValueError: no such file, no trace, another version, fields or arrays of another kind,
                a damaged call before a whole one.
        """
        self.name = Path(path).name
        if not Path(path).is_file():
            raise ValueError(f"trace {path}: there is no such file.")
        self._size = Path(path).stat().st_size
        try:
            self._file = _open(path)
        except (OSError, ValueError) as error:
            raise self._bad(f"is no HDF5 file that can be read: {error}") from error
        try:
            self.header = self._read_header()
            self._calls = self._dataset("calls", _CALL, ())
            self._cells = self._dataset("cells", _CELL, self.header.capabilities.shape)
            self.rows, self.cut = self._count()
        except (OSError, RuntimeError, KeyError, TypeError) as error:  # what h5py says of damage
            self._file.close()
            raise self._bad(f"is damaged: {error}") from error
        except ValueError:
            self._file.close()
            raise

    @property
    def position(self) -> Position | None:
        """Where the bench stood after the last whole call."""
        at = self.header.position
        return at and at._replace(calls=at.calls + self.rows)

    def row(self, i: int) -> tuple[Call, np.ndarray | None]:
        """A call and what it read."""
        found = self._whole(i)
        if not 0 <= i < self.rows or found is None:
            raise self._bad(f"has {self.rows} calls, and call {i} is asked.")
        op, time, cells = found
        if op == "read":
            return Call(op, time), cells
        return Call(op, time, cells.astype(np.int32) if op == "apply_pulses" else cells), None

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _read_header(self) -> Header:
        kind = self._file.attrs.get_id("header").dtype if "header" in self._file.attrs else None
        if kind is None or kind.kind != "S" or kind.itemsize > _LONGEST_HEADER:
            raise self._bad("has no header, an attribute of text of fixed length.")
        try:
            found = json.loads(bytes(self._file.attrs["header"]))
        except (ValueError, RecursionError) as error:
            raise self._bad(f"has a header that is no JSON: {error}") from error
        if not isinstance(found, Mapping) or found.get("format") != FORMAT:
            raise self._bad(f"has a header that is not of a {FORMAT}.")
        if found.get("version") != VERSION:
            raise self._bad(f"is of version {found.get('version')!r:.20}; read is {VERSION}.")
        identity, written, position = (found.get(k) for k in ("identity", "written", "position"))
        if not isinstance(identity, str) or len(identity) > _LONGEST_NAME:
            raise self._bad(f"has the identity {identity!r:.60}; expected is text.")
        if not isinstance(written, float) or not math.isfinite(written):
            raise self._bad(f"has the time {written!r:.60} of the last write; expected a number.")
        try:
            position = None if position is None else _position(position)
            declared = from_json(found.get("capabilities"))
        except ValueError as error:
            raise self._bad(f"has a header that does not fit: {error}") from error
        return Header(identity, declared, written, position)

    def _dataset(self, name: str, dtype: np.dtype, cells: tuple[int, ...]) -> Any:
        library = h5py()
        link = self._file.get(name, getlink=True)  # one that is not hard leads to other files
        found: Any = self._file[name] if isinstance(link, library.HardLink) else None
        if not isinstance(found, library.Dataset) or found.dtype != dtype:
            raise self._bad(f"has no array {name!r} of {dtype}.")
        if found.is_virtual or found.external or found.id.get_create_plist().get_nfilters():
            raise self._bad(f"has an array {name!r} that is virtual, elsewhere, or compressed.")
        if found.ndim != 1 + len(cells) or found.shape[1:] != cells:
            raise self._bad(
                f"has an array {name!r} of shape {found.shape}; expected (n, *{cells})."
            )
        return found

    def _count(self) -> tuple[int, bool]:
        longest = max(len(self._calls), len(self._cells))
        a_row = self._cells.dtype.itemsize * math.prod(self._cells.shape[1:])
        rows = min(
            len(self._calls), len(self._cells), self._size // a_row
        )  # what there is room for
        whole = next((i for i in range(rows) if self._whole(i) is None), rows)
        later = next((i for i in range(whole + 1, rows) if self._whole(i) is not None), None)
        if later is not None:
            raise self._bad(f"is damaged at call {whole}, though call {later} is whole.")
        return whole, whole < longest

    def _whole(self, i: int) -> tuple[str, float, np.ndarray] | None:
        """A row, or None if its check is wrong."""
        try:
            call, cells = self._calls[i], self._cells[i]
        except (OSError, RuntimeError):  # beyond the end of what is left of the file
            return None
        op, time = int(call["op"]), float(call["time"])
        if op >= len(OPS) or int(call["check"]) != _check(i, op, time, cells):
            return None
        return OPS[op], time, cells

    def _bad(self, what: str) -> ValueError:
        return ValueError(f"trace {self.name} {what}")


def h5py() -> Any:
    """The library for HDF5.

    Raises:
        ImportError: naming the extra.
    """
    try:
        import h5py as library
    except ImportError as error:
        raise ImportError("Traces need h5py: pip install 'spikebit[instruments]'.") from error
    return library


def _open(path: str | Path) -> Any:
    try:
        return h5py().File(path, "r")
    except OSError:  # cut off, or left open by a process that was killed
        return h5py().File(CutFile(path), "r")


def _position(found: Any) -> Position:
    if not isinstance(found, Mapping) or set(found) != set(Position._fields):
        raise ValueError(f"position: expected the fields {', '.join(Position._fields)}.")
    names, calls = (found["boot"], found["controller"]), found["calls"]
    if not all(isinstance(n, str) and len(n) <= _LONGEST_NAME for n in names):
        raise ValueError("position: boot and controller are names.")
    if not isinstance(calls, int) or isinstance(calls, bool) or calls < 0:
        raise ValueError(f"position: calls is {calls!r:.60}; expected a count.")
    return Position(*names, calls)


def _check(row: int, op: int, time: float, cells: np.ndarray) -> int:
    fields = struct.pack("<QBd", row, op, time)
    return 2**32 + zlib.crc32(cells.tobytes(), zlib.crc32(fields))  # never 0, as in an unset row

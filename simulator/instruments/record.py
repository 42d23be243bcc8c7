"""An instrument whose calls are written to a trace, one row each, as they are made."""

from pathlib import Path
from typing import Any

import numpy as np

from .instrument import Call, Checked, Instrument, perform
from .replay import ReplayError, answer
from .trace import Header, Position, Trace, Writer


class Recorder(Checked):
    """Passes calls on, and writes each that was done into a trace; a context that closes it.

    `made` counts the calls so far.
    """

    def __init__(self, instrument: Instrument, path: str | Path, after: str | Path | None = None):
        """Makes a new trace; see `record`."""
        identity, declared = instrument.identify(), instrument.capabilities
        self._position: Position | None = getattr(instrument, "position", None)
        header = Header(identity, declared, instrument.written, self._position)
        self._before = None if after is None else Trace(after)
        if self._before is not None:
            header = self._before.header
            if (header.identity, header.capabilities) != (identity, declared):
                raise ValueError(
                    f"record: {after} is a trace of {header.identity!r} of shape "
                    f"{header.capabilities.shape}, not of {identity!r} of shape {declared.shape}."
                )
            if self._position != self._before.position:
                raise ValueError(
                    f"record: after {after} the bench stood at {self._before.position}, and it is "
                    f"at {self._position}: open it with visa(..., after=...)."
                )
        super().__init__(f"record({Path(path).name})", identity, declared, header.written)
        self._instrument, self._writer = instrument, Writer(path, header)

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    @property
    def made(self) -> int:
        """Calls so far."""
        return self._writer.rows

    def close(self) -> None:
        """Closes the traces; the instrument stays as it is."""
        self._writer.close()
        if self._before is not None:
            self._before.close()

    def _do(self, call: Call) -> np.ndarray | None:
        reading = None
        recorded = self._before is not None and self.made < self._before.rows
        if self._before is not None and recorded:
            reading = answer(self.who, self._before, self.made, call)
        if not recorded or self._position is None:  # new cells are brought where the old ones were
            again = perform(self._instrument, call)
            if recorded and again is not None and again.tobytes() != np.asarray(reading).tobytes():
                raise ReplayError(f"{self.who}: call {self.made}, {call}, reads otherwise now.")
            reading = again
        self._writer.append(call, reading)
        return reading


def record(
    instrument: Instrument, path: str | Path, *, after: str | Path | None = None
) -> Recorder:
    """An instrument whose calls are recorded.

    With `after`, a run that was killed goes on: it is started again and makes the same calls. Those
    of the old trace are answered from there, and a bench does not see them twice; simulated cells,
    new in this process, are brought to where the old ones were.

    Args:
        instrument: any.
        path: of a new file.
        after: the trace of the run that was killed.

    Raises:
        ValueError: the file exists, the old trace is of another instrument, or the bench has moved.
    """
    return Recorder(instrument, path, after)

"""A recorded instrument that answers again: strictly the calls of the trace, to the same bits."""

from pathlib import Path

import numpy as np

from .instrument import Call, Checked, differences
from .trace import Trace


class ReplayError(ValueError):
    """A call was asked that was not recorded there."""


class Replay(Checked):
    """Answers as the recorded instrument did, for as long as the same calls are made.

    `made` counts the calls so far. A call that is refused is not made.
    """

    def __init__(self, path: str | Path):
        """Opens a trace.

        Raises:
            ValueError: no trace; see `Trace`.
        """
        self._trace = Trace(path)
        _, declared, written, _ = header = self._trace.header
        super().__init__(f"replay({self._trace.name})", header.identity, declared, written)
        self.made = 0

    @property
    def remaining(self) -> int:
        """Recorded calls that were not made yet."""
        return self._trace.rows - self.made

    def close(self) -> None:
        """Closes the trace."""
        self._trace.close()

    def _do(self, call: Call) -> np.ndarray | None:
        reading = answer(self.who, self._trace, self.made, call)
        self.made += 1
        return reading


def replay(path: str | Path) -> Replay:
    """A recorded instrument, see `Replay`."""
    return Replay(path)


def answer(who: str, trace: Trace, row: int, call: Call) -> np.ndarray | None:
    """What a trace has recorded for a call.

    Raises:
        ReplayError: another call was recorded, or none.
    """
    if row >= trace.rows:
        end = "is cut off" if trace.cut else "ends"
        raise ReplayError(
            f"{who}: call {row}, {call}, was not recorded: the trace {end} after "
            f"{trace.rows} calls."
        )
    recorded, reading = trace.row(row)
    if recorded.same(call):
        return reading
    if (recorded.op, recorded.time) != (call.op, call.time):
        raise ReplayError(f"{who}: call {row} was recorded as {recorded}, and {call} is asked.")
    where = differences(recorded, call)
    first = tuple(where[0].tolist())
    was, asked = (np.asarray(c.cells)[first] for c in (recorded, call))
    raise ReplayError(
        f"{who}: call {row}, {call}, was recorded with {was!s} at cell {first}, and {asked!s} is "
        f"asked; {len(where)} cells differ."
    )

"""An instrument on a bench, over PyVISA, in the dialect of `scpi.py`.

What goes wrong on the way is made good here: no answer, a dropped connection or a damaged answer is
followed by a new connection and the same line, which the bench does not do twice. What cannot be
made good is reported, and never passed over: see `VisaInstrument`.
"""

import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from . import scpi
from .instrument import Call, Capabilities, Checked, InstrumentLost
from .scpi import Answer, DialectError, Numbered
from .trace import Position, Trace


class VisaInstrument(Checked):
    """A bench. After `InstrumentLost` it is open whether the last call was done.

    Then the same call again finishes it: it is done once in all, however often it was sent. Another
    call is refused until `settle` has told what became of that one. A bench that was started anew
    or called by somebody else has other cells than the run believes: every call raises then.

    `position` says where the bench stands, for `record`.
    """

    def __init__(
        self,
        resource: str,
        timeout: float | int,
        attempts: int,
        pause: float | int,
        after: str | Path | None,
        backend: str,
    ):
        """Connects; see `visa`."""
        self.who = f"visa({resource})"
        for name, value, least in (("timeout", timeout, 1e-3), ("attempts", attempts, 1)):
            if not value >= least:
                raise ValueError(f"{self.who}: {name} is {value}; give at least {least}.")
        self._resource, self._timeout = resource, round(1000 * timeout)  # [ms]
        self._attempts, self._pause, self._session = attempts, pause, None
        self._at = None if after is None else _position(after)
        self._open, self._pending = after is not None, None  # the next call may be done already
        self._manager = _manager(self.who, resource, backend)
        identity = self._ask(scpi.IDENTIFY, str)
        _, _, written = self._ask(scpi.STATE, _state)
        super().__init__(self.who, identity, self._declared(), written)

    @property
    def position(self) -> Position | None:
        """Where the bench stands after the last call that was answered."""
        return self._at

    def settle(self) -> bool | None:
        """Finds out whether a call without an answer was done; None if there is none.

        Raises:
            InstrumentLost: still no answer.
        """
        if self._pending is None or self._at is None:
            return None
        _, last, self.written = self._ask(scpi.STATE, _state)
        done = last > self._at.calls
        self._answered(done)
        return done

    def close(self) -> None:
        """Ends the connection; the next call makes a new one."""
        if self._session is not None:
            session, self._session = self._session, None
            try:
                session.close()
            except Exception:  # a session that is broken breaks in many ways
                return

    def _do(self, call: Call) -> np.ndarray | None:
        if self._pending is not None and not call.same(self._pending):
            raise ValueError(
                f"{self.who}: {self._pending} had no answer, and {call} is asked; repeat that call "
                "or ask settle() whether it was done."
            )
        if self._at is None:
            raise ValueError(f"{self.who}: no bench.")
        number = self._at.calls + 1
        line = scpi.write_call(Numbered(number, self._at.controller, call))
        shape = self.capabilities.shape if call.op == "read" else None

        def answered(text: str) -> Answer:
            answer = scpi.read_answer(text, shape)
            if answer.number != number:
                raise DialectError(scpi.CONFLICT, f"an answer to call {answer.number}")
            return answer

        self._pending, self._open = call, True
        answer = self._ask(line, answered)
        self._answered(answer.code == scpi.DONE)
        if answer.code != scpi.DONE:
            raise ValueError(
                f"{self.who}: the bench refuses {call}: {answer.message} ({answer.code})."
            )
        return answer.values

    def _answered(self, done: bool) -> None:
        self._pending, self._open = None, False
        if done and self._at is not None:
            self._at = self._at._replace(calls=self._at.calls + 1)

    def _ask(self, line: str, read: Callable[[str], Any]) -> Any:
        """Sends a line until there is an answer that can be read.

        Raises:
            InstrumentLost: there is none, or the bench is not where it was.
        """
        reason = ""
        for attempt in range(self._attempts):
            if attempt:
                time.sleep(self._pause * 2 ** (attempt - 1))
            try:
                if self._session is None:
                    self._connect()
                return read(self._exchange(line))
            except (_NoAnswer, DialectError) as error:
                reason = str(error).rstrip(".")
                self.close()  # what is still on its way there is not the answer to anything else
        raise InstrumentLost(
            f"{self.who}: no answer to {line[:40]!r} after {self._attempts} attempts of "
            f"{self._timeout / 1000:g} s: {reason}. If it was a call, repeat it: it is done once."
        )

    def _connect(self) -> None:
        try:
            self._session = self._manager.open_resource(
                self._resource,
                open_timeout=self._timeout,
                timeout=self._timeout,
                read_termination="\n",
                write_termination="\n",
            )
        except Exception as error:  # pyvisa-py raises bare ones
            raise _NoAnswer(f"no connection: {error}") from error
        boot, last, self.written = _state(self._exchange(scpi.STATE))
        if self._at is None:
            self._at = Position(boot, f"spikebit-{secrets.token_hex(4)}", last)
        elif boot != self._at.boot:
            self.close()
            raise InstrumentLost(
                f"{self.who}: the bench was started anew after call {self._at.calls}: its cells "
                "are not those of this run."
            )
        elif last != self._at.calls and not (self._open and last == self._at.calls + 1):
            self.close()
            raise InstrumentLost(
                f"{self.who}: the bench is at call {last}, this run at {self._at.calls}; somebody "
                "else has called it."
            )

    def _exchange(self, line: str) -> str:
        session: Any = self._session
        sent: list[Exception | None] = []

        def send() -> None:
            try:
                session.write(line)
            except Exception as error:
                sent.append(error)
            else:
                sent.append(None)

        # pyvisa-py would wait for ever to hand a long line to a bench that does not take it
        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        sender.join(self._timeout / 1000)
        try:
            if not sent:
                raise TimeoutError("the line is not taken.")
            if sent[0] is not None:
                raise sent[0]
            return session.read()
        except Exception as error:  # of VISA, of the socket, or bytes that are no ASCII
            raise _NoAnswer(" ".join(str(error).split())) from error

    def _declared(self) -> Capabilities:
        sizes = self._ask(scpi.SHAPE, lambda text: [*map(scpi.read_whole, text.split(","))])
        low, high = self._ask(scpi.RANGE, lambda text: _numbers(text, 2))
        pulses, latest = self._ask(scpi.LIMITS, lambda text: _numbers(text, 2))
        *ways, step = self._ask(scpi.WAYS, lambda text: _numbers(text, 4))
        unit = self._ask(scpi.UNIT, str)
        try:
            return Capabilities(
                tuple(sizes),
                unit,
                low,
                high,
                *(way != 0 for way in ways),
                step=None if step == scpi.NAN else step,
                most_pulses=int(pulses),
                latest=latest,
            )
        except ValueError as error:
            raise ValueError(f"{self.who} declares what does not fit: {error}") from error


class _NoAnswer(Exception):
    """Nothing came back that could be read."""


def visa(
    resource: str,
    *,
    timeout: float | int = 5.0,
    attempts: int = 4,
    pause: float | int = 0.2,
    after: str | Path | None = None,
    backend: str = "@py",
) -> VisaInstrument:
    """An instrument on a bench that speaks the dialect of `scpi.py`.

    Args:
        resource: its VISA name, such as "TCPIP::127.0.0.1::5025::SOCKET".
        timeout: for each answer [s]; longer than the longest call takes.
        attempts: how often a line is sent before it is given up.
        pause: before the second attempt [s]; it doubles with each.
        after: trace of a run that was killed; the bench must stand where that run left it, one call
            more or less. See `record`.
        backend: of PyVISA; "" for the one of the system.

    Raises:
        ImportError: naming the extra.
        InstrumentLost: no answer, or the bench is elsewhere.
        ValueError: a resource that is none, a declaration that makes no sense, a trace without a
            position.
    """
    return VisaInstrument(resource, timeout, attempts, pause, after, backend)


def _manager(who: str, resource: str, backend: str) -> Any:
    try:
        import pyvisa
        from pyvisa.rname import ResourceName
    except ImportError as error:
        raise ImportError("visa needs PyVISA: pip install 'spikebit[instruments]'.") from error
    try:
        ResourceName.from_string(resource)
    except ValueError as error:
        raise ValueError(f"{who}: {resource!r} is no VISA resource.") from error
    return pyvisa.ResourceManager(backend)


def _position(after: str | Path) -> Position:
    trace = Trace(after)
    trace.close()
    if trace.position is None:
        raise ValueError(f"visa: {after} is a trace of an instrument that is not on a bench.")
    return trace.position


def _state(text: str) -> tuple[str, int, float]:
    fields = text.split(",")
    if len(fields) != 3:
        raise DialectError(scpi.SYNTAX, f"not a state: {text[:60]!r}")
    return fields[0], scpi.read_whole(fields[1]), scpi.read_float(fields[2])


def _numbers(text: str, count: int) -> list[float]:
    numbers = [scpi.read_float(field) for field in text.split(",")]
    if len(numbers) != count:
        raise DialectError(scpi.SYNTAX, f"not {count} numbers: {text[:60]!r}")
    return numbers

"""A bench: any instrument behind the SCPI dialect, on a TCP socket.

`Bench` answers lines, `serving` and `serve` carry them over a socket. What lines mean is in
`scpi.py`. Lines are answered one after the other, whatever the number of connections; a line that
has not come to its end when a connection drops is not taken for one.
"""

import asyncio
import contextlib
import math
import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterator

from . import scpi
from .instrument import Instrument, perform
from .scpi import Answer, DialectError

LOOPBACK = "127.0.0.1"
_MOST_ERRORS, _MOST_CONNECTIONS = 16, 16
_CHARACTERS_A_CELL, _CHARACTERS = 32, 4096  # room in a line


class Bench:
    """An instrument that answers lines and does no call twice.

    `boot` is the name of this start, `last` the number of the last call that was done.
    """

    def __init__(self, instrument: Instrument):
        """Puts an instrument on the bench."""
        self.instrument, self.boot, self.last = instrument, secrets.token_hex(8), 0
        self._errors: deque[tuple[int, str]] = deque()
        self._line, self._answer = "", ""  # of the last call

    def answer(self, line: str) -> str | None:
        """The answer to a line, both without their end; None where there is none."""
        try:
            header, parameters = scpi.split(line)
            if header in scpi.OPS:
                return self._call(line, header, parameters)
            if parameters:
                raise DialectError(scpi.SYNTAX, f"{header} takes no parameters")
            return self._query(header)
        except DialectError as error:
            self.report(error.code, str(error))
            return None

    def report(self, code: int, message: str) -> None:
        """Puts an error into the queue."""
        self._errors.append((code, message))
        if len(self._errors) > _MOST_ERRORS:
            self._errors.pop()
            self._errors[-1] = (scpi.OVERFLOW, "Queue overflow")

    def _query(self, header: str) -> str | None:
        c = self.instrument.capabilities
        if header == scpi.IDENTIFY:
            return self.instrument.identify()
        if header == scpi.ERROR:
            code, message = self._errors.popleft() if self._errors else (0, "No error")
            return scpi.write_answer(Answer(0, code, message)).partition(",")[2]
        if header == scpi.CLEAR:
            return self._errors.clear()
        step = scpi.NAN if c.step is None else c.step
        return {
            scpi.SHAPE: ",".join(map(str, c.shape)),
            scpi.UNIT: c.unit,
            scpi.RANGE: f"{c.g_min!r},{c.g_max!r}",
            scpi.LIMITS: f"{c.most_pulses},{c.latest!r}",
            scpi.WAYS: f"{c.programs:d},{c.pulses:d},{c.resets:d},{step!r}",
            scpi.STATE: f"{self.boot},{self.last},{self.instrument.written!r}",
        }[header]

    def _call(self, line: str, header: str, parameters: str) -> str:
        """Does a call, or tells the answer again."""
        if line == self._line:
            return self._answer
        number = 0
        try:
            number, _, call = scpi.read_call(header, parameters, self.instrument.capabilities.shape)
            if number != self.last + 1:
                raise DialectError(
                    scpi.CONFLICT,
                    f"Call {number} is refused: the last call was {self.last}, another line",
                )
            values = perform(self.instrument, call)
        except (ValueError, OSError, RuntimeError) as error:
            code = getattr(error, "code", None) or (
                scpi.RANGE_ERROR if isinstance(error, ValueError) else scpi.FAILED
            )
            self.report(code, str(error))
            return scpi.write_answer(Answer(max(number, 0), code, str(error)))
        answer = scpi.write_answer(Answer(number, scpi.DONE, "No error", values))
        self.last, self._line, self._answer = number, line, answer
        return answer


async def listen(bench: Bench, host: str, port: int, ready: Callable[[str, int], object]) -> None:
    """Answers on a socket until it is cancelled.

    Args:
        bench: what answers.
        host: address to listen on.
        port: 0 for any that is free.
        ready: told the address once it listens.
    """
    connections: dict[asyncio.StreamWriter, asyncio.Task | None] = {}

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections[writer] = asyncio.current_task()
        if len(connections) > _MOST_CONNECTIONS:  # whoever is gone without a word
            next(iter(connections)).close()
        try:
            while True:
                line = await reader.readuntil(b"\n")
                answer = bench.answer(line.decode("ascii", "replace").strip())
                if answer is not None:
                    writer.write(answer.encode("ascii", "replace") + b"\n")
                    await writer.drain()
        except asyncio.LimitOverrunError:
            bench.report(scpi.OVERRUN, "Input buffer overrun: a line is too long")
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the other side has gone
        finally:
            connections.pop(writer, None)
            writer.close()

    longest = _CHARACTERS + _CHARACTERS_A_CELL * math.prod(bench.instrument.capabilities.shape)
    server = await asyncio.start_server(connected, host, port, limit=longest)
    address = server.sockets[0].getsockname()
    try:
        ready(address[0], address[1])
        await asyncio.Event().wait()
    finally:
        server.close()
        tasks = [task for task in connections.values() if task is not None]
        for writer in connections:
            writer.close()
        await asyncio.gather(*tasks)


def serve(
    instrument: Instrument, host: str, port: int, ready: Callable[[str, int], object]
) -> None:
    """Answers on a socket until Ctrl-C; see `listen`.

    Raises:
        OSError: the address is taken, or none of this machine.
    """
    asyncio.run(listen(Bench(instrument), host, port, ready))


@contextlib.contextmanager
def serving(instrument: Instrument, host: str = LOOPBACK, port: int = 0) -> Iterator[str]:
    """Answers on a socket, in a thread, while the context lasts; gives the VISA resource."""
    started, address, failed = threading.Event(), [], []
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task | None]] = []

    def ready(host: str, port: int) -> None:
        address.append(resource(host, port))
        started.set()

    async def work() -> None:
        running.append((asyncio.get_running_loop(), asyncio.current_task()))
        with contextlib.suppress(asyncio.CancelledError):
            await listen(Bench(instrument), host, port, ready)

    def run() -> None:
        try:
            asyncio.run(work())
        except OSError as error:
            failed.append(error)
        started.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    started.wait()
    if failed:
        raise failed[0]
    try:
        yield address[0]
    finally:
        loop, task = running[0]
        if task is not None:
            loop.call_soon_threadsafe(task.cancel)
        thread.join()


def resource(host: str, port: int) -> str:
    """The name by which VISA opens a socket."""
    return f"TCPIP::{host}::{port}::SOCKET"

"""A way to a bench on which things go wrong."""

import contextlib
import socket
import threading
import time

import pytest

FAULTS = (
    "lose the line", "cut the line", "lose the answer", "cut the answer", "late answer",
    "late line", "noise",
)  # fmt: skip
LATE = 0.25  # [s], beyond the timeout of the tests


class Proxy:
    """Passes lines to a server and answers back; a fault is done to each call that has one.

    `faults` is a list, used up from the front, of faults or None, one for each line of a call that
    comes along, repeated ones included. While it is `down`, connections are closed at once.
    """

    def __init__(self, port):
        self.target, self.down, self.faults, self.done = port, False, [], []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.resource = f"TCPIP::127.0.0.1::{self._listener.getsockname()[1]}::SOCKET"
        self._open, self._threads = [], []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self):
        self._listener.close()
        self.drop()

    def drop(self):
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._open.append(client)
                threading.Thread(target=self._pass, args=(client,), daemon=True).start()

    def _pass(self, client):
        with contextlib.suppress(OSError), client:
            if self.down:
                return
            with socket.create_connection(("127.0.0.1", self.target)) as server:
                self._lines(client, server)

    def _lines(self, client, server):
        answers = server.makefile("rb")
        for line in client.makefile("rb"):
            call = line.startswith((b"ARRay:PROG", b"ARRay:PULS", b"ARRay:READ? "))
            fault = self.faults.pop(0) if call and self.faults else None
            self.done.append(fault)
            if self.down or fault == "lose the line":
                return
            if fault == "cut the line":
                server.sendall(line[: len(line) // 2])
                return
            if fault == "late line":
                time.sleep(LATE)
            server.sendall(line)
            answer = answers.readline()
            if fault == "lose the answer":
                return
            if fault == "cut the answer":
                client.sendall(answer[: len(answer) // 2])
                return
            if fault == "late answer":
                time.sleep(LATE)
            if fault == "noise":
                answer = b'7,0,"\xff",' + answer[: len(answer) // 2] + b"\n"
            client.sendall(answer)


@pytest.fixture
def proxy_to():
    """Makes proxies to a resource, and closes them."""
    with contextlib.ExitStack() as stack:

        def make(resource):
            proxy = Proxy(int(resource.split("::")[2]))
            stack.callback(proxy.close)
            return proxy

        yield make


@pytest.fixture
def faults():
    """All that can go wrong with one line."""
    return FAULTS


@pytest.fixture(scope="module")
def calls(request):
    """Makes some calls on an instrument, pulses and reads in turn, and gives what they read."""

    def make(instrument, start=0, end=8):
        found = []
        for i in range(start, end):
            if i % 2:
                found.append(instrument.read(float(i)))
            else:
                instrument.apply_pulses(request.module.MASK, 1, i // 2 + 1, i)
        return found

    return make

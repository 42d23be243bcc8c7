"""A library in a process of its own that answers lines with lines, and can hang or die.

What belongs here: starting, asking and stopping such a process; not what it computes.
"""

import contextlib
import json
import os
import select
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any


class Process:
    """Answers one JSON line when it is ready, and one for each line that it is given."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str]):
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=os.environ | env,
        )

    def answer(self, seconds: float) -> dict[str, Any]:
        """The next line of the process; {"error": ...} if it ended or took too long."""
        stdout = self.process.stdout
        assert stdout is not None
        if not select.select([stdout], [], [], seconds)[0]:
            return {"error": f"no answer in {seconds:.0f} s"}
        line = stdout.readline()
        if line:
            return json.loads(line)
        self.errors.seek(0)
        last = (self.errors.read().strip() or "no message").splitlines()[-1]
        return {"error": f"the process ended with code {self.process.wait()}: {last}"}

    def ask(self, line: str, seconds: float) -> dict[str, Any]:
        """Sends a line and waits for what comes back."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(f"{line}\n")
            self.process.stdin.flush()
        return self.answer(seconds)

    def stop(self) -> None:
        """Ends the process: by the end of its input, else, when it is stuck, by a signal."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.errors.close()

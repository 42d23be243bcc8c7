"""Starts the scripts that run Triton, each in a process of its own.

Triton decides when it is imported whether it interprets. Where it is not installed the tests are
skipped.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

# scripts, which import each other as such, and what they share
collect_ignore_glob = ["triton_*.py", "low_bit_cases.py"]


@pytest.fixture
def triton_script():
    """Calls a script of this folder with arguments; its last line must be "passed"."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed (extra gpu or dev)")

    def start(name, *arguments):
        command = [sys.executable, Path(__file__).parent / name, *arguments]
        interpret = {"TRITON_INTERPRET": "1"} if arguments[0] == "interpret" else {}
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | interpret)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == "passed"

    return start

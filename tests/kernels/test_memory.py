"""Freed memory is kept: counted in page faults, in a process of its own."""

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource, sys
from spikebit.kernels.memory import keep_memory
if sys.argv[1] == "keep" and not keep_memory():
    print("no"); sys.exit()
c = ctypes.CDLL(None)
c.malloc.restype, c.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
c.free.argtypes = [ctypes.c_void_p]
def once():
    p = c.malloc(64 << 20)
    ctypes.memset(p, 1, 64 << 20)
    c.free(p)
once()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    once()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode):
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM, mode], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_a_buffer_needed_again_costs_no_page_faults():
    kept = faults("keep")
    if kept == "no":
        pytest.skip("the C library of this machine has no mallopt")
    assert int(kept) < 100  # 5 x 64 MiB would be 81,920 pages, or 160 huge ones
    assert int(faults("default")) > 100

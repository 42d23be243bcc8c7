"""What the scripts that run Triton without a GPU share: arrays it reads, machine code to look at.

A script is started with `interpret` (and the environment variable TRITON_INTERPRET=1), or with
`compile` and a compute capability such as 90.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


class Tensor:
    """A numpy array with the attributes of a tensor that the interpreter asks for."""

    def __init__(self, array):
        self.array, self.dtype = array, array.dtype.name

    def data_ptr(self):
        return self.array.ctypes.data

    def untyped_storage(self):
        return self

    def new_empty(self, *size, **device):
        return Tensor(np.empty(0, self.array.dtype))

    def set_(self, storage, offset, size, stride):
        self.array = storage.array

    def size(self):
        return self.array.shape

    def storage_offset(self):
        return 0

    def stride(self):
        return self.array.strides

    def cpu(self):
        return self

    def copy_(self, other):
        assert other.array is self.array


def machine_code(kernel, pointers, constants, capability, **options):
    """The instructions of a kernel, compiled for a GPU that is not there; none may spill.

    `pointers` gives the type of each array argument, such as {"x": "*fp32"}; arrays begin at
    multiples of 16 bytes, as those of XLA do.
    """
    compiled = triton.compile(
        ASTSource(
            kernel,
            {**pointers, **dict.fromkeys(constants, "constexpr")},
            constants,
            {(i,): [["tt.divisibility", 16]] for i in range(len(pointers))},
        ),
        target=GPUTarget("cuda", capability, 32),
        options=options,
    )
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True)
        code = subprocess.run([tool, "-sass", file.name], capture_output=True, text=True)
    print(pointers, usage.stdout + usage.stderr)
    lines = code.stdout.splitlines()
    assert any(" EXIT" in line for line in lines), code.stderr
    spills = [line for line in lines if " LDL" in line or " STL" in line]
    assert not spills, spills[:3]
    return lines


def lane_instructions(lines, warps):
    """How many instructions the lanes of a program issue in one turn of its longest loop."""
    code = [
        (int(at, 16), what)
        for at, what in re.findall(r"/\*(\w{4,})\*/ +(\w.*?|@.*?) *;", "\n".join(lines))
    ]
    turns = [
        (int(to, 16), at)
        for at, what in code
        for to in re.findall(r"BRA.* 0x(\w+)", what)
        if int(to, 16) < at
    ]
    start, end = max(turns, key=lambda turn: turn[1] - turn[0])
    return 32 * warps * sum(start <= at <= end for at, _ in code)


def main(interpret, compile_for):
    """Does what the command line says."""
    if sys.argv[1] == "interpret":
        interpret()
    else:
        compile_for(int(sys.argv[2]))
    print("passed")

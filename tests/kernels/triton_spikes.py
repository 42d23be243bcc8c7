"""Runs the Triton kernel of spikes x weights without a GPU; `test_spikes_gpu.py` starts it.

`interpret`: in Triton's interpreter (the environment variable must be set before the import),
against numpy. `compile`: to machine code, printing what the tools of the wheel say about it.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np


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


def interpret():
    from spikebit.kernels import spikes_gpu

    random = np.random.default_rng(0)
    for rows, k, n in [(1, 1, 1), (70, 45, 67), (64, 64, 64), (5, 100, 130)]:
        for dtype in (np.float32, np.float64):
            for rate in (0.0, 0.02, 1.0):
                x = ((random.random((rows, k)) < rate) * random.normal(size=(rows, k))).astype(
                    dtype
                )
                w = random.normal(size=(k, n)).astype(dtype)
                dy = random.normal(size=(rows, n)).astype(dtype)
                check(spikes_gpu, x, x, w, (k, 1))
                check(spikes_gpu, x.T, x, dy, (1, k))
    x, w = np.zeros((3, 70), np.float32), np.full((70, 5), np.nan, np.float32)
    assert (run(spikes_gpu, x, x, w, (70, 1)) == 0).all()  # tiles without a spike are skipped


def check(spikes_gpu, x, memory, w, strides):
    y = run(spikes_gpu, x, memory, w, strides)
    exact = x.astype(np.float64) @ w.astype(np.float64)
    bound = x.shape[1] * np.finfo(w.dtype).eps * (abs(x) @ abs(w))
    assert (abs(y - exact) <= bound).all(), (x.shape, w.shape, abs(y - exact).max())


def run(spikes_gpu, x, memory, w, strides):
    (m, k), n = x.shape, w.shape[1]
    y = np.full((m, n), np.nan, w.dtype)
    settings = spikes_gpu.constants(m, k, n, strides, w.dtype)
    spikes_gpu.product_kernel[spikes_gpu.grid(m, n)](
        Tensor(memory), Tensor(w), Tensor(y), **settings
    )
    return y


def compile_for(capability):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from spikebit.kernels import spikes_gpu

    for dtype, pointer in ((np.float32, "*fp32"), (np.float64, "*fp64")):
        settings = spikes_gpu.constants(6400, 784, 512, (784, 1), np.dtype(dtype))
        signature = {
            **dict.fromkeys(("x", "w", "y"), pointer),
            **dict.fromkeys(settings, "constexpr"),
        }
        kernel = triton.compile(
            ASTSource(spikes_gpu.product_kernel, signature, settings),
            target=GPUTarget("cuda", capability, 32),
            options=dict(spikes_gpu._SPLIT),
        )
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(kernel.asm["cubin"])
            file.flush()
            usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True)
            code = subprocess.run([tool, "-sass", file.name], capture_output=True, text=True)
        print(pointer, usage.stdout + usage.stderr)
        lines = code.stdout.splitlines()
        assert any(" EXIT" in line for line in lines), code.stderr
        spills = [line for line in lines if " LDL" in line or " STL" in line]
        assert not spills, spills[:3]
        assert any("MMA" in line for line in lines), "no tensor core instruction"


if __name__ == "__main__":
    if sys.argv[1] == "interpret":
        os.environ["TRITON_INTERPRET"] = "1"
        interpret()
    else:
        compile_for(int(sys.argv[2]))
    print("passed")

"""Runs the Triton kernel of spikes x weights without a GPU; `test_spikes_gpu.py` starts it.

`interpret`: against numpy. `compile`: what the machine code must have and not have.
"""

import numpy as np
from triton_tools import Tensor, machine_code, main

from spikebit.kernels import spikes_gpu


def interpret():
    random = np.random.default_rng(0)
    for rows, k, n in [(1, 1, 1), (70, 45, 67), (64, 64, 64), (5, 100, 130)]:
        for dtype in (np.float32, np.float64):
            for rate in (0.0, 0.02, 1.0):
                x = ((random.random((rows, k)) < rate) * random.normal(size=(rows, k))).astype(
                    dtype
                )
                w = random.normal(size=(k, n)).astype(dtype)
                dy = random.normal(size=(rows, n)).astype(dtype)
                check(x, x, w, (k, 1))
                check(x.T, x, dy, (1, k))
    x, w = np.zeros((3, 70), np.float32), np.full((70, 5), np.nan, np.float32)
    assert (run(x, x, w, (70, 1)) == 0).all()  # tiles without a spike are skipped


def check(x, memory, w, strides):
    y = run(x, memory, w, strides)
    exact = x.astype(np.float64) @ w.astype(np.float64)
    bound = x.shape[1] * np.finfo(w.dtype).eps * (abs(x) @ abs(w))
    assert (abs(y - exact) <= bound).all(), (x.shape, w.shape, abs(y - exact).max())


def run(x, memory, w, strides):
    (m, k), n = x.shape, w.shape[1]
    y = np.full((m, n), np.nan, w.dtype)
    settings = spikes_gpu.constants(m, k, n, strides, w.dtype)
    spikes_gpu.product_kernel[spikes_gpu.grid(m, n)](
        Tensor(memory), Tensor(w), Tensor(y), **settings
    )
    return y


def compile_for(capability):
    for dtype, pointer in ((np.float32, "*fp32"), (np.float64, "*fp64")):
        settings = spikes_gpu.constants(6400, 784, 512, (784, 1), np.dtype(dtype))
        pointers = dict.fromkeys(("x", "w", "y"), pointer)
        lines = machine_code(
            spikes_gpu.product_kernel, pointers, settings, capability, **spikes_gpu._SPLIT
        )
        assert any("MMA" in line for line in lines), "no tensor core instruction"


if __name__ == "__main__":
    main(interpret, compile_for)

"""Runs the Triton kernels of spikes x sparse weights without a GPU; `test_spikes_sparse_gpu.py`
starts it.

`interpret`: against numpy. `compile`: what the machine code must have and not have.
"""

import numpy as np
from triton_tools import Tensor, machine_code, main

from spikebit.kernels import spikes_sparse_gpu as gpu
from spikebit.kernels.sparse import csr_from_dense, inputs_of

SHAPES = [  # rows, k, n, density: around blocks of connections (128), inputs (32), columns (256)
    (1, 1, 1, 1.0),
    (2, 33, 7, 0.3),
    (3, 40, 300, 0.6),
    (64, 2, 130, 0.5),
    (2, 5, 40, 0.0),
]


def case(rows, k, n, density, rate, dtype):
    """x, W, dy, needed; every fifth input without connections."""
    random = np.random.default_rng(0)
    connected = random.random((k, n)) < density
    connected[4::5] = False
    w = csr_from_dense(random.normal(size=(k, n)).astype(dtype), connected)
    x = ((random.random((rows, k)) < rate) * random.normal(size=(rows, k))).astype(dtype)
    return x, w, random.normal(size=(rows, n)).astype(dtype), random.random((rows, k)) < 0.5


def expected(x, w, dy, needed):
    """y, dW and dx in float64, and what bounds their rounding: terms times sums of magnitudes."""
    at = np.asarray(inputs_of(w.pattern)), np.asarray(w.pattern.indices)
    dense, x, dy = (np.asarray(a, np.float64) for a in (w.dense(), x, dy))
    rows, (k, n) = len(x), dense.shape

    def products(x, dense, dy):
        return x @ dense, (x.T @ dy)[at], (dy @ dense.T) * needed

    sizes = products(abs(x), abs(dense), abs(dy))
    return products(x, dense, dy), [t * s for t, s in zip((k, rows, n), sizes, strict=True)]


def interpret():
    for rows, k, n, density in SHAPES:
        for dtype, rate in ((np.float32, 0.2), (np.float64, 1.0), (np.float32, 0.0)):
            x, w, dy, needed = case(rows, k, n, density, rate, dtype)
            exact, bounds = expected(x, w, dy, needed)
            for result, right, bound in zip(run(x, w, dy, needed), exact, bounds, strict=True):
                assert (abs(result - right) <= np.finfo(dtype).eps * bound).all(), (rows, k, n)
    x, w, dy, needed = case(2, 33, 7, 0.5, 0.2, np.float32)
    silent = (x == 0).all(0)[np.asarray(inputs_of(w.pattern))]
    assert silent.any()
    w = w._replace(data=np.where(silent, np.nan, np.asarray(w.data)))
    assert not np.isnan(run(x, w, dy, needed)[0]).any()  # silent inputs are not visited


def run(x, w, dy, needed):
    (rows, k), n = x.shape, dy.shape[1]
    data, *lists = (
        np.array(a) if a.size else np.zeros(1, a.dtype)  # the interpreter wants an address
        for a in (w.data, w.pattern.indptr, w.pattern.indices)
    )
    nnz = w.data.size
    lists = [Tensor(a) for a in lists]
    y, dw, dx = (np.full(s, np.nan, x.dtype) for s in (dy.shape, nnz, x.shape))
    x, data, dy, flags = Tensor(x), Tensor(data), Tensor(dy), Tensor(needed.astype(np.int8))
    grid, constants = gpu.forward_plan(rows, k, n, nnz)
    gpu.forward_kernel[grid](x, data, *lists, Tensor(y), **constants)
    if nnz:
        constants = gpu.weight_gradient_constants(rows, k, n, nnz)
        gpu.weight_gradient_kernel[(k,)](x, dy, *lists, Tensor(dw), **constants)
    constants = gpu.input_gradient_constants(k, n, nnz)
    gpu.input_gradient_kernel[(rows * k,)](dy, data, *lists, flags, Tensor(dx), **constants)
    return y, dw, dx


def compile_for(capability):
    split = {"num_warps": gpu.SPLIT["warps"], "num_stages": gpu.SPLIT["stages"]}
    rows, k, n, nnz = 64, 784, 512, 40000
    for pointer in ("*fp32", "*fp64"):
        floats = dict.fromkeys(("x", "data", "y", "dy", "dw", "dx"), pointer)
        lists = {"indptr": "*i32", "indices": "*i32", "needed": "*i8"}
        for kernel, constants in (
            (gpu.forward_kernel, gpu.forward_plan(rows, k, n, nnz)[1]),
            (gpu.forward_kernel, gpu.forward_plan(1, k, n, nnz)[1]),
            (gpu.weight_gradient_kernel, gpu.weight_gradient_constants(rows, k, n, nnz)),
            (gpu.input_gradient_kernel, gpu.input_gradient_constants(k, n, nnz)),
        ):
            names = [name for name in kernel.arg_names if name not in constants]
            pointers = {name: (floats | lists)[name] for name in names}
            lines = machine_code(kernel, pointers, constants, capability, **split)
            assert not any(" RED." in line or " ATOM" in line for line in lines), "atomics"


if __name__ == "__main__":
    main(interpret, compile_for)

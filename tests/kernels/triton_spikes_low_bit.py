"""Runs the Triton kernel of spikes x low-bit weights without a GPU; `test_spikes_low_bit.py` does.

`interpret`: against numpy. `compile`: what the machine code must have and not have.
"""

import numpy as np
from triton_tools import Tensor, machine_code, main

from spikebit.kernels import spikes_low_bit_gpu as gpu
from spikebit.kernels.layouts import pack
from spikebit.kernels.matrix import dequantize, quantized_matrix, zero_points
from spikebit.kernels.spike_bits import pack_spikes

CASES = [(1, 1, 1, 1), (3, 64, 63, 2), (70, 33, 70, 3), (2, 96, 130, 1)]  # rows, k, n, groups


def interpret():
    random = np.random.default_rng(0)
    for rows, k, n, groups in CASES:
        for bits in (4, 8):
            codes = random.integers(0, 1 << bits, (k, n)).astype(np.uint8)
            scale = np.exp2(random.integers(-3, 3, (groups, n))).astype(np.float32)
            zero = random.integers(0, 1 << bits, (groups, n)).astype(np.float32)
            w = quantized_matrix(codes, scale, zero, bits=bits)
            x = random.random((rows, k)) < 0.4
            exact = x.astype(np.float64) @ np.asarray(dequantize(w), np.float64)
            assert (run(x, w, packed=False) == exact).all()
            assert (run(x, w, packed=True) == exact).all()
            graded = (x * random.integers(-3, 4, x.shape)).astype(np.float32)
            exact = graded.astype(np.float64) @ np.asarray(dequantize(w), np.float64)
            assert (run(graded, w, packed=False) == exact).all()
    silent = quantized_matrix(codes, np.full(scale.shape, 1.0), zero, bits=bits)
    assert (run(np.zeros((2, 96), bool), silent, packed=True) == 0).all()


def run(x, w, packed):
    inputs = np.array(pack_spikes(x).words) if packed else x
    inputs = inputs.astype(np.uint8) if inputs.dtype == bool else inputs
    words = np.array(pack(w, "rows").words[0])
    zero = np.array(zero_points(w.scale, w.zero, w.bits))
    (m, _), (_, n) = x.shape, w.shape
    y = np.full((m, n), np.nan, np.float32)
    settings = gpu.constants(
        m, w.shape, w.scale.shape[0], w.bits, packed, inputs.dtype == np.float32
    )
    gpu.forward_kernel[gpu.grid(m, n)](
        Tensor(inputs),
        Tensor(words),
        Tensor(np.array(w.scale)),
        Tensor(zero),
        Tensor(y),
        **settings,
    )
    return y


def compile_for(capability):
    for bits, packed, kind in ((4, True, "*u32"), (8, False, "*u8"), (4, False, "*fp32")):
        settings = gpu.constants(6400, (4096, 4096), 32, bits, packed, kind == "*fp32")
        pointers = {"x": kind, "words": "*u8", "scale": "*fp32", "zero": "*fp32", "y": "*fp32"}
        lines = machine_code(
            gpu.forward_kernel,
            pointers,
            settings,
            capability,
            num_warps=gpu._WARPS,
            num_stages=gpu._STAGES,
        )
        assert any("MMA" in line for line in lines), "no tensor core instruction"


if __name__ == "__main__":
    main(interpret, compile_for)

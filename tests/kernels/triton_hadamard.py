"""Runs the Triton kernels of Hadamard transforms and coded rows without a GPU.

`interpret`: against exact matrices, and the bits of the reference. `compile`: no spills.
"""

import elementwise_cases as cases
import numpy as np
from triton_tools import Tensor, machine_code, main

from spikebit.kernels import hadamard_gpu, quantize_rows_gpu
from spikebit.kernels.hadamard import Transform, hadamard_matrix, split_order
from spikebit.kernels.quantize_rows import Codes, rows_reference


def outputs(m, n, groups):
    codes = np.full((m, n), 77, np.int8)
    return codes, np.full((m, groups), -1, np.float32), np.full((m, groups), -1, np.int32)


def transform(x, transpose=False):
    settings = Transform(split_order("", x.shape[1])[0], transpose)
    tile = hadamard_gpu.constants(settings, None, x.shape)
    y = np.full(x.shape, np.nan, np.float32)
    hadamard_gpu.transform_kernel[hadamard_gpu.grid(tile)](
        Tensor(x), Tensor(settings.signs()), Tensor(y), **tile
    )
    return y


def transform_quantize(x, codes):
    settings = Transform(split_order("", x.shape[1])[0], False)
    tile = hadamard_gpu.constants(settings, codes, x.shape)
    out = outputs(*x.shape, codes.groups)
    if tile is not None:
        hadamard_gpu.transform_quantize_kernel[hadamard_gpu.grid(tile)](
            Tensor(x), Tensor(settings.signs()), *map(Tensor, out), **tile
        )
        return out
    return coded(transform(x), codes)


def rotate_quantize(x, matrix, codes):
    tile = hadamard_gpu.rotation_constants(codes, x.shape, len(matrix))
    out = outputs(*x.shape, codes.groups)
    hadamard_gpu.rotate_kernel[(-(-tile["BLOCKS"] // tile["ROWS"]),)](
        Tensor(x), Tensor(matrix), *map(Tensor, out), **tile
    )
    return out


def coded(x, codes):
    tile = quantize_rows_gpu.constants(codes, len(x), x.shape[1] // codes.groups)
    out = outputs(*x.shape, codes.groups)
    quantize_rows_gpu.rows_kernel[quantize_rows_gpu.grid(tile)](
        Tensor(x), *map(Tensor, out), **tile
    )
    return out


def interpret():
    for n in (*cases.POWERS[:9], *cases.OTHERS[:8]):
        x = cases.rows(3, n)
        for transpose in (False, True):
            matrix = hadamard_matrix(n) / np.sqrt(n)
            exact = x.astype(np.float64) @ (matrix if transpose else matrix.T)
            bound = 2**-23 * (n.bit_length() + 36) * np.linalg.norm(x, axis=1).max()
            assert (abs(transform(x, transpose) - exact) <= bound).all(), n
    for m, n, bits, group in cases.QUANTIZED:
        x, codes = cases.rows(m, n), Codes(bits, n // (group or n))
        y = x.astype(np.float64) @ (hadamard_matrix(n) / np.sqrt(n)).T
        found = transform_quantize(x, codes)
        cases.is_quantized(*found, y, bits, group, 2**-23 * 50 * abs(x).max())
        for a, b in zip(coded(x, codes), rows_reference(codes, x), strict=True):
            np.testing.assert_array_equal(a, b)
    x = cases.rows(3, 96)
    x[1, 5], x[2, 70] = np.nan, np.inf
    for a, b in zip(coded(x, Codes(8, 3)), rows_reference(Codes(8, 3), x), strict=True):
        np.testing.assert_array_equal(a, b)
    matrix = np.linalg.qr(np.random.default_rng(2).standard_normal((32, 32)))[0].astype(np.float32)
    x = cases.rows(5, 96)
    y = (x.reshape(-1, 32).astype(np.float64) @ matrix.astype(np.float64)).reshape(x.shape)
    found = rotate_quantize(x, matrix, Codes(8, 6))
    cases.is_quantized(*found, y, 8, 16, 2**-23 * 32 * abs(x).max())


def compile_for(capability):
    pointers = {"x": "*fp32", "signs": "*fp32", "y": "*fp32"}
    coded = {"codes": "*i8", "scale": "*fp32", "sums": "*i32"}
    for n, groups in ((4096, 1), (4096, 32), (16384, 1), (64, 2), (28 * 64, 1), (36 * 128, 36)):
        settings, codes = Transform(split_order("", n)[0], False), Codes(8, groups)
        tile = hadamard_gpu.constants(settings, None, (512, n))
        warps = quantize_rows_gpu.warps(tile["B2"] * tile["POWER"] * tile["ROWS"])
        kernel = hadamard_gpu.transform_kernel
        machine_code(kernel, pointers, tile, capability, num_warps=warps)
        tile = hadamard_gpu.constants(settings, codes, (512, n))
        both = {"x": "*fp32", "signs": "*fp32", **coded}
        kernel = hadamard_gpu.transform_quantize_kernel
        machine_code(kernel, both, tile, capability, num_warps=warps)
    for g in (32, 64, 128):
        tile = hadamard_gpu.rotation_constants(Codes(8, 4096 // 32), (512, 4096), g)
        both = {"x": "*fp32", "matrix": "*fp32", **coded}
        machine_code(hadamard_gpu.rotate_kernel, both, tile, capability, num_warps=4)
    for group in (32, 100, 4096, 8192):
        tile = quantize_rows_gpu.constants(Codes(8, 2), 512, group)
        warps = quantize_rows_gpu.warps(tile["PARTS"] * tile["PLACES"])
        kernel = quantize_rows_gpu.rows_kernel
        machine_code(kernel, {"x": "*fp32", **coded}, tile, capability, num_warps=warps)


if __name__ == "__main__":
    main(interpret, compile_for)

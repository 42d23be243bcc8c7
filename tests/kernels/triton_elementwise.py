"""Runs the Triton kernels of rounding, codes of matrices and softmax without a GPU.

`interpret`: the bits of the references, softmax against exact arithmetic. `compile`: no spills.
"""

import elementwise_cases as cases
import jax.numpy as jnp
import numpy as np
from triton_tools import Tensor, machine_code, main

from spikebit.kernels import quantize_pack_gpu, softmax_gpu, stochastic_gpu
from spikebit.kernels.quantize_pack import Method, matrix_reference
from spikebit.kernels.softmax import Levels
from spikebit.kernels.stochastic import FLOATS, Steps, codes_reference, floats_reference

KEYS = np.array([[0x13198A2E, 0x03707344, 7], [1, 2, 3]], np.uint32)
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
METHODS = [
    Method(4, 3, False, None, 1, False, False),
    Method(3, 2, True, None, 1, False, False),
    Method(4, 3, False, E2M1, 1, False, False),
    Method(4, 1, False, None, 1, False, True),
    Method(8, 6, True, None, 1, False, True),
    Method(4, 3, False, None, 1, True, False),
]
SEARCHES = [Method(4, 3, False, None, 4, False, False), Method(4, 2, True, None, 3, False, False)]
SEARCHES.append(Method(4, 3, False, E2M1, 3, False, False))


def numbers():
    random = np.random.default_rng(0)
    x = random.standard_normal(1492) * 10.0 ** random.integers(-8, 6, 1492)
    ends = [np.inf, -np.inf, np.nan, 0, -0.0, 448, 57344, -500]
    return np.concatenate([x, ends]).astype(np.float32).reshape(2, -1)


def check_stochastic():
    x = numbers()
    for kind in FLOATS.values():
        out = np.zeros(x.shape, kind.code)
        stochastic_gpu.floats_kernel[stochastic_gpu.grid(x.shape)](
            Tensor(x),
            Tensor(KEYS),
            Tensor(out),
            **stochastic_gpu.floats_constants(kind, x.shape[1]),
        )
        np.testing.assert_array_equal(
            out, floats_reference(kind, jnp.asarray(x), jnp.asarray(KEYS))
        )
    scale = np.random.default_rng(1).uniform(0.01, 1, (2, 15)).astype(np.float32)
    out = np.zeros(x.shape, np.int8)
    tile = stochastic_gpu.codes_constants(Steps(127), x.shape[1], 15)
    stochastic_gpu.codes_kernel[stochastic_gpu.grid(x.shape)](
        Tensor(x), Tensor(scale), Tensor(KEYS), Tensor(out), **tile
    )
    expected = codes_reference(Steps(127), *map(jnp.asarray, (x, scale, KEYS)))
    np.testing.assert_array_equal(out, expected)


def matrix(method, w, scale, zero):
    tile = quantize_pack_gpu.constants(method, w.shape)
    out = (np.zeros(w.shape, np.uint8), np.zeros_like(scale), np.zeros_like(scale))
    arrays = (w, scale, zero, KEYS[:1].copy(), *quantize_pack_gpu.tables(method), *out)
    quantize_pack_gpu.matrix_kernel[quantize_pack_gpu.grid(tile)](*map(Tensor, arrays), **tile)
    return out


def check_matrices():
    random = np.random.default_rng(0)
    w = random.standard_normal((48, 37)).astype(np.float32)
    w[:16, 3], w[:, 5] = 0, abs(w[:, 5])
    w[:, 7] = random.integers(-14, 15, 48) / np.float32(2)
    w[0, 7] = 7
    for method in (*METHODS, *SEARCHES):
        groups = (
            np.full((method.groups, 37), 0.3, np.float32),
            np.full((method.groups, 37), 5.37, np.float32),
        )
        found = matrix(method, w, *groups)
        expected = matrix_reference(method, *map(jnp.asarray, (w, *groups, KEYS[:1])))
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a, b)
    w[2, 3], w[20, 4] = np.inf, np.nan
    scale = matrix(METHODS[0], w, *(np.ones((3, 37), np.float32),) * 2)[1]
    assert np.argwhere(np.isnan(scale)).tolist() == [[0, 3], [1, 4]]


def softmax(bits, x, clip, mask):
    tile = softmax_gpu.constants(Levels(bits), x.shape, mask is not None)
    y = np.full(x.shape, 7, np.float32)
    mask = x if mask is None else mask.astype(np.uint8)
    arrays = x, clip, mask, y
    softmax_gpu.softmax_kernel[softmax_gpu.grid(tile)](*map(Tensor, arrays), **tile)
    return y


def check_softmax():
    for m, k in cases.SOFTMAX:
        clip = np.linspace(-6, -2, m, dtype=np.float32)[:, None]
        for bits in (2, 3, 4):
            for masked in (False, True):
                x, mask = cases.softmax_inputs(m, k, masked)
                cases.is_low_bit_softmax(softmax(bits, x, clip, mask), x, bits, clip, mask)
    x = cases.softmax_inputs(6, 40, False)[0]
    x[1], x[2, 5], x[3, 2], x[4, ::2], x[5] = 1.5, np.nan, np.inf, -np.inf, -np.inf
    p = softmax(2, x, np.full((6, 1), -4, np.float32), None)
    assert np.isnan(p).all(1).tolist() == [i in (2, 3) for i in range(6)]
    np.testing.assert_allclose(p[1], 1 / 40, rtol=1e-6)
    assert not p[5].any()
    assert not p[4, ::2].any()


def interpret():
    check_stochastic()
    check_matrices()
    check_softmax()


def compile_for(capability):
    for kind in FLOATS.values():
        out = "*u16" if kind.sign > 255 else "*u8"
        pointers = {"x": "*fp32", "keys": "*u32", "out": out}
        tile = stochastic_gpu.floats_constants(kind, 1 << 20)
        machine_code(stochastic_gpu.floats_kernel, pointers, tile, capability, num_warps=4)
    pointers = {"x": "*fp32", "scale": "*fp32", "keys": "*u32", "out": "*i8"}
    tile = stochastic_gpu.codes_constants(Steps(127), 1 << 20, 1 << 13)
    machine_code(stochastic_gpu.codes_kernel, pointers, tile, capability, num_warps=4)
    order = quantize_pack_gpu.matrix_kernel.arg_names[:11]
    pointers = dict.fromkeys(order, "*fp32") | {"keys": "*u32", "table_codes": "*i32", "out": "*u8"}
    shapes = [(method, 128) for method in (*METHODS, *SEARCHES)]
    for method, rows in (*shapes, (METHODS[0], 32), (SEARCHES[0], 1024)):
        tile = quantize_pack_gpu.constants(method, (rows * method.groups, 4096))
        machine_code(
            quantize_pack_gpu.matrix_kernel,
            pointers,
            tile,
            capability,
            num_warps=quantize_pack_gpu.WARPS,
        )
    for bits, k, masked in ((2, 512, True), (4, 4096, True), (3, 8192, False), (4, 33, False)):
        tile = softmax_gpu.constants(Levels(bits), (512, k), masked)
        pointers = dict.fromkeys(("x", "clip", "mask", "y"), "*fp32")
        pointers["mask"] = "*u8" if masked else "*fp32"
        warps = softmax_gpu.warps(tile["PLACES"])
        machine_code(softmax_gpu.softmax_kernel, pointers, tile, capability, num_warps=warps)


if __name__ == "__main__":
    main(interpret, compile_for)

"""Runs the Triton kernel of low-bit products without a GPU; `test_low_bit_gpu.py` starts it.

`interpret`: the cases of all kernels, against numpy. `compile`: what the machine code must have.
"""

import jax
import jax.numpy as jnp
import low_bit_cases as cases
import numpy as np
from triton_tools import Tensor, lane_instructions, machine_code, main

from spikebit.kernels import low_bit_gpu
from spikebit.kernels.layouts import PackedMatrix, pack
from spikebit.kernels.layouts_gpu import planes
from spikebit.kernels.matrix import quantized_matrix
from spikebit.kernels.tuning import Tile, rule

SMALL = Tile(16, 32, 1, 4, 2)


def interpret():
    for case in cases.CASES:
        if case.m and case.n:
            check(case, SMALL)
    check(cases.Case(20, 1100, 40, 4, 100, "float"), SMALL._replace(split=2))  # 6 tiles, the last
    check(cases.Case(2, 2100, 20, 3, 300, "symmetric"), SMALL._replace(split=3))  # two empty parts
    check(cases.Case(2, 1024, 20, 4, 512, "integer"), SMALL)  # groups longer than tiles
    check(cases.Case(2, 288, 20, 4, 96, "float"), SMALL)  # groups that begin within tiles

    x = np.array([[1 / 3, -1e-20, 2.0**40 + 2.0**17, np.float32(np.pi)]], np.float32)
    assert (np.asarray(low_bit_gpu.in_thirds(jnp.asarray(x)), np.float64).sum(0) == x).all()


def check(case, tile):
    parts = cases.parts(case)
    codes, scale, zero, table = parts
    w = pack(quantized_matrix(codes, scale, zero, table=table, bits=case.bits), "planes")
    x, exact_w = cases.inputs(case), cases.weights(case, *parts)
    y = run(jnp.asarray(x), w, tile)
    # Sums of k products, and where there is a zero point that of codes less half of their range;
    # some roundings more for those of a sum over a group, of the zero point and of the scale.
    size = abs(exact_w)
    if zero is not None:
        reach = np.repeat(abs(zero - (1 << case.bits - 1)) * scale, case.group, axis=0)
        size = (1 << case.bits - 1) * np.repeat(scale, case.group, axis=0) + reach
    bound = (case.k + 8) * 2.0**-24 * (abs(x).astype(np.float64) @ size)
    assert (abs(y - x.astype(np.float64) @ exact_w) <= bound).all(), case


def run(x, w, tile):
    m, n = x.shape[0], w.shape[1]
    operands, sums, table = low_bit_gpu.operands(x, w)
    zero = w.scale if w.zero is None else w.zero
    arrays = operands, sums, w.words[0], w.words[-1], w.scale, zero, table
    y = np.full((tile.split, m, n), np.nan, np.float32)
    low_bit_gpu.product_kernel[low_bit_gpu.grid(m, n, tile)](
        *(Tensor(np.array(a)) for a in arrays),
        Tensor(y),
        **low_bit_gpu.constants(m, w, tile, x.dtype),
    )
    return y.astype(np.float64).sum(0)


def compile_for(capability):
    #     m, bits, group, kind, dtype, lane-instructions per weight
    for m, bits, group, kind, dtype, budget in [
        (1, 4, 128, "symmetric", "bfloat16", 3.0),
        (32, 4, 128, "zero", "float16", 3.5),
        (16, 3, 128, "symmetric", "bfloat16", 5.0 if capability <= 90 else None),
        (16, 4, 32, "table", "bfloat16", 7.5),
        (100, 8, 4096, "zero", "bfloat16", None),
        (16, 4, 64, "table", "float32", None),
    ]:
        w = stand_in(4096, 4096, bits, group, kind)
        tile, dtype = rule("low_bit", capability, m, w), jnp.dtype(dtype)
        settings = low_bit_gpu.constants(m, w, tile, dtype)
        inputs = {"bfloat16": "*bf16", "float16": "*fp16", "float32": "*fp32"}[dtype.name]
        pointers = {"x": inputs, "sums": "*fp32", "words": "*i32", "thirds": "*i32"}
        pointers |= {"scale": "*fp32", "zero": "*fp32"}
        pointers |= {"table": "*i32" if settings["ASM"] else inputs, "y": "*fp32"}
        options = {"num_warps": tile.warps, "num_stages": tile.stages}
        lines = machine_code(low_bit_gpu.product_kernel, pointers, settings, capability, **options)
        matrix = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA" if tile.warps >= 4 else "HMMA"}
        assert any(f" {matrix[capability]}" in line for line in lines), matrix[capability]
        assert not any("I2F" in line for line in lines)
        if budget is not None:
            weights = tile.columns * planes(4096, bits, group).tile
            found = lane_instructions(lines, tile.warps) / weights
            print(m, bits, group, kind, found)
            assert found <= budget, (m, bits, group, kind, found)


def stand_in(k, n, bits, group, kind):
    """A matrix without numbers, which is all that a kernel is compiled for."""
    scale = jax.ShapeDtypeStruct((k // group, n), jnp.float32)
    table = jax.ShapeDtypeStruct((1 << bits,), jnp.float32) if kind == "table" else None
    return PackedMatrix((), scale, scale if kind == "zero" else None, table, bits, "planes", (k, n))


if __name__ == "__main__":
    main(interpret, compile_for)

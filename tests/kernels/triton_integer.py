"""Runs the Triton kernel of 8-bit products without a GPU; `test_integer_gpu.py` starts it.

`interpret`: the cases of all kernels, against numpy. `compile`: what the machine code must have.
"""

import jax.numpy as jnp
import low_bit_cases as cases
import numpy as np
from triton_low_bit import SMALL, stand_in
from triton_tools import Tensor, lane_instructions, machine_code, main

from spikebit.kernels import float8_gpu, integer, integer_gpu
from spikebit.kernels.layouts import pack
from spikebit.kernels.layouts_gpu import planes
from spikebit.kernels.low_bit_gpu import grid
from spikebit.kernels.matrix import quantized_matrix
from spikebit.kernels.tuning import rule

MORE = [
    (cases.Case(20, 1100, 40, 4, 100, "float"), SMALL._replace(split=2)),
    (cases.Case(2, 2100, 20, 3, 2100, "integer"), SMALL._replace(split=3)),
    (cases.Case(2, 1024, 20, 4, 512, "integer"), SMALL),
    (cases.Case(2, 64, 20, 4, 32, "e2m1"), SMALL),
]


def interpret():
    for case, tile in [*((case, SMALL) for case in cases.CASES), *MORE]:
        if not case.m or not case.n or case.group <= 16:
            continue
        parts = cases.parts(case)
        w = packed(case, parts)
        x, x_scale = cases.integer_inputs(case)
        if case.kind != "table":
            check(case, parts, w, tile, x, x.astype(np.float64), x_scale)
        if case.bits == 4 and case.kind in ("symmetric", "float"):
            x = jnp.asarray(cases.inputs(case)).astype(jnp.float8_e4m3fn)
            check(case, parts, w, tile, x, np.asarray(x, np.float64), x_scale)


def packed(case, parts):
    codes, scale, zero, table = parts
    return pack(quantized_matrix(codes, scale, zero, table=table, bits=case.bits), "planes")


def check(case, parts, w, tile, x, numbers, x_scale):
    """Sums of integers are exact, all else is some roundings a fold; those of floats round more."""
    y = run(jnp.asarray(x), jnp.asarray(x_scale)[:, None], w, tile)
    _, scale, zero, _ = parts
    exact = numbers @ cases.weights(case, *parts) * x_scale[:, None]
    scale = np.repeat(scale.astype(np.float64), case.group, axis=0)
    size = 8 * scale if w.table is not None else (1 << case.bits - 1) * scale
    if zero is not None:
        size += np.repeat(abs(zero - (1 << case.bits - 1)), case.group, axis=0) * scale
    p = planes(case.k, case.bits, case.group)
    roundings = 8 + p.tiles * p.tile // (p.fold * p.rows)
    if x.dtype != np.int8:
        roundings += case.k
    bound = roundings * 2.0**-24 * (abs(numbers) @ size) * x_scale[:, None]
    assert (abs(y - exact) <= bound).all(), (case, x.dtype)


def run(x, x_scale, w, tile):
    m, n = x.shape[0], w.shape[1]
    float8, scale = x.dtype != jnp.int8, w.scale
    table = float8_gpu.table() if float8 else None
    if w.table is not None:
        parts = integer.parts(w)
        scale, table = parts.scale, (parts.values - 128).astype(jnp.int8)
    settings = integer_gpu.constants(m, w, tile, table is not None, float8) | {"ASM": False}
    inputs, sums, _ = integer_gpu.operands(x, w, table)
    zero = scale if w.zero is None else w.zero
    entries = scale if table is None else table
    arrays = inputs, x_scale, sums, w.words[0], w.words[-1], scale, zero, entries
    y = np.full((tile.split, m, n), np.nan, np.float32)
    integer_gpu.product_kernel[grid(m, n, tile)](
        *(Tensor(np.array(a)) for a in arrays), Tensor(y), **settings
    )
    return y.astype(np.float64).sum(0)


def compile_for(capability):
    #     m, bits, group, kind, float8, lane-instructions per weight
    for m, bits, group, kind, float8, budget in [
        (1, 4, 128, "symmetric", False, 3.0),
        (512, 8, 4096, "symmetric", False, 4.0 if capability <= 90 else None),
        (16, 4, 32, "table", False, 7.0),
        (16, 3, 64, "zero", False, None),
        *([(64, 4, 128, "zero", True, None)] if capability >= 90 else []),
    ]:
        w = stand_in(4096, 4096, bits, group, kind)
        tile = rule("float8" if float8 else "integer", capability, m, w)
        settings = integer_gpu.constants(m, w, tile, float8 or kind == "table", float8)
        pointers = {"x": "*u8" if float8 else "*i8", "x_scale": "*fp32", "sums": "*fp32"}
        pointers |= {"words": "*i32", "thirds": "*i32", "scale": "*fp32", "zero": "*fp32"}
        pointers |= {"table": "*i32", "y": "*fp32"}
        options = {"num_warps": tile.warps, "num_stages": tile.stages}
        lines = machine_code(integer_gpu.product_kernel, pointers, settings, capability, **options)
        matrix = {80: "IMMA", 90: "QGMMA" if float8 else "IGMMA"}.get(capability)
        if matrix is None:
            matrix = "IMMA" if tile.warps < 4 else "UTCQMMA" if float8 else "UTCIMMA"
        assert any(f" {matrix}" in line for line in lines), matrix
        weights = tile.columns * planes(4096, bits, group).tile
        found = lane_instructions(lines, tile.warps) / weights
        print(m, bits, group, kind, float8, found)
        if budget is not None:
            assert found <= budget, (m, bits, group, kind, found)


if __name__ == "__main__":
    main(interpret, compile_for)

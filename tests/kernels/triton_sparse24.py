"""Runs the Triton kernel of 2:4 sparse products without a GPU; `test_sparse24.py` starts it.

`interpret`: against numpy. `compile`: what the machine code must have.
"""

import jax
import jax.numpy as jnp
import low_bit_cases as cases
import numpy as np
from triton_low_bit import SMALL
from triton_tools import Tensor, lane_instructions, machine_code, main

from spikebit.kernels import sparse24_gpu
from spikebit.kernels.low_bit_gpu import grid
from spikebit.kernels.matrix import dequantize, quantized_matrix
from spikebit.kernels.sparse24 import Packed24, pack24
from spikebit.kernels.tuning import rule


def interpret():
    random = np.random.default_rng(0)
    for m, groups, group, n, table, split in [
        (1, 2, 128, 33, None, 1),
        (17, 3, 64, 16, cases.E2M1, 1),
        (3, 9, 128, 20, None, 2),
        (2, 1, 100, 5, None, 1),
    ]:
        k, zero = groups * group, 8 if table is None else 0
        codes = random.integers(0, 16, (k // 4, 4, n)).astype(np.uint8)
        order = random.permuted(np.broadcast_to(np.arange(4)[:, None], codes.shape), axis=1)
        codes[order >= random.integers(0, 3, (k // 4, 1, n))] = zero
        scale = random.uniform(0.5, 1, (groups, n)).astype(np.float32)
        w = quantized_matrix(codes.reshape(k, n), scale, table=table)
        x, dense = random.normal(size=(m, k)).astype(np.float32), np.asarray(dequantize(w))
        y = run(jnp.asarray(x), pack24(w), SMALL._replace(split=split))
        bound = (k + 8) * 2.0**-24 * (abs(x).astype(np.float64) @ abs(dense))
        assert (abs(y - x.astype(np.float64) @ dense) <= bound).all(), (m, k, n)


def run(x, w, tile):
    m, n = x.shape[0], w.shape[1]
    inputs, table = sparse24_gpu.operands(x, w)
    arrays = inputs, w.first[0], w.second[0], w.places[0], w.scale, table
    y = np.full((tile.split, m, n), np.nan, np.float32)
    sparse24_gpu.product_kernel[grid(m, n, tile)](
        *(Tensor(np.array(a)) for a in arrays),
        Tensor(y),
        **sparse24_gpu.constants(m, w, tile, x.dtype),
    )
    return y.astype(np.float64).sum(0)


def compile_for(capability):
    scale = jax.ShapeDtypeStruct((32, 4096), jnp.float32)
    w = Packed24((None,), (None,), (None,), scale, None, 4, (4096, 4096))
    tile = rule("sparse24", capability, 1, sparse24_gpu.quads(w))
    settings = sparse24_gpu.constants(1, w, tile, jnp.dtype("bfloat16"))
    pointers = {"x": "*bf16", "first": "*i32", "second": "*i32", "places": "*i32"}
    pointers |= {"scale": "*fp32", "table": "*bf16", "y": "*fp32"}
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    lines = machine_code(sparse24_gpu.product_kernel, pointers, settings, capability, **options)
    assert any("MMA" in line for line in lines)
    assert not any("I2F" in line for line in lines)
    found = lane_instructions(lines, tile.warps) / (tile.columns * 32 * settings["ROWS"])
    print(found)
    assert found <= (6 if capability == 100 else 5), found


if __name__ == "__main__":
    main(interpret, compile_for)

"""Draws the words of `noise_gpu.block` without a GPU; `test_noise.py` starts it.

`interpret`: the same bits as the generator in numpy. `compile`: what a word costs.
"""

import jax
import jax.numpy as jnp
import numpy as np
import triton
import triton.language as tl
from triton_tools import Tensor, machine_code, main

from spikebit.kernels import noise, noise_gpu
from spikebit.quant import quantize

block = noise_gpu.block


@triton.jit
def draw(key, stream, first, second, SIZE: tl.constexpr):
    place = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    a, b = block(tl.load(key), tl.load(key + 1), place.to(tl.uint32), tl.load(stream))
    tl.store(first + place, a)
    tl.store(second + place, b)


@triton.jit
def draw_one(key, stream, first, SIZE: tl.constexpr):
    place = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    a, _ = block(tl.load(key), tl.load(key + 1), place.to(tl.uint32), tl.load(stream))
    tl.store(first + place, a)


@triton.jit
def round_to_3_bits(key, bits, SIZE: tl.constexpr):
    place = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    word, _ = block(tl.load(key), tl.load(key + 1), place.to(tl.uint32), tl.full((), 0, tl.uint32))
    tl.store(bits + place, (tl.load(bits + place) + (word >> 12)) & 0xFFF00000)


def check_rounding():
    """Numbers in the normal range of e4m3fn become what `quantize` makes of them."""
    x = np.random.default_rng(3).uniform(1, 200, 192).astype(np.float32)
    key = jax.random.key(4)
    expected = quantize(jnp.array(x), "e4m3fn", rounding="stochastic", key=key)
    words, bits = np.asarray(jax.random.bits(key, (2,), jnp.uint32)), x.view(np.uint32)
    round_to_3_bits[(3,)](Tensor(words), Tensor(bits), SIZE=64)
    np.testing.assert_array_equal(x, expected)


def interpret():
    check_rounding()
    for key, stream in (((0, 0), 0), ((0x13198A2E, 0x03707344), 0x85A308D3), ((2**32 - 1,) * 2, 7)):
        key, stream = np.array(key, np.uint32), np.array([stream], np.uint32)
        words = np.zeros((2, 192), np.uint32)
        draw[(3,)](Tensor(key), Tensor(stream), Tensor(words[0]), Tensor(words[1]), SIZE=64)
        index = np.arange(192, dtype=np.uint32)
        np.testing.assert_array_equal(words, noise.block(key[:1], key[1:], index, stream))


def compile_for(capability):
    pointers = dict.fromkeys(("key", "stream", "first"), "*u32")
    lines = machine_code(draw_one, pointers, {"SIZE": 1024}, capability, num_warps=4)
    # an element takes 13 rounds of an addition, a rotation and an exclusive or, and little more
    arithmetic = [line for line in lines if any(f" {op}" in line for op in ("IADD", "SHF", "LOP"))]
    assert len(arithmetic) <= 8 * 50, len(arithmetic)


if __name__ == "__main__":
    main(interpret, compile_for)

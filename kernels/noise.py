"""Random words from a counter: the same bits wherever they are drawn, without a state to pass on.

The idea that belongs here: a word is a function of (key, stream, index) alone, so a kernel draws
the word of an element where it handles the element, in any order, on any number of threads or
devices. This file has the generator in jax.numpy, for use anywhere in JAX; `noise_cpu` (numba) and
`noise_gpu` (Triton) have it for use inside kernels. What the words decide does not belong here.
"""

import functools
import math
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, UInt, UInt32

ROUNDS = 13  # the fewest that pass all tests of TestU01's BigCrush
ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))  # of four rounds, and of the next four
PARITY = 0x1BD11BDA  # keeps the third word of the key from being zero with the other two

_Words = TypeVar("_Words", Array, np.ndarray)


def block(
    k0: _Words, k1: _Words, index: _Words, stream: _Words, rounds: int = ROUNDS
) -> tuple[_Words, _Words]:
    """Threefry-2x32: the two random words of the counter (index, stream) under the key (k0, k1).

    A permutation of all pairs (index, stream) for each key. All arguments uint32, of JAX or of
    numpy, and of shapes that broadcast; `noise_cpu.block` and `noise_gpu.block` give the same bits.

    References:
        Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC'11). 20 rounds are the
        generator behind `jax.random`.
    """
    key = k0, k1, k0 ^ k1 ^ np.uint32(PARITY)
    x0, x1 = index + k0, stream + k1
    for i in range(rounds):
        x0 = x0 + x1
        left = ROTATIONS[i // 4 % 2][i % 4]
        x1 = (x1 << np.uint32(left) | x1 >> np.uint32(32 - left)) ^ x0
        if i % 4 == 3:
            n = i // 4 + 1
            x0 = x0 + key[n % 3]
            x1 = x1 + (key[(n + 1) % 3] + np.uint32(n))
    return x0, x1


def random_words(
    key: UInt32[Array, "2"],
    stream: UInt32[Array, ""] | int,
    shape: tuple[int, ...],
    dtype: DTypeLike = jnp.uint32,
) -> UInt[Array, "*shape"]:
    """Independent uniform words, one for each element of an array of a shape.

    The element at the flat (row-major) place i gets the first word of `block(*key, i, stream)` as
    uint32, or both as uint64 (the first is the low half). It does not depend on the shape, nor on
    how the array is sharded; nothing is stored, so inside a jitted function the words are computed
    where they are used. Works under `jit`, `vmap`, `scan` and sharding.

    Args:
        key: two words, such as `jax.random.bits(key, (2,), jnp.uint32)`.
        stream: which of 2^32 independent sequences, such as the number of a time step or a draw.
        shape: of the result; at most 2^32 elements.
        dtype: uint32, or uint64 (with 64-bit types switched on).

    Raises:
        ValueError: for another dtype or stream, or more elements than a stream has words.

    >>> random_words(jnp.array([0, 0], jnp.uint32), 0, (2, 2)).ravel()[0]
    Array(2635882182, dtype=uint32)
    """
    dtype = np.dtype(dtype)
    if dtype not in (np.uint32, np.uint64):
        raise ValueError(
            f"random_words(dtype={dtype}): words are uint32 or uint64; convert them afterwards."
        )
    return _random_words(key, checked_stream("random_words", stream, shape), shape, dtype)


def checked_stream(
    who: str, stream: UInt32[Array, ""] | int, shape: tuple[int, ...]
) -> UInt32[Array, ""]:
    """The stream as a word.

    Raises:
        ValueError: in the name of `who`: no stream, or more elements than it has words.
    """
    if math.prod(shape) > 1 << 32:
        raise ValueError(
            f"{who}(shape={shape}): {math.prod(shape)} elements, but a stream has 2^32 "
            "words; draw the array in parts, each from a stream of its own."
        )
    if isinstance(stream, int) and not 0 <= stream < 1 << 32:
        raise ValueError(f"{who}(stream={stream}): streams are numbered from 0 to 2^32 - 1.")
    return jnp.asarray(stream, jnp.uint32)


def places(shape: tuple[int, ...]) -> UInt32[Array, "*shape"]:
    """The flat (row-major) place of each element; each device counts its own part."""
    index = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):  # not arange and reshape, which would be one device's
        stride = np.uint32(math.prod(shape[axis + 1 :]))
        index = index + jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * stride
    return index


@functools.partial(jax.jit, static_argnames=("shape", "dtype"))
def _random_words(key: Array, stream: Array, shape: tuple[int, ...], dtype: np.dtype) -> Array:
    low, high = block(key[0], key[1], places(shape), stream)
    if dtype == np.uint32:
        return low
    return low.astype(jnp.uint64) | high.astype(jnp.uint64) << np.uint64(32)

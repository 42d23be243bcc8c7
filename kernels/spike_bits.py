"""Spikes as bits: 32 spikes in a word, for memory and for kernels that look for events.

The idea that belongs here: the packed form of a binary array and the way there and back. Products
with weights stand in `spikes` and `spikes_low_bit`.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

WORD = 32


@functools.partial(jax.tree_util.register_dataclass, data_fields=("words",), meta_fields=("size",))
@dataclasses.dataclass(frozen=True)
class SpikeBits:
    """A binary array (*batch, size), its last axis packed; made by `pack_spikes`.

    A pytree, also of what stands for its array in `vmap` and its like.

    Attributes:
        words: uint32 (*batch, words); bit i of word j is the spike at 32 j + i, and what is beyond
            the size is 0.
        size: of the last axis.
    """

    words: Any
    size: int

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the binary array."""
        return (*self.words.shape[:-1], self.size)


def pack_spikes(spikes: Array) -> SpikeBits:
    """Packs an array of bool, or of numbers of which those that are not 0 are spikes.

    Raises:
        ValueError: an array without axes.

    >>> pack_spikes(jnp.array([True, False, True])).words
    Array([5], dtype=uint32)
    """
    if spikes.ndim < 1:
        raise ValueError("pack_spikes: a single number has no axis to pack.")
    size = spikes.shape[-1]
    room = [(0, 0)] * (spikes.ndim - 1) + [(0, -size % WORD)]
    words = (size + WORD - 1) // WORD
    bits = jnp.pad(spikes.astype(jnp.bool_), room).reshape(*spikes.shape[:-1], words, WORD)
    places = jnp.left_shift(np.uint32(1), jnp.arange(WORD, dtype=jnp.uint32))
    return SpikeBits(jnp.where(bits, places, np.uint32(0)).sum(-1, dtype=jnp.uint32), size)


def checked_bits(who: str, bits: SpikeBits) -> SpikeBits:
    """The packed spikes, if their words are those of their size.

    Raises:
        ValueError: in the name of `who`.
    """
    words = (bits.size + WORD - 1) // WORD
    if bits.words.dtype != jnp.uint32 or bits.words.ndim < 1 or bits.words.shape[-1] != words:
        raise ValueError(
            f"{who}: {bits.size} packed spikes in words {bits.words.dtype} of shape "
            f"{bits.words.shape}; they are uint32, {words} along the last axis: use `pack_spikes`."
        )
    return bits


def unpack_spikes(bits: SpikeBits) -> Bool[Array, "*batch size"]:
    """The array of bool that was packed."""
    places = jnp.arange(WORD, dtype=jnp.uint32)
    spikes = (bits.words[..., None] >> places & np.uint32(1)) != 0
    *batch, words = bits.words.shape
    return spikes.reshape(*batch, words * WORD)[..., : bits.size]

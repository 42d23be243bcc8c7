"""Codes by rows: the layout of event-driven products, which read a row for each spike.

A row is contiguous and padded to 64 columns. Of 4-bit codes a byte holds two of the same row: in
each 64 columns, byte b has column b in its low half and column b + 32 in its high half.
"""

import jax.numpy as jnp
from jaxtyping import Array, UInt8

COLUMNS = 64  # to which a row is padded


def pack_codes(
    layout: str, codes: UInt8[Array, "k n"], bits: int, group: int
) -> tuple[UInt8[Array, "k bytes"], ...]:
    """The words of a matrix: one array (k, bytes of a row).

    Raises:
        ValueError: codes of other than 4 or 8 bits.
    """
    del group
    if bits not in (4, 8):
        raise ValueError(f"pack(layout={layout!r}): codes of {bits} bits; rows hold 4 or 8 bits.")
    k, n = codes.shape
    padded = jnp.pad(codes, ((0, 0), (0, -n % COLUMNS)))
    if bits == 8:
        return (padded,)
    blocks = padded.shape[1] // COLUMNS
    halves = padded.reshape(k, blocks, 2, COLUMNS // 2)
    return ((halves[:, :, 0] | halves[:, :, 1] << 4).reshape(k, padded.shape[1] // 2),)


def unpack_codes(
    layout: str, words: tuple[Array, ...], bits: int, group: int, shape: tuple[int, int]
) -> UInt8[Array, "k n"]:
    """The codes that `pack_codes` was given."""
    del layout, group
    (packed,) = words
    k, n = shape
    if bits == 4:
        blocks = packed.reshape(k, 2 * packed.shape[1] // COLUMNS, COLUMNS // 2)
        packed = jnp.stack([blocks & 15, blocks >> 4], 2).reshape(k, 2 * packed.shape[1])
    return packed[:, :n]

"""The layout `planes`, in which the GPU kernels read codes: each 32-bit word holds rows far apart.

The idea that belongs here: a tile of the matrix is cut into as many planes as codes fit into a
word, and bits b j to b (j + 1) of a word are its code in plane j. Shifting a whole tile of words by
the same amount then gives a plane, an operand of a matrix instruction, without moving codes between
lanes. Plain jax.numpy, without Triton.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32, UInt8


class Planes(NamedTuple):
    """How many rows make what, for codes of so many bits in groups of so many rows.

    Attributes:
        rows: of a plane, and words of a tile in each column.
        tile: rows of a tile; each word of the tile holds the codes of tile / rows of them.
        group: rows that a group takes up, with padding: a multiple of rows.
        fold: planes after which the group can change: they all belong to one group.
        tiles: that the matrix takes up, with padding.
    """

    rows: int
    tile: int
    group: int
    fold: int
    tiles: int


def planes(k: int, bits: int, group: int) -> Planes:
    """Says where the rows of a matrix (k, n) lie; codes of 3 bits lie as 2 bits and 1 bit do.

    Planes have the 32 rows that instructions for 8-bit operands take at once, or 16 for groups
    that are no longer; a group that is no multiple of its planes is filled up.
    """
    rows = 16 if group <= 16 else 32
    padded = max(1, -(-group // rows)) * rows
    in_word = 32 // (2 if bits == 3 else bits)
    fold = in_word
    while padded // rows % fold:
        fold //= 2
    tile = in_word * rows
    return Planes(rows, tile, padded, fold, -(-(k // max(1, group)) * padded // tile))


def spread(a: Array, group: int, p: Planes) -> Array:
    """Puts (k, ...) where the rows of a matrix lie: (tiles * tile, ...), with zeros between."""
    rest = [(0, 0)] * (a.ndim - 1)
    if group != p.group and a.size:
        a = a.reshape(-1, group, *a.shape[1:])
        a = jnp.pad(a, [(0, 0), (0, p.group - group), *rest]).reshape(-1, *a.shape[2:])
    return jnp.pad(a, [(0, p.tiles * p.tile - a.shape[0]), *rest])


def pack_codes(
    layout: str, codes: UInt8[Array, "k n"], bits: int, group: int
) -> tuple[Int32[Array, "n _"], ...]:
    """Packs codes of 2, 4 or 8 bits into one array of words, of 3 bits into two (low 2, high 1).

    Words of 1 bit pair the tiles of 2 bits: bit 16 t + j is plane j of the tile 2 T + t.
    """
    p = planes(codes.shape[0], bits, group)
    codes = spread(codes, group, p)
    if bits != 3:
        return (_words(codes, bits, p.rows),)
    more = p.tiles % 2 * p.tile
    high = jnp.pad(codes >> 2, ((0, more), (0, 0)))
    return _words(codes & 3, 2, p.rows), _words(high, 1, p.rows)


def unpack_codes(
    layout: str,
    words: tuple[Int32[Array, "n _"], ...],
    bits: int,
    group: int,
    shape: tuple[int, int],
) -> UInt8[Array, "k n"]:
    """The codes (k, n) that `pack_codes` was given."""
    k, n = shape
    p = planes(k, bits, group)
    if bits == 3:
        codes = _codes(words[0], 2, p.rows) | _codes(words[1], 1, p.rows)[: p.tiles * p.tile] << 2
    else:
        codes = _codes(words[0], bits, p.rows)
    codes = codes[: p.tiles * p.tile // p.group * p.group]
    if group != p.group and codes.size:
        codes = codes.reshape(-1, p.group, n)[:, :group].reshape(-1, n)
    return codes[:k]


def _words(codes, bits, rows):
    k, n = codes.shape
    planes = codes.reshape(k * bits // 32 // rows, 32 // bits, rows, n).astype(jnp.uint32)
    shifts = bits * jnp.arange(32 // bits, dtype=jnp.uint32)
    words = (planes << shifts[:, None, None]).sum(1, dtype=jnp.uint32)  # no bit is set twice
    words = words.transpose(2, 0, 1).reshape(n, k * bits // 32)
    return jax.lax.bitcast_convert_type(words, jnp.int32)


def _codes(words, bits, rows):
    n, count = words.shape
    words = jax.lax.bitcast_convert_type(words, jnp.uint32)
    words = words.reshape(n, count // rows, 1, rows).transpose(1, 2, 3, 0)
    shifts = bits * jnp.arange(32 // bits, dtype=jnp.uint32)
    codes = words >> shifts[:, None, None] & jnp.uint32((1 << bits) - 1)
    return codes.astype(jnp.uint8).reshape(count * 32 // bits, n)

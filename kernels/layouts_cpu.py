"""The layout of codes that kernels on CPUs read, 64 bytes at a time: `vnni`.

The idea that belongs here: a line of 64 bytes belongs to 16 columns, 4 bytes each, as the
instructions want that multiply 4 bytes with 4 bytes. Byte r of a column has the codes of rows
r, 4 + r, 8 + r, ..., lowest bits first: 4 rows a line for 8 bits, 8 rows for 4 bits, 16 rows for
2 bits. Lines of a block of 16 columns follow each other down the rows. Codes of 3 bits are two
arrays, the lower 2 bits and the highest bit (32 rows a line). A group of rows begins a new line:
what is left of the last one, and of the last block of columns, has codes 0.
"""

import jax.numpy as jnp
from jaxtyping import Array, UInt8

COLUMNS = 16  # of a line
_FIELDS = {2: (2,), 3: (2, 1), 4: (4,), 8: (8,)}  # bits a code has in each array


def rows_of_line(bits: int) -> int:
    """The number of rows of the longest line: what a group is padded to a multiple of."""
    return 32 // min(_FIELDS[bits])


def pack_codes(
    layout: str, codes: UInt8[Array, "k n"], bits: int, group: int
) -> tuple[UInt8[Array, "blocks lines 16 4"], ...]:
    """Packs codes of groups of `group` rows.

    Raises:
        ValueError: an unknown layout, or rows that are no multiple of the group.
    """
    _check("pack_codes", layout, codes.shape, bits, group)
    k, n = codes.shape
    line = rows_of_line(bits)
    codes = codes.reshape(k // group if group else 1, group, n)
    codes = jnp.pad(codes, ((0, 0), (0, -codes.shape[1] % line), (0, -n % COLUMNS)))
    codes = codes.reshape(codes.shape[0] * codes.shape[1], codes.shape[2])
    words, shift = [], 0
    for field in _FIELDS[bits]:
        fields = 8 // field
        part = codes >> shift & (1 << field) - 1
        part = part.reshape(
            len(codes) // 4 // fields, fields, 4, codes.shape[1] // COLUMNS, COLUMNS
        )
        place = field * jnp.arange(fields, dtype=jnp.uint8)[:, None, None, None]
        packed = jnp.sum(part << place, axis=1, dtype=jnp.uint8)  # lines, 4, blocks, 16
        words.append(packed.transpose(2, 0, 3, 1))
        shift += field
    return tuple(words)


def unpack_codes(
    layout: str, words: tuple[Array, ...], bits: int, group: int, shape: tuple[int, int]
) -> UInt8[Array, "k n"]:
    """The codes that `pack_codes` was given.

    Raises:
        ValueError: an unknown layout, or words that are not of this shape.
    """
    _check("unpack_codes", layout, shape, bits, group)
    k, n = shape
    groups, blocks = k // group if group else 1, -(-n // COLUMNS)
    deep = group + -group % rows_of_line(bits)
    rows = groups * deep
    wanted = [(blocks, rows * field // 32, COLUMNS, 4) for field in _FIELDS[bits]]
    if [w.shape for w in words] != wanted:
        raise ValueError(
            f"unpack_codes(layout={layout!r}): words are of shapes {[w.shape for w in words]}, "
            f"but codes of {bits} bits and shape {shape} in groups of {group} have {wanted}."
        )
    codes, shift = jnp.zeros((rows, blocks * COLUMNS), jnp.uint8), 0
    for field, packed in zip(_FIELDS[bits], words, strict=True):
        place = field * jnp.arange(8 // field, dtype=jnp.uint8)[:, None, None, None]
        part = packed.transpose(1, 3, 0, 2)[:, None] >> place & (1 << field) - 1
        codes |= part.reshape(rows, blocks * COLUMNS) << shift
        shift += field
    codes = codes.reshape(groups, deep, blocks * COLUMNS)
    return codes[:, :group, :n].reshape(k, n)


def _check(who, layout, shape, bits, group):
    if layout != "vnni" or bits not in _FIELDS or (shape[0] % group if group else shape[0]):
        raise ValueError(
            f"{who}(layout={layout!r}, bits={bits}, group={group}) got codes of shape {shape}: the "
            f"layout is vnni, bits are {', '.join(map(str, _FIELDS))}, and rows a multiple of the "
            "group."
        )

"""The IDX format of the MNIST family: one array of bytes behind a short header.

Two zero bytes, the type (8: unsigned byte), the number of dimensions, each dimension as a
big-endian 32-bit integer, then the values. The file may be plain, or packed with gzip or xz.
"""

import io
import math
import struct
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from .files import Readable, check_sha256, open_content, sha256

_LARGEST = 2**30  # [bytes]; a header that promises more is taken for damage
_CHUNK = 2**20  # [bytes]


def read_idx(
    path: Path,
    ndim: int,
    *,
    highest: int = 255,
    checksum: str | None = None,
    called: str | None = None,
) -> UInt8[np.ndarray, "..."]:
    """Reads an IDX file of unsigned bytes with `ndim` dimensions.

    Never unpacks more than one byte beyond what the header promises.

    Args:
        path: the file; plain, gzip or xz.
        ndim: the number of dimensions it must have.
        highest: the highest value that may occur.
        checksum: SHA-256 of the unpacked content, if known.
        called: name of the file in errors, else the path.

    Raises:
        ValueError: wrong magic number, wrong length, damaged or cut-off file, a value above
            `highest`, wrong checksum.
    """
    called = called or str(path)
    with open_content(path, called) as stream:
        header = _read(stream, 4 + 4 * ndim)
        magic = bytes([0, 0, 8, ndim])
        if not magic.startswith(header[:4]):
            raise ValueError(
                f"{called} starts with the bytes {header[:4].hex()}, expected {magic.hex()} (IDX, "
                f"unsigned bytes, {ndim} dimensions)."
            )
        if len(header) < 4 + 4 * ndim:
            raise ValueError(
                f"{called} is truncated: its header has {len(header)} bytes, expected "
                f"{4 + 4 * ndim}."
            )
        shape = struct.unpack(f">{ndim}I", header[4:])
        size = math.prod(shape)
        if size > _LARGEST:
            raise ValueError(
                f"{called} promises {size:,} bytes (shape {shape}), expected at most {_LARGEST:,}."
            )
        body = _read(stream, size)
        if len(body) < size:
            raise ValueError(
                f"{called} is truncated: {len(body):,} bytes follow its header, expected {size:,} "
                f"(shape {shape})."
            )
        if stream.read(1):
            raise ValueError(
                f"{called} goes on after the {size:,} bytes its header promises (shape {shape}), "
                "expected its end there."
            )
    values = np.frombuffer(body, np.uint8)
    if values.size and values.max() > highest:
        raise ValueError(
            f"{called} has the value {values.max()} (item {values.argmax()}), expected 0 to "
            f"{highest}."
        )
    check_sha256(called, sha256(header, body), checksum)
    return values.reshape(shape)


def write_idx(stream: io.BufferedIOBase, array: UInt8[np.ndarray, "..."]) -> None:
    """Writes an array as IDX, unpacked."""
    stream.write(bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape))
    stream.write(array.tobytes())


def _read(stream: Readable, size: int) -> bytes:
    """Reads `size` bytes, or as many as there are; memory grows with what is really there."""
    parts = []
    while size and (part := stream.read(min(size, _CHUNK))):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)

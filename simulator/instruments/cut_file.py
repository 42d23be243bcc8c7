"""An HDF5 file that was cut off or never closed, seen as if it had been closed in good order.

Nothing is written: bytes that are missing read as zeros, and the superblock says that nobody has
the file open and where it ends. What the zeros are worth is for the reader to check.

References:
    HDF5 File Format Specification, II.A "Superblock", version 3; R. Jenkins, lookup3 (2006).
"""

import io
from pathlib import Path
from typing import Any

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_VERSION, _OPEN, _BASE, _END, _CHECKSUM, _LENGTH = 8, 11, 12, 28, 44, 48  # offsets in bytes


class CutFile(io.RawIOBase):
    """A file to read, for `h5py.File`."""

    def __init__(self, path: str | Path):
        """Opens it.

        Raises:
            ValueError: the start is no superblock of version 3.
        """
        self._file = Path(path).open("rb")
        head = bytearray(self._file.read(_LENGTH))
        whole = len(head) == _LENGTH and head.startswith(_SIGNATURE) and head[_VERSION] == 3
        if not whole or int.from_bytes(head[_CHECKSUM:], "little") != lookup3(head[:_CHECKSUM]):
            self._file.close()
            raise ValueError("its start is not that of a trace.")
        self._size = max(
            self._file.seek(0, io.SEEK_END), int.from_bytes(head[_END : _END + 8], "little")
        )
        head[_OPEN] = 0
        head[_END : _END + 8] = self._size.to_bytes(8, "little")
        head[_CHECKSUM:] = lookup3(head[:_CHECKSUM]).to_bytes(4, "little")
        self._head, self._at = bytes(head), 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Where the next read is."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Sets where the next read is."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = start + offset
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        """Fills a buffer with what is there, and zeros."""
        view = memoryview(buffer).cast("B")
        n = max(0, min(len(view), self._size - self._at))
        self._file.seek(self._at)
        found = self._file.read(n)
        view[:n] = found + bytes(n - len(found))
        if self._at < _LENGTH:
            part = self._head[self._at : self._at + n]
            view[: len(part)] = part
        self._at += n
        return n

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
        super().close()


def lookup3(data: bytes | bytearray) -> int:
    """The checksum of HDF5's metadata; the example is the author's.

    >>> hex(lookup3(b"Four score and seven years ago"))
    '0x17770551'
    """
    mask = 0xFFFFFFFF
    a = b = c = (0xDEADBEEF + len(data)) & mask

    def rotated(x: int, by: int) -> int:
        return ((x << by) | (x >> (32 - by))) & mask

    def add(block: bytes | bytearray) -> list[int]:
        filled = bytes(block).ljust(12, b"\0")
        words = (int.from_bytes(filled[i : i + 4], "little") for i in (0, 4, 8))
        return [(x + word) & mask for x, word in zip((a, b, c), words, strict=True)]

    while len(data) > 12:
        a, b, c = add(data[:12])
        for by in (4, 6, 8, 16, 19, 4):  # the three take turns
            a, b, c = b, (c + b) & mask, ((a - c) & mask) ^ rotated(c, by)
        data = data[12:]
    if not data:
        return c
    a, b, c = add(data)
    for by in (14, 11, 25, 16, 4, 14, 24):
        a, b, c = b, ((c ^ b) - rotated(b, by)) & mask, a
    return b

"""IDX files: the reader against hand-made bytes, and every way such a file can be wrong."""

import gzip
import hashlib
import io
import lzma
import struct
import tracemalloc

import numpy as np
import pytest

from spikebit.simulator.data import idx
from spikebit.simulator.data.idx import read_idx, write_idx

VALUES = bytes(range(24))
RAW = bytes.fromhex("00000803 00000002 00000003 00000004") + VALUES  # written out, not by our code


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress])
def test_reads_plain_gzip_and_xz(tmp_path, pack):
    path = tmp_path / "images"
    path.write_bytes(pack(RAW))
    found = read_idx(path, 3)
    np.testing.assert_array_equal(found, np.arange(24, dtype=np.uint8).reshape(2, 3, 4))
    assert found.dtype == np.uint8
    assert read_idx(path, 3, checksum=hashlib.sha256(RAW).hexdigest()).shape == (2, 3, 4)


def test_writes_what_the_format_says():
    out = io.BytesIO()
    write_idx(out, np.arange(24, dtype=np.uint8).reshape(2, 3, 4))
    assert out.getvalue() == RAW


packed = gzip.compress(RAW)
bad_crc = packed[:-8] + bytes([packed[-8] ^ 1]) + packed[-7:]
bad_length = packed[:-1] + b"\x01"
BAD = {
    "empty": (b"", "empty"),
    "magic": (b"\x00\x00\x0d\x03" + RAW[4:], "starts with the bytes 00000d03, expected 00000803"),
    "dimensions": (b"\x00\x00\x08\x01" + RAW[4:], "expected 00000803"),
    "html": (b"<html>not here</html>", "starts with the bytes 3c68746d"),
    "magic cut": (RAW[:2], "header has 2 bytes, expected 16"),
    "header cut": (RAW[:9], "header has 9 bytes, expected 16"),
    "body cut": (RAW[:-1], r"truncated: 23 bytes follow its header, expected 24 \(shape \(2, 3, 4"),
    "no body": (RAW[:16], "truncated: 0 bytes follow"),
    "trailing": (RAW + b"\x00", "goes on after the 24 bytes"),
    "gzip trailing": (gzip.compress(RAW + b"\x00"), "goes on after the 24 bytes"),
    "gzip second member": (packed + gzip.compress(b"more"), "goes on after the 24 bytes"),
    "gzip body cut": (packed[:20], "truncated"),
    "gzip header cut": (packed[:5], "truncated"),
    "gzip end cut": (packed[:-4], "truncated"),
    "gzip short content": (gzip.compress(RAW[:-3]), "21 bytes follow its header, expected 24"),
    "gzip crc": (bad_crc, "damaged.*CRC"),
    "gzip length": (bad_length, "damaged.*length"),
    "gzip garbage": (packed[:12] + b"\xff" * 12, "damaged|truncated"),
    "xz cut": (lzma.compress(RAW)[:-10], "truncated"),
    "xz damaged": (lzma.compress(RAW)[:30] + b"\xff" * 30, "damaged"),
    "too large": (RAW[:4] + b"\xff" * 12, "promises .* expected at most 1,073,741,824"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_file_is_named_with_what_was_found_and_expected(tmp_path, name):
    content, message = BAD[name]
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_idx(path, 3)
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    assert text.endswith(".")


def test_no_file_and_a_folder(tmp_path):
    with pytest.raises(ValueError, match=r"cannot be read: No such file"):
        read_idx(tmp_path / "absent", 3)
    with pytest.raises(ValueError, match=r"is a folder, expected a data file"):
        read_idx(tmp_path, 3)


def test_value_range_and_checksum(tmp_path):
    path = tmp_path / "labels"
    path.write_bytes(bytes.fromhex("00000801 00000003") + bytes([9, 11, 0]))
    with pytest.raises(ValueError, match=r"labels has the value 11 \(item 1\), expected 0 to 9"):
        read_idx(path, 1, highest=9)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match=f"content is {found}, expected {'0' * 64}"):
        read_idx(path, 1, checksum="0" * 64)


def test_a_gzip_bomb_is_not_unpacked(tmp_path):
    """64 MB behind a header that promises 10 bytes take less than 2 MB of memory."""
    path = tmp_path / "bomb.gz"
    header = bytes.fromhex("00000801") + struct.pack(">I", 10)
    path.write_bytes(gzip.compress(header + bytes(2**26), 1))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="goes on after the 10 bytes"):
            read_idx(path, 1)
        assert tracemalloc.get_traced_memory()[1] < 2**21
    finally:
        tracemalloc.stop()


def test_memory_grows_with_the_file_and_not_with_the_promise(tmp_path, monkeypatch):
    path = tmp_path / "liar"
    path.write_bytes(bytes.fromhex("00000801") + struct.pack(">I", 2**30) + bytes(1000))
    asked = []
    original = idx._read

    class Stream:
        def __init__(self, stream):
            self.stream = stream

        def read(self, size):
            asked.append(size)
            return self.stream.read(size)

    monkeypatch.setattr(idx, "_read", lambda stream, size: original(Stream(stream), size))
    with pytest.raises(ValueError, match=r"1,000 bytes follow its header, expected 1,073,741,824"):
        read_idx(path, 1)
    assert max(asked) <= 2**20

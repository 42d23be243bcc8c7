"""Characters of a text, in sequences of equal length; predict the next character.

Words, other units of text and text as numbers of any other kind do not belong here.
"""

from pathlib import Path

import numpy as np
from jaxtyping import UInt32

from .dataset import Dataset, Split
from .files import DataFile, Source, check_sha256, open_content, sha256

TINY_SHAKESPEARE = DataFile(
    "tinyshakespeare.txt",
    "text",
    "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ("https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",),
)
_LARGEST = 2**26  # [bytes]


def characters(source: Source, *, length: int = 64) -> Dataset:
    """Loads 1.1 million characters of Shakespeare's plays, the last tenth of them for testing.

    Args:
        source: where the file is.
        length: time steps of a sequence.

    References:
        The text of char-rnn, github.com/karpathy/char-rnn (public domain).
    """
    file = TINY_SHAKESPEARE
    text = source.read(file, lambda path, called: read_text(path, file.sha256, called))
    return of_text("characters", text, length)


def read_text(path: Path, checksum: str | None = None, called: str | None = None) -> str:
    """Reads a text in UTF-8; plain, gzip or xz.

    Args:
        path: the file.
        checksum: SHA-256 of its content, if known.
        called: name of the file in errors, else the path.

    Raises:
        ValueError: a damaged file, one that is too large or not UTF-8, or a wrong checksum.
    """
    called = called or str(path)
    with open_content(path, called) as stream:
        content = stream.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise ValueError(f"{called} has more than {_LARGEST:,} bytes, expected less.")
    check_sha256(called, sha256(content), checksum)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{called} is no text in UTF-8 ({error}).") from error


def of_text(name: str, text: str, length: int) -> Dataset:
    """Makes a data set of a text: nine tenths to learn from, and the last tenth for testing.

    Sequences lie one after the other without overlap; inputs are the characters one-hot, targets
    the numbers of those that follow. What is left at the end of a part is not used. The classes are
    the characters of the training part, in the order of their code points.

    Raises:
        ValueError: a length below 1, a part too short for one sequence, or a character that only
            the test part has.
    """
    if length < 1:
        raise ValueError(f"{name}: length={length}, expected at least 1.")
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    parts = {"train": codes[: len(codes) * 9 // 10], "test": codes[len(codes) * 9 // 10 :]}
    for part, found in parts.items():
        if len(found) <= length:
            raise ValueError(
                f"{name}: the {part} part has {len(found)} characters, expected more than length="
                f"{length}: choose a longer text or shorter sequences."
            )
    vocabulary = np.unique(parts["train"])
    unseen = np.setdiff1d(parts["test"], vocabulary)
    if unseen.size:
        raise ValueError(
            f"{name}: the test part, the last tenth, holds {chr(unseen[0])!r}, which the training "
            "part does not: take it out of the text."
        )
    train, test = (_split(vocabulary, part, length) for part in parts.values())
    return Dataset(name, train, test, tuple(map(chr, vocabulary)), "prediction")


def _split(
    vocabulary: UInt32[np.ndarray, " classes"],
    codes: UInt32[np.ndarray, " characters"],
    length: int,
) -> Split:
    """Inputs are characters 0 to L-1 of a sequence, targets 1 to L."""
    n = (len(codes) - 1) // length
    numbers = np.searchsorted(vocabulary, codes).astype(np.int32)
    inputs, targets = (numbers[i : i + n * length].reshape(n, length) for i in (0, 1))
    one_hot = np.eye(len(vocabulary), dtype=np.float32)[inputs]
    return Split(one_hot, targets, np.full(n, length, np.int32))

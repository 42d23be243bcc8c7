"""Spoken digits (the Free Spoken Digit Dataset): recordings in a tar archive, as sequences.

Recordings are read in memory; nothing of the archive is written to disk.
"""

import hashlib
import io
import re
import tarfile
import wave
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float32

from .dataset import Dataset, Split
from .files import DataFile, Readable, Source, check_sha256, open_content
from .mel import log_mel, on_off_spikes

RECORDINGS = DataFile(
    "fsdd-recordings.tar.gz",
    "fsdd",
    "1801eae019c063377d98f831d3f93574f259475df7332bb0e3d1b080fb5e6959",
    (
        "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/heads/master.tar.gz",
        "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/v1.0.10.tar.gz",
    ),
)
_TEST_NUMBERS = range(5)  # recordings 0 to 4 of each digit and speaker
_NAME = re.compile(r"([0-9])_([a-z]+)_([0-9]+)\.wav")
_LARGEST_RECORDING = 2**22  # [bytes]
_LARGEST_ARCHIVE = 2**28  # [bytes], unpacked


class Recording(NamedTuple):
    """One spoken digit; samples in [-1, 1), rate in Hz."""

    number: int
    digit: int
    speaker: str
    rate: int
    samples: Float32[np.ndarray, " n"]


def spoken_digits(
    source: Source,
    *,
    features: Literal["mel", "delta"] = "mel",
    n_mels: int = 40,
    threshold: float = 0.1,
) -> Dataset:
    """Loads 2,700 + 300 recordings of the digits 0 to 9 by six speakers, in frames of 10 ms.

    The test split are recordings 0 to 4 of each digit and speaker. Sequences are filled up with
    zeros to the longest; `lengths` counts the frames.

    Args:
        source: where the archive is.
        features: "mel" for log-mel features in [0, 1] (`mel.log_mel`), "delta" for their on- and
            off-spikes (`mel.on_off_spikes`, 2 n_mels channels).
        n_mels: number of frequency bands.
        threshold: change of a log-mel feature that makes a spike, in (0, 1]; 0.1 is 8 dB.

    References:
        Free Spoken Digit Dataset, github.com/Jakobovski/free-spoken-digit-dataset (CC BY-SA 4.0).
    """
    if features not in ("mel", "delta"):
        raise ValueError(f"spoken_digits: features={features!r}, expected 'mel' or 'delta'.")
    if n_mels < 1:
        raise ValueError(f"spoken_digits: n_mels={n_mels}, expected at least 1.")
    if not 0 < threshold <= 1:
        raise ValueError(f"spoken_digits: threshold={threshold}, expected a number in (0, 1].")
    recordings = source.read(
        RECORDINGS, lambda path, called: read_recordings(path, RECORDINGS.sha256, called)
    )
    sequences = [log_mel(r.samples, r.rate, n_mels) for r in recordings]
    if features == "delta":
        sequences = [on_off_spikes(sequence, threshold) for sequence in sequences]
    inputs = np.zeros((len(sequences), max(map(len, sequences)), sequences[0].shape[1]), np.float32)
    for padded, sequence in zip(inputs, sequences, strict=True):
        padded[: len(sequence)] = sequence
    lengths = np.array([len(sequence) for sequence in sequences], np.int32)
    digits = np.array([r.digit for r in recordings], np.int32)
    test = np.array([r.number in _TEST_NUMBERS for r in recordings])
    parts = (Split(inputs[part], digits[part], lengths[part]) for part in (~test, test))
    return Dataset("spoken_digits", *parts, classes=tuple("0123456789"), kind="sequence")


def read_recordings(
    path: Path, checksum: str | None = None, called: str | None = None
) -> list[Recording]:
    """Reads the recordings `recordings/{digit}_{speaker}_{number}.wav` out of a tar archive.

    Other files of the archive are passed over. The list is ordered by number, digit and speaker, so
    that every stretch of it holds all digits.

    Args:
        path: the archive; plain, gzip or xz.
        checksum: of the recordings, if known: the SHA-256 of what `sha256sum *.wav` prints for
            them, ordered by file name. It does not depend on how the archive was packed.
        called: name of the file in errors, else the path.

    Raises:
        ValueError: a damaged or cut-off archive or recording, a member that is a link or device or
            that points outside the archive, one that is too large, recordings of unequal rate, or
            a wrong checksum.
    """
    called = called or str(path)
    wavs = {}
    with open_content(path, called) as stream:
        bounded = _Bounded(stream, called)
        try:
            with tarfile.open(fileobj=bounded, mode="r|") as archive:  # type: ignore[call-overload]
                for member in archive:
                    _check_member(called, member)
                    name = PurePosixPath(member.name)
                    content = archive.extractfile(member) if name.suffix == ".wav" else None
                    if content is not None:
                        if name.name in wavs:
                            raise ValueError(f"{called} holds {name.name} twice, expected it once.")
                        wavs[name.name] = content.read()
        except tarfile.TarError as error:
            raise ValueError(
                f"{called} is damaged or truncated ({error}), expected a tar archive."
            ) from error
        while bounded.read(2**16):  # to the end, where gzip keeps its checksum
            pass
    if not wavs:
        raise ValueError(f"{called} holds no recordings, expected recordings/*.wav.")
    recordings = sorted(
        (_recording(f"{called}, {name}", name, data) for name, data in wavs.items()),
        key=lambda r: r[:3],
    )
    rates = {r.rate for r in recordings}
    if len(rates) > 1:
        raise ValueError(f"{called} mixes the rates {sorted(rates)} Hz, expected one.")
    listing = "".join(f"{hashlib.sha256(wavs[n]).hexdigest()}  {n}\n" for n in sorted(wavs))
    check_sha256(called, hashlib.sha256(listing.encode()).hexdigest(), checksum)
    return recordings


def read_wav(data: bytes, called: str) -> tuple[int, Float32[np.ndarray, " n"]]:
    """Returns rate [Hz] and samples in [-1, 1) of a WAV file: one channel, 8 or 16 bit PCM.

    Raises:
        ValueError: another format, no samples, or fewer than the header says.
    """
    try:
        with wave.open(io.BytesIO(data)) as wav:
            channels, width, rate, count = wav.getparams()[:4]
            frames = wav.readframes(count)
    except (wave.Error, EOFError) as error:
        raise ValueError(f"{called} is not a WAV file of PCM samples ({error}).") from error
    if channels != 1 or width not in (1, 2) or not 200 <= rate <= 192_000:
        raise ValueError(
            f"{called} has {channels} channels of {8 * width} bit at {rate} Hz, expected one "
            "channel of 8 or 16 bit at 200 to 192,000 Hz."
        )
    if count == 0 or len(frames) != count * width:
        raise ValueError(
            f"{called} is empty or truncated: it holds {len(frames) // width:,} samples, expected "
            f"{max(1, count):,}."
        )
    if width == 1:
        return rate, (np.frombuffer(frames, np.uint8).astype(np.float32) - 128) / 128
    return rate, np.frombuffer(frames, "<i2").astype(np.float32) / 32768


def _recording(called: str, name: str, data: bytes) -> Recording:
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{called}: expected a name such as 7_jackson_32.wav.")
    digit, speaker, number = match.groups()
    return Recording(int(number), int(digit), speaker, *read_wav(data, called))


def _check_member(called: str, member: tarfile.TarInfo) -> None:
    """Refuses what an honest archive does not hold, though nothing is ever written to disk."""
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts:
        raise ValueError(
            f"{called} holds the member {member.name!r}, expected names inside the archive."
        )
    if not (member.isfile() or member.isdir()):
        raise ValueError(
            f"{called} holds {member.name!r}, which is a link or device, expected files and "
            "folders only."
        )
    if name.suffix == ".wav" and member.size > _LARGEST_RECORDING:
        raise ValueError(
            f"{called} holds {member.name!r} of {member.size:,} bytes, expected at most "
            f"{_LARGEST_RECORDING:,}."
        )


class _Bounded:
    """A stream that refuses to be read beyond the size of any honest archive."""

    def __init__(self, stream: Readable, called: str):
        self.stream, self.called, self.done = stream, called, 0

    def read(self, size: int) -> bytes:
        data = self.stream.read(size)
        self.done += len(data)
        if self.done > _LARGEST_ARCHIVE:
            raise ValueError(
                f"{self.called} unpacks to more than {_LARGEST_ARCHIVE:,} bytes, expected less."
            )
        return data

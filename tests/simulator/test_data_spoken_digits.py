"""Spoken digits: WAV and tar from bytes made here, hostile archives, the real recordings."""

import gzip
import hashlib
import io
import struct
import tarfile
import wave
from pathlib import Path

import numpy as np
import pytest

from spikebit.simulator.data import load, spoken_digits
from spikebit.simulator.data.files import DataFile
from spikebit.simulator.data.mel import log_mel
from spikebit.simulator.data.spoken_digits import read_recordings, read_wav

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the data in ../shared/data")


def wav_bytes(samples=b"\x00\x01" * 800, width=2, rate=8000, channels=1):
    out = io.BytesIO()
    with wave.open(out, "wb") as wav:
        wav.setnchannels(channels)
        wav.setsampwidth(width)
        wav.setframerate(rate)
        wav.writeframes(samples)
    return out.getvalue()


def tar_bytes(members, pack=gzip.compress):
    """Archive of (name, content) pairs; content may be a ready TarInfo."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in members:
            if isinstance(content, tarfile.TarInfo):
                content.name = name
                archive.addfile(content)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return pack(out.getvalue())


def special(kind, target=""):
    info = tarfile.TarInfo()
    info.type, info.linkname = kind, target
    return info


GOOD = [("recordings/3_ann_7.wav", wav_bytes())]


def read(tmp_path, content):
    path = tmp_path / "fsdd.tar.gz"
    path.write_bytes(content)
    return read_recordings(path)


def test_wav_8_and_16_bit_by_hand():
    rate, samples = read_wav(wav_bytes(struct.pack("<4h", 0, 16384, -32768, 1)), "x.wav")
    assert rate == 8000
    assert samples.tolist() == [0, 0.5, -1, 2**-15]
    rate, samples = read_wav(wav_bytes(bytes([128, 192, 0, 129]), width=1, rate=11025), "x.wav")
    assert rate == 11025
    assert samples.tolist() == [0, 0.5, -1, 2**-7]


good = wav_bytes()
BAD_WAV = {
    "stereo": (wav_bytes(channels=2), "has 2 channels of 16 bit at 8000 Hz, expected one"),
    "24 bit": (wav_bytes(b"\x00" * 300, width=3), "1 channels of 24 bit"),
    "float": (good[:20] + b"\x03\x00" + good[22:], "is not a WAV file"),
    "no samples": (wav_bytes(b""), "holds 0 samples, expected 1"),
    "body cut": (good[:-100], "truncated: it holds 750 samples, expected 800"),
    "header cut": (good[:30], "is not a WAV file"),
    "empty": (b"", "is not a WAV file"),
    "not WAV": (b"something else entirely", "is not a WAV file"),
    "rate 0": (good[:24] + bytes(4) + good[28:], "at 0 Hz|is not a WAV file"),
    "rate": (
        good[:24] + b"\xff" * 4 + good[28:],
        "at 4294967295 Hz, expected .* 200 to 192,000 Hz",
    ),
}


@pytest.mark.parametrize("name", BAD_WAV)
def test_bad_wav_names_archive_and_recording(tmp_path, name):
    content, message = BAD_WAV[name]
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path, tar_bytes([*GOOD, ("recordings/1_bob_0.wav", content)]))
    assert str(tmp_path / "fsdd.tar.gz") + ", 1_bob_0.wav" in str(caught.value)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_archive_is_read_in_order_of_number_and_digit(tmp_path, pack):
    names = ["2_ann_0.wav", "0_bob_10.wav", "0_ann_2.wav", "1_ann_2.wav"]
    members = [(f"set-1.0/recordings/{name}", wav_bytes()) for name in names]
    members += [("set-1.0/README.md", b"text"), ("set-1.0/utils", special(tarfile.DIRTYPE))]
    recordings = read(tmp_path, tar_bytes(members, pack))
    found = [(r.number, r.digit, r.speaker) for r in recordings]
    assert found == [(0, 2, "ann"), (2, 0, "ann"), (2, 1, "ann"), (10, 0, "bob")]
    assert recordings[0].samples.shape == (800,)


packed = tar_bytes(GOOD)
plain = tar_bytes(GOOD, bytes)
BAD_TAR = {
    "parent": (tar_bytes([("../evil.wav", good)]), "holds the member '../evil.wav', expected"),
    "inner parent": (tar_bytes([("a/../../evil", b"x")]), "expected names inside the archive"),
    "absolute": (tar_bytes([("/tmp/evil.wav", good)]), "'/tmp/evil.wav', expected names inside"),
    "symlink": (
        tar_bytes([("recordings/1_a_1.wav", special(tarfile.SYMTYPE, "/etc/passwd"))]),
        "1_a_1.wav', which is a link or device",
    ),
    "hard link": (tar_bytes([*GOOD, ("x", special(tarfile.LNKTYPE, "y"))]), "'x', which is a link"),
    "device": (tar_bytes([("null", special(tarfile.CHRTYPE))]), "'null', which is a"),
    "pipe": (tar_bytes([("pipe", special(tarfile.FIFOTYPE))]), "'pipe', which is a link or device"),
    "large": (
        tar_bytes([("recordings/1_a_1.wav", bytes(2**22 + 1))]),
        "1_a_1.wav' of 4,194,305 bytes, expected at most 4,194,304",
    ),
    "twice": (tar_bytes(GOOD * 2), "holds 3_ann_7.wav twice"),
    "name": (tar_bytes([("recordings/hello.wav", good)]), "hello.wav: expected a name such"),
    "digit": (tar_bytes([("recordings/11_ann_0.wav", good)]), "expected a name such as"),
    "rates": (
        tar_bytes([*GOOD, ("recordings/1_a_1.wav", wav_bytes(rate=16000))]),
        r"mixes the rates \[8000, 16000\] Hz",
    ),
    "none": (tar_bytes([("README.md", b"text")]), "holds no recordings"),
    "empty": (b"", r"is empty \(0 bytes\)"),
    "not tar": (gzip.compress(b"not an archive" * 99), "expected a tar archive"),
    "gzip cut": (packed[: len(packed) // 2], "is truncated"),
    "gzip end cut": (packed[:-3], "is truncated"),
    "gzip crc": (packed[:-8] + bytes([packed[-8] ^ 1]) + packed[-7:], "damaged.*CRC"),
    "tar header cut": (plain[:300], "damaged or truncated"),
    "tar body cut": (plain[:900], "damaged or truncated"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_TAR)
def test_bad_archive_is_refused_and_writes_nothing(tmp_path, monkeypatch, name):
    content, message = BAD_TAR[name]
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    with pytest.raises(ValueError, match=message) as caught:
        read(inside, content)
    assert str(inside / "fsdd.tar.gz") in str(caught.value)
    assert "\n" not in str(caught.value)
    everything = [path for path in tmp_path.rglob("*") if path.is_file() or path.is_symlink()]
    assert everything == [inside / "fsdd.tar.gz"]


@pytest.mark.parametrize("where", ["member", "after the end"])
def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch, where):
    monkeypatch.setattr(spoken_digits, "_LARGEST_ARCHIVE", 2**20)
    if where == "member":
        content = tar_bytes([("big", bytes(2**22)), *GOOD])
    else:
        content = gzip.compress(plain + bytes(2**22))
    with pytest.raises(ValueError, match=r"unpacks to more than 1,048,576 bytes"):
        read(tmp_path, content)


def test_a_folder_and_a_missing_archive(tmp_path):
    with pytest.raises(ValueError, match=r"is a folder"):
        read_recordings(tmp_path)
    with pytest.raises(ValueError, match=r"No such file"):
        read_recordings(tmp_path / "absent")


def small_archive(folder, monkeypatch):
    """Two digits, three recordings each, of growing length; and their checksum."""
    rng = np.random.default_rng(3)
    wavs = {
        f"{digit}_ann_{n}.wav": wav_bytes(rng.bytes(2 * (400 + 160 * i)))
        for i, (digit, n) in enumerate((d, n) for d in (4, 9) for n in (0, 4, 5))
    }
    members = [(f"recordings/{name}", content) for name, content in wavs.items()]
    (folder / "fsdd-recordings.tar.gz").write_bytes(tar_bytes(members))
    lines = [f"{hashlib.sha256(wavs[name]).hexdigest()}  {name}\n" for name in sorted(wavs)]
    checksum = hashlib.sha256("".join(lines).encode()).hexdigest()
    file = DataFile("fsdd-recordings.tar.gz", "fsdd", checksum, ())
    monkeypatch.setattr(spoken_digits, "RECORDINGS", file)
    return wavs


def test_load_small_archive(tmp_path, monkeypatch):
    wavs = small_archive(tmp_path, monkeypatch)
    data = load("spoken_digits", tmp_path, n_mels=12)
    assert data.kind == "sequence"
    # 25 ms windows every 10 ms at 8 kHz: 1 + (samples - 200) // 80
    frames = {name: 1 + ((len(w) - 44) // 2 - 200) // 80 for name, w in wavs.items()}
    assert data.sample_shape == (max(frames.values()), 12)
    np.testing.assert_array_equal(data.train.targets, [4, 9])
    np.testing.assert_array_equal(data.test.targets, [4, 9, 4, 9])  # 4_0, 9_0, 4_4, 9_4
    names = ["4_ann_0.wav", "9_ann_0.wav", "4_ann_4.wav", "9_ann_4.wav"]
    np.testing.assert_array_equal(data.test.lengths, [frames[name] for name in names])
    samples = np.frombuffer(wavs["4_ann_4.wav"][44:], "<i2") / np.float32(32768)
    n = frames["4_ann_4.wav"]
    np.testing.assert_array_equal(data.test.inputs[2, :n], log_mel(samples, 8000, 12))
    assert not data.test.inputs[2, n:].any()

    spikes = load("spoken_digits", tmp_path, n_mels=12, features="delta", threshold=0.05)
    assert spikes.sample_shape == (max(frames.values()), 24)
    assert set(np.unique(spikes.train.inputs)) == {0, 1}
    np.testing.assert_array_equal(spikes.test.lengths, data.test.lengths)
    assert not spikes.test.inputs[2, n:].any()


def test_a_changed_recording_is_noticed(tmp_path, monkeypatch):
    wavs = small_archive(tmp_path, monkeypatch)
    wavs["9_ann_5.wav"] = wavs["9_ann_5.wav"][:-1] + b"\x55"
    members = [(f"recordings/{name}", content) for name, content in wavs.items()]
    (tmp_path / "fsdd-recordings.tar.gz").write_bytes(tar_bytes(members))
    with pytest.raises(ValueError, match=r"fsdd-recordings.tar.gz has a wrong checksum"):
        load("spoken_digits", tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_mels": 0}, "n_mels=0, expected at least 1"),
        ({"threshold": 0.0}, r"threshold=0.0, expected a number in \(0, 1\]"),
        ({"threshold": float("nan")}, "threshold=nan"),
    ],
)
def test_bad_options(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        load("spoken_digits", tmp_path, **options)
    with pytest.raises(ValueError, match=r"features='mfcc', expected 'mel' or 'delta'"):
        spoken_digits.spoken_digits.__wrapped__(None, features="mfcc")  # past the type check


@needs_shared
def test_real_recordings():
    data = load("spoken_digits", data_dir=SHARED, n_mels=20)
    np.testing.assert_array_equal(np.bincount(data.train.targets), [270] * 10)
    np.testing.assert_array_equal(np.bincount(data.test.targets), [30] * 10)
    with tarfile.open(SHARED / "fsdd" / "fsdd-recordings.tar.gz") as archive:
        sizes = {Path(m.name).name: m.size for m in archive if m.isfile()}
    frames = [1 + ((size - 44) // 2 - 200) // 80 for size in sizes.values()]
    lengths = np.concatenate([data.train.lengths, data.test.lengths])
    np.testing.assert_array_equal(np.sort(lengths), np.sort(frames))
    for split in (data.train, data.test):
        assert split.inputs.min() == 0
        np.testing.assert_array_equal(split.inputs.max((1, 2)), 1)  # each has its loudest band

    # what a linear reading of five stretches tells apart: the labels belong to the sounds
    def stretches(split):
        rows = (
            np.concatenate([part.mean(0) for part in np.array_split(x[:n], 5)] + [[1]])
            for x, n in zip(split.inputs, split.lengths, strict=True)
        )
        return np.stack(list(rows))

    x = stretches(data.train)
    w = np.linalg.lstsq(x, np.eye(10)[data.train.targets], rcond=None)[0]
    assert ((stretches(data.test) @ w).argmax(1) == data.test.targets).mean() > 0.8

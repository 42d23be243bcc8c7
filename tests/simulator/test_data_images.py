"""Image data sets: the embedded sample, the full sets under ../shared, and files made here."""

import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest

from spikebit.simulator.data import images, load, make_sample
from spikebit.simulator.data.files import DataFile, Source, sha256
from spikebit.simulator.data.images import FASHION_MNIST, MNIST, PARTS, SAMPLE_FOLDER, read_split

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the data in ../shared/data")


@pytest.fixture(autouse=True)
def isolated(tmp_path, monkeypatch):
    """No file of this user and no network."""

    def no_network(*args, **kwargs):
        raise OSError("no network in tests")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("SPIKEBIT_DATA", raising=False)
    monkeypatch.setattr("urllib.request.urlopen", no_network)


def idx_bytes(array):
    return struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def reference_read(path):
    """IDX by numpy alone: the sizes of these files are known."""
    content = gzip.decompress(path.read_bytes())
    if "idx3" in path.name:
        return np.frombuffer(content, np.uint8, offset=16).reshape(-1, 784)
    return np.frombuffer(content, np.uint8, offset=8)


def test_sample_is_balanced_in_range_and_small():
    data = load("fashion_mnist_sample")
    assert data.kind == "image"
    assert data.sample_shape == (784,)
    assert data.classes[9] == "Ankle boot"
    for split, n in ((data.train, 600), (data.test, 100)):
        np.testing.assert_array_equal(np.bincount(split.targets), [n] * 10)
        assert split.inputs.dtype == np.float32
        assert split.inputs.min() == 0
        assert split.inputs.max() == 1
        assert split.lengths is None
        steps = split.inputs * 255
        np.testing.assert_allclose(steps, np.round(steps), atol=255 * 2**-23)
    assert len(np.unique(data.train.inputs, axis=0)) == 6000
    size = sum(path.stat().st_size for path in SAMPLE_FOLDER.iterdir())
    assert size <= 3_000_000
    assert "MIT License" in (SAMPLE_FOLDER / "LICENSE.txt").read_text()


def test_a_changed_sample_is_noticed(tmp_path, monkeypatch):
    for path in SAMPLE_FOLDER.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    labels = idx_bytes(np.arange(10, dtype=np.uint8).repeat(100))
    (tmp_path / "t10k-labels-idx1-ubyte.xz").write_bytes(labels)
    monkeypatch.setattr(images, "SAMPLE_FOLDER", tmp_path)
    with pytest.raises(
        ValueError, match=f"t10k-labels.*wrong checksum.*{sha256(labels)}, expected"
    ):
        load("fashion_mnist_sample")


@needs_shared
def test_sample_images_occur_in_the_full_set_with_their_label():
    sample = load("fashion_mnist_sample")
    for name, split in (("train", sample.train), ("t10k", sample.test)):
        pixels = reference_read(SHARED / "fashion-mnist" / f"{name}-images-idx3-ubyte.gz")
        labels = reference_read(SHARED / "fashion-mnist" / f"{name}-labels-idx1-ubyte.gz")
        full = {(p.tobytes(), label) for p, label in zip(pixels, labels.tolist(), strict=True)}
        ours = np.round(split.inputs * 255).astype(np.uint8)
        pairs = zip(ours, split.targets.tolist(), strict=True)
        assert all((p.tobytes(), label) in full for p, label in pairs)


@needs_shared
def test_the_sample_can_be_made_again():
    """`choose` finds the very images again; that packing works is tested on a small set below."""
    pixels, labels = (images.read_file(Source(SHARED), file) for file in FASHION_MNIST[2:])
    chosen = make_sample.choose(pixels, labels, make_sample.PER_CLASS["t10k"])
    sample = load("fashion_mnist_sample").test
    np.testing.assert_array_equal(sample.targets, labels[chosen])
    np.testing.assert_array_equal(np.round(sample.inputs * 255), pixels[chosen].reshape(-1, 784))


def small_set(n, seed, classes=3):
    rng = np.random.default_rng(seed)
    return (
        rng.integers(0, 256, (n, 5, 4), dtype=np.uint8),
        (np.arange(n) % classes).astype(np.uint8),
    )


def write_small(folder, monkeypatch, which="FASHION_MNIST"):
    """Puts a small set in the place of a published one, and its checksums in place of theirs."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = [*small_set(30, 0), *small_set(12, 1)]
    files = []
    for part, array, file in zip(PARTS, arrays, getattr(images, which), strict=True):
        content = idx_bytes(array)
        (folder / f"{part}.gz").write_bytes(gzip.compress(content))
        files.append(DataFile(f"{part}.gz", file.folder, sha256(content), ()))
    monkeypatch.setattr(images, which, tuple(files))
    monkeypatch.setattr(make_sample, which, tuple(files), raising=False)
    return arrays


def test_make_sample_on_a_small_set(tmp_path, monkeypatch):
    arrays = write_small(tmp_path / "fashion-mnist", monkeypatch)
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr(make_sample, "PER_CLASS", {"train": 4, "t10k": 2})
    make_sample.make_sample(Source(tmp_path), out)
    for part, n, (pixels, labels) in (("train", 4, arrays[:2]), ("t10k", 2, arrays[2:])):
        names = [out / f"{part}-{what}-ubyte.xz" for what in ("images-idx3", "labels-idx1")]
        split = read_split(*names)
        keys = [hashlib.sha256(make_sample.SEED + image.tobytes()).hexdigest() for image in pixels]
        chosen = [sorted((keys[i], i) for i in np.flatnonzero(labels == c))[:n] for c in range(3)]
        places = sorted(i for rank in chosen for _, i in rank)  # in the order of the full set
        np.testing.assert_array_equal(split.targets, labels[places])
        np.testing.assert_array_equal(np.round(split.inputs * 255), pixels[places].reshape(-1, 20))


@pytest.mark.parametrize("sub", ["", "fashion-mnist"])
@pytest.mark.parametrize("how", ["data_dir", "SPIKEBIT_DATA", "cache"])
@pytest.mark.parametrize("packed", [True, False])
def test_full_set_is_found_in_every_place(tmp_path, monkeypatch, sub, how, packed):
    place = tmp_path / "cache" / "spikebit" if how == "cache" else tmp_path / "here"
    pixels, labels, _, test_labels = write_small(place / sub, monkeypatch)
    if not packed:
        for path in list((place / sub).iterdir()):
            path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
            path.unlink()
    if how == "SPIKEBIT_DATA":
        monkeypatch.setenv("SPIKEBIT_DATA", str(place))
    data = load("fashion_mnist", data_dir=place if how == "data_dir" else None)
    np.testing.assert_array_equal(data.train.inputs, pixels.reshape(30, 20) / np.float32(255))
    np.testing.assert_array_equal(data.train.targets, labels)
    np.testing.assert_array_equal(data.test.targets, test_labels)


def test_mnist_full_set_wins_over_the_test_split(tmp_path, monkeypatch):
    write_small(tmp_path / "mnist", monkeypatch, "MNIST")
    data = load("mnist", data_dir=tmp_path)
    assert (len(data.train.inputs), len(data.test.inputs), data.note) == (30, 12, "")
    (tmp_path / "mnist" / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte.gz was not found"):
        load("mnist", data_dir=tmp_path)


@needs_shared
def test_mnist_test_split_alone():
    data = load("mnist", data_dir=SHARED)
    pixels = reference_read(SHARED / "mnist" / MNIST[2].name)
    labels = reference_read(SHARED / "mnist" / MNIST[3].name)
    ours = np.concatenate([data.train.inputs, data.test.inputs])
    np.testing.assert_array_equal(np.round(ours * 255).astype(np.uint8), pixels)
    np.testing.assert_array_equal(np.concatenate([data.train.targets, data.test.targets]), labels)
    assert len(data.train.inputs) == 8000
    assert "only the test split" in data.describe()


def test_mnist_test_split_alone_is_split_in_order(tmp_path, monkeypatch):
    pixels = np.zeros((10000, 1, 1), np.uint8)
    labels = (np.arange(10000) % 7).astype(np.uint8)
    files = list(MNIST)
    for i, array in ((2, pixels), (3, labels)):
        content = idx_bytes(array)
        (tmp_path / MNIST[i].name).write_bytes(content)
        files[i] = DataFile(MNIST[i].name, "mnist", sha256(content), ())
    monkeypatch.setattr(images, "MNIST", tuple(files))
    data = load("mnist", data_dir=tmp_path)
    np.testing.assert_array_equal(data.train.targets, labels[:8000])
    np.testing.assert_array_equal(data.test.targets, labels[8000:])


@needs_shared
def test_fashion_mnist_full_set():
    data = load("fashion_mnist", data_dir=SHARED / "fashion-mnist")
    np.testing.assert_array_equal(np.bincount(data.train.targets), [6000] * 10)
    np.testing.assert_array_equal(np.bincount(data.test.targets), [1000] * 10)
    assert data.train.inputs.shape == (60000, 784)


def test_another_set_under_the_name_is_refused(tmp_path, monkeypatch):
    write_small(tmp_path, monkeypatch, "MNIST")  # a whole and sound set, but not Fashion-MNIST
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte.gz has a wrong checksum"):
        load("fashion_mnist", data_dir=tmp_path)


def test_label_and_count_errors(tmp_path):
    pixels, labels = small_set(6, 2)
    (tmp_path / "images").write_bytes(idx_bytes(pixels))
    (tmp_path / "labels").write_bytes(gzip.compress(idx_bytes(labels)))
    split = read_split(tmp_path / "images", tmp_path / "labels", classes=3)
    assert split.inputs.shape == (6, 20)
    with pytest.raises(ValueError, match=r"labels has the value 2 .* expected 0 to 1"):
        read_split(tmp_path / "images", tmp_path / "labels", classes=2)
    (tmp_path / "labels").write_bytes(idx_bytes(labels[:5]))
    with pytest.raises(ValueError, match=r"labels has 5 labels, expected 6, one for each .*images"):
        read_split(tmp_path / "images", tmp_path / "labels")


def test_label_11_of_a_named_set(tmp_path, monkeypatch):
    write_small(tmp_path, monkeypatch)
    bad = np.array([0, 11], np.uint8)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(bad)))
    with pytest.raises(ValueError, match=r"train-labels.* value 11 .*item 1.*, expected 0 to 9"):
        load("fashion_mnist", data_dir=tmp_path)

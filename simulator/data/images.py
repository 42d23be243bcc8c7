"""Image data sets in IDX files: Fashion-MNIST, its embedded sample, and MNIST.

Images come as vectors of pixels in [0, 1].
"""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from .dataset import Dataset, Split
from .files import DataFile, Source
from .idx import read_idx

DIGITS = tuple("0123456789")
CLOTHES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
PARTS = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte",
         "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")  # fmt: skip
SAMPLE_FOLDER = Path(__file__).parent / "fashion-mnist-sample"
SAMPLE_SHA256 = (
    "4693d2972b214297cc18b3b305658a7f1734e17d3b4936b4b527582679e90ccb",
    "920b72e305878aa46c74c3761e5ef91d9bb12a756b10c4d5dcfdad02854bcfc0",
    "4f5163e5caedc6d69844b0cbb94fad6425ff331d7931d4be23d088f010673ee9",
    "bc902a5fb022c935c8959bf56b47a4d2af237cd38a3fdcb90c918cfaab2e0ddf",
)


def _files(folder: str, checksums: tuple[str, ...], homes: tuple[str, ...]) -> tuple[DataFile, ...]:
    return tuple(
        DataFile(f"{part}.gz", folder, checksum, tuple(f"{home}/{part}.gz" for home in homes))
        for part, checksum in zip(PARTS, checksums, strict=True)
    )


FASHION_MNIST = _files(
    "fashion-mnist",
    (
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
    (
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
    ),
)
MNIST = _files(
    "mnist",
    (
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
    (
        "https://ossci-datasets.s3.amazonaws.com/mnist",
        "https://storage.googleapis.com/cvdf-datasets/mnist",
    ),
)


def fashion_mnist_sample(source: Source) -> Dataset:
    """Loads 6,000 + 1,000 images of Fashion-MNIST that come with the package, 10 classes alike.

    The train images are from the train split, the test images from the test split;
    `make_sample` made the files. Reads nothing from `source`.

    References:
        Fashion-MNIST: a novel image dataset for benchmarking machine learning algorithms,
        arXiv:1708.07747 (MIT licence).
    """
    paths = [SAMPLE_FOLDER / f"{part}.xz" for part in PARTS]
    names = [str(path) for path in paths]
    arrays = [_read(*args) for args in zip(paths, names, PARTS, SAMPLE_SHA256, strict=True)]
    return _dataset("fashion_mnist_sample", arrays, names, CLOTHES)


def fashion_mnist(source: Source) -> Dataset:
    """Loads the 60,000 + 10,000 images of Fashion-MNIST.

    References:
        Fashion-MNIST: a novel image dataset for benchmarking machine learning algorithms,
        arXiv:1708.07747 (MIT licence).
    """
    arrays = [read_file(source, file) for file in FASHION_MNIST]
    return _dataset("fashion_mnist", arrays, [file.name for file in FASHION_MNIST], CLOTHES)


def mnist(source: Source) -> Dataset:
    """Loads the 60,000 + 10,000 handwritten digits of MNIST, or 8,000 + 2,000 of its test split.

    Where only the test split is found, its first 8,000 images are for training and its last 2,000
    for testing (contiguous, so that hardly any writer is in both); `note` says so. Nothing is
    downloaded then: whether there is a network does not change the data.

    References:
        Gradient-based learning applied to document recognition, Proceedings of the IEEE 86 (1998).
    """
    names = [file.name for file in MNIST]
    here = [source.find(file) is not None for file in MNIST]
    if here != [False, False, True, True]:
        return _dataset("mnist", [read_file(source, file) for file in MNIST], names, DIGITS)
    images, labels = (read_file(source, file) for file in MNIST[2:])
    arrays = [images[:8000], labels[:8000], images[8000:], labels[8000:]]
    note = "only the test split was found: its first 8,000 images train, its last 2,000 test"
    return _dataset("mnist", arrays, names[2:] * 2, DIGITS, note)


def read_split(images: Path, labels: Path, classes: int = 10) -> Split:
    """Reads image and label files in IDX format, such as ones of your own.

    Args:
        images: file of images, (n, height, width) bytes; plain, gzip or xz.
        labels: file of n class numbers.
        classes: number of classes.

    Raises:
        ValueError: a damaged file, a label out of range, or unequal numbers.
    """
    pixels, numbers = read_idx(images, 3), read_idx(labels, 1, highest=classes - 1)
    return _split(pixels, numbers, str(images), str(labels))


def read_file(source: Source, file: DataFile) -> UInt8[np.ndarray, "n *size"]:
    """Reads a published file of images or labels and compares its checksum."""
    return source.read(file, lambda path, called: _read(path, called, file.name, file.sha256))


def _read(path: Path, called: str, part: str, checksum: str) -> UInt8[np.ndarray, "n *size"]:
    if "images" in part:
        return read_idx(path, 3, checksum=checksum, called=called)
    return read_idx(path, 1, highest=9, checksum=checksum, called=called)


def _dataset(name, arrays, names, classes, note: str = "") -> Dataset:
    train = _split(*arrays[:2], *names[:2])
    test = _split(*arrays[2:], *names[2:])
    return Dataset(name, train, test, classes, "image", note=note)


def _split(
    images: UInt8[np.ndarray, "n height width"],
    labels: UInt8[np.ndarray, " m"],
    images_called: str,
    labels_called: str,
) -> Split:
    """Makes vectors in [0, 1] and class numbers, one for each image."""
    if len(images) != len(labels):
        raise ValueError(
            f"{labels_called} has {len(labels):,} labels, expected {len(images):,}, one for each "
            f"image of {images_called}."
        )
    pixels = images.reshape(len(images), -1).astype(np.float32)
    pixels /= 255
    return Split(pixels, labels.astype(np.int32))

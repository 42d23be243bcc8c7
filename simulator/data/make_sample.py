"""Makes the embedded sample of Fashion-MNIST: `python -m spikebit.simulator.data.make_sample DIR`.

DIR holds the full set. The files are IDX, packed with xz, in the order of the full set.
"""

import hashlib
import lzma
import sys
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from .files import Source
from .idx import write_idx
from .images import FASHION_MNIST, PARTS, SAMPLE_FOLDER, read_file

SEED = b"spikebit sample 1"
PER_CLASS = {"train": 600, "t10k": 100}


def choose(
    images: UInt8[np.ndarray, "n height width"], labels: UInt8[np.ndarray, " n"], per_class: int
) -> Int[np.ndarray, " chosen"]:
    """Returns the places of `per_class` images of each class, in rising order.

    Chosen are those whose SHA-256, of seed and pixels, is smallest: any machine and any version of
    any library chooses the same ones.
    """
    keys = [hashlib.sha256(SEED + image.tobytes()).digest() for image in images]
    ranked = sorted(range(len(keys)), key=keys.__getitem__)
    chosen = [[i for i in ranked if labels[i] == c][:per_class] for c in range(labels.max() + 1)]
    return np.sort(np.concatenate(chosen))


def make_sample(source: Source, folder: Path) -> None:
    """Writes the four files of the sample into a folder that exists.

    Raises:
        ValueError: the full set is not found.
    """
    for split, per_class in PER_CLASS.items():
        names = [part for part in PARTS if part.startswith(split)]
        files = [file for file in FASHION_MNIST if file.name.startswith(split)]
        images, labels = (read_file(source, file) for file in files)
        chosen = choose(images, labels, per_class)
        for name, array in zip(names, (images, labels), strict=True):
            with lzma.open(folder / f"{name}.xz", "wb", preset=9 | lzma.PRESET_EXTREME) as out:
                write_idx(out, array[chosen])


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    make_sample(Source(sys.argv[1]), SAMPLE_FOLDER)

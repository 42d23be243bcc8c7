"""The data sets by name: `load`."""

import inspect
import os
from collections.abc import Callable

from . import characters, images, jsb, spoken_digits
from .dataset import Dataset
from .files import Progress, Source

LOADERS: dict[str, Callable[..., Dataset]] = {
    "fashion_mnist_sample": images.fashion_mnist_sample,
    "fashion_mnist": images.fashion_mnist,
    "mnist": images.mnist,
    "spoken_digits": spoken_digits.spoken_digits,
    "jsb": jsb.jsb,
    "characters": characters.characters,
}


def load(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    download: bool = True,
    progress: Progress | None = None,
    **options,
) -> Dataset:
    """Loads a data set by name.

    - "fashion_mnist_sample": 6,000 + 1,000 images of clothes; comes with the package.
    - "fashion_mnist": 60,000 + 10,000 of them.
    - "mnist": 60,000 + 10,000 handwritten digits; of its test split alone 8,000 + 2,000.
    - "spoken_digits": 2,700 + 300 recordings. Options: features="mel" or "delta", n_mels,
      threshold.
    - "jsb": 229 + 77 (+ 76 valid) chorales. Option: resolution="quarter" or "16th".
    - "characters": a text of Shakespeare in sequences of 64. Option: length, of a sequence.

    Files are looked for in `data_dir`, in the folder that the environment variable SPIKEBIT_DATA
    names, and in the user's cache, in each of them in the sub-folder of the data set
    (fashion-mnist, mnist, fsdd, jsb, text) and directly. What is in none of them is downloaded from
    its public home into the cache. Every file is compared with the checksum of the published one;
    for data of your own see `images.read_split` and `characters.of_text` of this folder.

    Args:
        name: one of the above.
        data_dir: folder of data files.
        download: whether missing files may be downloaded.
        progress: called as `progress(file name, bytes so far, bytes in all or None)` during a
            download.
        **options: of the data set.

    Raises:
        ValueError: an unknown name or option; a missing, damaged or cut-off file; a wrong checksum.

    >>> load("fashion_mnist_sample").describe()
    'fashion_mnist_sample: 6,000 train + 1,000 test samples of shape (784,), 10 classes'
    """
    if name not in LOADERS:
        raise ValueError(f"load: no data set is called {name!r}; there are {', '.join(LOADERS)}.")
    loader = LOADERS[name]
    allowed = [o for o in inspect.signature(loader).parameters if o != "source"]
    for option in options:
        if option not in allowed:
            raise ValueError(
                f"load: {name} has no option {option!r}; it has {', '.join(allowed) or 'none'}."
            )
    return loader(Source(data_dir, download, progress), **options)

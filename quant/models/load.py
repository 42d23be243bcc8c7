"""A model and its tokenizer from a path, whatever the layout of its files.

Which layout it is is decided here; what is in the files stands in `huggingface` and `llama2c`.
"""

from pathlib import Path

import jax.numpy as jnp
from jax.typing import DTypeLike

from . import huggingface, llama2c
from .decoder import Decoder
from .encoder import Encoder
from .huggingface import HuggingFaceTokenizer
from .llama2c import Llama2cTokenizer

Tokenizer = HuggingFaceTokenizer | Llama2cTokenizer


def load(path: str | Path, dtype: DTypeLike = jnp.float32) -> Decoder | Encoder:
    """The model of a folder of Hugging Face's layout, of a llama2.c file, or of a folder with one.

    Args:
        path: of the folder or file.
        dtype: of all arrays; llama2.c files are float32.

    Raises:
        ValueError: nothing that is known is there, an architecture that is not supported, or files
            that do not fit together.
    """
    weights = _llama2c_weights(Path(path))
    return huggingface.load(path, dtype) if weights is None else llama2c.read(weights)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer beside the model of a path.

    Raises:
        ValueError: none is there, or it is not that of the model.
    """
    weights = _llama2c_weights(Path(path))
    if weights is None:
        return HuggingFaceTokenizer(Path(path))
    found = sorted(weights.parent.glob("tok*.bin"))
    if not found:
        raise ValueError(f"{weights.parent}: no tok*.bin beside {weights.name}.")
    return Llama2cTokenizer(found[0], llama2c.vocabulary(weights))


def _llama2c_weights(path: Path) -> Path | None:
    if path.is_file():
        return path
    if not path.is_dir():
        raise ValueError(f"{path}: no such folder or file.")
    if (path / "config.json").exists():
        return None
    found = [p for p in sorted(path.glob("*.bin")) if not p.name.startswith("tok")]
    return found[0] if found else None

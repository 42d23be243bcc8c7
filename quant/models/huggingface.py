"""Checkpoints in the layout of Hugging Face: config.json, *.safetensors, tokenizer.json.

Tensors are read from the mapped files one by one, as they are asked for. What a model is made of
stands with its family (`decoder`, `encoder`).
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array

from . import decoder, encoder
from .decoder import Decoder, decoder_config
from .encoder import Encoder, encoder_config

_CONFIG, _INDEX, _SINGLE = "config.json", "model.safetensors.index.json", "model.safetensors"


class Checkpoint:
    """The tensors of a folder, by name; nothing is read before it is asked for.

    Attributes:
        folder: where.
        config: what config.json says.
        names: of all tensors.
    """

    def __init__(self, folder: Path):
        """Opens the files.

        Raises:
            ValueError: a file that is missing, cut short, or not what its name says.
        """
        self.folder = folder
        self.config: dict[str, Any] = _json(folder / _CONFIG)
        files = {name: self._open(folder / name) for name in self._files()}
        self._where = {tensor: file for file in files.values() for tensor in file.keys()}
        self.names: Sequence[str] = tuple(sorted(self._where))

    def _files(self) -> list[str]:
        if (self.folder / _INDEX).exists():
            index = _json(self.folder / _INDEX)
            names = sorted(set(index.get("weight_map", {}).values()))
            outside = [n for n in names if Path(n).name != n]
            if outside:
                raise ValueError(
                    f"{self.folder / _INDEX}: {outside[0]!r} is outside of its folder."
                )
            return names
        found = sorted(p.name for p in self.folder.glob("*.safetensors"))
        if not found:
            raise ValueError(f"{self.folder}: no file ends in .safetensors.")
        return [_SINGLE] if _SINGLE in found else found

    @staticmethod
    def _open(path: Path) -> Any:
        from safetensors import SafetensorError, safe_open

        try:
            return safe_open(path, framework="flax")
        except FileNotFoundError:
            raise ValueError(f"{path}: the index names it, but it is not there.") from None
        except SafetensorError as error:
            raise ValueError(f"{path}: no whole safetensors file ({error}).") from None

    def get(self, name: str, shape: tuple[int, ...] | None = None) -> Array:
        """A tensor in the dtype of the file.

        Raises:
            ValueError: none of that name, or another shape.
        """
        if name not in self._where:
            raise ValueError(f"{self.folder}: there is no tensor {name}.")
        file = self._where[name]
        found = tuple(file.get_slice(name).get_shape())
        if shape is not None and found != shape:
            raise ValueError(
                f"{self.folder}: {name} is of shape {found}, but the config makes it {shape}."
            )
        return file.get_tensor(name)


def load(folder: str | Path, dtype: DTypeLike = jnp.float32) -> Decoder | Encoder:
    """The model of a folder.

    Args:
        folder: with config.json and safetensors.
        dtype: of all arrays of the model; None: as in the files.

    Raises:
        ValueError: an architecture that is not supported, or files that do not fit together.
    """
    return build(Checkpoint(Path(folder)), dtype)


def build(checkpoint: Checkpoint, dtype: DTypeLike = jnp.float32) -> Decoder | Encoder:
    """The model of a checkpoint; see `load`."""
    who, kind = str(checkpoint.folder), checkpoint.config.get("model_type")
    prefix = "bert." if any(n.startswith("bert.") for n in checkpoint.names) else ""

    def fill(name: str, shape: tuple[int, ...]) -> Array:
        array = checkpoint.get(prefix + name, shape)
        return array if dtype is None else array.astype(dtype)

    if kind in decoder.TYPES:
        return Decoder(decoder_config(who, checkpoint.config), fill)
    if kind in encoder.TYPES:
        return Encoder(encoder_config(who, checkpoint.config), fill)
    raise ValueError(
        f"{who}: model_type is {kind!r}; supported are "
        f"{', '.join((*decoder.TYPES, *encoder.TYPES))}."
    )


class HuggingFaceTokenizer:
    """The tokenizer of a folder, as `tokenizers` reads it.

    Attributes:
        bos: the token that begins a text, or None.
        eos: the token that ends one, or None.
        size: number of tokens.
    """

    def __init__(self, folder: Path):
        """Reads tokenizer.json.

        Raises:
            ValueError: none is there, or it is none.
        """
        from tokenizers import Tokenizer

        path = folder / "tokenizer.json"
        if not path.exists():
            raise ValueError(f"{path} is not there.")
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare exceptions
            raise ValueError(f"{path}: no tokenizer ({error}).") from None
        self.size = self._tokenizer.get_vocab_size()
        config = _json(folder / _CONFIG) if (folder / _CONFIG).exists() else {}
        self.bos, self.eos = (_first(config.get(f"{n}_token_id")) for n in ("bos", "eos"))

    def encode(self, text: str) -> list[int]:
        """Token numbers, without those that begin and end a text."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of token numbers."""
        return self._tokenizer.decode([int(t) for t in np.asarray(tokens)])


def _first(token: int | list[int] | None) -> int | None:
    return token[0] if isinstance(token, list) else token


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path} is not there: a model is a folder with {_CONFIG}.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: no JSON ({error}).") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: holds a {type(value).__name__}, not an object.")
    return value

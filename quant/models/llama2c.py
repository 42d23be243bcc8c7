"""Checkpoints and tokenizers of llama2.c: one `.bin` with the weights, one with the tokens.

The layout is that of its first version: seven int32, then float32 arrays, layer by layer within
each kind. Rotary pairs lie side by side there; rows of q and k are moved, so that the model is the
one of `decoder`.
"""

import struct
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from .decoder import Decoder, DecoderConfig

_HEADER = struct.Struct("7i")
_SPACE, _FIRST_BYTE, _BOS, _EOS = " ", 3, 1, 2


def read(path: Path) -> Decoder:
    """The decoder of a file, in float32.

    Raises:
        ValueError: a header that is none, or a size that does not fit it.
    """
    raw = path.read_bytes()
    width, hidden, layers, heads, kv_heads, vocabulary, length = _header(path, raw)
    config = DecoderConfig(
        vocabulary=abs(vocabulary),
        width=width,
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_size=width // heads,
        length=length,
        tied=vocabulary > 0,
    )
    arrays = _arrays(path, np.frombuffer(raw, "<f4", offset=_HEADER.size), config)

    def fill(name: str, shape: tuple[int, ...]) -> jnp.ndarray:
        array = arrays[name]
        assert array.shape == shape, (name, array.shape, shape)
        return jnp.asarray(array)

    return Decoder(config, fill)


def vocabulary(path: Path) -> int:
    """The number of tokens of a model."""
    with path.open("rb") as file:
        return abs(_header(path, file.read(_HEADER.size))[5])


def _header(path: Path, raw: bytes) -> tuple[int, ...]:
    if len(raw) < _HEADER.size:
        raise ValueError(f"{path}: {len(raw)} bytes are no llama2.c checkpoint: it is cut short.")
    header = width, hidden, layers, heads, kv_heads, tokens, length = _HEADER.unpack_from(raw)
    sizes = (width, hidden, layers, heads, kv_heads, abs(tokens), length)
    if min(sizes) < 1 or max(sizes) > 1 << 20 or width % heads or heads % kv_heads:
        raise ValueError(f"{path}: the header {header} is none of llama2.c.")
    return header


def _arrays(path: Path, numbers: np.ndarray, c: DecoderConfig) -> dict[str, np.ndarray]:
    shared, half = c.kv_heads * c.head_size, c.head_size // 2
    parts = {
        "model.embed_tokens.weight": (c.vocabulary, c.width),
        "input_layernorm.weight": (c.layers, c.width),
        "self_attn.q_proj.weight": (c.layers, c.width, c.width),
        "self_attn.k_proj.weight": (c.layers, shared, c.width),
        "self_attn.v_proj.weight": (c.layers, shared, c.width),
        "self_attn.o_proj.weight": (c.layers, c.width, c.width),
        "post_attention_layernorm.weight": (c.layers, c.width),
        "mlp.gate_proj.weight": (c.layers, c.hidden, c.width),
        "mlp.down_proj.weight": (c.layers, c.width, c.hidden),
        "mlp.up_proj.weight": (c.layers, c.hidden, c.width),
        "model.norm.weight": (c.width,),
        "rotary": (2, c.length, half),
    }
    if not c.tied:
        parts["lm_head.weight"] = (c.vocabulary, c.width)
    needed = sum(int(np.prod(shape)) for shape in parts.values())
    if len(numbers) != needed:
        raise ValueError(
            f"{path}: {len(numbers)} numbers after the header, but its sizes make {needed}; the "
            "file is cut short or of another version."
        )
    arrays, at = {}, 0
    for name, shape in parts.items():
        size = int(np.prod(shape))
        array, at = numbers[at : at + size].reshape(shape), at + size
        if name.startswith(("model.", "lm_head")):
            arrays[name] = array
            continue
        for i, one in enumerate(array if name != "rotary" else ()):
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                pairs = one.reshape(-1, half, 2, c.width)  # heads, pairs, members
                one = pairs.transpose(0, 2, 1, 3).reshape(one.shape)
            arrays[f"model.layers.{i}.{name}"] = one
    return arrays


class Llama2cTokenizer:
    """Pieces with scores: the pair of neighbours with the best score is joined, until none is."""

    def __init__(self, path: Path, size: int):
        """Reads a file of `size` tokens.

        Raises:
            ValueError: a file that ends too soon or goes on after its tokens.
        """
        raw, at = path.read_bytes(), 4
        self.pieces, self.scores = [], []
        try:
            for _ in range(size):
                score, length = struct.unpack_from("<fi", raw, at)
                at += 8
                if not 0 <= length <= len(raw) - at:
                    raise struct.error
                self.pieces.append(raw[at : at + length])
                self.scores.append(score)
                at += length
        except struct.error:
            raise ValueError(
                f"{path}: ends amid token {len(self.pieces)} of {size}; is it the tokenizer of "
                "this model?"
            ) from None
        if at != len(raw):
            raise ValueError(f"{path}: {len(raw) - at} bytes are left after {size} tokens.")
        self.numbers = {piece: i for i, piece in enumerate(self.pieces)}
        self.bos, self.eos, self.size = _BOS, _EOS, size

    def encode(self, text: str) -> list[int]:
        """Token numbers, without the one that begins a text."""
        if not text:
            return []
        tokens = []
        for character in _SPACE + text:  # a text begins like a word
            piece = character.encode()
            number = self.numbers.get(piece)
            tokens += [_FIRST_BYTE + b for b in piece] if number is None else [number]
        while True:
            best = max(
                (
                    (self.scores[n], -i, n)
                    for i in range(len(tokens) - 1)
                    if (n := self.numbers.get(self.pieces[tokens[i]] + self.pieces[tokens[i + 1]]))
                    is not None
                ),
                default=None,
            )
            if best is None:
                return tokens
            i = -best[1]
            tokens[i : i + 2] = [best[2]]

    def decode(self, tokens: list[int]) -> str:
        """The text of token numbers."""
        out = b""
        for previous, token in zip([self.bos, *tokens], tokens, strict=False):
            piece = self.pieces[token]
            if previous == self.bos:
                piece = piece.removeprefix(b" ")
            if len(piece) == 6 and piece.startswith(b"<0x"):
                piece = bytes([int(piece[3:5], 16)])
            out += piece
        return out.decode(errors="replace")

"""Encoders of the BERT type: tokens in, one vector a token or a sentence out.

Learned positions, all positions see each other, a norm after each part. Names of arrays are those
of checkpoints; reading them stands in `huggingface`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from .layers import Fill, LayerNorm, Linear, attend

TYPES = ("bert",)


@dataclass(frozen=True)
class EncoderConfig:
    """What an encoder is."""

    vocabulary: int
    width: int
    hidden: int
    layers: int
    heads: int
    length: int
    types: int = 2
    eps: float = 1e-12

    @property
    def head_size(self) -> int:
        """Of each head."""
        return self.width // self.heads


class EncoderBlock(nnx.Module):
    """One layer: attention and units, each added to what it reads and then normed.

    `STAGES` are its linear maps in the order in which they are computed; those that stand together
    read the same.
    """

    STAGES = (("q", "k", "v"), ("o",), ("up",), ("down",))

    def __init__(self, config: EncoderConfig, fill: Fill, number: int):
        """Takes the arrays of the layer of a number."""
        c, name = config, f"encoder.layer.{number}"
        self.heads, self.size = c.heads, c.head_size
        self.q = Linear(fill, f"{name}.attention.self.query", c.width, c.width, bias=True)
        self.k = Linear(fill, f"{name}.attention.self.key", c.width, c.width, bias=True)
        self.v = Linear(fill, f"{name}.attention.self.value", c.width, c.width, bias=True)
        self.o = Linear(fill, f"{name}.attention.output.dense", c.width, c.width, bias=True)
        self.attention_norm = LayerNorm(fill, f"{name}.attention.output.LayerNorm", c.width, c.eps)
        self.up = Linear(fill, f"{name}.intermediate.dense", c.width, c.hidden, bias=True)
        self.down = Linear(fill, f"{name}.output.dense", c.hidden, c.width, bias=True)
        self.norm = LayerNorm(fill, f"{name}.output.LayerNorm", c.width, c.eps)

    def __call__(
        self, x: Float[Array, "batch time width"], real: Bool[Array, "batch time"]
    ) -> Float[Array, "batch time width"]:
        """The vectors after the layer; those that are not real are seen by none."""
        batch, time, _ = x.shape
        q, k, v = (
            f(x).reshape(batch, time, self.heads, self.size) for f in (self.q, self.k, self.v)
        )
        seen = jnp.broadcast_to(real[:, None], (batch, time, time))
        x = self.attention_norm(x + self.o(attend(q, k, v, seen)))
        return self.norm(x + self.down(jax.nn.gelu(self.up(x), approximate=False)))


class Encoder(nnx.Module):
    """Vectors of tokens, each from all tokens of its text.

    Attributes:
        config: what it is.
        embedding: (vocabulary, width).
        positions: (length, width).
        types: (types, width), of the first and second text of a pair.
        embedding_norm: of the three together.
        blocks: the layers.
    """

    def __init__(self, config: EncoderConfig, fill: Fill):
        """Takes all arrays from `fill`."""
        c, name = config, "embeddings"
        self.config = config
        self.embedding = nnx.Param(fill(f"{name}.word_embeddings.weight", (c.vocabulary, c.width)))
        self.positions = nnx.Param(fill(f"{name}.position_embeddings.weight", (c.length, c.width)))
        self.types = nnx.Param(fill(f"{name}.token_type_embeddings.weight", (c.types, c.width)))
        self.embedding_norm = LayerNorm(fill, f"{name}.LayerNorm", c.width, c.eps)
        self.blocks = nnx.List([EncoderBlock(c, fill, i) for i in range(c.layers)])

    def __call__(
        self, tokens: Int[Array, "batch time"], real: Bool[Array, "batch time"] | None = None
    ) -> Float[Array, "batch time width"]:
        """One vector a token.

        Args:
            tokens: of texts, made equally long by tokens that are not real.
            real: which tokens are real; None: all.
        """
        real = jnp.ones(tokens.shape, bool) if real is None else real
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, real)
        return x

    def embed(self, tokens: Int[Array, "batch time"]) -> Float[Array, "batch time width"]:
        """What the first layer reads, of first texts."""
        x = self.embedding[...][tokens] + self.positions[...][: tokens.shape[1]]
        return self.embedding_norm(x + self.types[...][0])

    def sentences(
        self, tokens: Int[Array, "batch time"], real: Bool[Array, "batch time"]
    ) -> Float[Array, "batch width"]:
        """One vector of length 1 a text: the mean of those of its real tokens."""
        weights = real.astype(jnp.float32)[..., None]
        mean = (self(tokens, real) * weights).sum(1) / jnp.maximum(weights.sum(1), 1)
        return mean / jnp.maximum(jnp.linalg.norm(mean, axis=-1, keepdims=True), 1e-12)


def encoder_config(who: str, config: Mapping[str, Any]) -> EncoderConfig:
    """The config of a checkpoint of one of `TYPES`.

    Raises:
        ValueError: something that the models here have not, or a field that is missing.
    """
    kinds = {"hidden_act": "gelu", "position_embedding_type": "absolute"}
    for name, only in kinds.items():
        if config.get(name, only) != only:
            raise ValueError(f"{who}: {name} is {config[name]!r}; supported is {only}.")
    try:
        return EncoderConfig(
            vocabulary=config["vocab_size"],
            width=config["hidden_size"],
            hidden=config["intermediate_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            length=config["max_position_embeddings"],
            types=config.get("type_vocab_size", 2),
            eps=config.get("layer_norm_eps", 1e-12),
        )
    except KeyError as missing:
        raise ValueError(f"{who}: the config has no {missing}.") from None

"""Decoders of the Llama type: Llama 2 and 3, Mistral, Qwen 2 and 3, and what is made like them.

Before each part a norm, rotary positions, grouped queries, gated units. Names of arrays are those
of checkpoints. Reading checkpoints stands in `huggingface` and `llama2c`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .layers import Fill, LayerCache, Linear, RMSNorm, attend, causal, extended, rotary, rotate

TYPES = ("llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True)
class DecoderConfig:
    """What a decoder is; the defaults are those of most."""

    vocabulary: int
    width: int
    hidden: int  # units of the gated part
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    length: int  # positions it was made for
    eps: float = 1e-5
    theta: float = 10000.0
    scaling: tuple[tuple[str, Any], ...] = ()  # of rotary positions, as `rope_scaling`
    tied: bool = False  # the head is the embedding
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False  # of each head, before the rotation
    windows: tuple[int | None, ...] = ()  # of each layer; (): all positions before

    def __post_init__(self) -> None:
        """Checks what must fit together."""
        if self.heads % self.kv_heads or self.head_size % 2:
            raise ValueError(
                f"DecoderConfig: {self.heads} heads, {self.kv_heads} of keys, of size "
                f"{self.head_size}: heads are a multiple of those of keys, and sizes even."
            )


class Attention(nnx.Module):
    """Self-attention of one layer, with its four linear maps."""

    def __init__(self, config: DecoderConfig, fill: Fill, name: str, window: int | None):
        """Takes the arrays below `name`."""
        c, self.window = config, window
        self.heads, self.kv_heads, self.size = c.heads, c.kv_heads, c.head_size
        outputs, shared = c.heads * c.head_size, c.kv_heads * c.head_size
        self.q = Linear(fill, f"{name}.q_proj", c.width, outputs, bias=c.qkv_bias)
        self.k = Linear(fill, f"{name}.k_proj", c.width, shared, bias=c.qkv_bias)
        self.v = Linear(fill, f"{name}.v_proj", c.width, shared, bias=c.qkv_bias)
        self.o = Linear(fill, f"{name}.o_proj", outputs, c.width, bias=c.o_bias)
        self.q_norm = RMSNorm(fill, f"{name}.q_norm", c.head_size, c.eps) if c.qk_norm else None
        self.k_norm = RMSNorm(fill, f"{name}.k_norm", c.head_size, c.eps) if c.qk_norm else None
        self.angles = rotary("decoder", c.head_size, c.theta, dict(c.scaling), c.length)

    def __call__(
        self,
        x: Float[Array, "batch time width"],
        positions: Int[Array, " time"],
        cache: LayerCache | None = None,
    ) -> tuple[Float[Array, "batch time width"], LayerCache | None]:
        """What the positions get from those before, in x or in the cache, which is extended."""
        batch, time, _ = x.shape
        q = self.q(x).reshape(batch, time, self.heads, self.size)
        k = self.k(x).reshape(batch, time, self.kv_heads, self.size)
        v = self.v(x).reshape(batch, time, self.kv_heads, self.size)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, positions, self.angles), rotate(k, positions, self.angles)
        keys = positions
        if cache is not None:
            cache = extended(cache, k, v, positions[0])
            k, v = cache
            keys = jnp.arange(k.shape[1])
        return self.o(attend(q, k, v, causal(positions, keys, self.window))), cache


class GatedUnits(nnx.Module):
    """down(silu(gate(x)) up(x))."""

    def __init__(self, config: DecoderConfig, fill: Fill, name: str):
        """Takes the arrays below `name`."""
        width, hidden, bias = config.width, config.hidden, config.mlp_bias
        self.gate = Linear(fill, f"{name}.gate_proj", width, hidden, bias=bias)
        self.up = Linear(fill, f"{name}.up_proj", width, hidden, bias=bias)
        self.down = Linear(fill, f"{name}.down_proj", hidden, width, bias=bias)

    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        """Of each position by itself."""
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class DecoderBlock(nnx.Module):
    """One layer: attention and gated units, each added to what it reads.

    `STAGES` are its linear maps in the order in which they are computed; those that stand together
    read the same.
    """

    STAGES = (
        ("attention.q", "attention.k", "attention.v"),
        ("attention.o",),
        ("mlp.gate", "mlp.up"),
        ("mlp.down",),
    )

    def __init__(self, config: DecoderConfig, fill: Fill, number: int):
        """Takes the arrays of the layer of a number."""
        name = f"model.layers.{number}"
        window = config.windows[number] if config.windows else None
        self.attention_norm = RMSNorm(fill, f"{name}.input_layernorm", config.width, config.eps)
        self.attention = Attention(config, fill, f"{name}.self_attn", window)
        self.mlp_norm = RMSNorm(fill, f"{name}.post_attention_layernorm", config.width, config.eps)
        self.mlp = GatedUnits(config, fill, f"{name}.mlp")

    def __call__(
        self,
        x: Float[Array, "batch time width"],
        positions: Int[Array, " time"],
        cache: LayerCache | None = None,
    ) -> tuple[Float[Array, "batch time width"], LayerCache | None]:
        """The residual stream after the layer."""
        more, cache = self.attention(self.attention_norm(x), positions, cache)
        x = x + more
        return x + self.mlp(self.mlp_norm(x)), cache


class Cache(NamedTuple):
    """Keys and values of all layers."""

    layers: tuple[LayerCache, ...]
    length: Int[Array, ""]  # positions that are filled


class Decoder(nnx.Module):
    """A language model: tokens in, logits of the next token out.

    Attributes:
        config: what it is.
        embedding: (vocabulary, width).
        blocks: the layers.
        norm: before the head.
        head: None where it is the embedding.
    """

    def __init__(self, config: DecoderConfig, fill: Fill):
        """Takes all arrays from `fill`."""
        self.config = config
        self.embedding = nnx.Param(
            fill("model.embed_tokens.weight", (config.vocabulary, config.width))
        )
        self.blocks = nnx.List([DecoderBlock(config, fill, i) for i in range(config.layers)])
        self.norm = RMSNorm(fill, "model.norm", config.width, config.eps)
        head = None if config.tied else Linear(fill, "lm_head", config.width, config.vocabulary)
        self.head = head

    def __call__(self, tokens: Int[Array, "batch time"]) -> Float[Array, "batch time vocabulary"]:
        """Logits at each position, from the tokens up to it."""
        x, positions = self.embed(tokens), jnp.arange(tokens.shape[1])
        for block in self.blocks:
            x, _ = block(x, positions)
        return self.logits(x)

    def embed(self, tokens: Int[Array, "batch time"]) -> Float[Array, "batch time width"]:
        """What the first layer reads."""
        return self.embedding[...][tokens]

    def logits(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch vocabulary"]:
        """What the last layer means."""
        x = self.norm(x)
        return jnp.dot(x, self.embedding[...].T) if self.head is None else self.head(x)

    def empty_cache(self, batch: int, length: int) -> Cache:
        """Room for the keys and values of so many positions."""
        c = self.config
        shape = (batch, length, c.kv_heads, c.head_size)
        zeros = jnp.zeros(shape, self.embedding[...].dtype)
        return Cache((LayerCache(zeros, zeros),) * c.layers, jnp.int32(0))

    def step(
        self, tokens: Int[Array, "batch time"], cache: Cache
    ) -> tuple[Float[Array, "batch time vocabulary"], Cache]:
        """Logits at positions that follow those in the cache, and the cache with them."""
        positions = cache.length + jnp.arange(tokens.shape[1])
        x, layers = self.embed(tokens), []
        for block, layer in zip(self.blocks, cache.layers, strict=True):
            x, layer = block(x, positions, layer)
            layers.append(layer)
        return self.logits(x), Cache(tuple(layers), cache.length + tokens.shape[1])


def random_fill(key: PRNGKeyArray, std: float = 0.02) -> Fill:
    """Arrays of a new model: normal numbers, norms 1, biases 0; the same for the same names."""
    count: Iterator[int] = iter(range(1 << 30))

    def fill(name: str, shape: tuple[int, ...]) -> Array:
        if name.endswith("bias"):
            return jnp.zeros(shape)
        if len(shape) == 1:
            return jnp.ones(shape)
        return std * jax.random.normal(jax.random.fold_in(key, next(count)), shape)

    return fill


def decoder_config(who: str, config: Mapping[str, Any]) -> DecoderConfig:
    """The config of a checkpoint of one of `TYPES`.

    Raises:
        ValueError: something that the models here have not, or a field that is missing.
    """
    kind = config["model_type"]
    if config.get("hidden_act", "silu") != "silu":
        raise ValueError(f"{who}: hidden_act is {config['hidden_act']!r}; supported is silu.")
    try:
        layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
        scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
        scaling = {k: v for k, v in scaling.items() if v is not None}
        bias = bool(config.get("attention_bias", kind == "qwen2"))
        return DecoderConfig(
            vocabulary=config["vocab_size"],
            width=config["hidden_size"],
            hidden=config["intermediate_size"],
            layers=layers,
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_size=config.get("head_dim") or config["hidden_size"] // heads,
            length=config["max_position_embeddings"],
            eps=config["rms_norm_eps"],
            theta=float(scaling.get("rope_theta") or config.get("rope_theta") or 10000.0),
            scaling=tuple(sorted(scaling.items())),
            tied=bool(config.get("tie_word_embeddings", False)),
            qkv_bias=bias,
            o_bias=bias and kind != "qwen2",
            mlp_bias=bool(config.get("mlp_bias", False)),
            qk_norm=kind == "qwen3",
            windows=_windows(config, layers),
        )
    except KeyError as missing:
        raise ValueError(f"{who}: the config has no {missing}.") from None


def _windows(config: Mapping[str, Any], layers: int) -> tuple[int | None, ...]:
    window, kind = config.get("sliding_window"), config["model_type"]
    used = kind == "mistral" or bool(config.get("use_sliding_window"))
    if window is None or kind == "llama" or not used:
        return ()
    named = config.get("layer_types")
    if named:
        return tuple(window if name == "sliding_attention" else None for name in named)
    first = 0 if kind == "mistral" else config.get("max_window_layers", 0)
    return tuple(window if i >= first else None for i in range(layers))

"""What transformers are made of: linear maps, norms, rotary positions, attention over a cache.

A module gets its arrays from a function of name and shape, so that it does not matter whether they
are drawn, read from a file as they are needed, or only described. Which modules make which model
stands with its family (`decoder`, `encoder`).
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

Fill = Callable[[str, tuple[int, ...]], Any]
"""The array of a name, which must have a shape."""


class Linear(nnx.Module):
    """y = x W^T + b with a weight (outputs, inputs), as checkpoints have it."""

    def __init__(self, fill: Fill, name: str, inputs: int, outputs: int, *, bias: bool = False):
        """Takes `name`.weight and, where there is one, `name`.bias."""
        self.weight = nnx.Param(fill(f"{name}.weight", (outputs, inputs)))
        self.bias = nnx.Param(fill(f"{name}.bias", (outputs,))) if bias else None

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        """The map."""
        y = jnp.dot(x, self.weight[...].T)
        return y if self.bias is None else y + self.bias[...]


class RMSNorm(nnx.Module):
    r"""$x \gamma / \sqrt{\mathrm{mean}(x^2) + \epsilon}$, in float32."""

    def __init__(self, fill: Fill, name: str, width: int, eps: float):
        """Takes `name`.weight."""
        self.weight, self.eps = nnx.Param(fill(f"{name}.weight", (width,))), eps

    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        """The norm over the last axis."""
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide**2, -1, keepdims=True) + self.eps)
        return wide.astype(x.dtype) * self.weight[...]


class LayerNorm(nnx.Module):
    r"""$\gamma (x - \mathrm{mean}(x)) / \sqrt{\mathrm{var}(x) + \epsilon} + \beta$, in float32."""

    def __init__(self, fill: Fill, name: str, width: int, eps: float):
        """Takes `name`.weight and `name`.bias."""
        self.weight = nnx.Param(fill(f"{name}.weight", (width,)))
        self.bias, self.eps = nnx.Param(fill(f"{name}.bias", (width,))), eps

    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        """The norm over the last axis."""
        wide = x.astype(jnp.float32)
        wide = wide - jnp.mean(wide, -1, keepdims=True)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide**2, -1, keepdims=True) + self.eps)
        return wide.astype(x.dtype) * self.weight[...] + self.bias[...]


class Rotary(NamedTuple):
    """Angles of rotary positions: position times frequency; both halves of a head turn."""

    frequencies: tuple[float, ...]  # one for each pair (i, i + half) of a head [radian/position]
    factor: float = 1.0  # by which q and k grow (yarn)


def rotary(
    who: str, size: int, theta: float, scaling: Mapping[str, Any] | None, length: int
) -> Rotary:
    """The frequencies of a head of a size.

    Args:
        who: for messages.
        size: of a head, even.
        theta: base of the frequencies.
        scaling: as `rope_scaling` of a config: rope_type default, linear, llama3, yarn or dynamic
            (which within the length of training is the default); None: default.
        length: positions that the model was made for.

    Raises:
        ValueError: another type.
    """
    frequencies = theta ** -(np.arange(0, size, 2) / size)
    scaling = dict(scaling or {})
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind in ("default", "dynamic", "mrope"):
        return Rotary(tuple(frequencies.tolist()))
    if kind == "linear":
        return Rotary(tuple((frequencies / scaling["factor"]).tolist()))
    if kind == "llama3":
        return Rotary(tuple(_llama3(frequencies, scaling).tolist()))
    if kind == "yarn":
        return _yarn(frequencies, size, theta, scaling, length)
    raise ValueError(
        f"{who}: rope_type is {kind!r}; supported are default, linear, dynamic, llama3 and yarn."
    )


def _llama3(frequencies: np.ndarray, scaling: Mapping[str, Any]) -> np.ndarray:
    """Slow turns are slowed by the factor, fast ones kept, those between blended."""
    old = scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = old * frequencies / (2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return frequencies * (smooth + (1 - smooth) / scaling["factor"])


def _yarn(
    frequencies: np.ndarray, size: int, theta: float, scaling: Mapping[str, Any], length: int
) -> Rotary:
    """As in llama3 but blended over the number of the pair, and attention made sharper."""
    factor = scaling["factor"]
    old = scaling.get("original_max_position_embeddings") or length

    def pair_of(turns: float | int) -> float:
        return size * math.log(old / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_of(scaling.get("beta_fast") or 32), pair_of(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    slow = np.clip((np.arange(size // 2) - low) / max(high - low, 1e-3), 0, 1)
    grown = scaling.get("attention_factor")
    if grown is None:
        grown = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
    return Rotary(tuple((frequencies * (1 - slow + slow / factor)).tolist()), float(grown))


def rotate(
    x: Float[Array, "batch time heads size"], positions: Int[Array, " time"], by: Rotary
) -> Float[Array, "batch time heads size"]:
    """Turns the pairs (i, i + size / 2) of each head by their angles."""
    angles = positions.astype(jnp.float32)[:, None] * jnp.asarray(by.frequencies, jnp.float32)
    cos, sin = (by.factor * f(angles)[:, None] for f in (jnp.cos, jnp.sin))
    first, second = jnp.split(x.astype(jnp.float32), 2, -1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
    return turned.astype(x.dtype)


def causal(
    queries: Int[Array, " time"], keys: Int[Array, " other"], window: int | None
) -> Bool[Array, "time other"]:
    """Which keys a query may see: none of later positions, nor of more than a window before."""
    apart = queries[:, None] - keys
    seen = apart >= 0
    return seen if window is None else seen & (apart < window)


def attend(
    q: Float[Array, "batch time heads size"],
    k: Float[Array, "batch other kv_heads size"],
    v: Float[Array, "batch other kv_heads size"],
    seen: Bool[Array, "*batch_or_1 time other"],
    softmax: Callable[..., Array] = jax.nn.softmax,
) -> Float[Array, "batch time width"]:
    """Attention of all heads; several query heads in a row share one of keys and values."""
    batch, time, heads, size = q.shape
    shared = q.reshape(batch, time, k.shape[2], heads // k.shape[2], size)
    scores = jnp.einsum("btkgd,bskd->bkgts", shared, k) / math.sqrt(size)
    seen = seen if seen.ndim == 2 else seen[:, None, None]
    weights = softmax(scores.astype(jnp.float32), axis=-1, where=seen).astype(q.dtype)
    return jnp.einsum("bkgts,bskd->btkgd", weights, v).reshape(batch, time, heads * size)


class LayerCache(NamedTuple):
    """Keys and values of the positions so far, of one layer."""

    k: Float[Array, "batch length kv_heads size"]
    v: Float[Array, "batch length kv_heads size"]


def extended(
    cache: LayerCache, k: Float[Array, "..."], v: Float[Array, "..."], start: Int[Array, ""]
) -> LayerCache:
    """The cache with the keys and values of the positions from `start` on."""
    at = (0, start, 0, 0)
    return LayerCache(*map(lambda a, new: jax.lax.dynamic_update_slice(a, new, at), cache, (k, v)))

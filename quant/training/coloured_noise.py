r"""Noise of learnt size and colour on weights and activations, for networks that withstand attacks.

$y = x + \sqrt{|d| s(x)} \odot \epsilon_1 + F \epsilon_2$: a part for each element and one of low
rank, which elements share; d and F are learnt with the weights. White noise (PNI) is the case of
rank 0. Attacks and predictions averaged over such noise stand in `simulator/robustness.py`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from .products import Noise

UNITS = ("variance", "std", "one")


class ColouredNoise(NamedTuple):
    """What is learnt of the noise of an array of some shape; a tree of parameters like any other.

    Its covariance is diag(|d| s(x)) + F F^T.
    """

    diagonal: Float[Array, "..."]  # d, of a shape that broadcasts to that of the array
    factors: Float[Array, "*shape rank"]  # F


def coloured_noise(
    shape: tuple[int, ...],
    rank: int = 5,
    *,
    diagonal: float | int | Float[Array, "..."] | None = None,
    factors: float | int = 0.01,
) -> ColouredNoise:
    """Noise to start from, for arrays of a shape.

    Args:
        shape: of the array, without axes of a batch.
        rank: of the part that elements share; 0: none, white noise.
        diagonal: d, a number or an array; None: 0.25^2 for each element. A number stays one
            number for all elements.
        factors: all elements of F.

    Raises:
        ValueError: a negative rank, or a diagonal that does not broadcast to the shape.

    References:
        Learnable colored noise: arXiv:2003.02188 (CNI). White noise of learnt size: He et al.,
        Parametric noise injection, arXiv:1811.09310 (PNI).
    """
    if rank < 0:
        raise ValueError(f"coloured_noise: rank is {rank}; it must be at least 0.")
    d = jnp.full(shape, 0.25**2) if diagonal is None else jnp.asarray(diagonal, jnp.float32)
    sizes = zip(reversed(d.shape), reversed(shape), strict=False)
    if d.ndim > len(shape) or any(own not in (1, all_) for own, all_ in sizes):
        raise ValueError(
            f"coloured_noise: a diagonal of shape {d.shape} does not fit arrays of shape {shape}."
        )
    return ColouredNoise(d, jnp.full((*shape, rank), factors, jnp.float32))


def add_noise(
    noise: ColouredNoise,
    x: Float[Array, "*dims"],
    key: PRNGKeyArray,
    *,
    unit: str = "variance",
    shared: bool = False,
) -> Float[Array, "*dims"]:
    """The array x with a draw of the noise; differentiable in x, d and F, at d = 0 too.

    Args:
        noise: for arrays of the last dimensions of x; those before them are a batch.
        x: weights, or a batch of activations.
        key: of the draw.
        unit: s(x), taken over the elements of an array (of each sample by itself): its variance,
            so that sqrt(d) is a share of its standard deviation; its "std", as the authors of CNI
            have it, though d then has a dimension; or "one", d being a variance.
        shared: one draw for the whole batch, as the authors have it, instead of one a sample.

    Raises:
        ValueError: an unknown unit, or an x whose last dimensions are not those of the noise.
    """
    shape = _shape(noise, x, unit)
    batch = x.shape[: x.ndim - len(shape)]
    drawn = (1,) * len(batch) if shared else batch
    for_each, for_all = jax.random.split(key)
    own = jax.random.normal(for_each, (*drawn, *shape), x.dtype)
    common = jax.random.normal(for_all, (*drawn, noise.factors.shape[-1]), x.dtype)
    factors = noise.factors.astype(x.dtype).reshape(-1, noise.factors.shape[-1])
    low_rank = (common @ factors.T).reshape(*drawn, *shape)
    return x + _root(_variances(noise, x, unit)) * own + low_rank


def covariance(
    noise: ColouredNoise, x: Float[Array, "*shape"], unit: str = "variance"
) -> Float[Array, "n n"]:
    """The covariance of the noise of the elements of one array, flattened.

    Raises:
        ValueError: as `add_noise`; also for a batch.
    """
    shape = _shape(noise, x, unit)
    if x.shape != shape:
        raise ValueError(f"covariance: x has shape {x.shape}, the noise {shape}; give one array.")
    factors = noise.factors.reshape(x.size, -1)
    each = jnp.broadcast_to(_variances(noise, x, unit), shape).reshape(-1)
    return jnp.diag(each) + factors @ factors.T


def weight_noise(params: PyTree, rank: int = 5, **settings: Any) -> PyTree:
    """Noise to start from for each matrix of a tree of weights, None for all other leaves.

    Args:
        params: any tree; matrices are leaves of two dimensions or more.
        rank: see `coloured_noise`.
        **settings: of `coloured_noise`.
    """

    def of(p: Array) -> ColouredNoise | None:
        return coloured_noise(p.shape, rank, **settings) if p.ndim > 1 else None

    return jax.tree.map(of, params)


def noisy_weights(
    noises: PyTree, params: PyTree, key: PRNGKeyArray, unit: str = "variance"
) -> PyTree:
    """Weights with a draw of their noise, to be used in place of them for one mini-batch.

    Args:
        noises: a tree from `weight_noise`.
        params: the weights.
        key: of all draws.
        unit: see `add_noise`.
    """
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    return tree.unflatten(
        [
            p if n is None else add_noise(n, p, k, unit=unit)
            for n, p, k in zip(tree.flatten_up_to(noises), leaves, keys, strict=True)
        ]
    )


class ActivationNoise(nnx.Module):
    """A layer that adds coloured noise to what passes through it; d and F are its parameters.

    Put it between two layers of any network, and give that new noise for every step:
    `with_noise(network, key)`, or `with_new_noise(rule)` for a learning rule. All that is computed
    until then is given the same noise.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        rank: int = 5,
        *,
        unit: str = "variance",
        shared: bool = False,
        **settings: Any,
    ):
        """Takes the shape of one sample; the rest is as in `coloured_noise` and `add_noise`."""
        start = coloured_noise(shape, rank, **settings)
        self.diagonal, self.factors = nnx.Param(start.diagonal), nnx.Param(start.factors)
        self.unit, self.shared = unit, shared
        self.noise = Noise(jax.random.key_data(jax.random.key(0)))

    def __call__(self, x: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
        """The activations (*batch, *shape) with noise."""
        noise = ColouredNoise(self.diagonal[...], self.factors[...])
        key = jax.random.wrap_key_data(self.noise[...])
        return add_noise(noise, x, key, unit=self.unit, shared=self.shared)


def _shape(noise: ColouredNoise, x: Array, unit: str) -> tuple[int, ...]:
    """The shape of one array."""
    if unit not in UNITS:
        raise ValueError(f"add_noise: unit is {unit!r}; choose one of {', '.join(UNITS)}.")
    shape = noise.factors.shape[:-1]
    if x.shape[x.ndim - len(shape) :] != shape:
        raise ValueError(
            f"add_noise: x has shape {x.shape}, and the noise is for arrays of shape {shape}, or "
            "batches of them."
        )
    return shape


def _variances(noise: ColouredNoise, x: Array, unit: str) -> Array:
    """Of the part of each element."""
    d = jnp.abs(noise.diagonal).astype(x.dtype)
    if unit == "one":
        return d
    axes = tuple(range(x.ndim - noise.factors.ndim + 1, x.ndim))
    variance = jnp.var(x, axis=axes, keepdims=True)
    return d * (variance if unit == "variance" else _root(variance))


def _root(x: Array) -> Array:
    """The square root, its derivative 0 at 0."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0)

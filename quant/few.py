"""Formats of one or two bits, whose scale is a mean instead of the largest magnitude."""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .grid import Format
from .tables import Table


class Unit(NamedTuple):
    """What a rule finds for each block."""

    scale: Float[Array, "*scales"]  # numbers are values times this
    divisor: Float[Array, "*scales"] | None = None  # rounded is x over this; None: over the scale


@dataclasses.dataclass(frozen=True)
class Binary(Table):
    r"""One bit: +1 and -1 times a scale; 0 becomes +1.

    The scale $\alpha = \mathrm{mean} |x|$ makes $\|x - \alpha\,\mathrm{sign}(x)\|^2$ smallest.
    Stochastic rounding gives +1 with probability (x / alpha + 1) / 2 within the range. The code is
    the sign bit.
    """

    bits: int = dataclasses.field(init=False, default=1, repr=False)

    @property
    def name(self) -> str:
        """`binary`."""
        return "binary"

    @property
    def steps(self) -> float:
        """1: the largest value."""
        return 1.0

    @property
    def scale_rule(self) -> str:
        """The mean magnitude."""
        return "mean_abs"

    def entries(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """-1 and 1."""
        return np.array([-1.0, 1.0]), np.array([1, 0]), np.zeros(1)


@dataclasses.dataclass(frozen=True)
class Ternary(Table):
    r"""-1, 0 and 1 times a scale, in two bits (two's complement; the fourth code reads as 0).

    `absmean`: the scale is $\mathrm{mean} |x|$, and x / scale is rounded (BitNet b1.58).
    `twn`: x becomes 0 up to the threshold $\Delta = 0.7\,\mathrm{mean} |x|$, and the scale is the
    mean magnitude of what lies above it.

    References:
        The era of 1-bit LLMs, arXiv:2402.17764; Ternary weight networks, arXiv:1605.04711.
    """

    rule: str = "absmean"
    bits: int = dataclasses.field(init=False, default=2, repr=False)

    def __post_init__(self) -> None:
        if self.rule not in ("absmean", "twn"):
            raise ValueError(f"Ternary(rule={self.rule!r}): choose absmean or twn.")

    @property
    def name(self) -> str:
        """`ternary`, or `ternary_twn`."""
        return "ternary" if self.rule == "absmean" else "ternary_twn"

    @property
    def steps(self) -> float:
        """1: the largest value."""
        return 1.0

    @property
    def scale_rule(self) -> str:
        """That of the definition."""
        return "mean_abs" if self.rule == "absmean" else "twn"

    def entries(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """-1, 0 and 1."""
        return np.array([-1.0, 0.0, 1.0]), np.array([3, 0, 1]), np.array([-0.5, 0.5])


def mean_abs(x: Float[Array, "*scales k"]) -> Unit:
    """The mean magnitude of the finite numbers of each block; 1 where it is 0."""
    scale, _ = _mean(x, jnp.isfinite(x))
    return Unit(_positive(scale))


def twn(x: Float[Array, "*scales k"]) -> Unit:
    """The threshold and the scale of a ternary weight network, for each block."""
    finite = jnp.isfinite(x)
    mean, magnitude = _mean(x, finite)
    threshold = mean * jnp.array(0.7, x.dtype)
    scale, _ = _mean(x, finite & (magnitude > threshold[..., None]))
    return Unit(_positive(scale), _positive(2 * threshold))


RULES = {"mean_abs": mean_abs, "twn": twn}


def _mean(x: Array, counted: Array) -> tuple[Array, Array]:
    magnitude = jnp.where(counted, jnp.abs(x), jnp.zeros_like(x))
    number = jnp.maximum(counted.sum(-1), 1).astype(x.dtype)
    return magnitude.sum(-1) / number, magnitude


def _positive(scale: Array) -> Array:
    return jnp.where(scale >= jnp.finfo(scale.dtype).tiny, scale, jnp.ones_like(scale))


def from_name(name: str) -> Format | None:
    """The format that has this name; None for a name of another family."""
    named = {f.name: f for f in (Binary(), Ternary(), Ternary("twn"))}
    return named.get(name)

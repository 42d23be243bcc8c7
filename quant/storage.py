"""Numbers that are kept in a format between two steps: how they are stored, and what is lost.

Membranes, currents and traces are kept so; who keeps them says when they are stored. Weights have
memories of their own (`memory`), and how a number is rounded belongs to the formats.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from .formats import parse
from .grid import Format
from .quantize import quantize
from .rounding import ROUNDINGS


class Lost(NamedTuple):
    """Shares of the numbers that were stored."""

    saturated: Float[Array, ""]  # lay beyond the range of the format
    underflowed: Float[Array, ""]  # were not 0 and became 0


def where_lost(
    x: Float[Array, "*dims"], inside: Bool[Array, "*dims"], stored: Float[Array, "*dims"]
) -> dict[str, Bool[Array, "*dims"]]:
    """Where storing x lost something, from what lies in the range and what was stored."""
    nan = jnp.isnan(x)
    return {
        "saturated": ~inside & ~nan,
        "underflowed": (x != 0) & (stored == 0) & ~nan,
        "nan": nan,
    }


@dataclass(frozen=True)
class Storage:
    """A format and how numbers are rounded to it; made by `storage`, which checks both."""

    fmt: Format
    rounding: str

    @property
    def draws(self) -> bool:
        """Whether rounding reads a random key."""
        return self.rounding == "stochastic"

    def store(
        self, x: Float[Array, "*dims"], key: PRNGKeyArray | None = None
    ) -> Float[Array, "*dims"]:
        """What is read back of x: `quantize`, with its straight-through derivative."""
        return quantize(x, self.fmt, rounding=self.rounding, key=key)

    def lost(self, x: Float[Array, "*dims"], stored: Float[Array, "*dims"]) -> Lost:
        """What storing x lost; a NaN counts as neither."""
        at = where_lost(x, self.fmt.inside(x), stored)
        return Lost(*(jnp.mean(at[name], dtype=jnp.float32) for name in Lost._fields))


def storage(who: str, fmt: Format | str, rounding: str = "nearest_even") -> Storage:
    """Checks a format and a rounding in the name of `who`.

    Raises:
        ValueError: an unknown format or rounding, or a format whose unit is a scale found from the
            numbers: it would be another one at every step.
    """
    try:
        fmt = parse(fmt)
    except ValueError as error:
        raise ValueError(f"{who}: {error}") from None
    check_has_zero(who, fmt)
    if fmt.steps is not None:
        raise ValueError(
            f"{who}: {fmt.name} takes its scale from the numbers it rounds, and what is kept from "
            f"step to step needs one unit for good: use fixed<wl>.<fl>, such as "
            f"fixed{max(fmt.bits, 2)}.{max(fmt.bits, 2) // 2}, or a float format, such as e5m2."
        )
    if rounding not in ROUNDINGS:
        raise ValueError(f"{who}: rounding is {rounding!r}; choose one of {', '.join(ROUNDINGS)}.")
    return Storage(fmt, rounding)


def check_has_zero(who: str, fmt: Format) -> None:
    """Refuses a format for scales only, which has no 0 and no sign, in the name of `who`."""
    if fmt.min > 0:
        raise ValueError(
            f"{who}: {fmt.name} is a format of scales, without 0 and negative numbers; use one "
            "that has both, such as e5m2."
        )

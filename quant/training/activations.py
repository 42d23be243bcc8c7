"""Activations in a number format, as a layer without parameters."""

from dataclasses import dataclass

from jaxtyping import Array, Float

from ..formats import parse
from ..grid import Format
from ..quantize import quantize
from ..rounding import ROUNDINGS


@dataclass(frozen=True)
class Activation:
    """Rounds what passes through it to a format; put it between two layers of a network.

    The derivative is straight-through: 1 inside the range, 0 where the format saturates. A format
    without a unit of its own takes one scale for the whole array, so samples of a batch depend on
    each other through it.

    Args:
        fmt: the format or its name.
        rounding: one of `ROUNDINGS` but `stochastic`, since a layer is given no key.

    Raises:
        ValueError: an unknown format or rounding.
    """

    fmt: Format | str
    rounding: str = "nearest_even"

    def __post_init__(self) -> None:
        object.__setattr__(self, "fmt", parse(self.fmt))
        known = [r for r in ROUNDINGS if r != "stochastic"]
        if self.rounding not in known:
            raise ValueError(
                f"Activation({parse(self.fmt).name}): rounding is {self.rounding!r}; choose one of "
                f"{', '.join(known)}."
            )

    def __call__(self, x: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
        """The rounded activations."""
        return quantize(x, self.fmt, rounding=self.rounding)

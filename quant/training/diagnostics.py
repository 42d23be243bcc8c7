"""What number formats do to a training step, as a few numbers for each parameter.

Pure functions over gradients and over the counts of weight memories. When they are called, and how
they are shown, is said by whoever trains.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ..formats import parse
from ..grid import Format


def gradient_quality(
    exact: PyTree[Float[Array, "..."]],
    actual: PyTree[Float[Array, "..."]],
    fmt: Format | str | None = None,
    *,
    scale: Float[Array, ""] | float | int = 1.0,
) -> dict[str, PyTree[Float[Array, ""]]]:
    """How a gradient compares with what it is without number formats, for each leaf.

    - `cosine`: of the angle between the two; 1 where both are 0, 0 where one is, or where one holds
      an entry that is not finite.
    - `gradient_not_finite`: share of the entries that are NaN or infinite in either of the two.
    - `gradient_underflowed`: share of the entries of `exact` that are not 0 and became 0.
    - `gradient_saturated`: share of the entries that lie beyond the range of `fmt` once they are
      multiplied by the scale of the loss; 0 where there is no format, or one that takes its unit
      from the numbers.

    Args:
        exact: the gradient in float32.
        actual: a tree like it, of the gradient that is used.
        fmt: the format of the gradient.
        scale: of the loss, see `loss_scaling`; both gradients are given without it.
    """
    own = None if fmt is None else parse(fmt)

    def cosine(a: Array, b: Array) -> Array:
        # entries of size 1: squares of small gradients would underflow
        a, b = (x / jnp.maximum(jnp.abs(x).max(initial=0), jnp.finfo(x.dtype).tiny) for x in (a, b))
        norms = jnp.linalg.norm(a.ravel()) * jnp.linalg.norm(b.ravel())
        both = jnp.where(jnp.any(a != 0) | jnp.any(b != 0), 0.0, 1.0)
        return jnp.where(norms > 0, jnp.vdot(a, b) / jnp.where(norms > 0, norms, 1.0), both)

    def not_finite(a: Array, b: Array) -> Array:
        return (~(jnp.isfinite(a) & jnp.isfinite(b))).sum() / max(a.size, 1)

    def underflowed(a: Array, b: Array) -> Array:
        number = (a != 0) & ~jnp.isnan(a)
        return (number & (b == 0)).sum() / jnp.maximum(number.sum(), 1)

    def saturated(a: Array) -> Array:
        if own is None or own.steps is not None:
            return jnp.zeros(())
        return jnp.mean(~own.inside(a * scale) & ~jnp.isnan(a), dtype=jnp.float32)

    return {
        "cosine": jax.tree.map(cosine, exact, actual),
        "gradient_not_finite": jax.tree.map(not_finite, exact, actual),
        "gradient_underflowed": jax.tree.map(underflowed, exact, actual),
        "gradient_saturated": jax.tree.map(saturated, exact),
    }


def write_shares(
    before: Mapping[str, Mapping[str, int]], after: Mapping[str, Mapping[str, int]]
) -> dict[str, dict[str, float]]:
    """Shares of the writes to each parameter between two moments that lost something.

    Args:
        before: what `quant.losses` said of a memory at the first moment.
        after: what it says at the second.

    Returns:
        By parameter: `stagnated`, `saturated` and `underflowed`, as shares of the updates other
        than 0; 0 where there were none.
    """
    shares = {}
    for name, counts in after.items():
        new = {kind: n - before[name][kind] for kind, n in counts.items()}
        kinds = ("stagnated", "saturated", "underflowed")
        shares[name] = {kind: new[kind] / max(new["writes"], 1) for kind in kinds}
    return shares

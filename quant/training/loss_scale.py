"""Loss scaling: gradients of S times the loss, so that small ones do not underflow in a format.

Whoever computes gradients multiplies the loss by `loss_scale(state)`; the optimizer made here
divides again. What format the gradients are in is said in `optimizers`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

_GROWTH = 2.0
_LARGEST = 2.0**126  # S, and 1 / S, stay normal numbers of float32


class LossScaleState(NamedTuple):
    """The scale, and what it depends on."""

    scale: Float[Array, ""]
    good: Int[Array, ""]  # updates since the scale changed, all of them finite
    skipped: Int[Array, ""]  # updates that were not finite and were left out
    gradients: Any
    inner: Any


def loss_scaling(
    tx: optax.GradientTransformation,
    scale: float | int = 2.0**15,
    *,
    gradients: optax.GradientTransformation | None = None,
    growth_interval: int | None = None,
    fits: Callable[[Array], Bool[Array, "*dims"]] = jnp.isfinite,
) -> optax.GradientTransformationExtraArgs:
    """An optimizer that is given the gradients of S times the loss.

    They go through `gradients` as they are, are divided by S, and reach `tx`. If S is a power of
    two, nothing changes but what would have under- or overflowed.

    A dynamic scale is halved, but not below 1, when a gradient is not finite or does not fit; that
    update is left out, the state of `tx` included. After `growth_interval` others it doubles.

    Args:
        tx: any optimizer.
        scale: S at the beginning.
        gradients: what happens to the scaled gradients, such as `quantize_gradients("e5m2",
            overflow="spec")`; None: nothing.
        growth_interval: None keeps the scale and every update.
        fits: where scaled gradients can be held, for a format that only saturates and so hides an
            overflow: its `Format.inside`.

    Raises:
        ValueError: a scale that is no positive number of a size that float32 can invert, or an
            interval below 1.

    References:
        Mixed precision training, arXiv:1710.03740.
    """
    if not 1 / _LARGEST <= scale <= _LARGEST:
        raise ValueError(
            f"loss_scaling: scale is {scale}; it must be positive, from 2^-126 to 2^126, best a "
            "power of two such as 2.0**15."
        )
    if growth_interval is not None and growth_interval < 1:
        raise ValueError(
            f"loss_scaling: growth_interval is {growth_interval}; use at least 1, or None to keep "
            "the scale."
        )
    inner = optax.with_extra_args_support(tx)
    first = optax.with_extra_args_support(gradients or optax.identity())

    def init(params: Any) -> Any:
        zero = jnp.zeros((), jnp.int32)
        start = jnp.asarray(scale, jnp.float32)
        return LossScaleState(start, zero, zero, first.init(params), inner.init(params))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        scaled, gradients = first.update(updates, state.gradients, params, **extra)
        plain = jax.tree.map(lambda g: g / state.scale.astype(g.dtype), scaled)
        changes, new = inner.update(plain, state.inner, params, **extra)
        if growth_interval is None:
            return changes, state._replace(gradients=gradients, inner=new)
        held = [fits(g).all() for g in jax.tree.leaves(updates)]
        held += [jnp.isfinite(g).all() for g in jax.tree.leaves(scaled)]
        finite = jnp.all(jnp.stack(held))
        changes = jax.tree.map(lambda u: jnp.where(finite, u, jnp.zeros_like(u)), changes)
        new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state.inner)
        good = jnp.where(finite, state.good + 1, 0)
        grows = good >= growth_interval
        grown = jnp.where(grows, jnp.minimum(state.scale * _GROWTH, _LARGEST), state.scale)
        shrunk = jnp.maximum(state.scale / _GROWTH, jnp.minimum(state.scale, 1.0))
        return changes, LossScaleState(
            jnp.where(finite, grown, shrunk),
            jnp.where(grows, 0, good),
            state.skipped + (~finite).astype(jnp.int32),
            gradients,
            new,
        )

    return optax.GradientTransformationExtraArgs(init, update)


def loss_scale(state: Any) -> Float[Array, ""] | None:
    """By what the loss is to be multiplied for an optimizer's next update; None without a scale.

    Args:
        state: of any optimizer; it has a scale if `loss_scaling` is the outermost part of it.
    """
    return state.scale if isinstance(state, LossScaleState) else None

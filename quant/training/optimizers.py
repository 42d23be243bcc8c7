"""Any optax optimizer with gradients and state in number formats.

Transformations that wrap or precede an optimizer; the optimizers are optax's. Where weights live
is said by the weight memories (`quant.memory`, `memories`), the scale of the loss by `loss_scale`.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PRNGKeyArray, PyTree

from ..flat_blocks import decode_leaf, encode_leaf, quantize_leaf
from ..formats import parse
from ..grid import Format
from ..minifloat import FLOAT32
from ..qtensor import QTensor
from ..rounding import check_rounding
from .loss_scale import loss_scaling

_GRADIENTS, _STATE = 1, 2  # folded into the key, so that the two never round with the same numbers


def quantize_gradients(
    fmt: Format | str, rounding: str = "nearest_even", *, overflow: str = "saturate"
) -> optax.GradientTransformationExtraArgs:
    """Rounds every gradient to a format: chain it in front of an optimizer.

    A format without a unit of its own finds its scales anew in each gradient; the blocks of a block
    format run through the flattened gradient, the last one filled up with zeros. In float32 nothing
    changes, bit for bit. A NaN under `jit` stays NaN, whether the format has one or not.

    Args:
        fmt: the format or its name.
        rounding: one of `ROUNDINGS`; `stochastic` keeps the mean of the gradient and reads
            `update(..., key=key)`.
        overflow: see `Format.encode`; `spec` lets a dynamic loss scale see an overflow.

    Raises:
        ValueError: an unknown format or rounding; a missing key; outside of `jit` a NaN where the
            format has none.
    """
    fmt = parse(fmt)
    who = f"quantize_gradients({fmt.name})"
    _check(who, rounding)

    def rounded(g: Array, key: Any) -> Array:
        if _as_is(g, fmt):
            return g
        q = quantize_leaf(g, fmt, rounding=rounding, overflow=overflow, key=key)
        return q if fmt.has_nan else jnp.where(jnp.isnan(g), g, q)

    def update(
        updates: Any, state: Any, params: Any = None, *, key: Any = None, **extra: Any
    ) -> tuple[Any, Any]:
        leaves, tree = jax.tree.flatten(updates)
        keys = _keys(who, rounding, key, _GRADIENTS, len(leaves))
        return tree.unflatten([rounded(g, k) for g, k in zip(leaves, keys, strict=True)]), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("leaves",), meta_fields=("tree", "shapes")
)
@dataclass(frozen=True)
class QuantizedState:
    """State of an optimizer between two steps: its leaves, some of them as `QTensor`."""

    leaves: list[Any]
    tree: Any  # the structure of the state as the optimizer knows it
    shapes: tuple[tuple[int, ...], ...]  # of the leaves there, which blocks may have filled up


def quantize_state(
    tx: optax.GradientTransformation,
    fmt: Format | str | Mapping[str, Format | str],
    rounding: str = "nearest_even",
) -> optax.GradientTransformationExtraArgs:
    """The optimizer with its state stored in formats: codes and scales between two steps.

    The optimizer itself computes as it always does, from the values that are stored. In float32
    nothing changes, bit for bit. With `optax.MultiSteps` the state holds a gradient accumulator,
    `acc_grads`, which can be given a format like any other field.

    Of Adam, `nu` (squares of gradients) needs range more than digits: where it underflows to 0, a
    step is as long as eps allows; bfloat16 or e5m2 with stochastic rounding are safe choices.

    Args:
        tx: any optimizer.
        fmt: one format for all floating arrays in the state that have an axis (so not for numbers
            such as a count or a learning rate); or formats by the names of fields,
            `{"mu": "e4m3fn", "nu": "bfloat16"}`, the others staying as they are.
        rounding: one of `ROUNDINGS`; `stochastic` reads `update(..., key=key)`. The state at
            `init` is rounded to nearest.

    Raises:
        ValueError: an unknown format, rounding or field; a missing key.
    """
    formats = {name: parse(f) for name, f in fmt.items()} if isinstance(fmt, Mapping) else None
    everywhere = None if isinstance(fmt, Mapping) else parse(fmt)
    who = f"quantize_state({everywhere.name if everywhere else dict(fmt)})"  # pyright: ignore
    _check(who, rounding)
    inner = optax.with_extra_args_support(tx)

    def format_of(path: Any, leaf: Array) -> Format | None:
        if not jnp.issubdtype(leaf.dtype, jnp.floating) or not leaf.ndim:
            return None
        names = [str(getattr(entry, "name", getattr(entry, "key", ""))) for entry in path]
        own = everywhere
        if formats is not None:
            own = next((formats[name] for name in names if name in formats), None)
        return None if own is None or _as_is(leaf, own) else own

    def store(state: PyTree, rounding: str, keys: list[Any]) -> QuantizedState:
        found, tree = jax.tree_util.tree_flatten_with_path(state)
        leaves = []
        for i, (path, leaf) in enumerate(found):
            own = format_of(path, leaf)
            key = keys[i] if keys else None
            leaves.append(
                leaf if own is None else encode_leaf(leaf, own, rounding=rounding, key=key)
            )
        return QuantizedState(leaves, tree, tuple(jnp.shape(leaf) for _, leaf in found))

    def init(params: Any) -> Any:
        state = inner.init(params)
        paths = jax.tree_util.tree_leaves_with_path(state)
        for name in formats or ():
            known = {str(getattr(e, "name", getattr(e, "key", ""))) for p, _ in paths for e in p}
            if name not in known:
                raise ValueError(
                    f"{who}: the state of this optimizer has no field {name!r}; it has "
                    f"{', '.join(sorted(known - {''})) or 'none'}."
                )
        return store(state, "nearest_even", [])

    def update(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        key: Any = None,
        **extra: Any,
    ) -> tuple[Any, Any]:
        keys = _keys(who, rounding, key, _STATE, len(state.leaves))
        loaded = [
            decode_leaf(a, shape) if isinstance(a, QTensor) else a
            for a, shape in zip(state.leaves, state.shapes, strict=True)
        ]
        before = state.tree.unflatten(loaded)
        updates, after = inner.update(updates, before, params, key=key, **extra)
        return updates, store(after, rounding, keys)

    return optax.GradientTransformationExtraArgs(init, update)


def low_precision(
    tx: optax.GradientTransformation,
    *,
    gradients: Format | str | None = None,
    state: Format | str | Mapping[str, Format | str] | None = None,
    rounding: str = "nearest_even",
    loss_scale: float | int | None = None,
    growth_interval: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """An optimizer in low precision in one line: gradients, state and the scale of the loss.

    Weights and their accumulation belong to the weight memory, activations to `Activation`, the
    sums of matrix products to `accumulators`.

    Args:
        tx: any optimizer of optax.
        gradients: format of the gradients, see `quantize_gradients`.
        state: format or formats of the state, see `quantize_state`.
        rounding: of both.
        loss_scale: the gradients that come are those of so many times the loss, see
            `loss_scaling`; None: of the loss itself.
        growth_interval: with a loss scale: makes it dynamic.

    Raises:
        ValueError: see these; a growth interval without a loss scale.

    >>> tx = low_precision(optax.adam(1e-3), gradients="e5m2", state="bfloat16")
    """
    if growth_interval is not None and loss_scale is None:
        raise ValueError(
            f"low_precision(growth_interval={growth_interval}): there is no scale to grow; give "
            "loss_scale=2.0**15 with it."
        )
    _check("low_precision", rounding)
    inner = optax.with_extra_args_support(
        tx if state is None else quantize_state(tx, state, rounding)
    )
    overflow = "spec" if loss_scale is not None and growth_interval is not None else "saturate"
    first, fits = None, jnp.isfinite
    if gradients is not None:
        fmt = parse(gradients)
        first = quantize_gradients(fmt, rounding, overflow=overflow)
        if fmt.steps is None and not fmt.has_nan:  # an overflow only saturates
            fits = fmt.inside
    if loss_scale is not None:
        return loss_scaling(
            inner, loss_scale, gradients=first, growth_interval=growth_interval, fits=fits
        )
    return inner if first is None else optax.with_extra_args_support(optax.chain(first, inner))


def _as_is(x: Array, fmt: Format) -> bool:
    """Whether rounding changes nothing; left out then, since a compiler fuses around it."""
    return fmt == FLOAT32 and x.dtype == jnp.float32


def _check(who: str, rounding: str) -> None:
    check_rounding(who, rounding, jax.random.key(0))  # the key itself comes with each update


def _keys(who: str, rounding: str, key: PRNGKeyArray | None, purpose: int, count: int) -> list[Any]:
    check_rounding(f"{who}: update(..., key=...)", rounding, key)
    if rounding != "stochastic" or key is None:
        return [None] * count
    return list(jax.random.split(jax.random.fold_in(key, purpose), count))

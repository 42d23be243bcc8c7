r"""GPTQ: weights are rounded input by input, and each error is made up for by those that follow.

With U upper triangular, $H^{-1} = U^\top U$, an error of column j divided by $U_{jj}$ is taken off
the columns after j in proportion to row j of U: of all changes of them the one that costs least.
The Hessian H is any positive definite matrix of the inputs (`statistics`); the grid any format.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..blocks import BlockFormat
from ..qtensor import QTensor
from ..scaled import Scale
from .grid import Grid
from .layer import as_groups, as_qtensor, padded

_BLOCK = 128  # columns whose errors are passed on together; the result does not depend on it
_RAISE = 10.0  # of the damping where the Hessian is still not positive definite
_TRIES = 4


class Rounded(NamedTuple):
    """What GPTQ gives."""

    weights: QTensor
    damping: float  # that was needed, relative to the mean of the diagonal
    loss: float  # sum of squared errors over U_jj: tr(D H D^T) with the damped H


def gptq(
    w: Float[Array, "outputs inputs"],
    hessian: Float[np.ndarray, "rows columns"],
    grid: Grid,
    group: int | None = None,
    *,
    damping: float = 0.01,
    by_importance: bool = False,
    block: int = _BLOCK,
) -> Rounded:
    """Rounds the weight of a linear layer with error feedback.

    The grid of a group is fitted when its first column is reached, to the weights as they are then;
    with `by_importance`, for a format whose scales are codes, and for a group of all inputs, to
    the weights as they were. Inputs that were always 0 get weights of 0; inputs that are no whole
    number of groups are `padded` with such, and so are the codes.

    Args:
        w: of Y = X W^T.
        hessian: (inputs, inputs), E[x x^T] or another curvature, symmetric.
        grid: format and clip.
        group: inputs that share a scale; None: all.
        damping: share of the mean of the diagonal that is added to it; raised tenfold, at most
            three times, where the Hessian is not positive definite with it.
        by_importance: whether columns are taken in the order of the diagonal, the largest first
            ("act-order"); codes stay where they belong.
        block: columns whose errors reach the others together.

    Raises:
        ValueError: shapes that do not fit, numbers that are not finite, or a Hessian that no
            damping helps: it says how many tokens it takes.

    References:
        Frantar et al., GPTQ: accurate post-training quantization for generative pre-trained
        transformers, arXiv:2210.17323.
    """
    inputs = w.shape[1]
    h = np.array(hessian, np.float64)
    if h.shape != (inputs, inputs):
        raise ValueError(f"gptq: a Hessian of shape {h.shape} for {inputs} inputs.")
    if not np.isfinite(h).all() or not np.isfinite(np.asarray(w)).all():
        raise ValueError("gptq: weights or Hessian are not finite; did activations overflow?")
    w32 = padded(w.astype(jnp.float32), group)
    h = np.pad(h, (0, w32.shape[1] - inputs))
    inputs = w32.shape[1]
    dead = np.diag(h) == 0
    h[dead, dead] = 1.0
    w32 = jnp.where(jnp.asarray(dead), 0.0, w32)
    groups = as_groups(w32, group)
    order = np.argsort(-np.diag(h), kind="stable") if by_importance else np.arange(inputs)
    upper, damping = _upper(h[np.ix_(order, order)], damping)
    still = by_importance or group is None or isinstance(grid.fmt, BlockFormat)
    scale = grid.fit(groups)._replace(divisor=None) if still else None
    size = groups.shape[2]
    codes, scale, loss = _sweep(
        w32[:, order], jnp.asarray(upper, jnp.float32), order // size, scale, grid, size, block
    )
    back = np.argsort(order)
    return Rounded(
        as_qtensor(grid, codes[:, back], scale, group, str(w.dtype)), damping, float(loss)
    )


def _upper(h: np.ndarray, damping: float) -> tuple[np.ndarray, float]:
    """U of the damped Hessian, and the damping."""
    mean = float(np.diag(h).mean())
    for _ in range(_TRIES):
        damped = h + damping * mean * np.eye(len(h))
        try:
            lower = np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]  # upper: damped = L L^T
            upper = np.linalg.inv(lower)
            if np.isfinite(upper).all():
                return upper, damping
        except np.linalg.LinAlgError:
            pass
        damping = max(damping, 1e-4) * _RAISE
    raise ValueError(
        f"gptq: the Hessian of {len(h)} inputs is not positive definite, not even with {damping:g} "
        f"of its mean on the diagonal; it takes more tokens than inputs, at least {4 * len(h)}."
    )


def _sweep(
    w: Array,
    upper: Array,
    group_of: np.ndarray,
    scale: Scale | None,
    grid: Grid,
    size: int,
    block: int,
) -> tuple[Array, Scale, Array]:
    """Codes and scales, block by block; in the order of the columns given."""
    inputs = w.shape[1]
    step = min(block, inputs)
    if scale is None:  # a group must not begin amid a block
        step = size * max(1, step // size) if size <= step else size
    codes, scales, loss = [], [], jnp.zeros(())
    for first in range(0, inputs, step):
        last = min(first + step, inputs)
        here, square = w[:, first:last], upper[first:last, first:last]
        if scale is None:
            done = _block_fitted(here, square, grid, size)
            scales.append(done[3])
        else:
            own = _columns(scale, group_of[first:last])
            done = _block(here, square, own, grid)
        codes.append(done[0])
        loss = loss + done[2]
        if last < inputs:
            w = w.at[:, last:].add(-(done[1] @ upper[first:last, last:]))
    fitted = jax.tree.map(lambda *parts: jnp.concatenate(parts, 1), *scales) if scales else None
    found = fitted if scale is None else scale
    assert found is not None
    return jnp.concatenate(codes, 1), found, loss


def _columns(scale: Scale, groups: np.ndarray) -> Scale:
    """The scale of each column, from that of each group."""
    return jax.tree.map(lambda s: s[:, groups] if s.ndim else s, scale)


@functools.partial(jax.jit, static_argnames="grid")
def _block(w: Array, upper: Array, scale: Scale, grid: Grid) -> tuple[Array, Array, Array]:
    """Codes, errors over U_jj and their squares of a few columns with a scale each."""

    def one(j: Array, state: tuple) -> tuple:
        w, codes, errors = state
        column = jax.lax.dynamic_index_in_dim(w, j, 1, keepdims=False)
        own = jax.tree.map(
            lambda s: jax.lax.dynamic_index_in_dim(s, j, 1, keepdims=False) if s.ndim else s, scale
        )
        code = grid.codes(column, own)
        row = jax.lax.dynamic_index_in_dim(upper, j, 0, keepdims=False)
        error = (column - grid.values(code, own)) / row[j]
        w = w - error[:, None] * row
        at = (0, j)
        codes = jax.lax.dynamic_update_slice(codes, code[:, None].astype(codes.dtype), at)
        return w, codes, jax.lax.dynamic_update_slice(errors, error[:, None], at)

    start = (w, jnp.zeros(w.shape, grid.fmt.code_dtype), jnp.zeros_like(w))
    _, codes, errors = jax.lax.fori_loop(0, w.shape[1], one, start)
    return codes, errors, (errors**2).sum()


@functools.partial(jax.jit, static_argnames=("grid", "size"))
def _block_fitted(
    w: Array, upper: Array, grid: Grid, size: int
) -> tuple[Array, Array, Array, Scale]:
    """`_block` of whole groups, each fitted to its weights when it is reached."""
    codes, errors, scales, loss = [], [], [], jnp.zeros(())
    for first in range(0, w.shape[1], size):
        last = first + size
        fitted = grid.fit(w[:, None, first:last])._replace(divisor=None)
        spread = _columns(fitted, np.zeros(size, int))
        done = _block(w[:, first:last], upper[first:last, first:last], spread, grid)
        w = w.at[:, last:].add(-(done[1] @ upper[first:last, last:]))
        codes.append(done[0])
        errors.append(done[1])
        scales.append(fitted)
        loss = loss + done[2]
    together = jax.tree.map(lambda *parts: jnp.concatenate(parts, 1), *scales)
    return jnp.concatenate(codes, 1), jnp.concatenate(errors, 1), loss, together

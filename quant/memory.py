"""Weights that live in a number format between two training steps.

The contract of a weight memory (any place where weights are kept, devices included) and the two
memories that are number formats. What is lost on the way in is counted here; how a number is
rounded belongs to the formats.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, Shaped, UInt32

from .blocks import BlockFormat
from .few import RULES
from .flat_blocks import Stored, in_flat_blocks
from .formats import parse
from .grid import FLOATS, Format
from .integer import AsymmetricInteger
from .minifloat import narrow, widen
from .rounding import ROUNDINGS, check_rounding
from .scaling import absmax, absmax_scale, in_units, to_units
from .storage import check_has_zero, where_lost

COUNTS = ("writes", "saturated", "underflowed", "stagnated", "nan")


class WeightMemory(NamedTuple):
    """Where weights live between two steps; three pure functions, to be used under `jit` or not.

    `init(params, key) -> state`; `read(state, key) -> params`, the tree, shapes and dtypes that
    `init` was given; `update(state, updates, key) -> state`, p <- p + u as far as the memory can.
    `state.lost` is a dict of counts, see `losses`.
    """

    init: Callable[..., Any]
    read: Callable[..., Any]
    update: Callable[..., Any]


class StoredWeights(NamedTuple):
    """Weights in a number format: the state of `float32` and `number_format`, all of it arrays."""

    codes: PyTree[Shaped[Array, "..."]]  # of the shapes of the parameters: what is stored
    scale: PyTree[Shaped[Array, "..."]] | None  # of each leaf; None if the format has its own unit
    like: PyTree[Float[Array, "..."]]  # a 0 for each leaf, in the dtype that is read
    #: For each of `COUNTS` and each leaf the number of elements since (and with) `init`, as two
    #: words [low, high] of 32 bits: exact up to 2^64, where int32 overflows within one long run.
    lost: dict[str, PyTree[UInt32[Array, "... 2"]]]


def number_format(
    fmt: Format | str, rounding: str = "nearest_even", *, headroom: float = 1.0
) -> WeightMemory:
    """Weights stored as codes of a format, without any float copy: p <- Q(p + u).

    One byte a weight for formats of up to 8 bits, else two. Every write is rounded with `rounding`,
    that of `init` included, in float32 (float64 for float64 parameters), saturates, and is counted
    in `state.lost` (see `losses`). An element whose update is exactly 0 is not written: it keeps
    its code, whatever the rounding.

    An integer format, a table or a logarithmic one gets a scale for each leaf at `init`, `headroom`
    times max|p| over the number of steps (or times the mean its definition asks for), for good:
    weights that grow beyond it saturate. A leaf of zeros only has no scale of its own and takes the
    largest of the other leaves.

    A block format finds its scales anew at each write. Blocks run through the flattened leaf, the
    last one filled up with zeros, so any shape will do. A block none of whose weights is written
    stays as it is; in `nvfp4`, where all share one scale, all are written.

    Keys: `init` and `update` read theirs with stochastic rounding only, `read` never does; None
    will do where none is read.

    Args:
        fmt: the format or its name, see `parse`.
        rounding: one of `ROUNDINGS`.
        headroom: how far beyond the first max|p| a scale reaches that is found at `init`.

    Raises:
        ValueError: for an unknown format or rounding, a missing key, parameters that are no floats,
            updates that do not fit the parameters, and outside of `jit` for a NaN that the format
            cannot hold (under `jit` it becomes 0 and is counted).

    References:
        On the convergence of stochastic gradient descent in low-precision number formats,
        arXiv:2301.01651 (what rounding p + u does to training).
    """
    fmt = parse(fmt)
    if rounding not in ROUNDINGS:
        raise ValueError(
            f"number_format({fmt.name}): rounding is {rounding!r}; "
            f"choose one of {', '.join(ROUNDINGS)}."
        )
    in_blocks = isinstance(fmt, BlockFormat)
    if headroom <= 0 or (headroom != 1 and (fmt.steps is None or in_blocks)):
        raise ValueError(
            f"number_format({fmt.name}): headroom is {headroom}; it must be positive, and only a "
            "format that gets its scale at init, such as an integer format, has one that it could "
            "widen, so leave it at 1 for the others."
        )
    check_has_zero(f"number_format({fmt.name})", fmt)
    if isinstance(fmt, AsymmetricInteger) or fmt.scale_rule == "twn":
        raise ValueError(
            f"number_format({fmt.name}): weights that change keep one scale, and {fmt.name} needs "
            "more than that; choose its symmetric kin (int4, ternary)."
        )

    who = f"number_format({fmt.name}, {rounding!r})"

    def scales(weights: list[Array]) -> list[Array] | None:
        if fmt.steps is None:
            return None
        if fmt.scale_rule == "absmax":
            reach = [absmax(w) for w in weights]
        else:  # a mean; 0 for a leaf of zeros, as above
            means = [RULES[fmt.scale_rule](w.reshape(-1)).scale for w in weights]
            reach = [jnp.where(absmax(w) > 0, m, 0) for m, w in zip(means, weights, strict=True)]
        largest = jnp.max(jnp.stack([r.astype(jnp.float32) for r in reach]), initial=0)
        reach = [jnp.where(r > 0, r, largest.astype(r.dtype)) * headroom for r in reach]
        return [absmax_scale(r, fmt.steps) for r in reach]

    def load(codes: Array, scale: Array | None, dtype: np.dtype) -> Array:
        values = fmt.decode(codes, jnp.float64 if dtype == jnp.float64 else jnp.float32)
        return values if scale is None else in_units(values, scale)

    def store(x: Array, scale: Array | None, key: Array | None) -> Stored:
        r = x if scale is None else to_units(x, scale)
        codes = fmt.encode(r, rounding=rounding, key=key)
        return Stored(codes, scale, where_lost(x, fmt.inside(r), fmt.decode(codes)))

    def keys(key: PRNGKeyArray | None, leaves: int) -> list[Any]:
        check_rounding(who, rounding, key)
        if rounding != "stochastic" or key is None:
            return [None] * leaves
        return list(jax.random.split(key, leaves))

    if isinstance(fmt, BlockFormat):
        return _memory(who, lambda weights: None, *in_flat_blocks(fmt, rounding), keys)
    return _memory(who, scales, load, store, _keep_written, keys)


def float32() -> WeightMemory:
    """Weights as plain float32 numbers: p <- p + u, bit for bit the sum of JAX; no key is read.

    Other parameters are stored in float32 too, and read back in their own dtype.
    """

    def store(x: Array, scale: None, key: None) -> Stored:
        return Stored(x.astype(jnp.float32), None, where_lost(x, ~jnp.isinf(x), x))

    return _memory(
        "float32()",
        scales=lambda weights: None,
        load=lambda codes, scale, dtype: codes,
        store=store,
        keep=lambda old, scale, new, written: (new.codes, None),
        keys=lambda key, leaves: [None] * leaves,
    )


def losses(state: Any) -> dict[str, dict[str, int]]:
    """What a memory has lost since (and with) `init`: for each leaf, by its path, the counts.

    The path is written as `layer.kernel`, for a tree of nnx parameters too.

    Each counts elements, summed over all writes (and over the axes a state was `vmap`ped over):

    - `writes`: all of them at `init`, then those whose update was not 0. Shares are of this.
    - `saturated`: p + u lay beyond the range of the format.
    - `underflowed`: p + u was not 0 and became 0.
    - `stagnated`: the update was not 0 and changed nothing.
    - `nan`: p + u was NaN.

    Args:
        state: of a memory, with numbers in it: outside of `jit`.
    """
    counts: dict[str, dict[str, int]] = {}
    for name, tree in state.lost.items():
        for path, words in jax.tree_util.tree_leaves_with_path(tree):
            low, high = np.asarray(words).reshape(-1, 2).T.tolist()
            leaf = jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
            counts.setdefault(leaf, {})[name] = sum(low) + 2**32 * sum(high)
    return counts


def bits_per_weight(state: StoredWeights) -> float:
    """Bits in memory for each weight, as stored: codes in whole bytes, scales included."""
    codes = jax.tree.leaves(state.codes)
    stored = sum(8 * a.size * a.dtype.itemsize for a in [*codes, *jax.tree.leaves(state.scale)])
    return stored / sum(a.size for a in codes)


def _memory(
    who: str, scales: Callable, load: Callable, store: Callable, keep: Callable, keys: Callable
) -> WeightMemory:
    """What the memories of this file share.

    Args:
        who: the memory, for errors.
        scales: weights -> a scale for each, or None.
        load: (codes, scale, dtype to read) -> values in float32 or float64.
        store: (values, scale, key) -> `Stored`.
        keep: (old codes, old scale, `Stored`, where it is written) -> codes and scale from now on.
        keys: (key, n) -> n keys or Nones.
    """

    def init(params: PyTree, key: PRNGKeyArray | None = None) -> StoredWeights:
        leaves, tree = jax.tree.flatten(params)
        for path, p in jax.tree_util.tree_leaves_with_path(params):
            if str(p.dtype) not in FLOATS:
                raise ValueError(
                    f"{who}.init: the parameter {jax.tree_util.keystr(path)} of shape {p.shape} "
                    f"has dtype {p.dtype}; weights must be one of {', '.join(FLOATS)}."
                )
        weights = [widen(p) for p in leaves]
        units = scales(weights)
        codes, new_units, lost = [], [], []
        for w, s, k in zip(weights, _each(units, weights), keys(key, len(weights)), strict=True):
            stored = store(w, s, k)
            everywhere = jnp.ones(w.shape, bool)
            codes.append(stored.codes)
            new_units.append(stored.scale)
            lost.append({**stored.lost, "writes": everywhere, "stagnated": ~everywhere})
        counts = {name: tree.unflatten([count(at[name]) for at in lost]) for name in COUNTS}
        like = [jnp.zeros((), p.dtype) for p in leaves]
        return StoredWeights(
            tree.unflatten(codes), _tree(tree, new_units), tree.unflatten(like), counts
        )

    def read(state: StoredWeights, key: PRNGKeyArray | None = None) -> PyTree:
        codes, tree = jax.tree.flatten(state.codes)
        units, like = _units(tree, state), jax.tree.leaves(state.like)
        return tree.unflatten(
            [
                narrow(load(c, s, p.dtype), p.dtype)
                for c, s, p in zip(codes, units, like, strict=True)
            ]
        )

    def update(
        state: StoredWeights, updates: PyTree, key: PRNGKeyArray | None = None
    ) -> StoredWeights:
        codes, tree = jax.tree.flatten(state.codes)
        steps = tree.flatten_up_to(updates)
        units, like = _units(tree, state), jax.tree.leaves(state.like)
        new, new_units, lost = [], [], []
        for old, s, p, u, k in zip(codes, units, like, steps, keys(key, len(codes)), strict=True):
            if u.shape != old.shape:
                raise ValueError(
                    f"{who}.update: an update of shape {u.shape} came for a weight of shape "
                    f"{old.shape}; updates must be a tree like the parameters."
                )
            before = load(old, s, p.dtype)
            u = widen(u).astype(before.dtype)
            stored, written = store(before + u, s, k), u != 0
            code, unit = keep(old, s, stored, written)
            stagnated = load(code, unit, p.dtype) == before
            where = {**stored.lost, "writes": written, "stagnated": stagnated}
            new.append(code)
            new_units.append(unit)
            lost.append({name: at & written for name, at in where.items()})
        counts = {
            name: jax.tree.map(
                add_counts, state.lost[name], tree.unflatten([count(at[name]) for at in lost])
            )
            for name in COUNTS
        }
        return state._replace(codes=tree.unflatten(new), scale=_tree(tree, new_units), lost=counts)

    return WeightMemory(init, read, update)


def _each(units: list | None, leaves: list) -> list:
    return units or [None] * len(leaves)


def _units(tree: Any, state: StoredWeights) -> list:
    return [None] * tree.num_leaves if state.scale is None else tree.flatten_up_to(state.scale)


def _tree(tree: Any, units: list) -> PyTree | None:
    return None if all(unit is None for unit in units) else tree.unflatten(units)


def _keep_written(old: Array, scale: Any, new: Stored, written: Array) -> tuple[Array, Any]:
    return jnp.where(written, new.codes, old), scale


def count(at: Shaped[Array, "..."]) -> UInt32[Array, "2"]:
    """The number of True as two words [low, high]; of whole numbers, their sum."""
    low = jnp.sum(at, dtype=jnp.uint32)
    return jnp.stack([low, jnp.zeros_like(low)])


def add_counts(a: UInt32[Array, "2"], b: UInt32[Array, "2"]) -> UInt32[Array, "2"]:
    """The sum of two counts."""
    low = a[0] + b[0]
    return jnp.stack([low, a[1] + b[1] + (low < b[0]).astype(jnp.uint32)])

"""Weight memories that keep more than the weights: a float copy, or what rounding left over.

Memories that are a number format and nothing else stand in `quant.memory`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, PyTree

from ..flat_blocks import decode_leaf, encode_leaf, quantize_leaf
from ..formats import parse
from ..grid import Format
from ..memory import StoredWeights, WeightMemory, float32
from ..qtensor import QTensor
from ..rounding import check_rounding
from ..storage import check_has_zero


def master_copy(fmt: Format | str, rounding: str = "nearest_even") -> WeightMemory:
    """Weights updated in float32 and read in a format: p <- p + u, read gives Q(p).

    The float32 copy collects updates that are smaller than a step of the format. Gradients are
    taken at the weights that were read and applied to the copy (straight-through). What `losses`
    counts is lost by the copy, so nearly nothing. A format without a unit of its own finds its
    scale anew at each reading, its blocks as in `number_format`.

    Args:
        fmt: the format of reading, or its name.
        rounding: one of `ROUNDINGS`; `stochastic` reads the key of `read`.

    Raises:
        ValueError: an unknown format or rounding, a missing key.
    """
    fmt, copy = parse(fmt), float32()
    who = f"master_copy({fmt.name})"
    check_rounding(who, rounding, jax.random.key(0))

    def read(state: StoredWeights, key: PRNGKeyArray | None = None) -> PyTree:
        check_rounding(f"{who}.read", rounding, key)
        leaves, tree = jax.tree.flatten(copy.read(state))
        keys: list[Any] = [None] * len(leaves)
        if rounding == "stochastic" and key is not None:
            keys = list(jax.random.split(key, len(leaves)))
        pairs = zip(leaves, keys, strict=True)
        return tree.unflatten([quantize_leaf(w, fmt, rounding=rounding, key=k) for w, k in pairs])

    return WeightMemory(copy.init, read, copy.update)


class CompensatedWeights(NamedTuple):
    """The state of a memory, and what its weights still lack."""

    memory: Any
    remainder: list[QTensor]  # for each leaf, in the format of the compensation

    @property
    def lost(self) -> dict[str, PyTree]:
        """The counts of the memory; what it lost is in the remainder now."""
        return self.memory.lost


def compensated(memory: WeightMemory, fmt: Format | str = "float32") -> WeightMemory:
    r"""A memory whose losses are kept, and added to the next update (Kahan summation).

    With c the remainder, each update asks for $t = u + c$, looks what became of it, and keeps
    $c \leftarrow Q(t - (p' - p))$. So p + c is the exact sum, but for the rounding of c: each step
    adds an error of half a step of `fmt` at c. A narrow `fmt` is for weights whose own steps are
    small, so that c is: with bfloat16 weights, bfloat16 will do. Where steps are large, or weights
    saturate (the largest of a block in MX formats does), c grows until its steps exceed an update,
    and then no update reaches it any more.

    Args:
        memory: any memory that is read without a key, such as `number_format("bfloat16")`.
        fmt: the format of the remainder, or its name.

    Raises:
        ValueError: an unknown format, or one without 0.

    References:
        Revisiting BFloat16 training, arXiv:2010.06192 (Kahan summation of weights).
    """
    fmt = parse(fmt)
    check_has_zero("compensated", fmt)

    def init(params: PyTree, key: PRNGKeyArray | None = None) -> CompensatedWeights:
        leaves = jax.tree.leaves(params)
        zeros = [encode_leaf(jnp.zeros(p.shape, jnp.float32), fmt) for p in leaves]
        return CompensatedWeights(memory.init(params, key), zeros)

    def read(state: CompensatedWeights, key: PRNGKeyArray | None = None) -> PyTree:
        return memory.read(state.memory, key)

    def update(
        state: CompensatedWeights, updates: PyTree, key: PRNGKeyArray | None = None
    ) -> CompensatedWeights:
        before, tree = jax.tree.flatten(memory.read(state.memory, None))
        steps = tree.flatten_up_to(updates)
        wanted = [
            u.astype(jnp.float32) + decode_leaf(c, u.shape)
            for u, c in zip(steps, state.remainder, strict=True)
        ]
        new = memory.update(state.memory, tree.unflatten(wanted), key)
        after = jax.tree.leaves(memory.read(new, None))
        remainder = [
            encode_leaf(t - (b.astype(jnp.float32) - a.astype(jnp.float32)), fmt)
            for t, a, b in zip(wanted, before, after, strict=True)
        ]
        return CompensatedWeights(new, remainder)

    return WeightMemory(init, read, update)

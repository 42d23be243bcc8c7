"""Resets inside a stream: single samples begin anew at some steps, in the same pass over time.

Where the state of a layer is put back to its first one, all that was before has no derivative any
more, and every rule's trace ends there by the algebra it has anyway. No learning rule here.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

from .stack import Stack


class Restart(NamedTuple):
    """Where a layer begins anew, and what with."""

    flags: Bool[Array, "time batch"]  # before these steps
    first: Any  # the carry of a new sequence


def restarts(stack: Stack, params: PyTree, xs: Array, resets: Array | None) -> list[Restart | None]:
    """What each layer of a network needs to begin anew; None for all where there are no resets.

    Raises:
        ValueError: if there is not one flag for each step and sample.
    """
    if resets is None:
        return [None] * len(stack.layers)
    resets = jnp.asarray(resets)
    if resets.dtype != jnp.bool_ or resets.shape != xs.shape[:2]:
        raise ValueError(
            f"resets is {resets.dtype}{resets.shape} for inputs of shape {tuple(xs.shape)}: give "
            f"bool{xs.shape[:2]}, True where a sample begins a new sequence at that step."
        )
    # random keys are not put back, so the key that some cells ask for tells nothing
    firsts = stack.initialize_carries(params, xs, jax.random.key(0))
    return [Restart(resets, first) for first in firsts]


def restarted(flags: Bool[Array, "*dims"], first: PyTree, carry: PyTree) -> PyTree:
    """The carry with the samples that begin anew put back; random keys, and uint32, go on.

    Args:
        flags: (*steps, batch).
        first: the first carry, leaves (batch, ...).
        carry: leaves (*steps, batch, ...).
    """

    def one(new: Array, old: Array) -> Array:
        is_key = jnp.issubdtype(old.dtype, jax.dtypes.prng_key) or old.dtype == jnp.uint32
        if is_key or old.ndim < flags.ndim:  # the latter: one for all samples, such as a clock
            return old
        return jnp.where(flags.reshape(*flags.shape, *[1] * (old.ndim - flags.ndim)), new, old)

    return jax.tree.map(one, first, carry)


def begin(restart: Restart | None, carry: PyTree, flags: Array | None) -> PyTree:
    """What a step begins with, its flags of shape (batch,); the carry itself without restarts."""
    return carry if restart is None or flags is None else restarted(flags, restart.first, carry)


def begun(restart: Restart | None, carry: PyTree, carries: PyTree) -> PyTree:
    """What every step of a chunk began with.

    Args:
        restart: where the layer began anew.
        carry: what was there before the chunk.
        carries: what was there after each step, leaves (time, batch, ...).
    """

    def shifted(first: Array, every: Array) -> Array:
        return jnp.concatenate([first[None], every[:-1]])

    before = jax.tree.map(shifted, carry, carries)
    return before if restart is None else restarted(restart.flags, restart.first, before)

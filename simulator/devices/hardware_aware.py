"""Training for hardware: weights that are read with noise, so that a network learns to bear it.

Any memory can be put behind it, and the training loop stays as it is. What noise a device has is
its model's; whether a network bears it is measured on tiles.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, UInt32

from ...quant.memory import WeightMemory, add_counts, count
from .cells import usual
from .device import Device


class AwareWeights(NamedTuple):
    """The state of `hardware_aware`: all of it arrays."""

    weights: Any  # state of the memory of the clean weights
    clipped: PyTree[UInt32[Array, "2"]]  # weights that clipping moved, summed over all writes

    @property
    def lost(self) -> dict[str, PyTree[UInt32[Array, "2"]]]:
        """Counts of the memory, see `quant.memory.losses`, and those of clipping."""
        return {**self.weights.lost, "clipped": self.clipped}


def hardware_aware(
    memory: WeightMemory,
    noise: float | int | Device,
    *,
    clip: float | int | None = None,
    clip_stds: float | int | None = None,
) -> WeightMemory:
    r"""A memory whose weights are read with noise, $\tilde W = W + \Delta$, if there is a key.

    A training step reads once, so that one $\Delta$ serves a mini-batch forward and backward; the
    gradient at $\tilde W$ updates the clean W. A read without a key is that of the clean weights.

    Noise and clipping are for matrices, which lie on tiles: leaves of two dimensions or more.
    Others, such as biases and time constants, are left as they are.

    Args:
        memory: of the clean weights.
        noise: standard deviation of $\Delta$ in units of max|W| of the leaf; or a device, then
            $\tilde W$ is what its cells hold when they have just been written to W, max|W| at the
            end of their range.
        clip: largest |W|; weights beyond are set to it at `init` and after each update.
        clip_stds: the same with the bound at so many standard deviations of the leaf as it would
            be without clipping; one whose weights are all equal is left alone.

    Raises:
        ValueError: negative noise, a device that cannot be programmed, a bound that is none, or
            both bounds.

    References:
        Joshi et al., Accurate deep neural network inference using computational phase-change
        memory, Nature Communications 11:2473 (2020), arXiv:1906.03138; Rasch et al.,
        Hardware-aware training for large-scale and diverse deep learning inference workloads using
        in-memory computing-based accelerators, arXiv:2302.08469.
    """
    _check(noise, clip, clip_stds)

    def bounded(leaf: Array) -> Array:
        if leaf.ndim < 2:
            return leaf
        if clip is not None:
            return jnp.clip(leaf, -clip, clip)
        if clip_stds is None:
            return leaf
        spread = jnp.std(leaf.astype(jnp.float32)).astype(leaf.dtype)
        return jnp.where(spread > 0, jnp.clip(leaf, -clip_stds * spread, clip_stds * spread), leaf)

    def init(params: PyTree, key: PRNGKeyArray | None = None) -> AwareWeights:
        start = jax.tree.map(bounded, params)
        return AwareWeights(memory.init(start, key), _moved(params, start))

    def read(state: AwareWeights, key: PRNGKeyArray | None = None) -> PyTree:
        if key is None:
            return memory.read(state.weights, None)
        for_memory, for_noise = jax.random.split(key)
        leaves, tree = jax.tree.flatten(memory.read(state.weights, for_memory))
        keys = jax.random.split(for_noise, len(leaves))
        return tree.unflatten(
            [w if w.ndim < 2 else _noisy(w, noise, k) for w, k in zip(leaves, keys, strict=True)]
        )

    def update(
        state: AwareWeights, updates: PyTree, key: PRNGKeyArray | None = None
    ) -> AwareWeights:
        if clip is None and clip_stds is None:
            return state._replace(weights=memory.update(state.weights, updates, key))
        before = memory.read(state.weights, None)
        wanted = jax.tree.map(lambda p, u: p + u.astype(p.dtype), before, updates)
        held = jax.tree.map(bounded, wanted)
        updates = jax.tree.map(
            lambda u, w, h, p: jnp.where(h == w, u, (h - p).astype(u.dtype)),
            updates, wanted, held, before,
        )  # fmt: skip
        clipped = jax.tree.map(add_counts, state.clipped, _moved(wanted, held))
        return AwareWeights(memory.update(state.weights, updates, key), clipped)

    return WeightMemory(init, read, update)


def _moved(wanted: PyTree, held: PyTree) -> PyTree:
    """How many weights clipping changed; NaN is no such."""
    return jax.tree.map(lambda w, h: count(jnp.abs(w) > jnp.abs(h)), wanted, held)


def _noisy(
    w: Float[Array, "*dims"], noise: float | int | Device, key: PRNGKeyArray
) -> Float[Array, "*dims"]:
    clean = w.astype(jnp.float32)
    largest = jnp.max(jnp.abs(clean), initial=0)
    if not isinstance(noise, Device):
        drawn = clean + noise * largest * jax.random.normal(key, w.shape, jnp.float32)
        return drawn.astype(w.dtype)
    assert noise.program is not None
    layout = usual(noise.g_min)
    for_cells, for_writing = jax.random.split(key)
    scale = jnp.where(largest > 0, largest, 1) / layout.span(noise)
    cells = layout.init(noise, w.shape, for_cells, 0.0)
    cells = layout.program(noise, cells, clean / scale, for_writing, 0.0)
    return (scale * layout.read(noise, cells, None, 0.0)).astype(w.dtype)


def _check(
    noise: float | int | Device, clip: float | int | None, clip_stds: float | int | None
) -> None:
    if isinstance(noise, Device):
        if noise.program is None:
            raise ValueError(
                f"hardware_aware: {noise.name} takes pulses only, so that it has no noise of "
                "programming; take a device that can be programmed, or a number."
            )
    elif not noise >= 0:
        raise ValueError(f"hardware_aware: noise is {noise}; it must be at least 0.")
    for name, bound in (("clip", clip), ("clip_stds", clip_stds)):
        if bound is not None and not bound > 0:
            raise ValueError(f"hardware_aware: {name} is {bound}; it must be above 0.")
    if clip is not None and clip_stds is not None:
        raise ValueError(
            f"hardware_aware: clip = {clip} and clip_stds = {clip_stds} are two bounds for one "
            "weight; give one."
        )

"""Layers run over a chunk and differentiated within each step only: every carry is a constant.

What SLTT and OTTT have in common stands here: the forward pass that keeps what each step began
with, and the way back from the outputs of some steps to the inputs of the same ones.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float, Int, PyTree

from .restart import Restart, begun
from .stack import Layer, Stack
from .unroll import drive, recurrent_gradient, scan_cell, scan_units, split_kernels


class Kept(NamedTuple):
    """What one layer began each step with; leaves start with (time, batch)."""

    before: Any  # the carry of the step before, () for a stateless layer
    xs: Array


class UnitGradient(NamedTuple):
    """The gradient at the units of a unit-wise cell, before any product with a kernel."""

    unit: dict[str, Array]  # each per-unit parameter, summed over time and batch
    z: Float[Array, "time batch *features"]  # of the summed input


def forward(
    stack: Stack, parts: list[dict], carries: tuple, xs: Array, restarts: list[Restart | None]
) -> tuple[tuple[Any, ...], Array, list[Kept]]:
    """All layers over xs (K, batch, *features): the last carries, the outputs, and what is kept."""
    out, kept = [], []
    for layer, params, carry, restart in zip(stack.layers, parts, carries, restarts, strict=True):
        carry, ys, before = _run(layer, params, carry, xs, restart)
        kept.append(Kept(before, xs))
        out.append(carry)
        xs = ys
    return tuple(out), xs, kept


def _run(
    layer: Layer, params: dict, carry: Any, xs: Array, restart: Restart | None
) -> tuple[Any, Array, Any]:
    if layer.kind == "stateless":
        return carry, jax.vmap(layer.module(params))(xs), ()
    if layer.kind == "cell":
        return scan_cell(layer, params, carry, xs, restart)
    unit, w, h = split_kernels(params)
    last, carries = scan_units(layer, unit, h, drive(w, xs), carry, restart)
    return last, carries.y, begun(restart, carry, carries)


def at_steps(kept: list[Kept], index: Int[Array, " steps"]) -> list[Kept]:
    """What is kept of some of the steps only."""
    return jax.tree.map(lambda a: a[index], kept)


Pull = Callable[[Layer, dict, Kept, Array], tuple[dict, Array]]
"""`pull(layer, params, kept, dys)`: the gradient of a layer's parameters and of its inputs."""


def backward(
    stack: Stack, parts: list[dict], kept: list[Kept], dys: Array, pulls: list[Pull]
) -> list[PyTree]:
    """The gradient of each layer's parameters, from that of the outputs (K, batch, *features)."""
    grads = []
    for layer, params, one, pull in reversed(
        list(zip(stack.layers, parts, kept, pulls, strict=True))
    ):
        layer_grads, dys = pull(layer, params, one, dys)
        grads.insert(0, layer_grads)
    return grads


def pull_same_step(layer: Layer, params: dict, kept: Kept, dys: Array) -> tuple[dict, Array]:
    """Plain reverse mode through one step of a layer, for all steps at once."""
    if layer.kind == "unitwise":
        gradient = unit_gradient(layer, params, kept, dys)
        fan_in = {"w": kept.xs, "h": kept.before.y}
        return kernel_gradients(params, gradient, fan_in), input_gradient(params, gradient.z)

    def run(params: dict, xs: Array) -> Array:
        module = layer.module(params)
        if layer.kind == "stateless":
            return jax.vmap(module)(xs)
        return jax.vmap(lambda carry, x: module(carry, x)[1])(kept.before, xs)

    return jax.vjp(run, params, kept.xs)[1](dys)


def unit_gradient(layer: Layer, params: dict, kept: Kept, dys: Array) -> UnitGradient:
    """From the outputs of a unit-wise cell to its summed inputs and per-unit parameters."""
    unit, w, h = split_kernels(params)
    z = drive(w, kept.xs)
    z = z if h is None else z + kept.before.y @ h

    def run(unit: dict, z: Array) -> Array:
        return layer.units(unit).unit_step(kept.before, z).y

    return UnitGradient(*jax.vjp(run, unit, z)[1](dys))


def kernel_gradients(params: dict, gradient: UnitGradient, fan_in: dict[str, Array]) -> dict:
    """The gradient of all parameters; each kernel has multiplied its entry of `fan_in`."""
    kernels = {
        name: recurrent_gradient(params[name], u, gradient.z)
        for name, u in fan_in.items()
        if name in params
    }
    return gradient.unit | kernels


def input_gradient(params: dict, dz: Array) -> Array:
    """From the summed input down to the layer's input."""
    return dz @ params["w"].T if "w" in params else dz

"""Layers run over a chunk of time, forward, so that reverse mode through them is cheap.

The input product of all time steps is one matrix product. The gradient of a recurrent kernel is
one product after the reverse scan instead of an accumulation inside it. No learning rule here.
"""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, PyTree

from ..kernels import spike_matmul
from .restart import Restart, begin, begun
from .stack import Layer, Stack


def run_stack(
    stack: Stack, parts: list[dict], carries: tuple, xs: Array, restarts: list[Restart | None]
) -> tuple[tuple[Any, ...], Array]:
    """Runs all layers over xs (K, batch, *features), layer by layer.

    Exact in reverse mode for every parameter, the initial carries and xs.
    """
    out, needed = [], None
    for layer, part, carry, restart in zip(stack.layers, parts, carries, restarts, strict=True):
        carry, xs, needed = _run_layer(layer, part, carry, xs, needed, restart)
        out.append(carry)
    return tuple(out), xs


def _run_layer(
    layer: Layer,
    params: dict,
    carry: Any,
    xs: Array,
    needed: Array | None,
    restart: Restart | None,
) -> tuple[Any, Array, Array | None]:
    """Runs one layer over xs: the last carry, the outputs, and where these pass a gradient on.

    `needed` says the same of xs (None: everywhere), so that a layer above spikes computes the
    gradient only where the surrogate derivative below it is not zero.
    """
    if layer.kind == "stateless":
        return carry, jax.vmap(layer.module(params))(xs), None
    if layer.kind == "cell":
        carry, ys, _ = scan_cell(layer, params, carry, xs, restart)
        return carry, ys, None
    unit, w, h = split_kernels(params)
    carry, carries = _scan_recurrent(layer, h, unit, drive(w, xs, needed), carry, restart)
    return carry, carries.y, layer.units(unit).support(carries)


def split_kernels(params: dict) -> tuple[dict, Array | None, Array | None]:
    """The per-unit parameters, the input kernel and the recurrent kernel of a unit-wise cell."""
    unit = {k: v for k, v in params.items() if k not in ("w", "h")}
    return unit, params.get("w"), params.get("h")


def drive(w: Array | None, xs: Array, needed: Array | None = None) -> Array:
    """The part of the summed input that comes from outside: xs @ w for all time steps at once."""
    return xs if w is None else spike_matmul(xs, w, needed=needed)


def scan_cell(
    layer: Layer, params: dict, carry: Any, xs: Array, restart: Restart | None
) -> tuple[Any, Array, Any]:
    """Any cell over xs: the last carry, the outputs, and the carry that each step began with."""
    module = layer.module(params)

    def step(carry: Any, inputs: tuple[Array, Array | None]) -> tuple[Any, tuple[Array, Any]]:
        x, flags = inputs
        carry = begin(restart, carry, flags)
        new, y = module(carry, x)
        return new, (y, carry)

    last, (ys, before) = jax.lax.scan(step, carry, (xs, _flags(restart)))
    return last, ys, before


def scan_units(
    layer: Layer,
    unit: dict,
    h: Array | None,
    z: Array,
    carry: Any,
    restart: Restart | None,
    product: Callable[..., Array] = spike_matmul,
) -> tuple[Any, Any]:
    """A unit-wise cell driven by z (K, batch, n): the last carry and all carries, stacked.

    Args:
        layer: the cell.
        unit: its per-unit parameters.
        h: its recurrent kernel or None.
        z: the external drive, `drive(w, xs)`.
        carry: the carry before the first step.
        restart: where samples begin anew.
        product: y_{t-1} @ h, called as product(y, h, needed=...).
    """
    cell = layer.units(unit)
    # reverse mode keeps z and the carry of each step, and computes the rest again: the memory
    # traffic of kept intermediates costs more than their arithmetic
    unit_step = jax.checkpoint(cell.unit_step, prevent_cse=False)

    def step(carry: Any, inputs: tuple[Array, Array | None]) -> tuple[Any, Any]:
        z, flags = inputs
        carry = begin(restart, carry, flags)
        if h is not None:
            z = z + product(carry.y, h, needed=cell.support(carry))
        carry = unit_step(carry, z)
        return carry, carry

    return jax.lax.scan(step, carry, (z, _flags(restart)))


def _flags(restart: Restart | None) -> Array | None:
    return None if restart is None else restart.flags


def recurrent_gradient(h: Array, y: Array, dz: Array) -> Array:
    """The gradient of sum(dz * (y @ h)) to h: all steps' outer products as one matrix product."""
    return jax.vjp(lambda h: spike_matmul(y, h), h)[1](dz)[0]


def _scan_recurrent(
    layer: Layer, h: Array | None, unit: dict, z: Array, carry: Any, restart: Restart | None
) -> PyTree:
    """`scan_units`, its reverse mode freed from accumulating dh (n, n) at every step."""
    if h is None:
        return scan_units(layer, unit, h, z, carry, restart)

    @jax.custom_vjp
    def run(h, unit, z, carry):
        return scan_units(layer, unit, h, z, carry, restart)

    def forward(h, unit, z, carry):
        def parts(unit, z, carry):
            return scan_units(layer, unit, h, z, carry, restart)

        out, pull = jax.vjp(parts, unit, z, carry)
        return out, (pull, begun(restart, carry, out[1]).y, h)

    def backward(residuals, cotangents):
        pull, y, h = residuals
        dunit, dz, dcarry = pull(cotangents)
        return recurrent_gradient(h, y, dz), dunit, dz, dcarry

    run.defvjp(forward, backward)
    return run(h, unit, z, carry)

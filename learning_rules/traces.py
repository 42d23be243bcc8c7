"""Eligibility traces: d carry / d parameters of one layer, rolled once a chunk.

A chunk of K steps is differentiated in reverse; what happened before the chunk enters through the
trace at its border, eps = d s / d theta:

    grad += dE_chunk/dtheta + dE_chunk/ds_in . eps,    eps <- store(P eps + M),
    P = ds_out/ds_in,  M = ds_out/dtheta inside the chunk.

`store` is what the rule does to a trace that it keeps in a number format; else it does nothing.
Here stand the contract and the traces, element-wise and dense, of unit-wise cells: their kernels
share the trace of u = [x, y_{t-1}]. Those of any other cell are `cell_trace.py`'s, how layers are
combined into a rule is `ostl.py`'s.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .restart import Restart, begun
from .stack import Layer
from .unroll import drive, recurrent_gradient, scan_units, split_kernels

Paths = Literal["all", "own", "none"]
"""Paths from the state through a matrix product to the next: all; of each unit to itself; none."""

_SAMPLES = 8  # whose traces are rolled without a loop, which would copy each in and out
_FEW_ROWS = 4  # of a trace: those of an element-wise one
_UNROLLED = 8  # outer products that fuse with the sum they go into; more are one matrix product


Store = Callable[[PyTree], tuple[PyTree, Any]]
"""`store(eps)`: the arrays of a new trace as they are kept, and what was lost."""


class LayerTrace(NamedTuple):
    """Makes and uses the trace of one layer."""

    init: Callable[[dict, Any, Any], PyTree]  # params, carry, x of one step -> trace
    # params, carry, trace, xs, where samples begin anew -> new carry, ys, back
    # back(cotangent of ys, store) -> gradient of params, cotangent of xs, new trace, what it lost
    chunk: Callable[[dict, Any, PyTree, Array, Restart | None], tuple[Any, PyTree, Callable]]


class UnitTrace(NamedTuple):
    """Trace of a unit-wise cell with m memory fields, n units and fan-in nu = n_in + n.

    S stands for the state entries: m (element-wise) or m * n (dense).
    """

    kernels: Array | None  # d memory / d [w; h]: (B, m, nu, n), or dense (B, S, n, nu)
    units: dict[str, Array]  # each (B, S, n) or, element-wise, (B, m, *features)
    outputs: dict[str, Array]  # d y / d unit parameter, (B, n, n) or (B, *features)
    gain: Array  # (B, m, *features): d y / d memory at the border


def unit_trace(layer: Layer, *, paths: Paths, spatial: bool) -> LayerTrace:
    """The trace of a unit-wise cell.

    Args:
        layer: of kind "unitwise".
        paths: what gradient passes from y_{t-1} through h, if there is one, to s_t.
        spatial: the cotangent of xs leaves out every path through the carry.
    """
    dense = paths == "all" and "h" in layer.kernels

    def init(params: dict, carry: Any, x: Any) -> UnitTrace:
        del x
        unit, w, h = split_kernels(params)
        batch, features = carry.y.shape[0], carry.y.shape[1:]
        m, dtype = len(_memory(layer, params)), carry.y.dtype
        fan_in = (0 if w is None else w.shape[0]) + (0 if h is None else h.shape[0])
        n = features[-1]
        state = (m * n,) if dense else (m,)
        per_unit = (n,) if dense else features
        zeros = {k: jnp.zeros((batch, *state, *per_unit), dtype) for k in unit}
        y_zeros = {k: jnp.zeros((batch, *((n, n) if dense else features)), dtype) for k in unit}
        sizes = (n, fan_in) if dense else (fan_in, n)
        kernels = jnp.zeros((batch, *state, *sizes), dtype) if fan_in else None
        return UnitTrace(kernels, zeros, y_zeros, jnp.zeros((batch, m, *features), dtype))

    def chunk(params: dict, carry: Any, trace: UnitTrace, xs: Array, restart: Restart | None):
        unit, w, h = split_kernels(params)
        names = _memory(layer, params)
        wide = {k: jnp.broadcast_to(p, carry.y.shape) for k, p in unit.items()}

        def product(y, h, needed):
            if paths == "all":
                return y @ h
            held = jax.lax.stop_gradient(y)
            own = jnp.diagonal(h) * (y - held) if paths == "own" else 0  # 0, with a derivative
            return held @ h + own

        def run(wide, z, memory, y):
            start = carry._replace(**dict(zip(names, memory, strict=True)), y=y)
            last, carries = scan_units(layer, wide, h, z, start, restart, product)
            out = jnp.stack([getattr(last, k) for k in names], 1)
            return (out, layer.output(carries)), (last, carries)

        memory = tuple(getattr(carry, k) for k in names)
        (out, ys), pull, (last, carries) = jax.vjp(
            run, wide, drive(w, xs), memory, carry.y, has_aux=True
        )
        before = begun(restart, carry, carries)

        def back(dys: PyTree, store: Store):
            (dwide, dz, dmemory, dy), rows = pull_with_rows(pull, _basis(out, dense), dys)
            ds = jnp.stack(dmemory, 1) + dy[:, None] * trace.gain
            grads = _direct_gradients(params, dwide, dz, xs, before.y)
            grads = _add(grads, _contract_units(dense, jnp.stack(dmemory, 1), dy, trace))
            dx = _through_step(layer, wide, before, dys, h, drive(w, xs)) if spatial else dz
            dxs = dx if w is None else dx @ w.T
            carried, new, lost = roll(ds, rows, store)
            return _add(grads, carried), dxs, new, lost

        def roll(ds: Array, rows: tuple, store: Store) -> tuple[dict, UnitTrace, Any]:
            # the leading axis S of every array is the state entry that is differentiated
            dwide, dz, dmemory, dy = rows
            direct = jnp.stack(dmemory, 2)  # (S, B, m, *features)
            total = direct + dy[:, :, None] * trace.gain[None]
            u = _fan_in(w, h, xs, before.y)
            carried, kernels = {}, None
            if u is not None:
                roll_kernels = roll_dense if dense else roll_samples
                of_kernels, kernels = roll_kernels(ds, total, dz, u, trace.kernels)
                split = 0 if w is None else w.shape[0]
                carried = {"w": of_kernels[:split], "h": of_kernels[split:]}
            units = {
                k: _roll_units(dense, direct, dy, dwide[k], trace.units[k], trace.outputs[k])
                for k in unit
            }
            (kernels, units), lost = store((kernels, units))
            gain, through = _fire_derivatives(layer, wide, last, names)
            outputs = {k: _output_trace(dense, gain, units[k], through[k]) for k in unit}
            return carried, UnitTrace(kernels, units, outputs, gain), lost

        return last, ys, back

    return LayerTrace(init, chunk)


def pull_with_rows(pull: Callable, basis: Array, dys: PyTree) -> tuple[Any, Any]:
    """What `pull((cotangent of the last state, that of the outputs))` gives.

    In one reverse pass for a few rows. For many it saves nothing, and two passes let the compiler
    drop the rows where nobody reads the new trace, as after a single chunk.

    Args:
        pull: from `jax.vjp` of a chunk.
        basis: cotangents of the last state, one for each row of a trace.
        dys: the cotangent of the outputs, for the gradient of the chunk itself.

    Returns:
        The pull of dys, and that of the basis, its rows on a first axis.
    """
    if len(basis) > _FEW_ROWS:
        zero = jax.tree.map(jnp.zeros_like, dys)
        rows = jax.vmap(lambda end: pull((end, zero)))(basis)
        return pull((jnp.zeros_like(basis[0]), dys)), rows
    ends = jnp.concatenate([basis, jnp.zeros_like(basis[:1])])
    none = jax.tree.map(lambda d: jnp.zeros((len(basis), *d.shape), d.dtype), dys)
    tops = jax.tree.map(lambda zero, d: jnp.concatenate([zero, d[None]]), none, dys)
    every = jax.vmap(lambda *cotangents: pull(cotangents))(ends, tops)
    return jax.tree.map(lambda a: a[-1], every), jax.tree.map(lambda a: a[:-1], every)


def _memory(layer: Layer, params: dict) -> tuple[str, ...]:
    return tuple(layer.module(params).memory_fields)


def _fan_in(w: Array | None, h: Array | None, xs: Array, y_before: Array) -> Array | None:
    """The fan-in u = [x, y_{t-1}] of every step, (K, B, nu): what the kernel trace sums."""
    parts = ([] if w is None else [xs]) + ([] if h is None else [y_before])
    return jnp.concatenate(parts, -1) if parts else None


def _direct_gradients(params, dwide, dz, xs, y_before) -> dict:
    """The gradient from inside the chunk."""
    grads = {k: d.reshape(-1, d.shape[-1]).sum(0) for k, d in dwide.items()}
    if "w" in params:
        grads["w"] = recurrent_gradient(params["w"], xs, dz)
    if "h" in params:
        grads["h"] = recurrent_gradient(params["h"], y_before, dz)
    return grads


def _contract_units(dense, dmemory, dy, trace: UnitTrace) -> dict:
    """dE/ds_in . eps for each per-unit parameter (n,)."""
    if dense:
        return {
            k: jnp.einsum("bs,bsn->n", dmemory.reshape(len(dy), -1), e)
            + jnp.einsum("bi,bin->n", dy, trace.outputs[k])
            for k, e in trace.units.items()
        }
    return {
        k: ((dmemory * e).sum(1) + dy * trace.outputs[k]).reshape(-1, dy.shape[-1]).sum(0)
        for k, e in trace.units.items()
    }


def _add(grads: dict, more: dict) -> dict:
    """The sums of those that both have, the others of the first as they are."""
    return {k: g + more[k] if k in more else g for k, g in grads.items()}


def _basis(out: Array, dense: bool) -> Array:
    """Cotangents of the memory (B, m, *features), one for each state entry that has a trace."""
    batch, m = out.shape[:2]
    if dense:
        one = jnp.eye(m * out.shape[2], dtype=out.dtype).reshape(-1, 1, *out.shape[1:])
        return jnp.broadcast_to(one, (m * out.shape[2], batch, *out.shape[1:]))
    one = jnp.eye(m, dtype=out.dtype).reshape(m, 1, m, *[1] * (out.ndim - 2))
    return jnp.broadcast_to(one, (m, *out.shape))


def roll_dense(ds, total, dz, u, eps) -> tuple[Array, Array]:
    """dE/ds_in . eps (nu, n), and P eps + M with M as one matrix product over all steps."""
    carried = jnp.einsum("bs,bsnu->un", ds.reshape(ds.shape[0], -1), eps)
    p = jnp.moveaxis(total.reshape(*total.shape[:2], -1), 1, 0)  # (B, S, S)
    return carried, jnp.einsum("brs,bsnu->brnu", p, eps) + jnp.einsum("rkbn,kbu->brnu", dz, u)


def roll_samples(ds, total, dz, u, eps) -> tuple[Array, Array]:
    """`roll_dense` for element-wise traces, one sample at a time; M is cheap where u has spikes.

    Traces are the largest arrays here: a sample's fits a cache, is read once and written once.
    """
    m, steps = total.shape[0], dz.shape[1]

    def one(carried: Array, sample: tuple[Array, ...]) -> tuple[Array, Array]:
        ds, total, dz, u, eps = sample
        new = []
        for r in range(m):
            kept = sum(total[r, j] * eps[j] for j in range(m))
            if steps > _UNROLLED:
                added = recurrent_gradient(carried, u, dz[r])
            else:
                added = sum(x[:, None] * d for x, d in zip(u, dz[r], strict=True))
            new.append(kept + added)
        return carried + sum(ds[j] * eps[j] for j in range(m)), jnp.stack(new)

    samples = (ds, jnp.moveaxis(total, 1, 0), jnp.moveaxis(dz, 2, 0), jnp.moveaxis(u, 1, 0), eps)
    zero = jnp.zeros(eps.shape[2:], eps.dtype)
    return jax.lax.scan(one, zero, samples, unroll=min(len(eps), _SAMPLES))


def _roll_units(dense, direct, dy, dwide, eps, eps_y) -> Array:
    if dense:
        p = direct.reshape(*direct.shape[:2], -1)
        carried = jnp.einsum("rbs,bsn->brn", p, eps) + jnp.einsum("rbi,bin->brn", dy, eps_y)
        return carried + jnp.moveaxis(dwide, 0, 1)
    return jnp.moveaxis((direct * eps[None]).sum(2) + dy * eps_y[None] + dwide, 0, 1)


def _fire_derivatives(layer, wide, carry, names) -> tuple[Array, dict]:
    """The element-wise dy / d memory (B, m, *features) and dy / d unit parameters at a carry."""

    def fire(memory, wide):
        return layer.units(wide).fire(carry._replace(**dict(zip(names, memory, strict=True))))

    y, pull = jax.vjp(fire, tuple(getattr(carry, k) for k in names), wide)
    gain, through = pull(jnp.ones_like(y))
    return jnp.stack(gain, 1), through


def _output_trace(dense, gain, eps, through) -> Array:
    """The trace dy / d unit parameter: through the memory, and directly through fire."""
    if not dense:
        return (gain * eps).sum(1) + through
    batch, m, n = gain.shape
    carried = jnp.einsum("bmi,bmin->bin", gain, eps.reshape(batch, m, n, n))
    return carried + through[:, :, None] * jnp.eye(n, dtype=gain.dtype)


def _through_step(layer, wide, before, dys, h, z) -> Array:
    """Pulls dys back to the summed input of the same step, every carry held fixed."""
    cell = layer.units(wide)

    def output(z, carry):
        return cell.unit_step(carry, z).y

    z = z if h is None else z + before.y @ h
    return jax.vmap(lambda z, c, d: jax.vjp(lambda z: output(z, c), z)[1](d)[0])(z, before, dys)

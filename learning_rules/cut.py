"""Cutting the recurrent path of any cell: all matrix products, or all but what a unit tells itself.

This gives a cell that nobody wrote for online learning the meaning of "without H": its state still
reaches the next step element by element, but not through a matrix product; and that of "unit": the
state of a unit reaches that unit only. No learning rule here.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jaxtyping import Array

_CONTRACTIONS = ("dot_general", "conv_general_dilated", "ragged_dot_general")
_CALLS = {"custom_vjp_call": "call_jaxpr", "custom_jvp_call": "call_jaxpr", "remat2": "jaxpr"}


def cut_products(step: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """`step(carry, rest)` with no gradient from carry through its first matrix product.

    The value is unchanged. The gradient with respect to `rest` (parameters, inputs) is unchanged
    within the step; that with respect to carry keeps the element-wise paths only.
    """

    def cut(carry: Any, rest: Any) -> Any:
        closed, shape = jax.make_jaxpr(step, return_shape=True)(carry, rest)
        flat_carry, flat_rest = jax.tree.leaves(carry), jax.tree.leaves(rest)
        marks = [True] * len(flat_carry) + [False] * len(flat_rest)
        out, _ = _evaluate(closed.jaxpr, closed.consts, [*flat_carry, *flat_rest], marks)
        return jax.tree.unflatten(jax.tree.structure(shape), out)

    return cut


def cut_between_units(
    step: Callable[[Array, Any], tuple[Array, Array, Any]], units: np.ndarray
) -> Callable[[Array, Any], tuple[Array, Array, Any]]:
    """`step(state, rest) -> (state, y, others)`, its gradient from the state within each unit only.

    The value is unchanged, and so is the gradient with respect to `rest`. The Jacobian is formed.

    Args:
        step: the state is flat; y has one number a unit, in their order.
        units: the unit of each number of the state, integers (state,).
    """

    def cut(state: Array, rest: Any) -> tuple[Array, Array, Any]:
        held = jax.lax.stop_gradient(state)
        new, y, others = step(held, rest)
        if y.size != units.max() + 1:
            raise ValueError(
                f"The cell has {units.max() + 1} units and {y.size} outputs: scope='unit' needs "
                "one output a unit; use scope='full' or 'no_h'."
            )
        jacobians = jax.jacrev(lambda s: step(s, rest)[:2])(held)
        same = jax.lax.stop_gradient(jacobians)
        shift = state - held  # 0, with a derivative
        of_new = jnp.where(units[:, None] == units, same[0], 0) @ shift
        rows = np.arange(y.size)[:, None] == units
        of_y = jnp.where(rows, same[1].reshape(y.size, -1), 0) @ shift
        return new + of_new, y + of_y.reshape(y.shape), others

    return cut


def _evaluate(
    jaxpr: core.Jaxpr, consts: list, args: list, marks: list[bool]
) -> tuple[list[Array], list[bool]]:
    """Evaluates a jaxpr; `marks` tells which values depend on the carry."""
    values: dict = dict(zip(jaxpr.constvars, consts, strict=True))
    values |= dict(zip(jaxpr.invars, args, strict=True))
    marked = {v: m for v, m in zip(jaxpr.invars, marks, strict=True) if m}

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    def depends(atom: Any) -> bool:
        return not isinstance(atom, core.Literal) and atom in marked

    for eqn in jaxpr.eqns:
        inputs = [read(v) for v in eqn.invars]
        flags = [depends(v) for v in eqn.invars]
        inner = eqn.params.get("jaxpr") if eqn.primitive.name in ("jit", "pjit") else None
        if inner is not None:
            out, out_flags = _evaluate(inner.jaxpr, inner.consts, inputs, flags)
        else:
            out_flags = [any(flags)] * len(eqn.outvars)
            if eqn.primitive.name in _CONTRACTIONS or _is_product(eqn, flags):
                inputs = [
                    jax.lax.stop_gradient(x) if f else x for x, f in zip(inputs, flags, strict=True)
                ]
                out_flags = [False] * len(eqn.outvars)
            elif any(flags) and _has_contraction(eqn):
                raise ValueError(
                    f"The cell hides a matrix product of its state inside `{eqn.primitive.name}`, "
                    "which scope='no_h' cannot cut: use scope='full'."
                )
            out = eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(eqn.params))
            out = out if eqn.primitive.multiple_results else [out]
        for var, value, flag in zip(eqn.outvars, out, out_flags, strict=True):
            values[var] = value
            if flag:
                marked[var] = True
    return [read(v) for v in jaxpr.outvars], [depends(v) for v in jaxpr.outvars]


def _is_product(eqn: Any, flags: list[bool]) -> bool:
    """Whether a call hands on what is marked through matrix products only (quantized products)."""
    inner = eqn.params.get(_CALLS.get(eqn.primitive.name, ""))
    if inner is None or not any(flags):
        return False
    jaxpr = getattr(inner, "jaxpr", inner)
    return _has_contraction(eqn) and not any(_reached(jaxpr, flags))


def _reached(jaxpr: core.Jaxpr, flags: list[bool]) -> list[bool]:
    """Which outputs of a jaxpr depend on the marked inputs past its matrix products."""
    marked = {v for v, flag in zip(jaxpr.invars, flags, strict=True) if flag}

    def depends(atom: Any) -> bool:
        return not isinstance(atom, core.Literal) and atom in marked

    for eqn in jaxpr.eqns:
        inputs = [depends(v) for v in eqn.invars]
        inner = eqn.params.get("jaxpr") if eqn.primitive.name in ("jit", "pjit") else None
        if inner is not None:
            outputs = _reached(inner.jaxpr, inputs)
        else:
            cut = eqn.primitive.name in _CONTRACTIONS or _is_product(eqn, inputs)
            outputs = [any(inputs) and not cut] * len(eqn.outvars)
        marked |= {v for v, flag in zip(eqn.outvars, outputs, strict=True) if flag}
    return [depends(v) for v in jaxpr.outvars]


def _has_contraction(eqn: Any) -> bool:
    """Whether an equation holds a matrix product in a jaxpr of its own (scan, cond, remat)."""
    for value in eqn.params.values():
        for sub in value if isinstance(value, (tuple, list)) else (value,):
            inner = getattr(sub, "jaxpr", sub)
            if isinstance(inner, core.Jaxpr) and any(
                e.primitive.name in _CONTRACTIONS or _has_contraction(e) for e in inner.eqns
            ):
                return True
    return False

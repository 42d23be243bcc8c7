"""Cutting the recurrent path of any cell: all matrix products, or all but what a unit tells itself.

This gives a cell that nobody wrote for online learning the meaning of "without H": its state still
reaches the next step element by element, but not through a matrix product; and that of "unit": the
state of a unit reaches that unit only. No learning rule here.
"""

from collections import ChainMap
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jaxtyping import Array

from .programs import bind, leading_to, program_of, read

_CONTRACTIONS = ("dot_general", "conv_general_dilated", "ragged_dot_general")
_CALLS = {"custom_vjp_call": "call_jaxpr", "custom_jvp_call": "call_jaxpr", "remat2": "jaxpr"}


def cut_products(step: Callable[[Any, Any], tuple]) -> Callable[[Any, Any], tuple]:
    """`step(carry, rest) -> (carry, *more)` with no gradient from carry to carry by a product.

    The value is unchanged. The gradient with respect to `rest` (parameters, inputs) is unchanged
    within the step; that with respect to carry keeps the paths to the new carry that lead through
    no matrix product, and those to the rest of the result that share no product with the carry.
    """

    def cut(carry: Any, rest: Any) -> tuple:
        closed, shape = program_of(step, carry, rest)
        flat = jax.tree.leaves(carry), jax.tree.leaves(rest)
        out = _evaluate(closed, *flat, len(jax.tree.leaves(shape[0])))
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


def _evaluate(closed: core.ClosedJaxpr, carry: list, rest: list, size: int) -> list[Array]:
    """Evaluates a step whose first `size` results are the new carry.

    Every value is computed from the carry held constant, for the products; those that depend on
    the carry past the products are computed from the carry as it is, too.
    """
    jaxpr = closed.jaxpr
    held: dict = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    held |= zip(jaxpr.invars, [*map(jax.lax.stop_gradient, carry), *rest], strict=True)
    live: dict = dict(zip(jaxpr.invars, carry, strict=False))
    to_carry = leading_to(jaxpr, jaxpr.outvars[:size])
    for eqn in jaxpr.eqns:
        held |= zip(eqn.outvars, bind(eqn, [read(held, v) for v in eqn.invars]), strict=True)
        flags = [v in live for v in map(_variable, eqn.invars)]
        if not any(flags):
            continue
        if to_carry.intersection(eqn.outvars):
            if eqn.primitive.name in _CONTRACTIONS or _is_product(eqn, flags):
                continue
            if _has_contraction(eqn):
                raise ValueError(
                    f"The cell hides a matrix product of its state inside `{eqn.primitive.name}`, "
                    "which scope='no_h' cannot cut: use scope='full'."
                )
        out = bind(eqn, [read(ChainMap(live, held), v) for v in eqn.invars])
        live |= zip(eqn.outvars, out, strict=True)
    return [read(ChainMap(live, held), v) for v in jaxpr.outvars]


def _variable(atom: Any) -> Any:
    return None if isinstance(atom, core.Literal) else atom


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

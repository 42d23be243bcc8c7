"""Walking through the program of a step equation by equation. No learning rule here."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.extend import core


def program_of(step: Callable[..., Any], *arguments: Any) -> tuple[core.ClosedJaxpr, Any]:
    """The equations of a step, compiled functions in it taken apart, and the tree of its result."""
    closed, shape = jax.make_jaxpr(step, return_shape=True)(*arguments)
    flat = jax.make_jaxpr(lambda *inputs: _evaluate(closed.jaxpr, closed.consts, inputs))
    return flat(*closed.in_avals), shape


def bind(eqn: Any, inputs: Sequence[Any]) -> list[Any]:
    """The results of one equation."""
    out = eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(eqn.params))
    return out if eqn.primitive.multiple_results else [out]


def read(values: Mapping[Any, Any], atom: Any) -> Any:
    """The value of a variable or of a number that stands in the program."""
    return atom.val if isinstance(atom, core.Literal) else values[atom]


def variables(atoms: Sequence[Any]) -> list[Any]:
    """Those of the atoms that are variables."""
    return [a for a in atoms if not isinstance(a, core.Literal)]


def leading_to(jaxpr: core.Jaxpr, results: Sequence[Any]) -> set[Any]:
    """All variables that these results are computed from, themselves included."""
    needed = set(variables(results))
    for eqn in reversed(jaxpr.eqns):
        if needed.intersection(eqn.outvars):
            needed.update(variables(eqn.invars))
    return needed


def _evaluate(jaxpr: core.Jaxpr, consts: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
    values: dict = dict(zip(jaxpr.constvars, consts, strict=True))
    values |= zip(jaxpr.invars, inputs, strict=True)
    for eqn in jaxpr.eqns:
        given = [read(values, v) for v in eqn.invars]
        if eqn.primitive.name in ("jit", "pjit"):
            inner = eqn.params["jaxpr"]
            out = _evaluate(inner.jaxpr, inner.consts, given)
        else:
            out = bind(eqn, given)
        values |= zip(eqn.outvars, out, strict=True)
    return [read(values, v) for v in jaxpr.outvars]

"""What formats on the state of a network cost a rule: errors of the gradient, shares that are lost.

The formats themselves are `quant.state_formats`'; rules are compared among each other in `compare`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ..quant.grid import Format
from ..quant.state_formats import TRACES, state_formats, state_losses
from ..quant.storage import Lost
from .bptt import bptt
from .compare import cosine, relative_error
from .ostl import TraceLosses, ostl
from .rule import LearningRule, Loss, parameters, run_with_state
from .stack import as_stack

MakeRule = Callable[[nnx.Module, Loss], LearningRule]


class Row(TypedDict):
    """One parameter under one format of one variable; errors against the same rule without."""

    role: str
    format: str
    rule: str
    parameter: str  # its path, or "all": all of them as one vector
    relative_error: float  # |g - g_float32| / |g_float32|
    cosine: float
    saturated: float  # share of the numbers that were stored, over all layers with this variable
    underflowed: float


def format_cost(
    network: nnx.Module,
    loss: Loss,
    xs: Float[Array, "time batch *features"],
    targets: Any,
    formats: Mapping[str, Sequence[Format | str]],
    *,
    rules: Mapping[str, MakeRule] | None = None,
    rounding: str = "nearest_even",
    chunk: int = 1,
    key: PRNGKeyArray | None = None,
) -> list[Row]:
    """The gradient error that each format costs, one variable and one format at a time.

    Args:
        network: a `Network`, or one bare cell, without formats.
        loss: loss of one time step, (batch, n_out), targets -> (batch,).
        xs: inputs.
        targets: pytree of arrays (time, batch, ...).
        formats: formats to try, by the role that a variable has in `quant.state_formats`. A trace
            is measured only under rules that keep traces.
        rules: makers of rules, by name; None: `bptt` and `ostl`.
        rounding: for all formats.
        chunk: steps given at a time to rules whose gradient crosses chunk borders.
        key: of stochastic rounding.

    Raises:
        ValueError: a role that no layer has, a role under rules that keep nothing of it, a format
            that cannot keep a state, a network that has formats, no key, or a gradient that is not
            finite.
    """
    _check(formats, xs)
    rules = {"bptt": bptt, "ostl": ostl} if rules is None else rules
    params = parameters(network)

    def run(network: nnx.Module, make: MakeRule) -> tuple[PyTree, dict[str, Lost]]:
        rule = make(network, loss)
        k = None if rule.truncates else chunk

        def gradient(params: PyTree) -> tuple[PyTree, dict[str, Lost]]:
            state, out = run_with_state(rule, params, xs, targets, chunk=k, key=key)
            return out.grads, _of_states(network, xs, key) | _of_traces(state)

        return jax.jit(gradient)(params)

    exact = {}
    for name, make in rules.items():
        exact[name], lost = run(network, make)
        if lost:
            raise ValueError(
                f"format_cost: the network keeps {', '.join(lost)} in a format already; give one "
                "without formats, which is what each is compared with."
            )
        if not all(jnp.isfinite(g).all() for g in jax.tree.leaves(exact[name])):
            raise ValueError(
                f"format_cost: the gradient of {name} without formats is not finite; look at the "
                "inputs and the loss."
            )
    rows = []
    for role, tried in formats.items():
        for fmt in tried:
            formatted = state_formats(network, {role: fmt}, rounding=rounding)
            for name, make in rules.items():
                if role in TRACES and make(network, loss).truncates:
                    continue
                grads, lost = run(formatted, make)
                if not lost:
                    raise ValueError(
                        f"format_cost: rule {name!r} keeps no {role} of this network, so a format "
                        "of it costs nothing to measure; leave it out."
                    )
                (shares,) = lost.values()
                rows += _rows(
                    role, str(getattr(fmt, "name", fmt)), name, grads, exact[name], shares
                )
    return rows


def _check(formats: Mapping[str, Sequence[Format | str]], xs: Array) -> None:
    for role, tried in formats.items():
        if isinstance(tried, str):
            raise ValueError(
                f"format_cost: formats[{role!r}] is the text {tried!r}; give a list, [{tried!r}]."
            )
    if not xs.shape[0]:
        raise ValueError(f"format_cost: xs has shape {xs.shape}; it needs at least one time step.")


def sequence_losses(
    network: nnx.Module,
    rule: LearningRule,
    xs: Float[Array, "time batch *features"],
    targets: Any,
    *,
    chunk: int | None = None,
    key: PRNGKeyArray | None = None,
) -> dict[str, Lost]:
    """What states and traces lose in their formats, as means over a sequence.

    Args:
        network: a `Network`, or one bare cell.
        rule: a rule made for it.
        xs: inputs.
        targets: pytree of arrays (time, batch, ...).
        chunk: steps given to the rule at a time; None: all.
        key: of stochastic rounding.

    Returns:
        Means over all layers, by role; nothing for what has no format.
    """
    state, _ = run_with_state(rule, parameters(network), xs, targets, chunk=chunk, key=key)
    return _of_states(network, xs, key) | _of_traces(state)


def _of_traces(state: PyTree) -> dict[str, Lost]:
    """What the state of a rule, or of a rule inside it, says of its traces."""
    parts = jax.tree.leaves(state, is_leaf=lambda part: isinstance(part, TraceLosses))
    lost = [part.lost for part in parts if isinstance(part, TraceLosses)]
    return {"eligibility_trace": _mean(lost)} if lost else {}


def _of_states(network: nnx.Module, xs: Array, key: PRNGKeyArray | None) -> dict[str, Lost]:
    stack = as_stack(network)
    parts, _ = stack.split(parameters(network))
    cells = [layer.module(part) for layer, part in zip(stack.layers, parts, strict=True)]

    def step(carries: tuple[Any, ...], x: Array) -> tuple[tuple[Any, ...], list[dict[str, Lost]]]:
        new, lost = [], []
        for layer, cell, carry in zip(stack.layers, cells, carries, strict=True):
            if layer.kind == "stateless":
                x = cell(x)
            else:
                lost.append(state_losses(cell, carry, x))
                carry, x = cell(carry, x)
            new.append(carry)
        return tuple(new), lost

    carries = stack.initialize_carries(parameters(network), xs, key)
    _, lost = jax.lax.scan(step, carries, xs)
    roles = {role for of_layer in lost for role in of_layer}
    return {
        role: _mean([of_layer[role] for of_layer in lost if role in of_layer])
        for role in sorted(roles)
    }


def _mean(lost: list[Lost]) -> Lost:
    """The mean over layers, and over time where there is one."""
    return Lost(*(jnp.mean(jnp.stack(part)) for part in zip(*lost, strict=True)))


def _rows(role: str, fmt: str, rule: str, grads: PyTree, exact: PyTree, lost: Lost) -> list[Row]:
    pairs = {"all": (grads, exact)}
    leaves = jax.tree_util.tree_leaves_with_path(grads)
    for (path, g), e in zip(leaves, jax.tree.leaves(exact), strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        pairs[name.removesuffix(".value")] = (g, e)
    return [
        Row(
            role=role,
            format=fmt,
            rule=rule,
            parameter=name,
            relative_error=relative_error(g, e),
            cosine=cosine(g, e),
            saturated=float(lost.saturated),
            underflowed=float(lost.underflowed),
        )
        for name, (g, e) in pairs.items()
    ]

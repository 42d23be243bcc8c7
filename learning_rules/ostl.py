"""Online spatio-temporal learning (OSTL): traces forward in time, learning signals down the layers.

The rule puts together the traces of single layers (`traces.py`); it holds no cell's equations.
"""

from typing import Any, NamedTuple

import jax
from flax import nnx
from jaxtyping import Array, PyTree

from .bptt import sequence_loss
from .rule import LearningRule, Loss, RuleOutput
from .stack import Layer, as_stack
from .traces import LayerTrace, generic_trace, unit_trace


class OSTLState(NamedTuple):
    """What OSTL remembers between chunks: one entry a layer, () for a stateless one."""

    carries: tuple[Any, ...]
    traces: tuple[Any, ...]


def ostl(
    network: nnx.Module,
    loss: Loss,
    *,
    scope: str = "full",
    cross_layer: str = "spatial",
) -> LearningRule:
    r"""Online spatio-temporal learning for any stack of cells and stateless layers.

    Every layer with a state s keeps the trace $\epsilon_t = A_t \epsilon_{t-1} + B_t$, with
    $A_t = ds_t/ds_{t-1}$ and $B_t$ the direct $ds_t/d\theta$. The learning signal $L_t = dE_t/dy_t$
    comes down through the layers of the same step, and the gradient is the sum over time of
    $L_t (dy_t/ds_{t-1} \epsilon_{t-1} + dy_t/d\theta)$. A chunk of K steps is treated at once;
    K = 1 is the textbook rule.

    Which gradients are exact, against BPTT over the whole sequence:

    - scope "full": every parameter of the top layer that has a state and of all stateless layers
      above it, for every K.
    - the same holds for scope "no_h" if that layer has no recurrent kernel. With one, the path
      $y_{t-1} \to H \to s_t$ is left out of A: the gradient is BPTT's with y_{t-1} held constant in
      the recurrent product. The kernel H itself still learns.
    - Layers below: "spatial" drops every path through the state of a layer above (the OSTL
      paper); "chunk" drops only those that cross the border of a chunk, so that K = T is BPTT.

    The trace of a layer takes B S P numbers in "full", S its state size and P its parameters, and
    B m P' in "no_h" or without H for the cells of this library (m memory variables a unit). Any
    other cell, Flax's included, goes through dense Jacobians, B S P in both scopes.

    Args:
        network: a `Network`, or one bare cell.
        loss: loss of one time step, (batch, n_out), targets -> (batch,).
        scope: "full" or "no_h".
        cross_layer: "spatial" or "chunk".

    Returns:
        A rule whose state is the carries and traces: memory does not grow with time.

    References:
        Online Spatio-Temporal Learning in Deep Neural Networks, arXiv:2007.12723.
    """
    _check("scope", scope, ("full", "no_h"))
    _check("cross_layer", cross_layer, ("spatial", "chunk"))
    stack = as_stack(network)
    spatial = cross_layer == "spatial"
    makers = tuple(_trace_of(layer, scope, spatial) for layer in stack.layers)

    def init(params: PyTree, batch: Any) -> OSTLState:
        carries = stack.initialize_carries(params, batch)
        parts, _ = stack.split(params)
        traces = tuple(
            () if maker is None else maker.init(part, carry)
            for maker, part, carry in zip(makers, parts, carries, strict=True)
        )
        return OSTLState(carries, traces)

    def step(
        params: PyTree, state: OSTLState, xs: Array, targets: Any
    ) -> tuple[OSTLState, RuleOutput]:
        parts, join = stack.split(params)
        carries, backs = [], []
        for layer, maker, part, carry, trace in zip(
            stack.layers, makers, parts, *state, strict=True
        ):
            if maker is None:
                xs, back = _stateless(layer, part, xs)
            else:
                carry, xs, back = maker.chunk(part, carry, trace, xs)
            carries.append(carry)
            backs.append(back)
        total, dys = jax.value_and_grad(lambda ys: sequence_loss(loss, ys, targets))(xs)
        grads, traces = [], []
        for back in reversed(backs):
            part_grads, dys, trace = back(dys)
            grads.insert(0, part_grads)
            traces.insert(0, trace)
        new = jax.lax.stop_gradient(OSTLState(tuple(carries), tuple(traces)))
        return new, RuleOutput(total, xs, join(grads))

    return LearningRule(init, step)


def _trace_of(layer: Layer, scope: str, spatial: bool) -> LayerTrace | None:
    if layer.kind == "stateless":
        return None
    if layer.kind == "cell":
        return generic_trace(layer, cut=scope == "no_h", spatial=spatial)
    recurrent = "h" in layer.kernels
    return unit_trace(
        layer,
        dense=recurrent and scope == "full",
        cut=recurrent and scope == "no_h",
        spatial=spatial,
    )


def _stateless(layer: Layer, params: dict, xs: Array):
    """Runs a layer without state; going back is plain reverse mode."""
    ys, pull = jax.vjp(lambda p, xs: jax.vmap(layer.module(p))(xs), params, xs)

    def back(dys: Array):
        return *pull(dys), ()

    return ys, back


def _check(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"ostl({name}={value!r}): known are {', '.join(map(repr, known))}.")

"""E-prop: local traces, and the error at the readout broadcast to every hidden layer.

A readout that leaks is written as a dense one that reads the decayed sums of its inputs: these are
states of the hidden layers then, and the traces of OSTL without H are e-prop's, already filtered.
"""

import functools
from collections import namedtuple
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from .broadcast import broadcast, broadcast_weights, check_weights, layers_that_learn
from .ostl import of_traces, trace_of
from .restart import Restart
from .rule import LearningRule, Loss, RuleOutput, parameters
from .stack import BESIDE, Layer, Stack, as_stack
from .traces import LayerTrace, Store

FEEDBACK = ("symmetric", "adaptive")


def eprop(
    network: nnx.Module,
    loss: Loss,
    *,
    feedback: str | Sequence[Float[Array, "n_out _"]] = "symmetric",
) -> LearningRule:
    r"""Eligibility propagation: $\sum_t L_t \bar e_t$, with $L_t = \partial E_t / \partial y_t B$.

    The trace e of a parameter is that of OSTL without H: what a unit's own state keeps of it, and
    nothing that went through a matrix product. A `LeakyReadout` of decay $\kappa$ has its filter in
    $\bar e_t = \kappa \bar e_{t-1} + e_t$. The published rule has no derivative of the reset:
    `LIFCell(detach_reset=True)`, `ALIFCell(detach_reset=True)`; with other cells the reset of a
    unit by itself is part of its trace.

    Exact, against BPTT: the readout. With symmetric feedback also the hidden layer, if it has no
    recurrent kernel; with one, its gradient is BPTT's with y_{t-1} held constant in the recurrent
    product. With other feedback no hidden leaf follows the gradient of a loss.

    Args:
        network: hidden cells and a readout, `nnx.Linear` or a `LeakyReadout` with one fixed decay.
        loss: loss of one time step, (batch, n_out), targets -> (batch,).
        feedback: "symmetric", $B = W_{out}^T$; weights B drawn by `broadcast_weights` and never
            changed; or "adaptive", for a network from `with_feedback`, whose B have the gradient of
            $W_{out}^T$ and are changed by the optimizer like it (with weight decay, such as
            adamw's, they come to agree). The words are for one hidden layer.

    Raises:
        ValueError: another word; no or, with these words, several hidden layers; feedback weights
            of other shapes; a leaky readout that is recurrent, has trained decays, or is not right
            above a cell.

    References:
        A solution to the learning dilemma for recurrent networks of spiking neurons, Nature
        Communications 11:3625 (2020); arXiv:1901.09049.
    """
    named = isinstance(feedback, str)
    if named and feedback not in FEEDBACK:
        raise ValueError(
            f"eprop(feedback={feedback!r}): known are 'symmetric', 'adaptive', and arrays."
        )
    stack = as_stack(network)
    given = _given(parameters(network))
    if (feedback == "adaptive") != bool(given):
        raise ValueError(
            'eprop: feedback="adaptive" and a network from with_feedback(network, key), which has '
            "the weights that adapt, belong together; one of them is missing."
        )
    parts, _ = stack.split(parameters(network))
    learning = layers_that_learn("eprop", stack, parts)
    readout = learning[-1]
    if named and len(learning) > 2:
        raise ValueError(
            f"eprop(feedback={feedback!r}) is for one hidden layer, and this network has "
            f"{len(learning) - 1}: give feedback=broadcast_weights(network, key), or use "
            "ostl(scope='no_h')."
        )
    if not isinstance(feedback, str):
        check_weights("eprop", feedback, stack, parts, learning)
    kappa = _decay(stack, parts, readout)
    layers, makers = list(stack.layers), []
    for i, layer in enumerate(stack.layers):
        if i == readout and kappa is not None:
            layer = _Dense(**_fields(layer, kind="stateless"))
        elif i < readout and layer.kind != "stateless" and kappa is not None:
            layer = _Filtered(**_fields(layer), kappa=kappa)
        layers[i] = layer
        maker = trace_of(layer, "no_h", spatial=False)
        if maker is not None and isinstance(layer, _Filtered):
            maker = _one_output(maker, top=i == readout - 1)
        makers.append(maker)
    name = _kernel(parts[readout])

    def make(weights: Callable[[list[dict]], Sequence[Array]]) -> LearningRule:
        route = broadcast(lambda error, targets: error, weights, learning)
        return of_traces(Stack(tuple(layers), stack.single), makers, loss, route=route)

    if feedback == "symmetric":
        return make(lambda parts: [parts[readout][name].T])
    if not isinstance(feedback, str):
        return make(lambda parts: feedback)

    def step(
        params: PyTree, state: PyTree, xs: Array, targets: Any, resets: Array | None = None
    ) -> tuple[PyTree, RuleOutput]:
        weights = _given(params)
        state, out = make(lambda parts: weights).step(params, state, xs, targets, resets)
        grads, tree = nnx.to_pure_dict(out.grads), jax.tree.structure(params)
        grads[BESIDE] = {0: grads["layers"][readout][name].T}
        return state, out._replace(grads=tree.unflatten(jax.tree.leaves(grads)))

    return LearningRule(make(lambda parts: given).init, step)


def with_feedback(network: nnx.Module, key: PRNGKeyArray) -> Any:
    """A copy of a network with feedback weights for `eprop(feedback="adaptive")`.

    They are parameters, so that an optimizer changes them and a weight memory keeps them like all
    others; running the network does not read them.

    Args:
        network: one hidden layer and a readout.
        key: what `broadcast_weights` draws them from.
    """
    weights = broadcast_weights(network, key)
    if len(weights) > 1:
        raise ValueError(f"with_feedback is for one hidden layer; this network has {len(weights)}.")
    copy: Any = nnx.merge(*nnx.split(network))
    copy.feedback = nnx.List([nnx.Param(b) for b in weights])
    return copy


def _given(params: PyTree) -> list[Array]:
    """The weights of `with_feedback`, none without."""
    return jax.tree.leaves(nnx.to_pure_dict(params).get(BESIDE, ()))


def _kernel(part: dict) -> str:
    return "kernel" if "kernel" in part else "w"


def _decay(stack: Stack, parts: list[dict], readout: int) -> float | None:
    """The decay of a leaky readout, None of a dense one."""
    layer, part = stack.layers[readout], parts[readout]
    module = layer.module(part)
    if isinstance(module, nnx.Linear):
        return None
    leaks = layer.kind == "unitwise" and not hasattr(module, "surrogate")
    if not leaks or "w" not in part or "d" in part or stack.layers[readout - 1].kind == "stateless":
        raise ValueError(
            f"eprop: {layer.name} is no readout that it can filter: take nnx.Linear, or a "
            "LeakyReadout with one fixed decay right above the hidden cell."
        )
    return float(module.decay)


def _fields(layer: Layer, **changed: Any) -> dict[str, Any]:
    return {f.name: getattr(layer, f.name) for f in fields(Layer)} | changed


@dataclass(frozen=True)
class _Dense(Layer):
    """A leaky readout as a dense layer on inputs that are summed already."""

    def module(self, params: PyTree) -> Any:
        return lambda x: x @ params["w"] + params["b"]


@dataclass(frozen=True)
class _Filtered(Layer):
    """A cell that gives, beside its outputs, their decayed sums, as states of its own."""

    kappa: float = 0.0

    def module(self, params: PyTree) -> Any:
        cell = super().module(params)
        kind = _FilteredUnits if self.kind == "unitwise" else _FilteredCell
        return kind(cell, self.kappa)

    def step(self, params: PyTree, carry: Any, x: Array) -> tuple[Any, PyTree]:
        carry, y = self.module(params)(carry, x)
        return carry, (y, carry[1])

    def output(self, carry: Any) -> PyTree:
        return carry.y, self.kappa * carry.summed + carry.y


@functools.cache
def _filtered_state(inner: type) -> Any:
    """The type of carry with one field more than that of a cell."""
    *memory, y = inner._fields  # pyright: ignore[reportAttributeAccessIssue]
    state: Any = namedtuple("FilteredState", [*memory, "summed", y])
    state.inner = inner
    return state


def _inner(carry: Any) -> Any:
    return carry.inner(*carry[:-2], carry.y)


class _FilteredUnits:
    """A unit-wise cell with the decayed sum of the outputs before this step as a memory field."""

    def __init__(self, cell: Any, kappa: float):
        self.cell, self.kappa = cell, kappa
        self.memory_fields = (*cell.memory_fields, "summed")

    def charge(self, carry: Any, z: Array) -> Any:
        new = self.cell.charge(_inner(carry), z)
        return type(carry)(*new[:-1], self.kappa * carry.summed + carry.y, carry.y)

    def fire(self, carry: Any) -> Array:
        return self.cell.fire(_inner(carry))

    def support(self, carry: Any) -> Array | None:
        return self.cell.support(_inner(carry))

    def unit_step(self, carry: Any, z: Array) -> Any:
        carry = self.charge(carry, z)
        return carry._replace(y=self.fire(carry))

    def __call__(self, carry: Any, x: Array) -> tuple[Any, Array]:
        carry = self.unit_step(carry, self.cell.drive(_inner(carry), x))
        return carry, carry.y

    def initialize_carry(self, shape: tuple[int, ...], rngs: Any = None) -> Any:
        first = self.cell.initialize_carry(shape, rngs=rngs)
        filtered = _filtered_state(type(first))
        return filtered(*first[:-1], jnp.zeros_like(first.y), first.y)


class _FilteredCell:
    """Any cell whose carry holds the decayed sum of its outputs as well."""

    def __init__(self, cell: Any, kappa: float):
        self.cell, self.kappa = cell, kappa

    def __call__(self, carry: Any, x: Array) -> tuple[Any, Any]:
        inner, summed = carry
        inner, y = self.cell(inner, x)
        return (inner, self.kappa * summed + y), y

    def initialize_carry(self, shape: tuple[int, ...], rngs: Any = None) -> Any:
        inner = self.cell.initialize_carry(shape, rngs=rngs)
        x = jnp.zeros(shape, jax.tree.leaves(inner)[0].dtype)
        y = jax.eval_shape(self.cell, inner, x)[1]
        return inner, jnp.zeros(y.shape, y.dtype)


def _one_output(maker: LayerTrace, *, top: bool) -> LayerTrace:
    """Hands the sums to the readout and the outputs to a cell above; signals are for the sums."""

    def chunk(params: dict, carry: Any, trace: PyTree, xs: Array, restart: Restart | None):
        carry, (ys, sums), back = maker.chunk(params, carry, trace, xs, restart)

        def back_of_sums(dys: Array, store: Store):
            return back((jnp.zeros_like(ys), dys), store)

        return carry, sums if top else ys, back_of_sums

    return maker._replace(chunk=chunk)

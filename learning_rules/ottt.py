"""Online training through time (OTTT): one presynaptic trace a layer, shared by all its units."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, PRNGKeyArray, PyTree

from .bptt import sequence_loss
from .restart import Restart, restarted, restarts
from .rule import LearningRule, Loss, RuleOutput, check_chunk
from .same_step import (
    Kept,
    Pull,
    backward,
    forward,
    input_gradient,
    kernel_gradients,
    pull_same_step,
    unit_gradient,
)
from .stack import Layer, as_stack
from .unroll import split_kernels


class OTTTState(NamedTuple):
    """What OTTT remembers: carries, and one trace a layer, () for a stateless one."""

    carries: tuple[Any, ...]
    #: for each layer, by kernel, the decayed sum of what it multiplies: (batch, fan-in)
    traces: tuple[dict[str, Array], ...]


def ottt(network: nnx.Module, loss: Loss) -> LearningRule:
    r"""Same-step gradients, with the inputs of a layer replaced by their decayed sums.

    A kernel's gradient is $\sum_t a_t^T \delta_t$ with the trace $a_t = \lambda a_{t-1} + u_t$ of
    what the kernel multiplies, u = [x, y_{t-1}], and $\delta_t$ the same-step gradient of the
    summed input. That is what the trace of OSTL without H comes to if the memory decays by one
    constant $\lambda$ for all units and steps, so cells of which that is not true are refused.

    Exact, against BPTT: kernels of one layer without a recurrent kernel, with stateless layers
    above, and stateless layers above. Otherwise: H, as in "no_h", is learned without the path of
    y_{t-1} through it; per-unit parameters have no trace; layers below drop every path through the
    state of a layer above. The same for every chunk; a trace is n_in + n numbers a sample. A
    membrane that saturates in a number format is treated as if it did not.

    With the weights changed at every step this is OTTT-O, and with the gradient summed over a
    sequence OTTT-A: `rule.update_every` of an experiment, 1 or 0.

    Args:
        network: a `Network` of cells with one membrane that leaks by a constant, and whose reset
            has no gradient (`LIFCell(detach_reset=True, reset="subtract")`, or reset "none",
            `LeakyReadout`), and of stateless layers.
        loss: loss of one time step, (batch, n_out), targets -> (batch,).

    Raises:
        ValueError: for a cell whose trace is not of rank one, naming it and the rule to take.

    References:
        Online Training Through Time for Spiking Neural Networks, arXiv:2210.04195.
    """
    stack = as_stack(network)

    def decays(parts: list[dict], carries: tuple) -> list[float | None]:
        return [_decay(*one) for one in zip(stack.layers, parts, carries, strict=True)]

    def init(params: PyTree, batch: Any, key: PRNGKeyArray | None = None) -> OTTTState:
        parts, _ = stack.split(params)
        carries = stack.initialize_carries(params, batch, key)
        traces = tuple(
            {} if decay is None else _zeros(part, carry.y)
            for decay, part, carry in zip(decays(parts, carries), parts, carries, strict=True)
        )
        return OTTTState(carries, traces)

    def step(
        params: PyTree,
        state: OTTTState,
        xs: Array,
        targets: Any,
        resets: Array | None = None,
    ) -> tuple[OTTTState, RuleOutput]:
        parts, join = stack.split(params)
        check_chunk(xs, targets, state.carries)
        anew = restarts(stack, params, xs, resets)
        carries, ys, kept = forward(stack, parts, state.carries, xs, anew)
        pulls, traces = [], []
        known = decays(parts, state.carries)
        for decay, trace, one, restart in zip(known, state.traces, kept, anew, strict=True):
            if decay is None:
                pulls.append(pull_same_step)
                traces.append({})
                continue
            every = {"w": one.xs, "h": one.before.y}
            last, a = _decayed_sums(decay, trace, {name: every[name] for name in trace}, restart)
            pulls.append(_pull(a))
            traces.append(last)
        total, dys = jax.value_and_grad(lambda ys: sequence_loss(loss, ys, targets))(ys)
        grads = backward(stack, parts, kept, dys, pulls)
        carries, traces = jax.lax.stop_gradient((carries, tuple(traces)))
        return OTTTState(carries, traces), RuleOutput(total, ys, join(grads))

    return LearningRule(init, step)


def _zeros(params: dict, y: Array) -> dict[str, Array]:
    return {
        name: jnp.zeros((*y.shape[:-1], params[name].shape[0]), y.dtype)
        for name in ("w", "h")
        if name in params
    }


def _decayed_sums(
    decay: float, trace: dict[str, Array], u: dict[str, Array], restart: Restart | None
) -> tuple[dict[str, Array], dict[str, Array]]:
    """The trace after the chunk and at each of its steps."""
    zero = jax.tree.map(jnp.zeros_like, trace)

    def add(a: dict[str, Array], inputs: tuple[dict, Array | None]) -> tuple[dict, dict]:
        u, flags = inputs
        a = a if flags is None else restarted(flags, zero, a)
        a = jax.tree.map(lambda a, u: decay * a + u, a, u)
        return a, a

    return jax.lax.scan(add, trace, (u, None if restart is None else restart.flags))


def _pull(a: dict[str, Array]) -> Pull:
    def pull(layer: Layer, params: dict, kept: Kept, dys: Array) -> tuple[dict, Array]:
        gradient = unit_gradient(layer, params, kept, dys)
        return kernel_gradients(params, gradient, a), input_gradient(params, gradient.z)

    return pull


def _decay(layer: Layer, params: dict, carry: Any) -> float | None:
    """The constant by which a cell's memory decays, found by differentiating it at random states.

    Per-unit parameters are random too, so that a decay that is trained shows as one that differs.
    Of params and carry only shapes are read.
    """
    if layer.kind == "stateless":
        return None
    found = None
    if layer.kind == "unitwise":
        with jax.ensure_compile_time_eval():
            found = _constant(layer, params, carry)
    if found is None:
        raise ValueError(
            f"ottt: one presynaptic trace cannot stand for the state of {layer.name}, which is not "
            "a single membrane that leaks by one constant, with no gradient through its reset: "
            "use ostl(scope='no_h'), or a cell such as LIFCell(detach_reset=True)."
        )
    return found


def _constant(layer: Layer, params: dict, carry: Any) -> float | None:
    rng = np.random.default_rng(0)
    unit, _, _ = split_kernels(params)
    cell = layer.units({k: jnp.asarray(rng.normal(size=p.shape), p.dtype) for k, p in unit.items()})
    if len(cell.memory_fields) != 1:
        return None
    # small numbers, so that a membrane kept in a number format does not saturate
    (name,), shape, dtype = cell.memory_fields, (16, *carry.y.shape[1:]), carry.y.dtype
    at_rest = jax.tree.map(lambda a: jnp.zeros((16, *a.shape[1:]), a.dtype), carry)
    memory, z = (jnp.asarray(rng.uniform(-0.25, 0.25, shape), dtype) for _ in range(2))
    y = jnp.asarray(rng.integers(0, 2, shape), dtype)

    def charge(memory: Array, y: Array, z: Array) -> Array:
        return getattr(cell.charge(at_rest._replace(**{name: memory, "y": y}), z), name)

    new, pull = jax.vjp(charge, memory, y, z)
    d_memory, d_y, d_z = (np.asarray(d) for d in pull(jnp.ones_like(new)))
    same = np.ptp(d_memory) <= 1e-6 and np.ptp(d_z) <= 1e-6
    return float(d_memory.flat[0]) if same and not d_y.any() else None

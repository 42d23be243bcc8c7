"""Online spatio-temporal learning (OSTL): traces forward in time, learning signals down the layers.

The rule puts together the traces of single layers (`traces.py`); it holds no cell's equations.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ..quant.grid import Format
from ..quant.storage import Lost, Storage, storage
from .bptt import sequence_loss
from .cell_trace import cell_trace
from .ottt import ottt
from .restart import restarts
from .rule import LearningRule, Loss, RuleOutput, check_chunk
from .sltt import sltt
from .stack import Layer, Stack, as_stack
from .traces import LayerTrace, Paths, Store, unit_trace

_PATHS: dict[str, Paths] = {"full": "all", "unit": "own", "no_h": "none"}
_WITHOUT_STATE_TRACE = {"none": sltt, "pre": ottt}


class TraceLosses(NamedTuple):
    """What a trace has lost since the start of the sequence, as means over the chunks."""

    chunks: Float[Array, ""]
    lost: Lost


class OSTLState(NamedTuple):
    """What OSTL remembers between chunks: one entry a layer, () for a stateless one."""

    carries: tuple[Any, ...]
    traces: tuple[Any, ...]
    lost: tuple[Any, ...] = ()  # `TraceLosses`, or () for a trace without a format
    key: PRNGKeyArray | None = None  # of the next stochastic rounding; None without


def ostl(
    network: nnx.Module,
    loss: Loss,
    *,
    scope: str = "full",
    cross_layer: str = "spatial",
    trace_format: Format | str | None = None,
    trace_rounding: str = "nearest_even",
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
      the recurrent product. The kernel H itself still learns. D-RTRL keeps the same paths. A
      cell whose output is itself a product, as in an LSTM with a projection, has no other path to
      it from the state before, and keeps the gradient of the step alone. Matrix products and
      convolutions count, sums of products that are written out do not.
    - scope "unit" (SnAp-1) leaves out of A what one unit tells another, and keeps what it tells
      itself, the diagonal of H included: exact without a recurrent kernel, like "no_h".
    - scopes "none" and "pre" are the rules `sltt` and `ottt`, see there.
    - Layers below: "spatial" drops every path through the state of a layer above (the OSTL
      paper); "chunk" drops only those that cross the border of a chunk, so that K = T is BPTT.

    The trace of a layer takes B S P numbers in "full", S its state size and P its parameters, and
    B m P in "unit", "no_h" or without H, m the memory variables of a unit, for the cells of this
    library and any other whose units meet in products with a kernel only, as those of Flax's LSTM,
    GRU and simple cells do (`sites.py`). A cell whose units meet elsewhere, as in a normalisation
    over units, takes B S P in every scope.

    With a format, the trace $\epsilon$ of every parameter is stored in it at the end of each chunk
    (`OSTLState.lost` tells what that loses); the rest of a chunk is computed as without. Rounding
    stochastically, the gradient is that of exact traces on average, unless a trace saturates; the
    rule then takes a key at `init` and keeps the next one in its state.

    Args:
        network: a `Network`, or one bare cell.
        loss: loss of one time step, (batch, n_out), targets -> (batch,).
        scope: "full", "unit", "no_h", "none" or "pre".
        cross_layer: "spatial" or "chunk".
        trace_format: format of the traces of all cells to which `quant.state_formats` gave none of
            their own for "eligibility_trace"; None keeps them as they are computed.
        trace_rounding: how they are rounded to it, one of `quant.rounding.ROUNDINGS`.

    Returns:
        A rule whose state is the carries and traces: memory does not grow with time.

    Raises:
        ValueError: for a setting that is none of these, or a format without a unit of its own.

    References:
        Online Spatio-Temporal Learning in Deep Neural Networks, arXiv:2007.12723; "unit": A
        Practical Sparse Approximation for Real Time Recurrent Learning, arXiv:2006.07232; D-RTRL:
        doi:10.1038/s41467-026-68453-w.
    """
    _check("scope", scope, (*_PATHS, "none", "pre"))
    _check("cross_layer", cross_layer, ("spatial", "chunk"))
    if scope in _WITHOUT_STATE_TRACE:
        if trace_format is not None:
            raise ValueError(
                f"ostl(scope={scope!r}, trace_format={str(trace_format)!r}): this scope has no "
                "trace of a state to keep in a format; leave out one of them."
            )
        return _WITHOUT_STATE_TRACE[scope](network, loss)
    default = None
    if trace_format is not None:
        default = storage(f"ostl(trace_format={str(trace_format)!r})", trace_format, trace_rounding)
    stack = as_stack(network)
    spatial = cross_layer == "spatial"
    makers = [trace_of(layer, scope, spatial=spatial) for layer in stack.layers]
    return of_traces(stack, makers, loss, default=default)


Route = Callable[[int, Array, Array], Array]
"""`route(layer, above, below)`: the learning signal that goes down at the bottom of a layer.

Called for the layers from the highest to the lowest, with the index of the layer, the signal at its
output, and that at its input by reverse mode through it.
"""


def plain_route(parts: list[dict], targets: Any) -> Route:
    """The signal as reverse mode gives it."""
    del parts, targets
    return lambda layer, above, below: below


def of_traces(
    stack: Stack,
    makers: Sequence[LayerTrace | None],
    loss: Loss,
    *,
    default: Storage | None = None,
    route: Callable[[list[dict], Any], Route] = plain_route,
) -> LearningRule:
    """The rule of layers whose traces are made, None for those without a state.

    Args:
        stack: the layers.
        makers: the trace of each layer.
        loss: loss of one time step.
        default: in which format traces are kept that have none of their own.
        route: from the parameters of each layer and the targets of a chunk to the way down.
    """
    kept = tuple(
        None if maker is None else layer.trace or default
        for layer, maker in zip(stack.layers, makers, strict=True)
    )
    draws = any(k is not None and k.draws for k in kept)

    def init(params: PyTree, batch: Any, key: PRNGKeyArray | None = None) -> OSTLState:
        if draws and key is None:
            raise ValueError(
                "ostl rounds its traces stochastically and found key=None: call "
                "rule.init(params, batch, key=jax.random.key(seed)), a new key for each sequence."
            )
        carries, inputs = stack.begin(params, batch, key)
        parts, _ = stack.split(params)
        traces = tuple(
            () if maker is None else maker.init(part, carry, x)
            for maker, part, carry, x in zip(makers, parts, carries, inputs, strict=True)
        )
        zero = jnp.zeros((), jnp.float32)
        lost = tuple(() if k is None else TraceLosses(zero, Lost(zero, zero)) for k in kept)
        own = None if key is None or not draws else jax.random.fold_in(key, len(kept))
        return OSTLState(carries, traces, lost, own)

    def step(
        params: PyTree,
        state: OSTLState,
        xs: Array,
        targets: Any,
        resets: Array | None = None,
    ) -> tuple[OSTLState, RuleOutput]:
        parts, join = stack.split(params)
        check_chunk(xs, targets, state.carries)
        anew = restarts(stack, params, xs, resets)
        carries, backs = [], []
        for layer, maker, part, carry, trace, restart in zip(
            stack.layers, makers, parts, state.carries, state.traces, anew, strict=True
        ):
            try:
                if maker is None:
                    xs, back = _stateless(layer, part, xs)
                else:
                    carry, xs, back = maker.chunk(part, carry, trace, xs, restart)
            except TypeError as error:
                raise ValueError(
                    f"{layer.name} does not take inputs {xs.dtype}{list(xs.shape[1:])} (batch "
                    f"first): {str(error).splitlines()[0]}"
                ) from error
            carries.append(carry)
            backs.append(back)
        total, dys = jax.value_and_grad(lambda ys: sequence_loss(loss, ys, targets))(xs)
        key, stores = _stores(kept, state.key)
        grads, traces, lost = [], [], []
        down = route(parts, targets)
        for i, back, store in reversed(list(zip(range(len(backs)), backs, stores, strict=True))):
            part_grads, dxs, trace, loses = back(dys, store)
            dys = down(i, dys, dxs)
            grads.insert(0, part_grads)
            traces.insert(0, trace)
            lost.insert(0, loses)
        lost = tuple(_mean(old, new) for old, new in zip(state.lost, lost, strict=True))
        carries, traces = jax.lax.stop_gradient((tuple(carries), tuple(traces)))
        return OSTLState(carries, traces, lost, key), RuleOutput(total, xs, join(grads))

    return LearningRule(init, step)


def trace_of(layer: Layer, scope: str, *, spatial: bool) -> LayerTrace | None:
    """The trace of a layer in a scope, None for one without a state; as in `ostl`."""
    if layer.kind == "stateless":
        return None
    make = cell_trace if layer.kind == "cell" else unit_trace
    return make(layer, paths=_PATHS[scope], spatial=spatial)


def _stateless(layer: Layer, params: dict, xs: Array):
    """Runs a layer without state; going back is plain reverse mode."""
    ys, pull = jax.vjp(lambda p, xs: jax.vmap(layer.module(p))(xs), params, xs)

    def back(dys: Array, store: Store):
        return *pull(dys), (), None

    return ys, back


def _stores(
    kept: tuple[Storage | None, ...], key: PRNGKeyArray | None
) -> tuple[PRNGKeyArray | None, list[Store]]:
    """The key of the next chunk, and what each layer does to its new trace."""
    if key is None:
        return None, [_store(k, None) for k in kept]
    following, *keys = jax.random.split(key, len(kept) + 1)
    return following, [_store(k, own) for k, own in zip(kept, keys, strict=True)]


def _store(kept: Storage | None, key: PRNGKeyArray | None) -> Store:
    if kept is None:
        return lambda eps: (eps, None)

    def store(eps: PyTree) -> tuple[PyTree, Lost]:
        leaves, tree = jax.tree.flatten(eps)
        keys: Any = [None] * len(leaves)
        if kept.draws and key is not None:
            keys = jax.random.split(key, len(leaves))
        stored = [kept.store(x, k) for x, k in zip(leaves, keys, strict=True)]
        sizes = jnp.array([x.size for x in leaves], jnp.float32)
        lost = [kept.lost(x, y) for x, y in zip(leaves, stored, strict=True)]
        share = jax.tree.map(lambda *parts: jnp.stack(parts) @ sizes / sizes.sum(), *lost)
        return tree.unflatten(stored), share

    return store


def _mean(old: Any, new: Lost | None) -> Any:
    """The mean over the chunks so far, one more included."""
    if new is None:
        return ()
    chunks = old.chunks + 1
    return TraceLosses(
        chunks, jax.tree.map(lambda mean, x: mean + (x - mean) / chunks, old.lost, new)
    )


def _check(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"ostl({name}={value!r}): known are {', '.join(map(repr, known))}.")

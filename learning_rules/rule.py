"""The contract of a learning rule, and the one way to drive a rule over a whole sequence.

No rule stands here; each has a file of its own, made by a function `name(network, loss, ...)`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

Loss = Callable[[Array, Any], Array]
"""`loss(outputs, targets)`: outputs (batch, n_out) of one time step to (batch,) losses."""


class RuleOutput(NamedTuple):
    """What a rule makes of one chunk of K time steps and B samples."""

    loss: Float[Array, ""]  # summed over the K steps, averaged over the B samples
    outputs: Float[Array, "time batch *features"]
    grads: PyTree  # the chunk's contribution to d loss / d params, the tree of params


class LearningRule(NamedTuple):
    """Two pure functions; everything the rule remembers is in the state they pass along.

    `init(params, batch, key=None) -> state` starts a new sequence. `batch` is a chunk of inputs, or
    a `jax.ShapeDtypeStruct` like one, of shape (time, batch, *features); its values are not read.
    The key is needed only where something is rounded stochastically, and goes into the state.
    `step(params, state, xs, targets, resets=None) -> (state, RuleOutput)` takes the next K >= 1
    time steps: xs of shape (K, batch, *features), targets a pytree whose leaves start with (K,
    batch).
    Where `resets`, bools (K, batch), are True, the sample begins a new sequence at that step: its
    state is the first one again, and no gradient goes further back. Steps that should not count
    are given a weight of 0, see `losses.weighted`.

    Compile `step` with `jax.jit`: called eagerly it is traced anew each time.

    The loss of a sequence is the sum over time of the mean over the batch; the gradient
    contributions of its chunks add up to its gradient as the rule sees it.
    """

    init: Callable[..., PyTree]
    step: Callable[..., tuple[PyTree, RuleOutput]]
    truncates: bool = False  # True where no gradient crosses from one chunk to the next


def parameters(network: nnx.Module) -> PyTree:
    """The trainable parameters of a network, the tree that every rule and memory works on."""
    return nnx.state(network, nnx.Param)


def check_chunk(xs: Array, targets: Any, carries: PyTree) -> None:
    """Refuses a chunk whose arrays do not belong together.

    Raises:
        ValueError: no time step or sample, or another batch in the targets or in the state.
    """
    if xs.ndim < 2 or 0 in xs.shape[:2]:
        raise ValueError(
            "A rule takes inputs of shape (time, batch, *features) with at least one time step "
            f"and one sample; got shape {tuple(xs.shape)}."
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(targets):
        if jnp.shape(leaf)[:2] != xs.shape[:2]:
            raise ValueError(
                f"targets{jax.tree_util.keystr(path)} has shape {jnp.shape(leaf)} and the inputs "
                f"have {tuple(xs.shape)}: both start with the same (time, batch)."
            )
    sizes = {a.shape[0] for a in jax.tree.leaves(carries) if jnp.ndim(a)}
    if sizes - {xs.shape[1]}:
        raise ValueError(
            f"The inputs have a batch of {xs.shape[1]} and the state one of {sizes.pop()}: call "
            "rule.init with a chunk of the same batch."
        )


def run_sequence(
    rule: LearningRule,
    params: PyTree,
    xs: Array,
    targets: Any,
    *,
    resets: Array | None = None,
    chunk: int | None = None,
    key: PRNGKeyArray | None = None,
) -> RuleOutput:
    """Runs a rule over a sequence with frozen parameters and adds up its gradient.

    Args:
        rule: any learning rule.
        params: the parameters, `parameters(network)`.
        xs: inputs (T, batch, *features).
        targets: pytree of arrays (T, batch, ...).
        resets: True where a sample begins a new sequence, see `LearningRule`; None: nowhere.
        chunk: K, the steps given to the rule at a time; None gives it the whole sequence.
        key: of stochastic rounding, see `LearningRule`.

    Raises:
        ValueError: if K does not divide T.
    """
    return run_with_state(rule, params, xs, targets, resets=resets, chunk=chunk, key=key)[1]


def run_with_state(
    rule: LearningRule,
    params: PyTree,
    xs: Array,
    targets: Any,
    *,
    resets: Array | None = None,
    chunk: int | None = None,
    key: PRNGKeyArray | None = None,
) -> tuple[PyTree, RuleOutput]:
    """`run_sequence`, and the state in which the rule ends."""
    steps = xs.shape[0]
    chunk = steps if chunk is None else chunk
    if chunk < 1 or steps % chunk:
        raise ValueError(
            f"run_sequence(chunk={chunk}) cannot split a sequence of {steps} steps: choose a "
            "chunk of at least 1 that divides it."
        )

    def body(carried, piece):
        state, loss, grads = carried
        state, out = rule.step(params, state, *piece)
        grads = jax.tree.map(jnp.add, grads, out.grads)
        return (state, loss + out.loss, grads), out.outputs

    pieces = jax.tree.map(
        lambda a: a.reshape(steps // chunk, chunk, *a.shape[1:]), (xs, targets, resets)
    )
    first = jax.tree.map(lambda a: a[0], pieces)
    state = rule.init(params, first[0], key)
    shapes = jax.eval_shape(rule.step, params, state, *first)[1]
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (shapes.loss, shapes.grads))
    (state, loss, grads), outputs = jax.lax.scan(body, (state, *zero), pieces)
    return state, RuleOutput(loss, outputs.reshape(steps, *outputs.shape[2:]), grads)

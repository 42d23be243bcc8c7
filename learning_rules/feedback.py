"""Feedback alignment, also direct: errors come down through fixed random weights, in dense stacks.

Here are the two rules and their feedback weights. Factors on the errors are `grapes.py`'s.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from .bptt import sequence_loss
from .grapes import check_settings, importance, modulation_factor
from .rule import LearningRule, Loss, RuleOutput, parameters
from .stack import as_stack

_LECUN = nnx.initializers.lecun_normal()


def feedback_weights(
    network: nnx.Module,
    key: PRNGKeyArray,
    *,
    direct: bool = False,
    init: Callable[..., Array] = _LECUN,
) -> list[Float[Array, "_ _"]]:
    """Draws feedback weights, one array for each dense layer but the lowest, lowest first.

    Args:
        network: dense layers and functions.
        key: what they are drawn from.
        direct: (n_out, n_in) from the output of the network to the input of the layer, for
            `direct_feedback_alignment`; else (n_in, n) like the kernel of the layer, for
            `feedback_alignment`.
        init: `init(key, shape, dtype)`.

    Raises:
        ValueError: as `feedback_alignment`.
    """
    kernels = list(_kernels("feedback_weights", network).values())
    keys = jax.random.split(key, len(kernels) - 1)
    outputs = kernels[-1].shape[1]
    shapes = [(outputs, k.shape[0]) if direct else k.shape for k in kernels[1:]]
    return [init(k, s, kernels[0].dtype) for k, s in zip(keys, shapes, strict=True)]


def feedback_alignment(
    network: nnx.Module,
    loss: Loss,
    feedback: Sequence[Float[Array, "_ _"]],
    *,
    factor: str | None = None,
    floor: float | int = 0,
    key: PRNGKeyArray | None = None,
) -> LearningRule:
    r"""Backpropagation with other weights on the way back: $e_l = \delta_{l+1} B_{l+1}^T$.

    $\delta_l$ is the error at the sum of layer l, $e_l$ that at its output; the update of a layer
    is that of backpropagation with these errors. It is exact for the highest layer, and for all
    where B is the kernel W.

    With a factor, $e_l$ is multiplied with m of `modulation_factor`, from the weights W that come
    in to the units; published without a floor.

    Args:
        network: dense layers and functions of one array, without a state.
        loss: loss of one time step, (batch, n_out), targets -> (batch,).
        feedback: B (n_in, n) of each dense layer but the lowest, see `feedback_weights`.
        factor: None, or GRAPES or one of its controls, see `modulation_factor`.
        floor: the least factor of GRAPES.
        key: of the control "perm".

    Returns:
        A rule without a state; steps of time are samples among others.

    Raises:
        ValueError: other layers with weights or a state, less than two dense layers, feedback
            weights of other shapes, or as `modulation_factor`.

    References:
        Random feedback weights support learning in deep neural networks, arXiv:1411.0247; with
        factors: Learning in deep neural networks using a biologically inspired optimizer,
        arXiv:2104.11604.
    """
    if factor is not None:
        check_settings("feedback_alignment", factor, "input", floor, key)
    places = _kernels("feedback_alignment", network)
    kernels = list(places.values())
    _check_shapes("feedback_alignment", feedback, [k.shape for k in kernels[1:]])

    def back(delta: Array, error: Array, b: Array) -> Array:
        return delta @ b.T

    def factors(below: Array, above: Array, own: PRNGKeyArray | None) -> Array:
        return modulation_factor(importance(below), str(factor), floor=floor, key=own)

    return _rule(network, places, loss, feedback, back, None if factor is None else factors, key)


def direct_feedback_alignment(
    network: nnx.Module,
    loss: Loss,
    feedback: Sequence[Float[Array, "_ _"]],
    *,
    factor: str | None = None,
    floor: float | int = 0,
    key: PRNGKeyArray | None = None,
) -> LearningRule:
    r"""Hidden layers get the error of the output through weights of their own: $e_l = \delta B_l$.

    As `feedback_alignment`, but the error does not come through the layers between. With a factor
    the importance of a unit is the total weight |W| that goes out from it to the layer above.

    Args:
        network: dense layers and functions of one array, without a state.
        loss: loss of one time step, (batch, n_out), targets -> (batch,).
        feedback: (n_out, n_in) for each dense layer but the lowest, see `feedback_weights`.
        factor: None, or GRAPES or one of its controls.
        floor: the least factor of GRAPES.
        key: of the control "perm".

    Returns:
        A rule without a state.

    Raises:
        ValueError: as `feedback_alignment`.

    References:
        Direct feedback alignment provides learning in deep neural networks, arXiv:1609.01596;
        with factors: arXiv:2104.11604.
    """
    if factor is not None:
        check_settings("direct_feedback_alignment", factor, "input", floor, key)
    places = _kernels("direct_feedback_alignment", network)
    kernels = list(places.values())
    outputs = kernels[-1].shape[1]
    _check_shapes(
        "direct_feedback_alignment", feedback, [(outputs, k.shape[0]) for k in kernels[1:]]
    )

    def back(delta: Array, error: Array, b: Array) -> Array:
        return error @ b

    def factors(below: Array, above: Array, own: PRNGKeyArray | None) -> Array:
        return modulation_factor(importance(above.T), str(factor), floor=floor, key=own)

    return _rule(network, places, loss, feedback, back, None if factor is None else factors, key)


def _rule(
    network: nnx.Module,
    places: Iterable[int],
    loss: Loss,
    feedback: Sequence[Array],
    back: Callable[[Array, Array, Array], Array],
    factors: Callable[[Array, Array, PRNGKeyArray | None], Array] | None,
    key: PRNGKeyArray | None,
) -> LearningRule:
    """The rule whose errors below the dense layers, at `places`, are `back(delta, error, B)`."""
    stack = as_stack(network)
    dense = list(places)

    def init(params: PyTree, batch: Any, key: PRNGKeyArray | None = None) -> PyTree:
        return stack.initialize_carries(params, batch, key)

    def step(
        params: PyTree,
        state: PyTree,
        xs: Array,
        targets: Any,
        resets: Array | None = None,
    ) -> tuple[PyTree, RuleOutput]:
        del resets  # there is no state to put back
        parts, join = stack.split(params)
        pulls = []
        for layer, part in zip(stack.layers, parts, strict=True):
            xs, pull = jax.vjp(lambda p, x, layer=layer: layer.module(p)(x), part, xs)
            pulls.append(pull)
        total, error = jax.value_and_grad(lambda ys: sequence_loss(loss, ys, targets))(xs)
        grads, delta, above = {}, error, len(dense) - 1
        for i in reversed(range(len(parts))):
            grads[i], dx = pulls[i](delta)
            if i in dense and above:
                dx = back(delta, error, feedback[above - 1])
                if factors is not None:
                    below = parts[dense[above - 1]]["kernel"]
                    own = None if key is None else jax.random.fold_in(key, above)
                    m = factors(below, parts[i]["kernel"], own)
                    dx = dx * m.astype(dx.dtype)
                above -= 1
            delta = dx
        return state, RuleOutput(total, xs, join([grads[i] for i in range(len(parts))]))

    return LearningRule(init, step)


def _kernels(who: str, network: nnx.Module) -> dict[int, Array]:
    """The kernels of the dense layers by their places; refuses what is not a dense stack."""
    stack = as_stack(network)
    parts, _ = stack.split(parameters(network))
    found = {}
    for i, (layer, part) in enumerate(zip(stack.layers, parts, strict=True)):
        if layer.kind == "stateless" and isinstance(layer.module(part), nnx.Linear):
            found[i] = part["kernel"]
        elif layer.kind != "stateless" or part:
            raise ValueError(
                f"{who}: {layer.name} is neither nnx.Linear nor a function without parameters; "
                "take `bptt` or `ostl` for such a network."
            )
    if len(found) < 2:
        raise ValueError(
            f"{who} needs two dense layers, of which the lower one gets errors; this network has "
            f"{len(found)}."
        )
    return found


def _check_shapes(who: str, feedback: Sequence[Array], wanted: list[tuple[int, ...]]) -> None:
    shapes = [tuple(b.shape) for b in feedback]
    if shapes != wanted:
        raise ValueError(
            f"{who} got feedback weights of shapes {shapes} and needs {wanted}: take "
            f"feedback_weights(network, key, direct={who.startswith('direct')})."
        )

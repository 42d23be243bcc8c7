"""Feedback alignment, also direct: errors come down through fixed random weights.

Here are the two rules and their feedback weights. Factors on the errors are `grapes.py`'s.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from .bptt import sequence_loss
from .grapes import check_settings, importance, modulation_factor
from .rule import LearningRule, Loss, RuleOutput, check_chunk, parameters
from .stack import as_stack

_LECUN = nnx.initializers.lecun_normal()


def feedback_weights(
    network: nnx.Module,
    key: PRNGKeyArray,
    *,
    direct: bool = False,
    input_shape: Sequence[int] | None = None,
    init: Callable[..., Array] = _LECUN,
) -> list[Float[Array, "_ *_"]]:
    """Draws feedback weights, one array for each layer with weights but the lowest, lowest first.

    Args:
        network: dense and convolution layers, and functions.
        key: what they are drawn from.
        direct: (n_out, *features) from the output of the network to the input of the layer, for
            `direct_feedback_alignment`; else of the shape of the layer's kernel, for
            `feedback_alignment`.
        input_shape: of one sample; direct weights need it to a convolution, to layers with other
            axes before the features, and where a function changes the size of the output.
        init: `init(key, shape, dtype)`; direct weights are drawn as (n_out, all features).

    Raises:
        ValueError: as `feedback_alignment`; or no `input_shape` where it is needed.
    """
    places = _kernels("feedback_weights", network)
    kernels = list(places.values())
    keys = jax.random.split(key, len(kernels) - 1)
    if not direct:
        return [init(k, w.shape, w.dtype) for k, w in zip(keys, kernels[1:], strict=True)]
    if any(k.ndim > 2 for k in kernels[1:]) and input_shape is None:
        raise ValueError(
            "feedback_weights(direct=True) to a convolution depend on the size of its input: give "
            "input_shape, that of one sample, such as (28, 28, 1)."
        )
    shapes, outputs = [(k.shape[0],) for k in kernels[1:]], kernels[-1].shape[-1]
    if input_shape is not None:
        stack, params = as_stack(network), parameters(network)
        batch = jax.ShapeDtypeStruct((1, 1, *input_shape), kernels[0].dtype)
        inputs = stack.begin(params, batch)[1]
        shapes = [inputs[i].shape[1:] for i in list(places)[1:]]
        last = stack.layers[-1].module(stack.split(params)[0][-1])
        outputs = jax.eval_shape(lambda x: last(x), inputs[-1]).shape[-1]
    return [
        init(k, (outputs, math.prod(s)), kernels[0].dtype).reshape(outputs, *s)
        for k, s in zip(keys, shapes, strict=True)
    ]


def feedback_alignment(
    network: nnx.Module,
    loss: Loss,
    feedback: Sequence[Float[Array, "_ *_"]],
    *,
    factor: str | None = None,
    floor: float | int = 0,
    key: PRNGKeyArray | None = None,
) -> LearningRule:
    r"""Backpropagation with other weights on the way back: $e_l = \delta_{l+1} B_{l+1}^T$.

    $\delta_l$ is the error at the sum of layer l, $e_l$ that at its output; the update of a layer
    is that of backpropagation with these errors. It is exact for the highest layer, and for all
    where B is the kernel W. Through a convolution errors come down as through one with kernel B.

    With a factor, $e_l$ is multiplied with m of `modulation_factor`, one for each unit or channel,
    from the weights W that come in to it; published without a floor. `local_grapes(floor=0)` on
    the gradients of the rule without a factor is the variant that sends no factors down.

    Args:
        network: dense and convolution layers, and functions of one array, without a state.
        loss: loss of one time step, (batch, n_out), targets -> (batch,).
        feedback: B of each layer with weights but the lowest, see `feedback_weights`.
        factor: None, or GRAPES or one of its controls, see `modulation_factor`.
        floor: the least factor of GRAPES.
        key: of the control "perm".

    Returns:
        A rule without a state; steps of time are samples among others.

    Raises:
        ValueError: other layers with weights or a state, convolutions in groups, less than two
            layers with weights, feedback weights of other shapes, or as `modulation_factor`.

    References:
        Random feedback weights support learning in deep neural networks, arXiv:1411.0247; with
        factors: Learning in deep neural networks using a biologically inspired optimizer,
        arXiv:2104.11604.
    """
    if factor is not None:
        check_settings("feedback_alignment", factor, "input", floor, key)
    places = _kernels("feedback_alignment", network)
    kernels = list(places.values())
    wrong = [b.shape for b in feedback] != [k.shape for k in kernels[1:]]
    _check_shapes("feedback_alignment", wrong, feedback, [k.shape for k in kernels[1:]])

    def back(layer: _WithWeights, delta: Array, error: Array, b: Array) -> Array:
        return jax.vjp(lambda x: layer.run({**layer.part, "kernel": b}, x), layer.x)[1](delta)[0]

    def importances(below: Array, above: Array) -> Array:
        return importance(below)

    factors = None if factor is None else _factors(importances, factor, floor, key)
    return _rule(network, places, loss, feedback, back, factors)


def direct_feedback_alignment(
    network: nnx.Module,
    loss: Loss,
    feedback: Sequence[Float[Array, "_ *_"]],
    *,
    factor: str | None = None,
    floor: float | int = 0,
    key: PRNGKeyArray | None = None,
) -> LearningRule:
    r"""Hidden layers get the error of the output through weights of their own: $e_l = \delta B_l$.

    As `feedback_alignment`, but the error does not come through the layers between. With a factor
    the importance of a unit or channel is the total weight |W| that goes out from it to the layer
    above. No factor is sent on to other layers.

    Args:
        network: dense and convolution layers, and functions of one array, without a state.
        loss: loss of one time step, (batch, n_out), targets -> (batch,).
        feedback: (n_out, *features) for each layer with weights but the lowest, see
            `feedback_weights`.
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
    wanted = [("n_out", *(["..."] * (k.ndim - 2)), k.shape[-2]) for k in kernels[1:]]
    wrong = [b.shape[-1] for b in feedback] != [w[-1] for w in wanted] or any(
        b.ndim < len(w) for b, w in zip(feedback, wanted, strict=True)
    )
    _check_shapes("direct_feedback_alignment", wrong, feedback, wanted)

    def back(layer: _WithWeights, delta: Array, error: Array, b: Array) -> Array:
        if b.shape != (*error.shape[1:], *layer.x.shape[1:]):
            raise ValueError(
                f"direct_feedback_alignment got feedback weights of shape {b.shape} for an input "
                f"of shape {layer.x.shape[1:]} and an output of shape {error.shape[1:]}: take "
                "feedback_weights(network, key, direct=True, input_shape=...)."
            )
        return jnp.tensordot(error, b, 1)

    def importances(below: Array, above: Array) -> Array:
        out = jnp.abs(above).sum([a for a in range(above.ndim) if a != above.ndim - 2])
        if out.size % below.shape[-1]:
            raise ValueError(
                f"direct_feedback_alignment: a layer takes {out.size} inputs from {below.shape[-1]}"
                " units or channels, and which weights go out from which is not known: let only "
                "functions stand between that keep the channels last."
            )
        return out.reshape(-1, below.shape[-1]).sum(0)  # a channel goes out from all its places

    factors = None if factor is None else _factors(importances, factor, floor, key)
    return _rule(network, places, loss, feedback, back, factors)


class _WithWeights(NamedTuple):
    """A layer with weights at its input x (samples, *features)."""

    run: Callable[[dict, Array], Array]
    part: dict
    x: Array


_Factors = Callable[[list[Array]], list[Array]]
"""Kernels, lowest first, to the factors of all layers with weights but the highest."""


def _factors(
    importances: Callable[[Array, Array], Array],
    factor: str,
    floor: float | int,
    key: PRNGKeyArray | None,
) -> _Factors:
    def factors(kernels: list[Array]) -> list[Array]:
        found = []
        for i, (below, above) in enumerate(itertools.pairwise(kernels)):
            own = None if key is None else jax.random.fold_in(key, i + 1)
            total = importances(below, above)
            found.append(modulation_factor(total, factor, floor=floor, key=own))
        return found

    return factors


def _rule(
    network: nnx.Module,
    places: Mapping[int, Array],
    loss: Loss,
    feedback: Sequence[Array],
    back: Callable[[_WithWeights, Array, Array, Array], Array],
    factors: _Factors | None,
) -> LearningRule:
    """The rule whose errors below the layers at `places` are `back(layer, delta, error, B)`."""
    stack = as_stack(network)
    weights = dict(zip(list(places)[1:], feedback, strict=True))

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
        check_chunk(xs, targets, state)
        parts, join = stack.split(params)
        time = xs.shape[:2]
        x, pulls, layers = xs.reshape(-1, *xs.shape[2:]), [], []
        for layer, part in zip(stack.layers, parts, strict=True):
            layers.append(_WithWeights(lambda p, x, of=layer: of.module(p)(x), part, x))
            x, pull = jax.vjp(layers[-1].run, part, x)
            pulls.append(pull)
        ys = x.reshape(*time, *x.shape[1:])
        total, error = jax.value_and_grad(lambda ys: sequence_loss(loss, ys, targets))(ys)
        error = error.reshape(x.shape)
        found = factors([parts[i]["kernel"] for i in places]) if factors else []
        ms = dict(zip(places, found, strict=False))  # none for the highest
        grads, delta = {}, error
        for i in reversed(range(len(parts))):
            if i in ms:
                delta = delta * ms[i].astype(delta.dtype)
            grads[i], below = pulls[i](delta)
            delta = back(layers[i], delta, error, weights[i]) if i in weights else below
        return state, RuleOutput(total, ys, join([grads[i] for i in range(len(parts))]))

    return LearningRule(init, step)


def _kernels(who: str, network: nnx.Module) -> dict[int, Array]:
    """The kernels of the layers with weights by their places; refuses what has other weights."""
    stack = as_stack(network)
    parts, _ = stack.split(parameters(network))
    found = {}
    for i, (layer, part) in enumerate(zip(stack.layers, parts, strict=True)):
        module = layer.module(part)
        if isinstance(module, nnx.Conv) and module.feature_group_count != 1:
            raise ValueError(
                f"{who}: {layer.name} has {module.feature_group_count} groups of channels; take "
                "feature_group_count=1, or `bptt`."
            )
        if isinstance(module, nnx.Linear | nnx.Conv):
            found[i] = part["kernel"]
        elif layer.kind != "stateless" or part:
            raise ValueError(
                f"{who}: {layer.name} is neither nnx.Linear, nnx.Conv nor a function without "
                "parameters; for cells take `eprop` or `osttp` with `broadcast_weights`, which "
                "bring the error to each layer through random weights too."
            )
    if len(found) < 2:
        raise ValueError(
            f"{who} needs two layers with weights, of which the lower one gets errors; this "
            f"network has {len(found)}."
        )
    return found


def _check_shapes(
    who: str, wrong: bool, feedback: Sequence[Array], wanted: Sequence[tuple[Any, ...]]
) -> None:
    if wrong:
        shapes = [tuple(b.shape) for b in feedback]
        raise ValueError(
            f"{who} got feedback weights of shapes {shapes} and needs {list(wanted)}: take "
            f"feedback_weights(network, key, direct={who.startswith('direct')})."
        )

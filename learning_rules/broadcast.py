"""One signal for all hidden layers: how it comes to each of them through feedback weights.

Here are the weights and the way down that e-prop and target projection share; the rules, and what
the signal is, stand in `eprop.py` and `osttp.py`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from .ostl import Route
from .rule import parameters
from .stack import Layer, Stack, as_stack

_LECUN = nnx.initializers.lecun_normal()
Signal = Callable[[Array, Any], Array]
"""`signal(error, targets)`: from dE/dy (time, batch, n_out) at the readout, and the targets."""


def broadcast_weights(
    network: nnx.Module,
    key: PRNGKeyArray,
    *,
    init: Callable[..., Array] = _LECUN,
) -> list[Float[Array, "n_out _"]]:
    """Draws weights that bring a signal (n_out) to the input of each layer but the lowest.

    Args:
        network: its layers with parameters are those counted; the last is the readout.
        key: what they are drawn from.
        init: `init(key, shape, dtype)`.

    Returns:
        One array (n_out, features) for each, lowest first.

    Raises:
        ValueError: fewer than two layers with parameters, or one that does not tell its sizes.
    """
    stack = as_stack(network)
    parts, _ = stack.split(parameters(network))
    learning = layers_that_learn("broadcast_weights", stack, parts)
    outputs = _size("broadcast_weights", stack.layers[learning[-1]], parts[learning[-1]], "out")
    dtype = jax.tree.leaves(parts[learning[-1]])[0].dtype
    keys = jax.random.split(key, len(learning) - 1)
    return [
        init(own, (outputs, _size("broadcast_weights", stack.layers[i], parts[i], "in")), dtype)
        for own, i in zip(keys, learning[1:], strict=True)
    ]


def layers_that_learn(who: str, stack: Stack, parts: list[dict]) -> list[int]:
    """The layers with parameters; the last of them is the readout."""
    learning = [i for i, part in enumerate(parts) if jax.tree.leaves(part)]
    if len(learning) < 2:
        raise ValueError(
            f"{who} sends a signal to the layers below the readout, and this network has "
            f"{len(learning)} layers with parameters: it needs a hidden layer and a readout."
        )
    readout = stack.layers[learning[-1]]
    if readout.kind != "stateless" and "h" in parts[learning[-1]]:
        raise ValueError(f"{who}: the readout, {readout.name}, is recurrent; take a dense one.")
    return learning


def check_weights(
    who: str, feedback: Sequence[Array], stack: Stack, parts: list[dict], learning: list[int]
) -> None:
    """Refuses feedback weights of other shapes than those of `broadcast_weights`."""
    outputs = _size(who, stack.layers[learning[-1]], parts[learning[-1]], "out")
    wanted = [(outputs, _size(who, stack.layers[i], parts[i], "in")) for i in learning[1:]]
    shapes = [tuple(b.shape) for b in feedback]
    if shapes != wanted:
        raise ValueError(
            f"{who} got feedback weights of shapes {shapes} and needs {wanted}: take "
            "broadcast_weights(network, key)."
        )


def broadcast(
    signal: Signal,
    feedback: Callable[[list[dict]], Sequence[Array]],
    learning: list[int],
) -> Callable[[list[dict], Any], Route]:
    """The way down on which each layer that learns gets the signal, and nothing from above.

    Args:
        signal: from the error at the readout's output and the targets.
        feedback: from the parameters of the layers, weights as of `broadcast_weights`.
        learning: the layers with parameters.
    """

    def route(parts: list[dict], targets: Any) -> Route:
        weights = dict(zip(learning[1:], feedback(parts), strict=True))
        sent: list[Array] = []

        def down(layer: int, above: Array, below: Array) -> Array:
            if layer == learning[-1]:
                sent.append(signal(above, targets))
            if layer not in weights:
                return below
            return (sent[0] @ weights[layer]).astype(below.dtype)

        return down

    return route


def _size(who: str, layer: Layer, part: dict, end: str) -> int:
    """The features at one end of a layer."""
    module = layer.module(part)
    size = getattr(module, f"{end}_features", None)
    if size is None and end == "out":
        size = getattr(module, "hidden_features", None)
    if not isinstance(size, int):
        raise ValueError(
            f"{who}: {layer.name} does not tell how many features go {end}: give it "
            f"`{end}_features`, or use a dense layer or a cell with weights."
        )
    return size

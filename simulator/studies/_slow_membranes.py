"""Feed-forward LIF networks whose decay is chosen: gradients by SLTT beside BPTT's, and training.

Every decay is held in a parameter that is never trained, so that one compiled function serves all
decays. What is compared is said in `sltt_norms.py`.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ...learning_rules import bptt, cosine, losses, parameters, run_sequence, sltt
from ...learning_rules.stack import as_stack
from .. import surrogate
from ..lif import LIFCell
from ..network import Network
from ..readout import LeakyReadout

LOSS = losses.weighted(losses.cross_entropy)


class Kind(NamedTuple):
    """What networks of one compiled function share; their decay and weights are parameters."""

    sizes: tuple[int, ...]  # inputs, hidden layers, outputs
    reset: str = "detached"  # subtracts, without a gradient; "subtract" with one; or "none"
    surrogate: str = "triangular"
    readout: str = "dense"  # or "leaky", whose membrane leaks like those below
    gain: float = 1.0  # of the hidden kernels, on Glorot uniform


class Compared(NamedTuple):
    """SLTT beside BPTT for each layer with a membrane, lowest first."""

    cosine: list[float]
    ratio: list[float]  # norm of SLTT's gradient / norm of BPTT's


def make_network(kind: Kind, decay: float, seed: int) -> Network:
    """Hidden LIF layers of threshold 1 and a readout, all with this decay a step."""
    rngs, layers = nnx.Rngs(seed), []
    for n_in, n in itertools.pairwise(kind.sizes[:-1]):
        cell = LIFCell(
            n_in,
            n,
            reset="none" if kind.reset == "none" else "subtract",
            detach_reset=kind.reset == "detached",
            train_decay=True,
            surrogate=surrogate.by_name(kind.surrogate),
            rngs=rngs,
        )
        assert cell.w is not None
        cell.w[...] = kind.gain * cell.w[...]
        layers.append(cell)
    if kind.readout == "leaky":
        layers.append(LeakyReadout(*kind.sizes[-2:], train_decay=True, rngs=rngs))
    else:
        layers.append(nnx.Linear(*kind.sizes[-2:], rngs=rngs))
    for layer in layers:
        if getattr(layer, "d", None) is not None:
            layer.d[...] = jnp.full_like(layer.d[...], math.log(decay / (1 - decay)))
    return Network(layers)


def step_weights(steps: int, batch: int, loss: str) -> Float[Array, "time batch"]:
    """Of the losses of the steps: "each" 1 / T, or all on the "last"."""
    weights = jnp.zeros(steps).at[-1].set(1.0)
    if loss == "each":
        weights = jnp.full_like(weights, 1 / steps)
    return jnp.broadcast_to(weights[:, None], (steps, batch))


def predicted_ratio(decay: float, membranes: int, steps: int, loss: str) -> float:
    r"""The ratio of norms if every path through time counted as much as those within a step.

    A path that spends k steps in m membranes can share them out in $\binom{k+m-1}{m-1}$ ways and
    is weighted by $\lambda^k$; SLTT keeps k = 0. So the ratio is the inverse of
    $\sum_{k<T} \binom{k+m-1}{m-1} \lambda^k$ for the loss of the last step, and of the mean of such
    sums up to each step for the loss of all. It is exact for inputs and errors that are constant, a
    spike that is differentiated as 1 and no reset.

    Args:
        decay: $\lambda$.
        membranes: m, of the layer itself and of all layers above it.
        steps: T.
        loss: "each" or "last".
    """
    sums = np.cumsum([math.comb(k + membranes - 1, k) * decay**k for k in range(steps)])
    return float(1 / (sums.mean() if loss == "each" else sums[-1]))


@functools.lru_cache(maxsize=8)
def _gradients(kind: Kind) -> Callable[[PyTree, Array, Any], tuple[PyTree, PyTree]]:
    """BPTT's gradient and SLTT's, of the whole sequence."""
    template = make_network(kind, 0.5, 0)
    rules = [make(template, LOSS) for make in (bptt, sltt)]

    @jax.jit
    def both(params: PyTree, xs: Array, targets: Any) -> tuple[PyTree, PyTree]:
        exact, same_step = (run_sequence(rule, params, xs, targets).grads for rule in rules)
        return exact, same_step

    return both


def compare_gradients(
    kind: Kind,
    network: Network,
    xs: Float[Array, "time batch features"],
    labels: Int[Array, " batch"],
    loss: str,
) -> Compared:
    """SLTT's gradient beside BPTT's of the kernels of all layers with a membrane.

    Raises:
        ValueError: one of them is 0 in a layer.
    """
    steps, batch = xs.shape[:2]
    targets = (jnp.broadcast_to(labels, (steps, batch)), step_weights(steps, batch, loss))
    found = _gradients(kind)(parameters(network), xs, targets)
    stack = as_stack(network)
    pairs = zip(*(stack.split(grads)[0] for grads in found), strict=True)
    kernels = [(exact["w"], other["w"]) for exact, other in pairs if "w" in exact]
    result = Compared([], [])
    for i, (exact, other) in enumerate(kernels):
        sizes = {name: float(jnp.linalg.norm(g)) for name, g in (("BPTT", exact), ("SLTT", other))}
        for name, size in sizes.items():
            if size == 0:
                raise ValueError(
                    f"layer {i} gets no gradient by {name}: units are silent, or too far from "
                    "their threshold; choose a larger study.gain"
                )
        result.cosine.append(cosine(other, exact))
        result.ratio.append(sizes["SLTT"] / sizes["BPTT"])
    return result


class Trained(NamedTuple):
    """What training ends with; NaN where it diverged."""

    train_loss: float  # [nats], mean over images and steps
    train_accuracy: float
    test_accuracy: float


@functools.lru_cache(maxsize=8)
def _trainer(
    kind: Kind, rule: str, k: int | None, scale: bool, optimizer: str, steps: int, batch: int
) -> tuple[Callable[..., PyTree], Callable[..., tuple[Array, Array]]]:
    """All updates from a start, and the judgement; compiled once for all rates and factors."""
    template = make_network(kind, 0.5, 0)
    graphdef, _ = nnx.split(template)
    made = bptt(template, LOSS) if rule == "bptt" else sltt(template, LOSS, k=k, scale=scale)
    stack, weights = as_stack(template), step_weights(steps, batch, "each")
    tx = optax.scale_by_adam() if optimizer == "adam" else optax.identity()

    def scaled(updates: PyTree, factors: Array) -> PyTree:
        """Updates times the factor of their layer; the decays stay."""
        parts, join = stack.split(updates)
        layers = enumerate(parts)
        return join(
            [{n: 0 * u if n == "d" else factors[i] * u for n, u in p.items()} for i, p in layers]
        )

    @jax.jit
    def train(
        params: PyTree,
        factors: Float[Array, " layers"],
        rate: Float[Array, ""],
        images: Float[Array, "n pixels"],
        labels: Int[Array, " n"],
        order: Int[Array, "updates batch"],
        key: PRNGKeyArray,
    ) -> PyTree:
        def update(carried: Any, now: tuple[Array, Array]) -> tuple[Any, None]:
            (params, state), (index, i) = carried, now
            xs = jnp.broadcast_to(images[index], (steps, batch, images.shape[1]))
            targets = (jnp.broadcast_to(labels[index], (steps, batch)), weights)
            own = jax.random.fold_in(key, i)
            found = run_sequence(made, params, xs, targets, key=own).grads
            updates, state = tx.update(found, state)
            updates = jax.tree.map(lambda u: -rate * u, scaled(updates, factors))
            return (optax.apply_updates(params, updates), state), None

        start = (params, tx.init(params))
        return jax.lax.scan(update, start, (order, jnp.arange(len(order))))[0][0]

    @jax.jit
    def judge(params: PyTree, images: Array, labels: Array) -> tuple[Array, Array]:
        network = nnx.merge(graphdef, params)
        xs = jnp.broadcast_to(images, (steps, *images.shape))
        _, outputs = jax.lax.scan(network, network.initialize_carry(images.shape), xs)
        loss = losses.cross_entropy(outputs, jnp.broadcast_to(labels, xs.shape[:2])).mean()
        return loss, (outputs.sum(0).argmax(-1) == labels).mean()

    return train, judge


def train_and_judge(
    kind: Kind,
    network: Network,
    data: Sequence[tuple[Array, Array]],
    *,
    rule: str,
    factors: Sequence[float],
    optimizer: str,
    rate: float,
    steps: int,
    batch: int,
    epochs: int,
    key: PRNGKeyArray,
    k: int | None = None,
    scale: bool = True,
) -> Trained:
    """Trains on images that are shown as constant currents; the loss counts at each step.

    Args:
        kind: of the network.
        network: the start; it is not changed.
        data: images and labels to learn from, and to be tested with.
        rule: "bptt" or "sltt".
        factors: for each layer, what its updates are multiplied with.
        optimizer: "sgd" or "adam".
        rate: learning rate.
        steps: time steps an image is shown.
        batch: images an update.
        epochs: times through all images.
        key: of the order and of the steps drawn by SLTT-K.
        k: of `sltt`.
        scale: of `sltt`.
    """
    (images, labels), (test_images, test_labels) = data
    train, judge = _trainer(kind, rule, k, scale, optimizer, steps, batch)
    shuffle, draw = jax.random.split(key)
    most = len(images) // batch * batch
    order = jnp.concatenate(
        [
            jax.random.permutation(own, len(images))[:most].reshape(-1, batch)
            for own in jax.random.split(shuffle, epochs)
        ]
    )
    args = jnp.asarray(factors, jnp.float32), jnp.asarray(rate, jnp.float32)
    params = train(parameters(network), *args, images, labels, order, draw)
    loss, accuracy = judge(params, images, labels)
    return Trained(float(loss), float(accuracy), float(judge(params, test_images, test_labels)[1]))

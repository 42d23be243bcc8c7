"""GRAPES: the error of a unit counts more, the more weight comes in to it.

Here are the factor of a unit, its controls, and the two ways to use it: `grapes` (the errors sent
down the layers) and `local_grapes` (only a layer's own update). Rules are made elsewhere.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from .rule import LearningRule, Loss, RuleOutput, parameters
from .stack import Layer, Stack, as_stack

FACTORS = ("grapes", "mean", "perm", "two")
IMPORTANCE_FROM = ("input", "input+recurrent")
MakeRule = Callable[[nnx.Module, Loss], LearningRule]


def importance(kernel: Float[Array, "*fan_in n"]) -> Float[Array, " n"]:
    r"""Total absolute weight $I_j = \sum_i |W_{ij}|$ that comes in to each unit or channel.

    Args:
        kernel: (n_in, n) of a dense layer, (*window, channels_in, n) of a convolution.
    """
    return jnp.abs(kernel).sum(tuple(range(kernel.ndim - 1)))


def modulation_factor(
    importance: Float[Array, " n"],
    factor: str = "grapes",
    *,
    floor: float | int = 1,
    key: PRNGKeyArray | None = None,
) -> Float[Array, " n"]:
    r"""What the error of each unit of a layer is multiplied with, or a control of the same scale.

    GRAPES takes $m_j = \max(floor, 2 I_j / \max_k I_k)$: 2 for the unit with most weight, no less
    than 1 for any, so the errors of a layer grow. Whether it matters which unit gets which factor
    is told by the controls only. No gradient flows through a factor.

    >>> modulation_factor(jnp.array([2.0, 1.0, 4.0])).tolist()
    [1.0, 1.0, 2.0]

    Args:
        importance: of each unit, at least 0. A layer without any weight counts as one whose units
            have equal weight.
        factor: "grapes"; or "mean", the mean of these factors for each unit; "perm", these factors
            shuffled over the units; "two", 2 for each.
        floor: 1; the published variant for feedback alignment has none, 0.
        key: of "perm".

    Raises:
        ValueError: an unknown factor, a floor outside [0, 2], or no key to shuffle with.
    """
    _check("modulation_factor", "factor", factor, FACTORS)
    if not 0 <= floor <= 2:
        raise ValueError(f"modulation_factor(floor={floor}): give a number from 0 to 2.")
    importance = jax.lax.stop_gradient(importance)
    highest = importance.max()
    share = jnp.where(highest > 0, importance / jnp.where(highest > 0, highest, 1), 1)
    m = jnp.clip(2 * share, floor, 2)
    if factor == "mean":
        return jnp.full_like(m, m.mean())
    if factor == "two":
        return jnp.full_like(m, 2)
    if factor == "perm":
        if key is None:
            raise ValueError('modulation_factor(factor="perm") shuffles: give key=jax.random.key.')
        return jax.random.permutation(key, m)
    return m


@jax.custom_jvp
def modulate(y: Float[Array, "*dims n"], m: Float[Array, " n"]) -> Float[Array, "*dims n"]:
    """Gives y itself, to the bit; its derivative is m on the way back and forth, 0 to m.

    For networks of your own: put it behind a hidden layer, with
    `m = modulation_factor(importance(kernel))`.
    """
    del m
    return y


@modulate.defjvp
def _modulate_jvp(primals, tangents):
    y, m = primals
    return y, m.astype(y.dtype) * tangents[0]


def grapes(
    make_rule: MakeRule,
    *,
    factor: str = "grapes",
    importance_from: str = "input",
    floor: float | int = 1,
    key: PRNGKeyArray | None = None,
) -> MakeRule:
    r"""Propagating GRAPES for any rule that passes errors down the layers of a network.

    The error that reaches the output of a hidden layer is multiplied unit by unit with
    `modulation_factor`, and so goes into the gradient of that layer and on to the layers below,
    where factors multiply. The layer with the last weights is the output layer and has none. In
    time this is $L_t$ at every step; what a cell tells itself from step to step (its carry, an
    eligibility trace) is left alone. Factors are those of the parameters given to `step`: with
    frozen parameters the gradient is that of the rule with the errors so changed, and not the
    gradient of any loss.

    Plain backpropagation is `grapes(bptt)` on sequences of one step. Layers that have weights: the
    dense and convolution layers, recurrent cells of Flax and the cells of the simulator; a cell
    without input weights behind one of these belongs to it. It costs one pass over the weights for
    each call of `step`; and a layer above spikes computes the errors of all units, where `bptt`
    by itself leaves out those without a derivative.

    Args:
        make_rule: network and loss to a rule, such as `bptt` or `partial(ostl, scope="no_h")`.
        factor: "grapes" or a control, see `modulation_factor`.
        importance_from: the weights that count: from below, or with those of the recurrence.
        floor: the least factor of GRAPES.
        key: of "perm", which shuffles all steps alike.

    Returns:
        Network and loss to the modulated rule, which has the same parameters.

    Raises:
        ValueError: for a setting that is none of these; by the maker it returns: for a network
            without a hidden layer, or one with weights in another kind of layer, or for `rtrl`,
            which passes no errors from layer to layer.

    References:
        Learning in deep neural networks using a biologically inspired optimizer, arXiv:2104.11604;
        Nature Communications 13 (2022), doi:10.1038/s41467-022-29491-2.
    """
    check_settings("grapes", factor, importance_from, floor, key)

    def make(network: nnx.Module, loss: Loss) -> LearningRule:
        stack = as_stack(network)
        hidden = _hidden_layers("grapes", stack, parameters(network), importance_from)

        def modulated(params: PyTree) -> tuple[LearningRule, PyTree]:
            parts, _ = stack.split(params)
            factors = _factors(hidden, parts, factor, floor, key)
            inner = _insert(network, hidden, factors)
            # the new layers have no parameters, so the leaves come in the same order
            tree = jax.tree.structure(parameters(inner))
            return make_rule(inner, loss), tree.unflatten(jax.tree.leaves(params))

        def init(params: PyTree, batch: Any, key: PRNGKeyArray | None = None) -> PyTree:
            rule, inner = modulated(params)
            return rule.init(inner, batch, key)

        def step(
            params: PyTree,
            state: PyTree,
            xs: Array,
            targets: Any,
            resets: Array | None = None,
        ) -> tuple[PyTree, RuleOutput]:
            rule, inner = modulated(params)
            state, out = rule.step(inner, state, xs, targets, resets)
            grads = jax.tree.structure(params).unflatten(jax.tree.leaves(out.grads))
            return state, out._replace(grads=grads)

        return LearningRule(init, step, modulated(parameters(network))[0].truncates)

    return make


def local_grapes(
    network: nnx.Module,
    *,
    factor: str = "grapes",
    importance_from: str = "input",
    floor: float | int = 1,
    key: PRNGKeyArray | None = None,
) -> optax.GradientTransformation:
    """Local GRAPES: the gradients of each unit of a hidden layer times its `modulation_factor`.

    All parameters of a unit alike: its column of each kernel, its bias, its decay. The errors that
    go down are as they were. Chain it before the optimizer; Adam takes a change of scale that
    stays back out of the gradient. In the layers without a recurrent kernel this is the same as to
    multiply the error of the unit within its own update; with one it is not, since a weight there
    has a part in the errors of all units.

    Args:
        network: the network whose parameters are updated.
        factor: "grapes" or a control.
        importance_from: the weights that count.
        floor: the least factor of GRAPES.
        key: of "perm".

    Raises:
        ValueError: as `grapes`; by `update`: if it is not given the parameters.
    """
    check_settings("local_grapes", factor, importance_from, floor, key)
    stack = as_stack(network)
    hidden = _hidden_layers("local_grapes", stack, parameters(network), importance_from)

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        if params is None:
            raise ValueError("local_grapes: call update(grads, state, params).")
        parts, _ = stack.split(params)
        grads, join = stack.split(updates)
        for of, m in zip(hidden, _factors(hidden, parts, factor, floor, key), strict=True):
            for i in of.layers:
                grads[i] = jax.tree.map(lambda g, m=m: _scale(g, m), grads[i])
        return join(grads), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _scale(g: Array, m: Array) -> Array:
    """The gradient times m along its last axis, which holds the n units of each gate in turn."""
    return g * jnp.tile(m, g.shape[-1] // m.size).astype(g.dtype)


class Factor(nnx.Variable):
    """The factors of a layer's units; no parameter."""


class Modulation(nnx.Module):
    """A layer without state that is `modulate` with a factor for each unit or channel."""

    def __init__(self, factor: Float[Array, " n"]):
        """Takes the factors."""
        self.factor = Factor(factor)

    def __call__(self, y: Float[Array, "*dims n"]) -> Float[Array, "*dims n"]:
        """Gives y; what comes back is multiplied."""
        return modulate(y, self.factor[...])


class _Layers(nnx.Module):
    """As much of a network as rules need."""

    def __init__(self, layers: Sequence[Any]):
        self.layers = nnx.List(layers)


class _Hidden(NamedTuple):
    """A hidden layer as GRAPES counts them: a layer with weights and the cells that belong to it.

    Attributes:
        layers: their indices, neighbours.
        units: n.
        weights: parameters of all layers to the kernels that count, each (*fan_in, gates * n).
    """

    layers: tuple[int, ...]
    units: int
    weights: Callable[[list[dict]], list[Array]]


def _insert(network: Any, hidden: Sequence[_Hidden], factors: Sequence[Array]) -> nnx.Module:
    """The layers with a `Modulation` behind each hidden one."""
    behind = {of.layers[-1]: m for of, m in zip(hidden, factors, strict=True)}
    layers = []
    for i, layer in enumerate(network.layers):
        layers += [layer, Modulation(behind[i])] if i in behind else [layer]
    return _Layers(layers)


def _factors(
    hidden: Sequence[_Hidden],
    parts: list[dict],
    factor: str,
    floor: float | int,
    key: PRNGKeyArray | None,
) -> list[Array]:
    factors = []
    for i, of in enumerate(hidden):
        total = sum(importance(w).reshape(-1, of.units).sum(0) for w in of.weights(parts))
        own = None if key is None else jax.random.fold_in(key, i)
        factors.append(modulation_factor(jnp.asarray(total), factor, floor=floor, key=own))
    return factors


def _hidden_layers(who: str, stack: Stack, params: PyTree, importance_from: str) -> list[_Hidden]:
    """All layers with input weights but the last, lowest first."""
    parts, _ = stack.split(params)
    kernels = [_kernels(who, layer, p) for layer, p in zip(stack.layers, parts, strict=True)]
    found = []
    for i, (units, below, _) in enumerate(kernels):
        if not below:
            continue
        last = i
        while last + 1 < len(kernels) and _is_cell_without_weights(stack, kernels, last + 1):
            last += 1
        layers = tuple(range(i, last + 1))
        counted = [(i, path) for path in below]
        if importance_from == "input+recurrent":
            counted += [(j, path) for j in layers for path in kernels[j][2]]
        found.append(_Hidden(layers, units, lambda parts, c=counted: [_at(parts, *k) for k in c]))
    if len(found) < 2:
        raise ValueError(
            f"{who} modulates hidden layers, those with weights below the last layer with weights; "
            f"this network has {len(found)} layers with input weights: it needs two."
        )
    return found[:-1]


_Path = tuple[str, ...]
_FLAX_INPUT = ("dense_i", "ii", "if_", "ig", "io")
_FLAX_RECURRENT = ("dense_h", "hi", "hf", "hg", "ho")


def _kernels(who: str, layer: Layer, part: dict) -> tuple[int, list[_Path], list[_Path]]:
    """The units of a layer and where its input and its recurrent kernels are; 0 without any."""
    module = layer.module(part)
    if isinstance(module, nnx.Linear | nnx.Conv):
        return module.out_features, [("kernel",)], []
    if hasattr(module, "memory_fields"):
        units = part["w"].shape[-1] if "w" in part else 0
        return units, [("w",)] * ("w" in part), [("h",)] * ("h" in part)
    below = [(k, "kernel") for k in _FLAX_INPUT if k in part]
    within = [(k, "kernel") for k in _FLAX_RECURRENT if k in part]
    if isinstance(module, nnx.RNNCellBase) and within and len(below + within) == len(part):
        return part[within[0][0]]["kernel"].shape[0], below, within
    if any(leaf.ndim > 1 for leaf in jax.tree.leaves(part)):
        raise ValueError(
            f"{who}: {layer.name} has weights, and which of them come in to a unit is known for "
            "nnx.Linear, nnx.Conv, the recurrent cells of Flax and the cells of the simulator "
            "only: use one of these, or put `modulate` into a network of your own."
        )
    return 0, [], []


def _is_cell_without_weights(stack: Stack, kernels: list, i: int) -> bool:
    return stack.layers[i].kind != "stateless" and not kernels[i][1]


def _at(parts: list[dict], i: int, path: _Path) -> Array:
    value: Any = parts[i]
    for name in path:
        value = value[name]
    return value


def check_settings(
    who: str, factor: str, importance_from: str, floor: float | int, key: PRNGKeyArray | None
) -> None:
    """Refuses settings that no network could have."""
    _check(who, "factor", factor, FACTORS)
    _check(who, "importance_from", importance_from, IMPORTANCE_FROM)
    if not 0 <= floor <= 2:
        raise ValueError(f"{who}(floor={floor}): give a number from 0 to 2.")
    if factor == "perm" and key is None:
        raise ValueError(f'{who}(factor="perm") shuffles: give key=jax.random.key(seed).')


def _check(who: str, name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{who}({name}={value!r}): known are {', '.join(map(repr, known))}.")

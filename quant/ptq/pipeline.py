"""A model is quantized block by block: what its maps read is watched, then they are rounded.

The idea that belongs here: the order of things, the same for every model and every solver. How a
weight is rounded stands with the solvers, what a model is made of with `models`.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from ..models.decoder import Decoder
from ..models.layers import Linear
from ..qtensor import QTensor
from .gptq import gptq
from .grid import Grid
from .layer import proxy_loss, round_to_nearest
from .statistics import Collected, Statistics, Watched

Say = Callable[[str], None]


@dataclass(frozen=True)
class Recipe:
    """How weights are quantized.

    Attributes:
        solver: rtn (each weight by itself) or gptq.
        weights: format, by name.
        group: inputs that share a scale; None: all, one scale an output.
        clip: absmax, search, or a rule of `quantize(scale=...)`.
        damping: of GPTQ.
        by_importance: whether GPTQ takes columns in the order of the Hessian's diagonal.
        source: what calibrates a block: the text as the quantized blocks before have made it, or
            as the float model has.
    """

    solver: Literal["rtn", "gptq"] = "gptq"
    weights: str = "int4_asymmetric"
    group: int | None = None
    clip: str = "search"
    damping: float = 0.01
    by_importance: bool = False
    source: Literal["quantized", "float"] = "quantized"

    def solve(self, w: Float[Array, "outputs inputs"], seen: Statistics) -> QTensor:
        """The weight of one map, rounded.

        Raises:
            ValueError: what the solver refuses.
        """
        grid = Grid.of(self.weights, self.clip)
        if self.solver == "rtn":
            return round_to_nearest(w, grid, self.group)
        done = gptq(
            w,
            seen.hessian,
            grid,
            self.group,
            damping=self.damping,
            by_importance=self.by_importance,
        )
        return done.weights


class LayerReport(NamedTuple):
    """What rounding did to one map."""

    name: str
    error: float  # of the outputs, relative: tr(D H D^T) / tr(W H W^T)
    size: int  # weights
    bits: float  # a weight, scales, zero points and padding included
    seconds: float


class Quantized(NamedTuple):
    """A quantized model."""

    model: Decoder  # with the numbers that the codes stand for
    weights: dict[str, QTensor]  # by the names of the maps
    layers: list[LayerReport]

    @property
    def bits_per_weight(self) -> float:
        """Of the maps that were quantized, scales, zero points and padding included."""
        return float(
            np.average([r.bits for r in self.layers], weights=[r.size for r in self.layers])
        )


def quantize_model(
    model: Decoder,
    recipe: Recipe,
    text: Int[np.ndarray | Array, "count length"],
    *,
    batch: int = 8,
    say: Say = lambda line: None,
) -> Quantized:
    """Quantizes the linear maps of all blocks; embedding, norms and head stay as they are.

    Args:
        model: is not changed.
        recipe: how.
        text: to calibrate with, from `models.windows`.
        batch: windows that are computed together.
        say: gets a line for each block.

    Raises:
        ValueError: what the solver refuses, with the name of the map.
    """
    model = nnx.clone(model)
    positions = jnp.arange(text.shape[1])
    parts = [jnp.asarray(text[i : i + batch]) for i in range(0, len(text), batch)]
    streams = [model.embed(part) for part in parts]
    weights: dict[str, QTensor] = {}
    layers: list[LayerReport] = []
    for number, block in enumerate(model.blocks):
        before = nnx.clone(block)
        for stage in block.STAGES:
            source = before if recipe.source == "float" else block
            seen = _watch(source, stage[0], streams, positions)
            for path in stage:
                name = f"blocks.{number}.{path}"
                q, report = _round(name, _at(block, path), recipe, seen)
                weights[name] = q
                layers.append(report)
        after = before if recipe.source == "float" else block
        streams = [_apply(after, x, positions) for x in streams]
        own = [r for r in layers if r.name.startswith(f"blocks.{number}.")]
        say(
            f"block {number + 1} of {len(model.blocks)}: errors of outputs "
            + ", ".join(f"{r.name.rpartition('.')[2]} {r.error:.2g}" for r in own)
        )
    return Quantized(model, weights, layers)


def _round(
    name: str, linear: Linear, recipe: Recipe, seen: Statistics
) -> tuple[QTensor, LayerReport]:
    begin, w = time.perf_counter(), linear.weight[...]
    try:
        q = recipe.solve(w, seen)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    rounded = q.dequantize()[:, : w.shape[1]]
    linear.weight[...] = rounded
    whole = proxy_loss(w, jnp.zeros_like(w), seen.hessian)
    lost = proxy_loss(w, rounded, seen.hessian) / whole if whole else 0.0
    bits = q.bits_per_weight * q.codes.size / w.size
    return q, LayerReport(name, lost, w.size, bits, time.perf_counter() - begin)


def _watch(block: nnx.Module, path: str, streams: Sequence[Array], positions: Array) -> Statistics:
    """The statistics of what a map of a block reads."""
    parent, _, last = path.rpartition(".")
    owner: Any = _at(block, parent) if parent else block
    linear = getattr(owner, last)
    watched, sums = Watched(linear), Collected()
    setattr(owner, last, watched)
    try:
        for x in streams:
            _apply(block, x, positions)
            sums.take(watched)
    finally:
        setattr(owner, last, linear)
    return sums.statistics()


def _at(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name)
    return module


@nnx.jit
def _apply(block: Any, x: Array, positions: Array) -> Array:
    return block(x, positions)[0]

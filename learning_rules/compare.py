"""Rules side by side on one network and one batch: how far from BPTT, how fast, how much memory."""

import statistics
import time
from collections.abc import Mapping
from typing import Any, TypedDict

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PyTree

from .bptt import bptt
from .rule import LearningRule, Loss, parameters, run_sequence


class Row(TypedDict):
    """One rule; errors against BPTT over the whole sequence."""

    rule: str
    relative_error: float  # |g - g_bptt| / |g_bptt| over all parameters together
    cosine: float
    step_ms: float  # wall time [ms] per time step, median of several runs
    peak_bytes: int | None  # scratch and outputs of the gradient as XLA plans them, if it tells


def compare(
    network: nnx.Module,
    loss: Loss,
    xs: Float[Array, "time batch *features"],
    targets: Any,
    rules: Mapping[str, LearningRule],
    *,
    chunk: int = 1,
    repeats: int = 5,
) -> list[Row]:
    """Measures the gradient of one sequence by each rule.

    Args:
        network: a `Network`, or one bare cell.
        loss: the loss the rules were made with, for the BPTT reference.
        xs: inputs.
        targets: pytree of arrays (time, batch, ...).
        rules: the rules by name.
        chunk: steps given at a time to rules whose gradient crosses chunk borders; the others
            (BPTT) get the whole sequence.
        repeats: runs of which the median time is taken.
    """
    params = parameters(network)
    exact = jax.jit(lambda p: run_sequence(bptt(network, loss), p, xs, targets).grads)(params)
    rows = []
    for name, rule in rules.items():
        k = None if rule.truncates else chunk

        def gradient(p: PyTree, rule: LearningRule = rule, k: int | None = k) -> PyTree:
            return run_sequence(rule, p, xs, targets, chunk=k).grads

        compiled = jax.jit(gradient).lower(params).compile()
        grads = jax.block_until_ready(compiled(params))
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            jax.block_until_ready(compiled(params))
            seconds.append(time.perf_counter() - start)
        memory = compiled.memory_analysis()
        rows.append(
            Row(
                rule=name,
                relative_error=relative_error(grads, exact),
                cosine=cosine(grads, exact),
                step_ms=1e3 * statistics.median(seconds) / xs.shape[0],
                peak_bytes=None
                if memory is None
                else int(memory.temp_size_in_bytes + memory.output_size_in_bytes),
            )
        )
    return rows


def relative_error(a: PyTree, b: PyTree) -> float:
    """|a - b| / |b| over all leaves as one vector, in float64; 0 if both are zero."""
    a, b = _vector(a), _vector(b)
    difference = np.linalg.norm(a - b)
    return 0.0 if difference == 0 else float(difference / np.linalg.norm(b))  # NaN stays NaN


def cosine(a: PyTree, b: PyTree) -> float:
    """Cosine of the angle between a and b, all leaves as one vector; nan if one is zero."""
    a, b = _vector(a), _vector(b)
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def _vector(tree: PyTree) -> np.ndarray:
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)])

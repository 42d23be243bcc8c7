"""Rules side by side on one network and one batch: which leaves are exact, how fast, how large.

Here is the measuring and what is said of it in words; which rules there are stands in `by_name.py`.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, PyTree

from .bptt import bptt
from .by_name import RULES
from .losses import cross_entropy
from .rule import LearningRule, Loss, check_chunk, parameters, run_sequence

Verdict = Literal["exact", "approximate", "not learned", "no gradient"]
_EXACT = 100  # roundings of the dtype up to which a leaf counts as exact: 1.2e-5 in float32


class Leaf(TypedDict):
    """The gradient of one parameter by a rule, against BPTT over the whole sequence."""

    leaf: str  # where it is, as in "layers.0.w"
    verdict: Verdict  # "not learned": zero although BPTT's is not; "no gradient": both are zero
    relative_error: float  # |g - g_bptt| / |g_bptt|; NaN where only BPTT's is zero
    cosine: float  # of the angle between g and g_bptt; NaN where one is zero
    norm_ratio: float  # |g| / |g_bptt|; NaN where BPTT's is zero


class Row(TypedDict):
    """One rule; errors against BPTT over the whole sequence."""

    rule: str
    relative_error: float  # |g - g_bptt| / |g_bptt| over all parameters together
    cosine: float
    step_ms: float  # wall time [ms] per time step, median of several runs
    peak_bytes: int | None  # scratch and outputs of the gradient as XLA plans them, if it tells
    bytes_per_step: float | None  # by which that grows with a step more
    exact: str  # the exact leaves, in words
    leaves: list[Leaf]


def compare_to_bptt(
    network: nnx.Module,
    batch: tuple[Array, Any],
    *,
    loss: Loss = cross_entropy,
    rules: Mapping[str, LearningRule] | Sequence[str] = ("ostl", "ostl_no_h", "snap1", "sltt"),
    chunk: int = 1,
    repeats: int = 5,
) -> list[Row]:
    """Measures the gradient of one sequence by each rule, leaf by leaf.

    What is called exact is so on this batch, up to 100 roundings of the dtype; the docstring of
    each rule says what it is in general. Print it with `report`.

    Args:
        network: a `Network`, or one bare cell.
        batch: inputs (time, batch, *features) and targets, a pytree of arrays (time, batch, ...).
        loss: the loss the rules were or are made with, and that of BPTT.
        rules: the rules by names of your own, or names out of `RULES`.
        chunk: steps given at a time to rules whose gradient crosses chunk borders; the others
            (BPTT) get the whole sequence.
        repeats: runs of which the median time is taken.

    Raises:
        ValueError: an unknown name, arrays that do not fit, or a rule that cannot treat the
            network; a gradient of BPTT that is not finite; parameters in less than 32 bits, whose
            roundings would hide what is approximate.
    """
    if not isinstance(rules, Mapping):
        for name in rules:
            if name not in RULES:
                raise ValueError(f"compare_to_bptt: {name!r} is none of {', '.join(RULES)}.")
        rules = {name: RULES[name](network, loss) for name in rules}
    xs, targets = batch
    check_chunk(xs, targets, ())
    params = parameters(network)
    reference = jax.jit(lambda p: run_sequence(bptt(network, loss), p, xs, targets).grads)
    _check_precision(params)
    exact = reference(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(exact):
        if not np.isfinite(np.asarray(leaf)).all():
            raise ValueError(
                f"compare_to_bptt: BPTT's own gradient of {leaf_name(path)} is not finite; look "
                "for NaN or infinity in the inputs, the targets and the parameters."
            )
    twice = jax.tree.map(lambda a: jnp.concatenate([a, a]), (xs, targets))
    rows = []
    for name, rule in rules.items():
        k = None if rule.truncates else chunk
        compiled = _compile(rule, params, xs, targets, k)
        grads = jax.block_until_ready(compiled(params))
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            jax.block_until_ready(compiled(params))
            seconds.append(time.perf_counter() - start)
        peak, longer = _peak(compiled), _peak(_compile(rule, params, twice[0], twice[1], k))
        grows = None if peak is None or longer is None else (longer - peak) / xs.shape[0]
        leaves = compare_leaves(grads, exact)
        rows.append(
            Row(
                rule=name,
                relative_error=relative_error(grads, exact),
                cosine=cosine(grads, exact),
                step_ms=1e3 * statistics.median(seconds) / xs.shape[0],
                peak_bytes=peak,
                bytes_per_step=grows,
                exact=in_words(leaves),
                leaves=leaves,
            )
        )
    return rows


def _check_precision(params: PyTree) -> None:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise ValueError("compare_to_bptt: the network has no parameters, so no gradient either.")
    for path, leaf in leaves:
        if jnp.finfo(leaf.dtype).bits < 32:
            raise ValueError(
                f"compare_to_bptt: {leaf_name(path)} is {leaf.dtype}, whose roundings are as "
                "large as what a rule leaves out: compare in float32 or float64."
            )


def compare_leaves(grads: PyTree, exact: PyTree) -> list[Leaf]:
    """Each leaf of a gradient against that of another one, of the same structure."""
    pairs = zip(jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(exact), strict=True)
    rows = []
    for (path, g), e in pairs:
        error, size, wanted = relative_error(g, e), _norm(g), _norm(e)
        if wanted == 0:
            verdict: Verdict = "no gradient" if size == 0 else "approximate"
        elif size == 0:
            verdict = "not learned"
        else:
            verdict = "exact" if error <= _EXACT * float(jnp.finfo(e.dtype).eps) else "approximate"
        rows.append(
            Leaf(
                leaf=leaf_name(path),
                verdict=verdict,
                relative_error=error,
                cosine=cosine(g, e),
                norm_ratio=size / wanted if wanted else float("nan"),
            )
        )
    return rows


def in_words(leaves: Sequence[Leaf]) -> str:
    """Which leaves are exact and which are not, in a sentence."""
    kinds: dict[str, list[str]] = {}
    for row in leaves:
        text = row["leaf"]
        if row["verdict"] == "approximate":
            text += f" (cosine {row['cosine']:.2f}, {row['norm_ratio']:.2f} times as long)"
        kinds.setdefault(row["verdict"], []).append(text)
    if list(kinds) == ["exact"]:
        return "exact for every leaf"
    return "; ".join(
        f"{kind}: {', '.join(kinds[kind])}"
        for kind in ("exact", "approximate", "not learned", "no gradient")
        if kind in kinds
    )


def report(rows: Sequence[Row]) -> str:
    """A line for each rule with what it costs, and one that says which leaves are exact."""
    lines = []
    for row in rows:
        memory = ""
        if row["peak_bytes"] is not None and row["bytes_per_step"] is not None:
            grows = row["bytes_per_step"]
            memory = f", {row['peak_bytes'] / 1024:.0f} KiB, {grows:+.0f} bytes a step more"
        lines.append(
            f"{row['rule']}: relative error {row['relative_error']:.1e}, "
            f"{row['step_ms']:.3f} ms a step{memory}"
        )
        lines.append(f"    {row['exact']}")
    return "\n".join(lines)


def leaf_name(path: Sequence[Any]) -> str:
    """The place of a leaf with dots, as in "layers.0.w"."""
    return ".".join(
        str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key))))
        for key in path
        if getattr(key, "name", None) != "value"  # of a Param itself
    )


def relative_error(a: PyTree, b: PyTree) -> float:
    """|a - b| / |b| over all leaves as one vector, in float64; 0 if both are zero."""
    a, b = _vector(a), _vector(b)
    difference = np.linalg.norm(a - b)
    if difference == 0:
        return 0.0
    with np.errstate(divide="ignore"):
        return float(difference / np.linalg.norm(b))  # NaN stays NaN


def cosine(a: PyTree, b: PyTree) -> float:
    """Cosine of the angle between a and b, all leaves as one vector; nan if one is zero."""
    a, b = _vector(a), _vector(b)
    with np.errstate(invalid="ignore"):
        return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def _compile(rule: LearningRule, params: PyTree, xs: Array, targets: Any, k: int | None) -> Any:
    def gradient(p: PyTree) -> PyTree:
        return run_sequence(rule, p, xs, targets, chunk=k).grads

    return jax.jit(gradient).lower(params).compile()


def _peak(compiled: Any) -> int | None:
    memory = compiled.memory_analysis()
    return None if memory is None else int(memory.temp_size_in_bytes + memory.output_size_in_bytes)


def _norm(tree: PyTree) -> float:
    return float(np.linalg.norm(_vector(tree)))


def _vector(tree: PyTree) -> np.ndarray:
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)])

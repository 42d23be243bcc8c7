"""SGD whose weights live in a format, against the floor that theory guarantees.

The bound is that of `quant.training.bounds`, the problems are those of `_sgd_problems`.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from pydantic import Field
from pydantic.dataclasses import dataclass

from ... import quant
from ...quant.training import bounds
from ..experiment import STRICT, Count, NotNegative, Positive
from . import _sgd_problems

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLES = {name: f"{name.replace('_', '-')} problem" for name in _sgd_problems.NAMES}
TEXT = (
    "Normalised SGD, x <- Q(x - v (g + noise)), from the same starts in every format. Solid: the "
    "best f of a run, mean over the seeds; thin: the largest. Dashed: what the bound guarantees "
    "for this many iterations. Where v times the largest entry of the gradient is less than half a "
    "step of the format, rounding to nearest loses every update and the run stays where it "
    "started; stochastic rounding does not. The network is not quasi-convex, so there the bound, "
    "with the constants seen on the way, is no guarantee; how often its assumption fails is the "
    "column `outside`. The bound knows no saturation: how many entries of gradients do is "
    "`saturated`."
)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Settings:
    """Every problem in every format with every rounding and every step."""

    problems: tuple[Literal["convex", "quasi_convex", "network"], ...] = _sgd_problems.NAMES
    formats: tuple[str, ...] = ("fixed16.4", "fixed16.8", "e4m3fn", "bfloat16")
    roundings: tuple[Literal["nearest_even", "stochastic"], ...] = ("nearest_even", "stochastic")
    steps: Annotated[tuple[Positive, ...], Field(min_length=1)] = (0.002, 0.01, 0.05, 0.2, 1.0)
    gradient_format: str = "float32"
    noise: NotNegative = 0.5  # root mean square of the noise of a gradient of norm 1
    distance: Positive = 2.0  # of the starts from the minimum
    iterations: Count = 4000
    seeds: Count = 20


def cases(settings: Settings, seed: int) -> list[dict[str, Any]]:
    """The product of problems, formats, roundings and steps."""
    for fmt in (*settings.formats, settings.gradient_format):
        bounds.spacing(fmt)
    for name in settings.problems:
        _check_box(settings, name, np.asarray(_sgd_problems.problem(name, seed).minimum))
    return [
        {"problem": problem, "format": fmt, "rounding": rounding, "step": step}
        for problem in settings.problems
        for fmt in settings.formats
        for rounding in settings.roundings
        for step in settings.steps
    ]


def _check_box(settings: Settings, name: str, minimum: np.ndarray) -> None:
    """A format that ends before the minimum, or before a gradient of norm 1, bounds nothing."""
    for setting, wanted, formats in (
        (f"study.formats: the minimum of the {name} problem", minimum, settings.formats),
        ("study.gradient_format: a gradient of norm 1", [-1, 1], [settings.gradient_format]),
    ):
        low, high = float(np.min(wanted)), float(np.max(wanted))
        for fmt in formats:
            found = quant.parse(fmt)
            if low < found.min or high > found.max:
                raise ValueError(
                    f"{setting} has entries from {low:.3g} to {high:.3g}, and {fmt} ends at "
                    f"{found.min:.3g} and {found.max:.3g}: choose a format that reaches further"
                )


def measure(settings: Settings, seed: int, case: Mapping[str, Any]) -> dict[str, Any]:
    """Runs all seeds of a case and finds the bound from the constants of these runs.

    Of the values: `best` and `worst` are the mean and the largest over seeds of the smallest f of a
    run, `last` is the mean of f over the last tenth of the iterations, `bound` what is guaranteed
    for the best, `floor` the same without an end of iterations, `violated` the number of seeds
    beyond the bound (the theorem for stochastic errors is about their mean; this asks for more),
    `stagnated` the share of updates that changed nothing, and `outside` the share of visited points
    where the gradient does not point as far away from the minimum as the bound assumes: 0 if f is
    quasi-convex. Of the network, which is not, L is the largest that was seen. `saturated` is the
    share of the entries of noisy gradients beyond their format: an error that the bound does not
    know of, so that a run in which there are some is no test of it.
    """
    runs = _runs(settings, seed, case["problem"], case["format"], case["rounding"])
    found = _Runs(*(a[settings.steps.index(case["step"])] for a in runs))
    problem = _sgd_problems.problem(case["problem"], seed)
    n, fmt, rounding = len(problem.minimum), case["format"], case["rounding"]
    constant = max(problem.constant, float(found.constant))
    delta = (found.value / constant) ** (1 / problem.power)
    outside = found.inner < delta * (1 - 1e-3) - 1e-6  # what float32 arithmetic may add
    distance, start, reach = (float(a) for a in (found.distance, found.start, found.reach))
    stored = bounds.rounding_errors(fmt, rounding, n, reach)
    computed = bounds.rounding_errors("float32", "nearest_even", n, reach)  # product and sum
    rounded = bounds.rounding_errors(
        settings.gradient_format, rounding, n, float(found.gradient_reach)
    )
    errors = {
        "gradient": bounds.Errors(rounded.bias, rounded.variance + settings.noise**2),
        "update": bounds.Errors(stored.bias + 2 * computed.bias, stored.variance),
    }

    def bound(iterations: float | int) -> float:
        delta = bounds.distance_floor(
            case["step"], distance=distance, start=start, steps=iterations, **errors
        )
        return bounds.suboptimality_floor(delta, constant=constant, power=problem.power)

    best = found.value.min(0)
    return {
        "best": float(best.mean()),
        "worst": float(best.max()),
        "last": float(found.value[-max(1, len(found.value) // 10) :].mean()),
        "bound": bound(settings.iterations),
        "floor": bound(math.inf),
        "violated": int((best > bound(settings.iterations)).sum()),
        "stagnated": float(found.stagnated),
        "outside": float(outside.mean()),
        "saturated": float(found.saturated),
        "constant": constant,
        "distance": distance,
    }


def pictures(settings: Settings, rows: Sequence[Mapping[str, Any]]) -> "dict[str, Axes]":
    """A figure for each problem, with one field for each format."""
    from matplotlib.figure import Figure

    from .. import plots

    drawn = {}
    for problem in settings.problems:
        count = len(settings.formats)
        figure = Figure(figsize=(3.2 * count, 3.6), layout="constrained")
        fields = figure.subplots(1, count, sharey=True, squeeze=False)[0]
        for ax, fmt in zip(fields, settings.formats, strict=True):
            for i, rounding in enumerate(settings.roundings):
                own = {"problem": problem, "format": fmt, "rounding": rounding}
                chosen = [row for row in rows if own.items() <= row.items()]
                line = {k: [row[k] for row in chosen] for k in ("step", "best", "worst", "bound")}
                colour, label = plots.COLOURS[i], rounding.replace("_", " ")
                ax.loglog(line["step"], line["best"], "o-", color=colour, ms=4, label=label)
                ax.loglog(line["step"], line["worst"], color=colour, lw=0.7)
                ax.loglog(line["step"], line["bound"], "--", color=colour, label="bound of it")
            ax.set(title=fmt, xlabel="step v")
            ax.grid(alpha=0.3)
        fields[0].set_ylabel("f - f*")
        fields[-1].legend(frameon=False, fontsize=8)
        drawn[problem] = fields[0]
    return drawn


def summary(settings: Settings, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Runs beyond their bound, and what the smallest step reaches with each rounding."""
    least = min(settings.steps)
    reached: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["step"] == least:
            place = f"{row['problem']}, {row['format']}"
            reached.setdefault(place, {})[row["rounding"]] = round(row["best"], 4)
    return {
        "runs": len(rows) * settings.seeds,
        "violated": sum(row["violated"] for row in rows),
        "closest_to_bound": max(row["worst"] / row["bound"] for row in rows),
        "outside": max(row["outside"] for row in rows),
        "gradients_saturated": max(row["saturated"] for row in rows),
        "best_of_smallest_step": reached,
    }


class _Runs(NamedTuple):
    """All runs of a problem in a format, first axis: the step v; arrays of numpy."""

    value: np.ndarray  # (steps, iterations, seeds): f
    inner: np.ndarray  # (steps, iterations, seeds): <g, x - x*>
    constant: np.ndarray  # (steps,): the largest f / ||x - x*||^p
    start: np.ndarray  # (steps,): the largest distance from the minimum at the start,
    distance: np.ndarray  # and ever
    reach: np.ndarray  # (steps,): the largest norm that was rounded for storage,
    gradient_reach: np.ndarray  # and of a gradient with its noise
    stagnated: np.ndarray  # (steps,): share of updates other than 0 that changed nothing
    saturated: np.ndarray  # (steps,): share of the entries of gradients beyond their format


@functools.lru_cache(maxsize=2)  # the cases of one problem, format and rounding differ in v only
def _runs(settings: Settings, seed: int, name: str, fmt: str, rounding: str) -> _Runs:
    problem = _sgd_problems.problem(name, seed)
    n, minimum = len(problem.minimum), problem.minimum
    draws, gradient_format = rounding == "stochastic", quant.parse(settings.gradient_format)

    def one(start: Array, key: Array, v: Array):
        def iterate(x: Array, i: Array):
            noise_key, weight_key, gradient_key = jax.random.split(jax.random.fold_in(key, i), 3)
            h, slope = jax.value_and_grad(problem.inner)(x)
            norm = jnp.linalg.norm(slope)
            normal = slope / jnp.where(norm > 0, norm, 1.0)
            noise = jax.random.normal(noise_key, (n,)) * (settings.noise / math.sqrt(n))
            noisy = normal + noise
            rounded = quant.quantize(
                noisy, gradient_format, rounding=rounding,
                key=gradient_key if draws else None,
            )  # fmt: skip
            y = x - v * rounded
            new = quant.quantize(y, fmt, rounding=rounding, key=weight_key if draws else None)
            moved = jnp.where(rounded == 0, 0, jnp.where(new == x, 1, 0)).sum()
            norms = [jnp.linalg.norm(a) for a in (x - minimum, y, noisy)]
            seen = (problem.outer(h), normal @ (x - minimum), *norms)
            beyond = (~gradient_format.inside(noisy)).mean()
            return new, (*seen, moved, (rounded != 0).sum(), beyond)

        return jax.lax.scan(iterate, start, jnp.arange(settings.iterations))[1]

    keys = jax.random.split(jax.random.key(seed), settings.seeds)
    ways = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, 2**31), (n,)))(keys)
    ways = settings.distance * ways / jnp.linalg.norm(ways, axis=1, keepdims=True)
    starts = quant.quantize(minimum + ways, fmt)
    over_seeds = jax.vmap(one, in_axes=(0, 0, None), out_axes=1)
    run = jax.jit(jax.vmap(over_seeds, in_axes=(None, None, 0)))
    value, inner, distance, reach, gradient_reach, still, written, beyond = (
        np.asarray(a) for a in run(starts, keys, jnp.asarray(settings.steps))
    )
    ratio = value / np.maximum(distance, np.finfo(np.float32).tiny) ** problem.power
    farthest, most, most_of_gradient = (a.max((1, 2)) for a in (distance, reach, gradient_reach))
    share = still.sum((1, 2)) / np.maximum(written.sum((1, 2)), 1)
    first = distance[:, 0].max(-1)
    constant = ratio.max((1, 2))
    saturated = beyond.mean((1, 2))
    return _Runs(value, inner, constant, first, farthest, most, most_of_gradient, share, saturated)

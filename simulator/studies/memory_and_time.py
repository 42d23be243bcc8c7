"""Memory and time of a gradient against the length of its sequence, and of one that does not end.

Here are the sequences, drawn while they are run, and the measuring; the rules are those of
`learning_rules.RULES`, and BPTT that computes its activations twice.
"""

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, PRNGKeyArray, PyTree
from pydantic import Field
from pydantic.dataclasses import dataclass

from ...learning_rules import RULES, LearningRule, bptt, losses, parameters
from ..build import make_network
from ..experiment import STRICT, Count, NetworkSettings
from ..network import Network

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REMAT = "bptt_remat"
TITLES = {
    "length": "Memory and time of a gradient, by the length of its sequence",
    "stream": "What the process has taken along a stream, and the least that BPTT would keep",
}
TEXT = (
    "One recurrent layer of spiking neural units and a dense readout. Inputs and targets are drawn "
    "while the sequence runs, the same for every rule, so memory is what a rule itself keeps: the "
    "scratch that XLA plans for the compiled gradient, among it the inputs that BPTT holds until "
    "the end. `bptt_remat` is BPTT that keeps the state at about every sqrt(T)-th step and "
    "computes the steps between again; inputs it still holds. The other rules are given `chunk` "
    "steps at a time. Times are of one step, for each seed; `cpu` counts all threads. In a stream "
    "the gradient is added up chunk by chunk while the memory of the whole process, JAX included, "
    "is read (where the system tells it). `state_bytes` is what the rule carries from chunk to "
    "chunk, `state_bytes_with_h` what OSTL with H would at this size: its trace has a number for "
    "each unit and each parameter, which grows with the third power of the units, and a step "
    "multiplies it by the Jacobian of all units, which grows with the fourth; a chunk does so once."
)
PARTS = 20  # of a stream; memory is read after each, and what comes before the first is no news
_TIMED_STEPS = 10_000  # short sequences are run so often that a time is of so many


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Settings:
    """The network, how long the sequences are, and the rules."""

    # names of RULES, or bptt_remat
    rules: Annotated[tuple[str, ...], Field(min_length=1)] = ("bptt", REMAT, "ostl", "ostl_no_h")
    lengths: Annotated[tuple[Count, ...], Field(min_length=1)] = (100, 1000, 10_000, 100_000)
    chunk: Count = 50  # steps given to online rules at a time
    units: Count = 32
    inputs: Count = 16
    outputs: Count = 10
    batch: Count = 1
    decay: Annotated[float, Field(gt=0, lt=1)] = 0.8
    streams: tuple[tuple[str, Count], ...] = (  # rule, units
        ("ostl_no_h", 256),
        ("snap1", 256),
        ("ostl", 32),
    )
    stream_steps: Count = 100_000
    seeds: Count = 3


def cases(settings: Settings, seed: int) -> list[dict[str, Any]]:
    """Each stream from each seed, while the process is small; then each rule at each length."""
    steps = [("lengths", t) for t in settings.lengths]
    if settings.streams:
        steps.append(("stream_steps", settings.stream_steps))
    for name, t in steps:
        if t % settings.chunk:
            raise ValueError(
                f"study.chunk = {settings.chunk} does not divide study.{name} = {t}: choose a "
                "chunk that does"
            )
    if settings.streams and settings.stream_steps < 2 * settings.chunk:
        raise ValueError(
            f"study.stream_steps = {settings.stream_steps}: give at least two chunks of "
            f"study.chunk = {settings.chunk}, of which the first is not timed"
        )
    for name, rule, units in (
        *(("rules", rule, settings.units) for rule in settings.rules),
        *(("streams", rule, units) for rule, units in settings.streams),
    ):
        _check_rule(settings, name, rule, units)
    length = [
        {"part": "length", "rule": rule, "steps": steps}
        for rule in settings.rules
        for steps in settings.lengths
    ]
    streams = [
        {"part": "stream", "rule": rule, "units": units, "seed": seed + i}
        for rule, units in settings.streams
        for i in range(settings.seeds)
    ]
    return streams + length


def _check_rule(settings: Settings, name: str, rule: str, units: int) -> None:
    known = [*RULES, REMAT] if name == "rules" else list(RULES)
    if rule not in known:
        raise ValueError(f"study.{name}: {rule!r} is not known; known are {', '.join(known)}")
    try:
        _state(settings, rule, units)
    except ValueError as error:
        raise ValueError(
            f"study.{name}: {rule} cannot treat the network of this study, leave it out ({error})"
        ) from error


def measure(settings: Settings, seed: int, case: Mapping[str, Any]) -> dict[str, Any]:
    """Compiles and times the gradient of a sequence, or runs a stream.

    Returns:
        `wall_us` and `cpu_us` of a step [us]. Of a length, these for each seed, and
        `scratch_bytes`. Of a stream, these after its first part, `state_bytes` and
        `state_bytes_with_h`, and `resident_bytes` of the process after each part, None where the
        system does not tell it.

    Raises:
        ValueError: a gradient that is not finite.
    """
    if case["part"] == "length":
        return _measure_length(settings, seed, case["rule"], case["steps"])
    return _measure_stream(settings, case["rule"], case["units"], case["seed"])


def _measure_length(settings: Settings, seed: int, rule: str, steps: int) -> dict[str, Any]:
    own = [
        (parameters(_network(settings, settings.units, s)), jax.random.key(s))
        for s in range(seed, seed + settings.seeds)
    ]
    program = sequence_gradient(settings, rule, steps).lower(*own[0]).compile()
    repeats, times = max(1, _TIMED_STEPS // steps), []
    for params, key in own:
        _check_finite(program(params, key), rule)  # a first run, which is not timed
        start = _clocks()
        for _ in range(repeats):
            jax.block_until_ready(program(params, key))
        times.append(_us(start, repeats * steps))
    wall, cpu = np.transpose(times).tolist()
    scratch = int(program.memory_analysis().temp_size_in_bytes)
    return {"scratch_bytes": scratch, "wall_us": wall, "cpu_us": cpu}


def _measure_stream(settings: Settings, rule: str, units: int, seed: int) -> dict[str, Any]:
    chunks = settings.stream_steps // settings.chunk
    parts = min(PARTS, chunks)
    ends = [(i + 1) * chunks // parts for i in range(parts)]
    gradients = stream_gradients(settings, rule, units, seed)
    memory, start, total = [], _clocks(), None
    for done in range(1, chunks + 1):
        total = next(gradients)
        if done in ends:
            memory.append(resident_bytes())
        if done == ends[0]:
            start = _clocks()
    wall, cpu = _us(start, (chunks - ends[0]) * settings.chunk)
    _check_finite(total, rule)
    return {
        "state_bytes": _bytes(_state(settings, rule, units)),
        "state_bytes_with_h": _bytes(_state(settings, "ostl", units)),
        "wall_us": wall,
        "cpu_us": cpu,
        "resident_bytes": memory,
    }


def sequence_gradient(settings: Settings, rule: str, steps: int) -> Any:
    """The compiled function from parameters and the key of the inputs to a sequence's gradient."""
    made = _rule(settings, rule, settings.units, steps)
    chunks = steps // settings.chunk
    at_once = chunks if made.truncates else 1  # chunks that the rule is given at a time

    def piece(key: PRNGKeyArray, i: Array) -> tuple[Array, Array]:
        numbers = i * at_once + jnp.arange(at_once)
        drawn = jax.lax.map(lambda number: _chunk(settings, key, number), numbers)
        return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), drawn)

    @jax.jit
    def gradient(params: PyTree, key: PRNGKeyArray) -> PyTree:
        def body(i: Array, carried: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
            state, total = carried
            state, out = made.step(params, state, *piece(key, i))
            return state, jax.tree.map(jnp.add, total, out.grads)

        start = (made.init(params, _inputs(settings)), jax.tree.map(jnp.zeros_like, params))
        return jax.lax.fori_loop(0, chunks // at_once, body, start)[1]

    return gradient


def stream_gradients(settings: Settings, rule: str, units: int, seed: int) -> Iterator[PyTree]:
    """The gradient of a stream so far, after each chunk; every chunk is a call of its own."""
    made = _rule(settings, rule, units, settings.chunk)
    params = parameters(_network(settings, units, seed))

    @jax.jit
    def step(state: PyTree, total: PyTree, number: Array) -> tuple[PyTree, PyTree]:
        drawn = _chunk(settings, jax.random.key(seed), number)
        state, out = made.step(params, state, *drawn)
        return state, jax.tree.map(jnp.add, total, out.grads)

    state, total = made.init(params, _inputs(settings)), jax.tree.map(jnp.zeros_like, params)
    for number in range(settings.stream_steps // settings.chunk):
        state, total = jax.block_until_ready(step(state, total, jnp.asarray(number)))
        yield total


def resident_bytes() -> int | None:
    """What this process has in memory, where the system tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return 1024 * int(line.split()[1])
    return None


def _chunk(settings: Settings, key: PRNGKeyArray, number: Array) -> tuple[Array, Array]:
    """Normal inputs (chunk, batch, inputs) and uniform targets of the chunk of this number."""
    inputs, targets = jax.random.split(jax.random.fold_in(key, number))
    shape = (settings.chunk, settings.batch)
    xs = 2 * jax.random.normal(inputs, (*shape, settings.inputs))
    return xs, jax.random.uniform(targets, (*shape, settings.outputs))


def _inputs(settings: Settings) -> jax.ShapeDtypeStruct:
    shape = (settings.chunk, settings.batch, settings.inputs)
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _network(settings: Settings, units: int, seed: int) -> Network:
    hidden = NetworkSettings(cell="snu", hidden=(units,), recurrent=True, decay=settings.decay)
    sizes = (settings.inputs, settings.outputs)
    return make_network(hidden, *sizes, dt=1e-3, rngs=nnx.Rngs(seed))


def _rule(settings: Settings, rule: str, units: int, steps: int) -> LearningRule:
    """The rule of a name, given `steps` at most at a time."""
    network = _network(settings, units, 0)
    if rule != REMAT:
        return RULES[rule](network, losses.squared_error)
    every = next(k for k in range(math.isqrt(steps), 0, -1) if steps % k == 0)
    return bptt(network, losses.squared_error, remat_every=every)


def _state(settings: Settings, rule: str, units: int) -> PyTree:
    """Shapes of what a rule carries from chunk to chunk."""
    made = _rule(settings, rule, units, settings.chunk)
    params = parameters(_network(settings, units, 0))
    return jax.eval_shape(lambda p: made.init(p, _inputs(settings)), params)


def _bytes(shapes: PyTree) -> int:
    return sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(shapes))


def _check_finite(grads: PyTree, rule: str) -> None:
    if not all(np.isfinite(g).all() for g in jax.tree.leaves(grads)):
        raise ValueError(
            f"the gradient by {rule} is beyond float32: choose a smaller study.decay or fewer "
            "study.units"
        )


def _clocks() -> tuple[float, float]:
    """Wall time and CPU time of all threads [s]."""
    return time.perf_counter(), time.process_time()


def _us(start: tuple[float, float], steps: int) -> list[float]:
    """Since a start, wall and CPU time of one of so many steps [us]."""
    spent = np.subtract(_clocks(), start) / steps
    return [float(f"{1e6 * s:.4g}") for s in spent]


def summary(settings: Settings, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Scratch [MiB] and times [us a step] of each rule by length, and what the streams took.

    Times are [least, median, largest] of the seeds. `bytes_a_step_more`: by which the scratch of
    the longest sequence is above that of the next longest, for each step it has more.
    `grows_bytes`: the most by which a stream's process grew after the first part.
    """
    told: dict[str, Any] = {}
    for rule in settings.rules:
        found = _of(rows, part="length", rule=rule)
        if not found:
            continue
        found.sort(key=lambda row: row["steps"])
        told[rule] = {
            "scratch_mib": {str(r["steps"]): _short(r["scratch_bytes"] / 2**20) for r in found},
            "wall_us": {str(r["steps"]): _spread(r["wall_us"]) for r in found},
            "cpu_us": {str(r["steps"]): _spread(r["cpu_us"]) for r in found},
        }
        if len(found) > 1:
            *_, a, b = found
            grows = (b["scratch_bytes"] - a["scratch_bytes"]) / (b["steps"] - a["steps"])
            told[rule]["bytes_a_step_more"] = _short(grows)
    for rule, units in settings.streams:
        found = _of(rows, part="stream", rule=rule, units=units)
        if not found:
            continue
        told[f"stream: {rule}, {units} units"] = {
            "state_mib": _short(found[0]["state_bytes"] / 2**20),
            "state_mib_with_h": _short(found[0]["state_bytes_with_h"] / 2**20),
            "wall_us": _spread([r["wall_us"] for r in found]),
            "cpu_us": _spread([r["cpu_us"] for r in found]),
            "grows_bytes": _growth(found),
        }
    return told


def _of(rows: Sequence[Mapping[str, Any]], **wanted: Any) -> list[Mapping[str, Any]]:
    return [row for row in rows if wanted.items() <= row.items()]


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _spread(values: Sequence[float]) -> list[float]:
    return [_short(f(values)) for f in (np.min, np.median, np.max)]


def _growth(rows: Sequence[Mapping[str, Any]]) -> int | None:
    known = [r["resident_bytes"] for r in rows if None not in r["resident_bytes"]]
    return max((max(m) - m[0] for m in known), default=None)


def pictures(settings: Settings, rows: Sequence[Mapping[str, Any]]) -> "dict[str, Axes]":
    """Memory and time of a step over the length; memory of the process along the streams."""
    drawn: dict[str, Axes] = {}
    if _of(rows, part="length"):
        drawn["length"] = _by_length(settings, rows)
    streams = [r for r in _of(rows, part="stream") if None not in r["resident_bytes"]]
    if streams:
        drawn["stream"] = _along_streams(settings, streams)
    return drawn


def _by_length(settings: Settings, rows: Sequence[Mapping[str, Any]]) -> "Axes":
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    from ..plots import COLOURS

    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    memory, speed = figure.subplots(1, 2)
    for i, rule in enumerate(settings.rules):
        found = sorted(_of(rows, part="length", rule=rule), key=lambda row: row["steps"])
        x, style = [row["steps"] for row in found], {"color": COLOURS[i % len(COLOURS)]}
        scratch = [row["scratch_bytes"] / 2**20 for row in found]
        memory.plot(x, scratch, "o-", ms=4, label=rule, **style)
        times = np.array([row["wall_us"] for row in found])
        speed.plot(x, np.median(times, 1), "o-", ms=4, label=rule, **style)
        speed.fill_between(x, times.min(1), times.max(1), alpha=0.2, lw=0, **style)
    memory.set_ylabel("scratch [MiB]")
    speed.set_ylabel("time of a step [us]")
    for ax in (memory, speed):
        ax.set(xscale="log", yscale="log", xlabel="steps T of the sequence")
        ax.grid(alpha=0.3)
    speed.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    speed.yaxis.set_major_formatter("{x:g}")
    speed.yaxis.set_minor_locator(NullLocator())
    memory.legend(frameon=False)
    return memory


def _along_streams(settings: Settings, rows: Sequence[Mapping[str, Any]]) -> "Axes":
    """What the process has taken since the first part, and the least that BPTT would have kept."""
    from .. import plots

    ax, labels = plots.new_axes(), set()
    for row in rows:
        i, parts = settings.streams.index((row["rule"], row["units"])), len(row["resident_bytes"])
        x = settings.stream_steps * np.arange(1, parts + 1) / parts
        y = (np.array(row["resident_bytes"]) - row["resident_bytes"][0]) / 2**20
        label = f"{row['rule']}, {row['units']} units"
        style = {"color": plots.COLOURS[i % len(plots.COLOURS)], "ms": 8 - 2 * min(i, 3)}
        ax.plot(x, y, "o-", label=None if label in labels else label, **style)
        labels.add(label)
    most = max(row["units"] for row in rows)
    least = 4 * most * settings.batch * np.array([0, settings.stream_steps]) / 2**20
    label = f"one float32 a unit and step, {most} units"
    ax.plot([0, settings.stream_steps], least, "k--", lw=1, label=label)
    ax.set(xlabel="steps", ylabel="growth of the process [MiB]")
    ax.grid(alpha=0.3)
    ax.legend(frameon=False)
    return ax

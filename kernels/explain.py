"""Which implementation of an operation would run, why, and how fast it could be at best.

The idea that belongs here: the answer is read from the program that JAX traces, so it is what will
happen, and the roofline from what this machine was measured to do. What decides between
implementations is `dispatch` and the operation itself.
"""

import dataclasses
import functools
import importlib
import inspect
import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from . import dispatch
from .spike_bits import SpikeBits, unpack_spikes

OPERATIONS = (
    "deliver", "float8_matmul", "hadamard", "hadamard_quantize", "integer_matmul",
    "largest_magnitude", "low_bit_matmul", "low_bit_softmax", "quantize_matrix", "quantize_rows",
    "random_words", "rotate_blocks", "rotate_quantize", "sparse24_matmul", "sparse_stdp",
    "spike_matmul", "spike_matmul_low_bit", "spike_matmul_sparse", "stdp_events",
    "stochastic_codes", "stochastic_round",
)  # fmt: skip
_ROUNDS = 5
_FLOATS = 1 << 25  # 128 MB: more than caches of most machines hold
_SIDE = 1024  # of the matrices whose product tells the rate of multiplications


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What `explain` found; printing it gives a small table.

    Attributes:
        operation: its name.
        implementation: reference, cpu or gpu.
        kernels: the names of the compiled kernels that it calls.
        why: in words.
        moved: arguments and result, each once; of the weights of an event-driven operation the
            rows that have an event, where the inputs are known [bytes].
        multiplications: multiply-adds, of an event-driven operation those of its events; None
            where there is no formula.
        bandwidth: measured, reading and writing [bytes/s].
        rate: measured, multiply-adds of XLA's dense float32 product [1/s].
        at_best: seconds that moving, or multiplying at that rate, takes: the larger.
        limit: bandwidth or arithmetic: which of them that is.
        seconds: of one call, median; None where it was not run.
    """

    operation: str
    implementation: str
    kernels: tuple[str, ...]
    why: str
    moved: int
    multiplications: int | None
    bandwidth: float
    rate: float
    at_best: float
    limit: str
    seconds: float | None

    @property
    def fraction(self) -> float | None:
        """The share of the measured bandwidth that a call reaches; None where it was not run."""
        return None if self.seconds is None else self.moved / self.seconds / self.bandwidth

    def __str__(self) -> str:
        """A table of two columns."""
        kernels = f" ({', '.join(self.kernels)})" if self.kernels else ""
        rows = {
            "operation": self.operation,
            "runs": f"{self.implementation}{kernels}",
            "why": self.why,
            "moves": f"{self.moved / 1e6:.3g} MB at {self.bandwidth / 1e9:.3g} GB/s",
            "at best": f"{1e6 * self.at_best:.3g} us, limited by {self.limit}",
        }
        if self.multiplications is not None:
            rows["multiplies"] = (
                f"{self.multiplications / 1e6:.3g} M, {self.rate / 1e9:.3g} G/s in dense float32"
            )
        if self.seconds is not None and self.fraction is not None:
            rows["takes"] = f"{1e6 * self.seconds:.3g} us, {100 * self.fraction:.0f} % of bandwidth"
        width = max(map(len, rows))
        return "\n".join(f"{name:{width}}  {text}" for name, text in rows.items())


def explain(
    operation: Callable | str, *args: PyTree, run: bool = False, **settings: Any
) -> Explanation:
    """Says which implementation of an operation would run on arguments, why, and its roofline.

    Nothing is computed but for two measurements of the machine, once a process; `run` computes the
    operation too. An arithmetic limit is that of dense float32: integer kernels can be faster, and
    event-driven ones multiply less.

    Args:
        operation: a public function of `kernels`, or its name.
        *args: its arguments; an array may be a `jax.ShapeDtypeStruct` (`run` computes with zeros).
        run: whether to time the operation, compiled.
        **settings: more of its arguments, by name.

    Raises:
        ValueError: what the operation itself raises, and an unknown name.

    >>> from spikebit.kernels import spike_matmul
    >>> x, w = jax.ShapeDtypeStruct((2, 3), "float32"), jax.ShapeDtypeStruct((3, 4), "float32")
    >>> explain(spike_matmul, x, w).implementation
    'reference'
    """
    if isinstance(operation, str):
        operation = _by_name(operation)

    given = inspect.signature(operation).bind(*args, **settings)
    arrays = {name: value for name, value in given.arguments.items() if _has_arrays(value)}

    def call(arrays: dict[str, PyTree]) -> PyTree:
        bound = inspect.BoundArguments(given.signature, given.arguments | arrays)
        return operation(*bound.args, **bound.kwargs)

    traced = jax.make_jaxpr(call)(arrays)
    values = list(given.arguments.values())
    kernels = tuple(dict.fromkeys(_kernels(traced.jaxpr)))
    kind = "reference"
    if kernels:
        kind = "gpu" if jax.default_backend() == "gpu" else "cpu"
    name = getattr(operation, "__name__", repr(operation))
    moved = sum(v.aval.size * v.aval.dtype.itemsize for v in _ends(traced.jaxpr))
    count = _MULTIPLICATIONS[name](*values) if name in _MULTIPLICATIONS else None
    if name in _EVENT_DRIVEN and kernels and count is not None:
        rows, events = _shares(values[0])
        moved -= round((1 - rows) * _bytes(values[1]))
        count = round(events * count)
    bandwidth, rate = _bandwidth(), _rate()
    moving, multiplying = moved / bandwidth, (count or 0) / rate
    return Explanation(
        operation=name,
        implementation=kind,
        kernels=kernels,
        why=_why(kind),
        moved=moved,
        multiplications=count,
        bandwidth=bandwidth,
        rate=rate,
        at_best=max(moving, multiplying),
        limit="bandwidth" if moving >= multiplying else "arithmetic",
        seconds=_seconds(jax.jit(call), jax.tree.map(_array, arrays)) if run else None,
    )


def _by_name(name: str) -> Callable:
    kernels = importlib.import_module(__name__.rpartition(".")[0])
    if name not in OPERATIONS:
        raise ValueError(f"explain: {name!r} is no operation; there are {', '.join(OPERATIONS)}.")
    return getattr(kernels, name)


def _matrix_product(x: Any, w: Any) -> int:
    rows = math.prod(x.shape[:-1])
    return rows * w.shape[0] * w.shape[1]


_MULTIPLICATIONS: dict[str, Callable[..., int]] = {
    "spike_matmul": _matrix_product,
    "spike_matmul_low_bit": _matrix_product,
    "low_bit_matmul": _matrix_product,
    "sparse24_matmul": _matrix_product,
    "integer_matmul": lambda x, scale, w: _matrix_product(x, w),
    "float8_matmul": lambda x, scale, w: _matrix_product(x, w),
    "spike_matmul_sparse": lambda x, w: math.prod(x.shape[:-1]) * w.data.size,
}


_EVENT_DRIVEN = ("spike_matmul", "spike_matmul_low_bit", "spike_matmul_sparse")


def _shares(x: Any) -> tuple[float, float]:
    """Of rows of weights that an event needs, and of events; 1 where the inputs are not known."""
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(x)):
        return 1.0, 1.0
    spikes = np.asarray(unpack_spikes(x) if isinstance(x, SpikeBits) else x) != 0
    return float(spikes.reshape(-1, spikes.shape[-1]).any(0).mean()), float(spikes.mean())


def _bytes(tree: PyTree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _why(kind: str) -> str:
    backend, forced = jax.default_backend(), dispatch.forced()
    if forced is not None:
        return f"{dispatch.VARIABLE}={forced}"
    if kind != "reference":
        return f"the default backend of JAX is {backend}"
    reason = dispatch.why_no_kernels(backend)
    if reason is not None:
        return reason
    return "for these shapes, dtypes and layouts the operation takes jax.numpy"


def _kernels(jaxpr: Any) -> Iterator[str]:
    """The names of what is called beside XLA's own operations, in a program and all inside it."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "ffi_call":
            yield equation.params["target_name"]
        elif "triton" in equation.primitive.name:
            yield equation.params.get("name", equation.primitive.name)
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_program):
            if _is_program(inner):
                yield from _kernels(getattr(inner, "jaxpr", inner))


def _has_arrays(value: Any) -> bool:
    leaves = jax.tree.leaves(value)
    return any(hasattr(leaf, "dtype") and hasattr(leaf, "shape") for leaf in leaves)


def _is_program(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(getattr(value, "jaxpr", None), "eqns")


def _ends(jaxpr: Any) -> Iterator[Any]:
    yield from jaxpr.invars
    yield from jaxpr.outvars


def _array(leaf: Any) -> jax.Array:
    is_shape = isinstance(leaf, jax.ShapeDtypeStruct)
    return jnp.zeros(leaf.shape, leaf.dtype) if is_shape else jnp.asarray(leaf)


def _seconds(function: Callable, *args: PyTree) -> float:
    """Of one call, the median of some; compiled before."""
    jax.block_until_ready(function(*args))
    times = []
    for _ in range(_ROUNDS):
        begin = time.perf_counter()
        jax.block_until_ready(function(*args))
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


@functools.cache
def _bandwidth() -> float:
    """Bytes a second of adding 1 to many floats in place: reads and writes, no new memory."""
    a = jnp.zeros(_FLOATS, jnp.float32)
    add = jax.jit(lambda a: a + np.float32(1), donate_argnums=0)
    times = []
    for _ in range(_ROUNDS + 1):
        begin = time.perf_counter()
        a = add(a).block_until_ready()
        times.append(time.perf_counter() - begin)
    return 2 * a.nbytes / statistics.median(times[1:])


@functools.cache
def _rate() -> float:
    """Multiply-adds a second of a dense product of float32."""
    a = jnp.ones((_SIDE, _SIDE), jnp.float32)
    return _SIDE**3 / _seconds(jax.jit(jnp.dot), a, a)

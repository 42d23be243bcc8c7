"""Times kernels on rows and elements beside XLA, numpy and torch, CPU time on one thread.

What belongs here: Hadamard transforms, coded rows, stochastic rounding, matrices to codes, softmax
of few bits; the rounds, and the section of RESULTS.md. XLA gets the fastest of several ways to
write the same in jax.numpy. torch is left out where it is not installed.

    python benchmarks/kernels_elementwise.py --write benchmarks/RESULTS.md
"""

import argparse
import importlib.metadata
import json
import os
import shlex
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", JAX_PLATFORMS="cpu")
if hasattr(os, "sched_setaffinity"):  # before any library has counted the cores
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

import jax
import jax.numpy as jnp
import numpy as np
from peers.results import spread, table, writable, write_section
from peers.rounds import Times, in_turns
from snn_training import machine

from spikebit.kernels.hadamard import (
    Transform,
    hadamard,
    hadamard_matrix,
    hadamard_quantize,
    transform_reference,
)
from spikebit.kernels.quantize_pack import Method, matrix_reference, quantize_matrix
from spikebit.kernels.quantize_rows import Codes, quantize_rows, rows_reference
from spikebit.kernels.softmax import low_bit_softmax
from spikebit.kernels.stochastic import stochastic_codes, stochastic_round

SECTION = "kernels_elementwise"
PACKAGES = ("spikebit", "jax", "jaxlib", "numba", "numpy", "torch")
ROWS, N = 256, 4096
HEADS, KEYS = 256, 4096
RANDOM = np.random.default_rng(0)


class Case(NamedTuple):
    """What is done, by whom, and how many times faster than XLA we want to be."""

    text: str
    ways: Callable[[], dict[str, Callable[[], Any]]]
    target: float | None = None


def _calls(ways: dict[str, Callable], *args: Any) -> dict[str, Callable[[], Any]]:
    """Compiled functions of the arguments, each waited for."""
    compiled = {name: jax.jit(way) for name, way in ways.items()}
    return {
        name: lambda way=way: jax.block_until_ready(way(*args)) for name, way in compiled.items()
    }


def _rows(m: int = ROWS, n: int = N) -> jax.Array:
    return jnp.asarray(RANDOM.standard_normal((m, n)), jnp.float32)


def _two_products(x):
    h = jnp.asarray(hadamard_matrix(64), jnp.float32)
    y = (x * np.float32(1 / 64)).reshape(-1, 64, 64)
    return jnp.einsum("ij,bjk->bik", h, y @ h).reshape(x.shape)


def _butterflies(x):
    return transform_reference(Transform(1, False), x)


def _codes(x):
    return rows_reference(Codes(8, 1), x)


def hadamard_ways():
    x = _rows()
    ways = {"spikebit": hadamard, "XLA butterflies": _butterflies, "XLA products": _two_products}
    h = hadamard_matrix(64).astype(np.float32)
    numbers = np.asarray(x)

    def in_numpy():
        y = (numbers * np.float32(1 / 64)).reshape(-1, 64, 64)
        return np.matmul(h, y @ h)

    return _calls(ways, x) | {"numpy": in_numpy}


def hadamard_quantize_ways():
    ways = {
        "spikebit": hadamard_quantize,
        "XLA butterflies": lambda x: _codes(_butterflies(x)),
        "XLA products": lambda x: _codes(_two_products(x)),
    }
    return _calls(ways, _rows())


def rows_ways():
    x = _rows()
    numbers = np.asarray(x)

    def in_numpy():
        scale = abs(numbers).max(1, keepdims=True) / np.float32(127)
        return np.rint(numbers / scale).astype(np.int8), scale

    return _calls({"spikebit": quantize_rows, "XLA": _codes}, x) | {"numpy": in_numpy}


def _key():
    return jax.random.key(0), jax.random.bits(jax.random.key(1), (2,), jnp.uint32)


def stochastic_codes_ways():
    x, (key, words) = _rows(), _key()

    def in_xla(x):
        u = jax.random.uniform(key, x.shape)
        return jnp.clip(jnp.floor(x / np.float32(0.03) + u), -127, 127).astype(jnp.int8)

    numbers, generator = np.asarray(x), np.random.default_rng(0)

    def in_numpy():
        u = generator.random(numbers.shape, np.float32)
        return np.clip(np.floor(numbers / np.float32(0.03) + u), -127, 127).astype(np.int8)

    ours = {"spikebit": lambda x: stochastic_codes(x, 0.03, words), "XLA threefry": in_xla}
    return _calls(ours, x) | {"numpy": in_numpy}


def stochastic_bfloat16_ways():
    x, (key, words) = _rows(), _key()

    def in_xla(x, bits):
        noise = jax.random.bits(key, x.shape, bits).astype(jnp.uint32) & 0xFFFF
        pattern = jax.lax.bitcast_convert_type(x, jnp.uint32) + noise >> 16
        return jax.lax.bitcast_convert_type(pattern.astype(jnp.uint16), jnp.bfloat16)

    ways = {
        "spikebit": lambda x: stochastic_round(x, words, dtype=jnp.bfloat16),
        "XLA threefry, 32 bits": lambda x: in_xla(x, jnp.uint32),
        "XLA threefry, 16 bits": lambda x: in_xla(x, jnp.uint16),
    }
    return _calls(ways, x)


def _matrix_ways(clips: int, zeros: bool = False, table: tuple[float, ...] | None = None):
    method = Method(4, N // 128, zeros, table, clips, False, False)
    unused = jnp.zeros((N // 128, 1024)), jnp.zeros((N // 128, 1024)), jnp.zeros((1, 3), jnp.uint32)
    ways = {
        "spikebit": lambda w: quantize_matrix(
            w, 4, group=128, clips=clips, zeros=zeros, table=table
        ),
        "XLA": lambda w: matrix_reference(method, w, *unused),
    }
    return _calls(ways, _rows(N, 1024))


def softmax_ways(bits: int, masked: bool = False):
    x = _rows(HEADS, KEYS)
    mask = jnp.asarray(RANDOM.random((HEADS, KEYS)) < 0.5) if masked else None
    ways = {
        "spikebit": lambda x: low_bit_softmax(x, bits, clip=-4.0, where=mask),
        "XLA exact": lambda x: jax.nn.softmax(x, -1, where=mask),
    }
    calls = _calls(ways, x)
    try:
        import torch
    except ImportError:
        return calls
    torch.set_num_threads(1)
    tensor = torch.from_numpy(np.array(x))
    if mask is not None:
        tensor = tensor.masked_fill(~torch.from_numpy(np.array(mask)), -np.inf)
    return calls | {"torch exact": lambda: torch.softmax(tensor, -1)}


UNEVEN = tuple(float(v) for v in np.linspace(-1, 1, 16).astype(np.float32) ** 3)
CASES = {
    "hadamard_int8": Case(f"Hadamard-{N} and int8, {ROWS} rows", hadamard_quantize_ways, 2.5),
    "hadamard": Case(f"Hadamard-{N}, {ROWS} rows", hadamard_ways),
    "int8": Case(f"{ROWS} rows of {N} to int8", rows_ways),
    "stochastic_int8": Case("stochastic rounding of 2^20 to int8", stochastic_codes_ways, 6),
    "stochastic_bfloat16": Case("the same to bfloat16", stochastic_bfloat16_ways, 6),
    "matrix": Case(f"{N} x 1024 to int4, groups of 128", lambda: _matrix_ways(1)),
    "matrix_zeros": Case("with zero points", lambda: _matrix_ways(1, zeros=True)),
    "matrix_table": Case("with a table", lambda: _matrix_ways(1, table=UNEVEN)),
    "matrix_clips": Case("of 20 clips the best", lambda: _matrix_ways(20)),
    "softmax_2": Case(f"softmax of 2 bits, {HEADS} rows of {KEYS}", lambda: softmax_ways(2)),
    "softmax_4": Case("of 4 bits", lambda: softmax_ways(4)),
    "softmax_masked": Case("of 4 bits, half masked", lambda: softmax_ways(4, masked=True)),
}


def fastest(times: dict[str, Times], others: str) -> str | None:
    """Of the ways that begin like that the one with the smallest median."""
    names = [name for name in times if name.startswith(others)]
    return min(names, key=lambda name: times[name].median("cpu"), default=None)


def ratio(times: dict[str, Times], others: str) -> tuple[float, float, float] | None:
    """How many times longer the fastest of others takes: quartile, median, quartile of rounds."""
    name = fastest(times, others)
    if name is None:
        return None
    pairs = zip(times[name].cpu, times["spikebit"].cpu, strict=True)
    return spread([b / a for b, a in pairs])


def results_table(found: dict[str, dict[str, Times]]) -> str:
    """A line for each case: times, and ratios to the fastest way of each library."""
    lines = []
    for name, times in found.items():
        case = CASES[name]
        line = [case.text]
        for library in ("spikebit", "XLA", "numpy", "torch"):
            best = fastest(times, library)
            if best is None:
                line.append("")
                continue
            low, median, high = (1e3 * t for t in spread(times[best].cpu))
            detail = best.removeprefix(library).strip()
            line.append(f"{median:.2f} ({low:.2f} to {high:.2f}){' ' if detail else ''}{detail}")
        times_xla = ratio(times, "XLA")
        line.append("" if times_xla is None else f"{times_xla[1]:.2f}")
        line.append("" if case.target is None else f"{case.target:g}")
        lines.append(line)
    units = [f"{library} [ms]" for library in ("spikebit", "XLA", "numpy", "torch")]
    return table(["case", *units, "XLA / spikebit", "aim"], lines)


def report(found: dict[str, dict[str, Times]], rounds: int, load: float) -> str:
    """The section of RESULTS.md; `load` is that before the run."""
    here, versions = machine(), []
    for package in PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{package} not installed")
    command = shlex.join(["python", "benchmarks/kernels_elementwise.py", *sys.argv[1:]])
    return "\n\n".join(
        [
            "## Kernels on rows and elements",
            f"{here['date']}, {here['cpu']}, {here['system']}, Python {here['python']}. "
            f"{', '.join(versions)}. Load before the run {load:.1f}. `{command}`",
            f"CPU time of a call on one thread, medians (quartiles) of {rounds} rounds; all ways "
            "in one process, in turns. Of several ways to write it for XLA the fastest counts. "
            "Rows and matrices are float32 with a normal density. The softmax that others compute "
            "is the exact one. Nothing here was run on a GPU.",
            results_table(found),
        ]
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--rounds", type=int, default=9, help="rounds (default 9)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--write", type=Path, metavar="FILE", help="replace the section in FILE")
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error(f"--rounds {args.rounds}: give at least 1.")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; 2 for bad input."""
    args = parse(argv)
    if not writable(args.write, SECTION):  # before minutes of timing
        return 2
    load, found = os.getloadavg()[0], {}
    for name in args.only:
        print(name, file=sys.stderr, flush=True)
        found[name] = in_turns(CASES[name].ways(), args.rounds)
    if args.json:
        print(json.dumps(machine()))
        for name, times in found.items():
            for way, each in times.items():
                median = statistics.median(each.cpu)
                row = {"case": name, "way": way, "cpu_ms": 1e3 * median}
                print(json.dumps(row | {"cpu_ms_rounds": [1e3 * t for t in each.cpu]}))
    else:
        print(results_table(found))
    if args.write:
        write_section(args.write, SECTION, report(found, args.rounds, load))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Times `spikebit.quant.quantize` on 2^24 float32 numbers beside ml_dtypes and torchao.

What belongs here: what is run, the rounds, and the section of RESULTS.md. Needs the extra `bench`;
a library that is not installed leaves its places in the table empty.

    python benchmarks/quantize.py --write benchmarks/RESULTS.md
"""

import argparse
import functools
import importlib.metadata
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from peers.results import spread, table, writable, write_section
from snn_training import machine

from spikebit.quant import quantize

SECTION = "quantize"
SHAPE = (4096, 4096)
PACKAGES = ("spikebit", "jax", "jaxlib", "numpy", "ml_dtypes", "torch", "torchao")


class Case(NamedTuple):
    """A format and rounding, who else does it, and how many times faster we want to be."""

    name: str
    peer: str
    settings: dict[str, Any]
    fresh: float | None = None
    donated: float | None = None


CASES = (
    Case("e4m3fn", "ml_dtypes", {"fmt": "e4m3fn"}, 2.5, 20),
    Case(
        "e4m3fn, stochastic",
        "ml_dtypes",
        {"fmt": "e4m3fn", "rounding": "stochastic"},
        donated=15,
    ),
    Case("mxfp4", "torchao mxfp4", {"fmt": "mxfp4"}, fresh=2),
    Case("nvfp4", "torchao nvfp4", {"fmt": "nvfp4"}, fresh=2),
)
MEMORY = "-x"  # reads and writes every number once, and does nothing else


def numbers() -> np.ndarray:
    """Independent standard normal numbers, the same ones in every process."""
    return np.random.default_rng(0).standard_normal(SHAPE, np.float32)


def timed(function: Callable[..., Any], *args: Any) -> tuple[float, Any]:
    """How long a call took [s], and what it returned."""
    start = time.perf_counter()
    result = function(*args)
    return time.perf_counter() - start, result


# The peers.


def by_ml_dtypes(x: np.ndarray) -> np.ndarray:
    """To e4m3fn and back, which numpy does on one thread."""
    return x.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)


@functools.cache
def _torch_side() -> tuple[Any, dict[str, Callable]]:
    """The numbers as a tensor, and the two ways of torchao; in a process of its own."""
    import torch  # pyright: ignore[reportMissingImports]
    from torchao.prototype.mx_formats import (  # pyright: ignore[reportMissingImports]
        mx_tensor,
        nvfp4_tensor,
    )

    def mxfp4(x):
        return mx_tensor.MXTensor.to_mx(x, torch.float4_e2m1fn_x2, 32).dequantize(torch.float32)

    def nvfp4(x):
        scale = nvfp4_tensor.per_tensor_amax_to_scale(x.abs().amax())
        coded = nvfp4_tensor.NVFP4Tensor.to_nvfp4(x, per_tensor_scale=scale)
        return coded.dequantize(torch.float32)

    return torch.from_numpy(numbers()), {"torchao mxfp4": mxfp4, "torchao nvfp4": nvfp4}


def time_torchao(name: str) -> float:
    """One sample of torchao, eager, on all cores [s]."""
    x, ways = _torch_side()
    return timed(ways[name], x)[0]


def run_torchao(name: str) -> np.ndarray:
    """What torchao makes of the numbers."""
    x, ways = _torch_side()
    return ways[name](x).numpy()


# spikebit.


def by_spikebit(case: Case) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The case as a function of numbers and key."""

    def fake_quantize(x, key):
        key = key if case.settings.get("rounding") == "stochastic" else None
        return quantize(x, **case.settings, key=key)

    return fake_quantize


def samplers(x: np.ndarray) -> dict[tuple[str, str], Callable[[], float]]:
    """For each case, and for the bare pass over memory: one sample with each kind of output."""
    given, keys = jnp.asarray(x), iter(range(1 << 30))
    functions = {case.name: by_spikebit(case) for case in CASES}
    functions[MEMORY] = lambda x, key: -x
    found = {}
    for name, function in functions.items():
        fresh, donated = jax.jit(function), jax.jit(function, donate_argnums=0)

        def sample(call, source):
            arguments = source(), jax.random.key(next(keys))
            jax.block_until_ready(arguments)
            return timed(lambda: call(*arguments).block_until_ready())[0]

        found[name, "fresh"] = functools.partial(sample, fresh, lambda: given)
        found[name, "donated"] = functools.partial(sample, donated, lambda: jnp.array(given))
    return found


def share_equal(case: Case, x: np.ndarray, theirs: np.ndarray) -> float:
    """The share of numbers that come out the same; with stochastic rounding, within a step."""
    ours = np.asarray(by_spikebit(case)(jnp.asarray(x), jax.random.key(0)))
    if case.settings.get("rounding") != "stochastic":
        return float((ours == theirs).mean())
    low, high = (quantize(jnp.asarray(x), case.settings["fmt"], rounding=r) for r in ("down", "up"))
    return float(((ours == low) | (ours == high)).mean())


# The rounds and what is said about them.


def measure(rounds: int, say: Callable[[str], None]) -> tuple[dict, dict]:
    """Samples [s] and shares of equal numbers, by name; a peer without samples is missing."""
    x = numbers()
    calls: dict[Any, Callable[[], float]] = {"ml_dtypes": lambda: timed(by_ml_dtypes, x)[0]}
    results = {"ml_dtypes": by_ml_dtypes(x)}
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        for name in sorted({case.peer for case in CASES} - set(calls)):
            try:
                results[name] = pool.submit(run_torchao, name).result()
            except ImportError as error:
                say(f"{name}: not installed ({error})")
                continue
            calls[name] = lambda name=name: pool.submit(time_torchao, name).result()
        equal = {c.name: share_equal(c, x, results[c.peer]) for c in CASES if c.peer in results}
        del results
        calls |= samplers(x)
        samples = {name: [] for name in calls}
        for call in calls.values():
            call()
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}")
            for name, call in calls.items():
                samples[name].append(call())
    return samples, equal


def milliseconds(samples: Sequence[float]) -> str:
    """Median and quartiles."""
    low, median, high = (1e3 * t for t in spread(samples))
    return f"{median:.1f} ({low:.1f} to {high:.1f})"


def ratio(samples: dict, case: Case, output: str) -> float | None:
    """How many times longer the peer takes, by medians."""
    if case.peer not in samples:
        return None
    ours = statistics.median(samples[case.name, output])
    return statistics.median(samples[case.peer]) / ours


def ratio_cell(samples: dict, case: Case, output: str) -> str:
    """The ratio, and the target where there is one."""
    found, target = ratio(samples, case, output), getattr(case, output)
    if found is None:
        return ""
    return f"{found:.1f}" + (f" (target {target:g})" if target else "")


def versions() -> dict[str, str]:
    """Of the packages that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def report(samples: dict, equal: dict[str, float], rounds: int) -> str:
    """The section of RESULTS.md."""
    here = machine()
    command = shlex.join(["python", "benchmarks/quantize.py", *sys.argv[1:]])
    lines = [
        [
            case.name,
            case.peer,
            milliseconds(samples[case.peer]) if case.peer in samples else "not installed",
            milliseconds(samples[case.name, "fresh"]),
            ratio_cell(samples, case, "fresh"),
            milliseconds(samples[case.name, "donated"]),
            ratio_cell(samples, case, "donated"),
            f"{100 * equal[case.name]:.4g}" if case.name in equal else "",
        ]
        for case in CASES
    ]
    fresh, donated = (milliseconds(samples[MEMORY, output]) for output in ("fresh", "donated"))
    lines.append([f"`{MEMORY}`, the limit", "", "", fresh, "", donated, "", ""])
    header = [
        "format",
        "peer",
        "peer [ms]",
        "fresh [ms]",
        "peer / fresh",
        "donated [ms]",
        "peer / donated",
        "equal [%]",
    ]
    return "\n\n".join(
        [
            "## Rounding to a format, fake quantization",
            f"{here['date']}, {here['cpu']}, {here['cores']} cores, {here['system']}, "
            f"Python {here['python']}. "
            + ", ".join(f"{name} {version}" for name, version in versions().items())
            + f". `{command}`",
            f"`quantize(x, format)` of {SHAPE[0]} x {SHAPE[1]} standard normal float32 under "
            "`jax.jit`, into a fresh output (a new 64 MB buffer, whose pages the system hands out "
            "while it is written) and into the donated buffer of x. ml_dtypes: "
            "`x.astype(float8_e4m3fn).astype(float32)` in numpy, which uses one core, and rounds "
            "to nearest in both rows. torchao, eager, all cores, in a process of its own: `to_mx`, "
            "`to_nvfp4` with the scale of the tensor, each with `dequantize`. "
            f"{rounds} rounds, in each of which everything is timed once; median (quartiles). "
            "Equal: numbers that come out as the peer's; stochastic: on one of the two neighbours.",
            table(header, lines),
        ]
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15, help="rounds (default 15)")
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
    samples, equal = measure(args.rounds, lambda line: print(line, file=sys.stderr, flush=True))
    body = report(samples, equal, args.rounds)
    if args.json:
        print(json.dumps({**machine(), "versions": versions()}))
        for name, times in samples.items():
            who, output = name if isinstance(name, tuple) else (name, None)
            print(json.dumps({"name": who, "output": output, "ms": [1e3 * t for t in times]}))
        for case in CASES:
            ratios = {output: ratio(samples, case, output) for output in ("fresh", "donated")}
            print(json.dumps({"name": case.name, "peer": case.peer, "ratios": ratios}))
    else:
        print(body)
    if args.write:
        write_section(args.write, SECTION, body)
    return 0


if __name__ == "__main__":
    sys.exit(main())

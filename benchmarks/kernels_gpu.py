"""Low-bit products on a GPU beside dense ones of bfloat16: `python benchmarks/kernels_gpu.py`.

Each call multiplies by many copies of the weights in turn, which together are more than twice the
second cache, so that all are read from memory. Microseconds are of one product, median of many
calls; GB/s count the bytes of the weights as they are packed. With `--tune` it first tries tiles
and keeps the best ones (`spikebit.kernels.tuning`). Without a GPU it says so, and measures nothing.
"""

import argparse
import functools
import importlib.metadata
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from peers.results import table, writable, write_section
from snn_training import machine

from spikebit.kernels import triton_bridge, tuning
from spikebit.kernels.float8 import float8_matmul
from spikebit.kernels.integer import integer_matmul
from spikebit.kernels.layouts import PackedMatrix, pack
from spikebit.kernels.low_bit import low_bit_matmul
from spikebit.kernels.matrix import quantized_matrix
from spikebit.kernels.tuning import Tile

SECTION = "kernels_gpu"
SIZES = (4096, 8192)
ROWS = (1, 16, 32, 64, 128, 256, 512, 2048)
CALLS = 50
CACHE = 60e6  # bytes
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
# name: (operation of the tuning table, bits, group or None for one scale a column, table, inputs)
WAYS = {
    "W4A16 G128": ("low_bit", 4, 128, False, "bfloat16"),
    "W8A16": ("low_bit", 8, None, False, "bfloat16"),
    "W3A16 G128": ("low_bit", 3, 128, False, "bfloat16"),
    "W2A16 G64": ("low_bit", 2, 64, False, "bfloat16"),
    "E2M1 G32 x bfloat16": ("low_bit", 4, 32, True, "bfloat16"),
    "W8A8": ("integer", 8, None, False, "int8"),
    "W4A8 G128": ("integer", 4, 128, False, "int8"),
    "W4 G128 x e4m3": ("float8", 4, 128, False, "float8_e4m3fn"),
}


def weights(size: int, bits: int, group: int | None, with_table: bool, seed: int) -> PackedMatrix:
    """Random weights (size, size) in the layout of GPUs."""
    key = jax.random.key(seed)
    codes = jax.random.randint(key, (size, size), 0, 1 << bits, jnp.int32).astype(jnp.uint8)
    scale = np.full((size // (group or size), size), 2.0**-6, np.float32)
    return pack(
        quantized_matrix(codes, scale, table=E2M1 if with_table else None, bits=bits), "planes"
    )


def product(inputs: str) -> Callable[[Any, Any], Any]:
    """The product of rows of inputs with packed weights."""
    if inputs == "bfloat16":
        return low_bit_matmul
    function = integer_matmul if inputs == "int8" else float8_matmul
    return lambda x, w: function(x, jnp.ones((x.shape[0], 1)), w)


def seconds(function: Callable[[Any, Any], Any], x: jax.Array, copies: Sequence[Any]) -> float:
    """The time of one product: the median over calls that multiply by each of the copies."""
    jax.clear_caches()  # a tile is chosen while tracing
    call = jax.jit(lambda x, copies: [function(x, w) for w in copies])
    jax.block_until_ready(call(x, copies))
    times = []
    for _ in range(CALLS):
        start = time.perf_counter()
        jax.block_until_ready(call(x, copies))
        times.append(time.perf_counter() - start)
    return statistics.median(times) / len(copies)


def copies_of(make: Callable[[int], Any]) -> list[Any]:
    """As many weights as are more than twice the cache, and no fewer than two."""
    first = make(0)
    size = sum(a.nbytes for a in jax.tree.leaves(first))
    return [first, *(make(seed) for seed in range(1, max(2, int(2 * CACHE // size) + 1)))]


def tune(name: str, m: int, x: jax.Array, copies: Sequence[PackedMatrix]) -> None:
    """Keeps the fastest tile of some, or none where dense products win."""
    operation, *_, inputs = WAYS[name]
    word = tuning.key(operation, triton_bridge.capability(), m, copies[0])
    own = tuning.rule(operation, triton_bridge.capability(), m, copies[0])
    rows = min(128, max(16, 1 << (m - 1).bit_length()))
    found: dict[Tile | None, float] = {}
    shapes = itertools.product((64, 128), ((2, 4), (4, 4), (8, 3)), (1, 2, 4, 8))
    tiles: list[Tile | None] = [own, None] if operation == "low_bit" else [own]
    for columns, (warps, stages), split in shapes:
        if m <= 32 or (split <= 2 and warps > 2):
            tiles.append(Tile(rows, columns, split, warps, stages))
    for tile in dict.fromkeys(tiles):
        tuning.keep(word, tile)
        try:
            found[tile] = seconds(product(inputs), x, copies)
        except Exception as reason:  # does not fit into registers or shared memory
            print(f"{word} {tile}: {reason}"[:200], file=sys.stderr)
    tuning.keep(word, min(found, key=lambda tile: found[tile]))


def measure(name: str, size: int, rows: Sequence[int], tuned: bool) -> list[list[str]]:
    """A line for each number of rows."""
    _, bits, group, with_table, inputs = WAYS[name]
    copies = copies_of(functools.partial(weights, size, bits, group, with_table))
    dense = copies_of(lambda seed: jnp.full((size, size), 2.0**-seed, jnp.bfloat16))
    count = sum(a.nbytes for a in jax.tree.leaves(copies[0]))
    lines = []
    for m in rows:
        x = jnp.ones((m, size), jnp.bfloat16)
        if tuned:
            tune(name, m, x.astype(inputs), copies)
        ours = seconds(product(inputs), x.astype(inputs), copies)
        theirs = seconds(jnp.dot, x, dense)
        line = [f"{name}, {size}", str(m), f"{1e6 * ours:.1f}", f"{count / ours / 1e9:.0f}"]
        line += [f"{1e6 * theirs:.1f}", f"{2e-9 * size * size / theirs:.0f}"]
        lines.append([*line, f"{theirs / ours:.2f}"])
        print(*lines[-1], file=sys.stderr, flush=True)
    return lines


def report(names: Sequence[str], rows: Sequence[int], tuned: bool) -> str:
    """The section, whether or not there is a GPU."""
    title = "## Low-bit products on a GPU\n\n"
    reason = triton_bridge.why_not()
    if reason is not None:
        return f"{title}Not measured: there was no GPU to measure on ({reason})."
    device, facts = jax.devices()[0], machine()
    packages = ("jax", "jaxlib", "jax-triton", "triton")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    header = ["weights", "rows", "us", "GB/s", "bfloat16 us", "GB/s", "times faster"]
    lines = [line for name in names for size in SIZES for line in measure(name, size, rows, tuned)]
    return (
        f"{title}{facts['date']}, {device.device_kind}, {versions}, "
        f"{'tuned' if tuned else 'tiles by rule'}. Beside `jnp.dot` of bfloat16, both with weights "
        f"that are in no cache; median of {CALLS} calls.\n\n{table(header, lines)}"
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--rows", nargs="+", type=int, default=list(ROWS))
    parser.add_argument("--tune", action="store_true", help="try tiles first and keep the best")
    parser.add_argument("--write", type=Path, metavar="FILE", help="replace the section in FILE")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; 2 for bad input."""
    args = parse(argv)
    if not writable(args.write, SECTION):
        return 2
    body = report(args.only, args.rows, args.tune)
    print(body)
    if args.write:
        write_section(args.write, SECTION, body)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Which tile a GPU kernel works in: rules, and what measurements on a GPU found to be better.

The idea that belongs here: a table from a problem to its tile, in JSON, so that what was measured
once is kept on disk and can go with the package. The key is the operation, the GPU, the number of
rows of inputs up to the next power of two, and shape, group and bits of the weights. The kernels
do not belong here, nor does timing them (`benchmarks/kernels_gpu.py`).
"""

import functools
import json
import os
from pathlib import Path
from typing import NamedTuple

from .layouts import PackedMatrix

SHIPPED = Path(__file__).with_name("tiles.json")
_MULTIPROCESSORS = 132
_DEQUANTIZE = 512  # rows of inputs from which on float weights are made first


class Tile(NamedTuple):
    """What a program of a kernel does, and how.

    Attributes:
        rows: of inputs.
        columns: of weights.
        split: how many programs share the sums of a tile of the result.
        warps: of a program.
        stages: of the pipeline of its loads.
    """

    rows: int
    columns: int
    split: int
    warps: int
    stages: int


def rule(operation: str, capability: int, m: int, w: PackedMatrix) -> Tile | None:
    """The tile for m rows of inputs by rule; None where dense products with float weights win."""
    from .layouts_gpu import planes

    if operation == "low_bit" and m > _DEQUANTIZE:
        return None
    most = 64 if operation == "low_bit" else 128
    if operation != "low_bit" and w.scale.shape[0] == 1 and capability == 90:
        most = 256  # integers in half of the registers, and no second sums
    rows = min(max(16, 1 << (m - 1).bit_length()), most)
    many_registers = w.bits < 4 or operation == "sparse24"
    columns = 64 if w.table is not None or many_registers else 128
    warps, stages = (8, 3) if rows > 32 and columns == 128 else (4, 4)
    if capability >= 100 and rows <= 32 and operation != "sparse24":
        columns, warps = 32 if many_registers else 64, 2  # get instructions without waiting
    tiles = planes(w.shape[0], w.bits, w.group).tiles
    programs = -(-m // rows) * -(-w.shape[1] // columns)
    split = 1
    while split < 16 and 4 * split <= tiles and programs * split < 2 * _MULTIPROCESSORS:
        split *= 2
    return Tile(rows, columns, split, warps, stages)


def cache() -> Path:
    """The file of what was measured on this machine."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "spikebit" / "tiles.json"


def key(operation: str, capability: int, m: int, w: PackedMatrix) -> str:
    """The problem as a word: operation, GPU, rows, k, n, group, bits, zero point or table."""
    rows = 1 << max(0, m - 1).bit_length()
    kind = "table" if w.table is not None else "symmetric" if w.zero is None else "zero"
    return f"{operation}-sm{capability}-{rows}-{w.shape[0]}-{w.shape[1]}-{w.group}-{w.bits}-{kind}"


def best_tile(operation: str, capability: int, m: int, w: PackedMatrix) -> Tile | None:
    """The tile that was measured to be best, on this machine or before it was shipped, or `rule`.

    None: to make float weights and multiply dense matrices.
    """
    word = key(operation, capability, m, w)
    for table in (_table(cache()), _table(SHIPPED)):
        if word in table:
            return table[word]
    return rule(operation, capability, m, w)


def keep(word: str, tile: Tile | None, path: Path | None = None) -> None:
    """Writes the best tile of a problem to a file, by default that of this machine."""
    path = cache() if path is None else path
    table = {**_table(path), word: tile}
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(f".{os.getpid()}")
    new.write_text(
        json.dumps({k: t and t._asdict() for k, t in sorted(table.items())}, indent=1) + "\n"
    )
    new.replace(path)  # at once: another process may read it
    _table.cache_clear()


@functools.cache
def _table(path: Path) -> dict[str, Tile | None]:
    """The tiles of a file; a file that is not there, or is no such table, has none."""
    try:
        entries = json.loads(path.read_text()).items()
        return {word: None if tile is None else Tile(**tile) for word, tile in entries}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}

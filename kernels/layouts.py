"""Packed codes: the order in which a kernel reads the codes of a quantized matrix.

The idea that belongs here: a layout is a pure function of the codes with an exact inverse, in
words without a gap; what it leaves over at the edges is padding. Each layout stands with the
kernels that read it (`layouts_cpu`, `layouts_gpu`); this file has the packed matrix and the way
there and back.
"""

import dataclasses
import functools
import importlib
from typing import Any

import jax

from .matrix import QuantizedMatrix

_HOMES = {"vnni": "layouts_cpu", "planes": "layouts_gpu", "rows": "layouts_rows"}


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("words", "scale", "zero", "table"),
    meta_fields=("bits", "layout", "shape"),
)
@dataclasses.dataclass(frozen=True)
class PackedMatrix:
    """A quantized matrix with its codes packed for a kernel; made by `pack`.

    A pytree, also of what stands for its arrays in `vmap`, `grad` and their like.

    Attributes:
        words: one array or, for 3 bits, two (of 2 bits and of 1 bit a code).
        scale: float32 (groups, n), as in `QuantizedMatrix`.
        zero: float32 (groups, n) or None.
        table: float32 (2**bits,) or None.
        bits: of a code.
        layout: its name.
        shape: (k, n) of the matrix.
    """

    words: tuple[Any, ...]
    scale: Any
    zero: Any
    table: Any
    bits: int
    layout: str
    shape: tuple[int, int]

    @property
    def group(self) -> int:
        """The number of rows that share a scale."""
        return self.shape[0] // max(1, self.scale.shape[0])

    @property
    def nbytes(self) -> int:
        """The memory of codes, scales, zero points and table [bytes]."""
        return sum(a.nbytes for a in jax.tree.leaves(self))


def pack(w: QuantizedMatrix, layout: str | None = None) -> PackedMatrix:
    """Packs the codes of a matrix in the order of a layout.

    Args:
        w: made by `quantized_matrix`.
        layout: vnni (CPUs) or planes (GPUs); None: that of the default backend.

    Raises:
        ValueError: an unknown layout, or one that has no place for codes of so many bits.
    """
    if layout is None:
        layout = "planes" if jax.default_backend() == "gpu" else "vnni"
    if layout not in _HOMES:
        raise ValueError(f"pack(layout={layout!r}): layouts are {', '.join(_HOMES)}.")
    words = _home(layout).pack_codes(layout, w.codes, w.bits, w.group)
    return PackedMatrix(words, w.scale, w.zero, w.table, w.bits, layout, w.shape)


def unpack(w: PackedMatrix) -> QuantizedMatrix:
    """The matrix that `pack` was given."""
    codes = _home(w.layout).unpack_codes(w.layout, w.words, w.bits, w.group, w.shape)
    return QuantizedMatrix(codes, w.scale, w.zero, w.table, w.bits)


def _home(layout):
    return importlib.import_module(f".{_HOMES[layout]}", __package__)

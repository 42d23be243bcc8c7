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
import jax.numpy as jnp
import numpy as np

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
    if not isinstance(w, QuantizedMatrix):
        raise ValueError(f"pack got a {type(w).__name__}: make it by `quantized_matrix`.")
    words = _home(layout).pack_codes(layout, w.codes, w.bits, w.group)
    return PackedMatrix(words, w.scale, w.zero, w.table, w.bits, layout, w.shape)


def checked_packed(who: str, w: Any) -> PackedMatrix:
    """A packed matrix with scales, zero points and table in float32.

    What can be seen without the numbers is checked: a pytree may have been changed since `pack`.

    Raises:
        ValueError: in the name of `who`: no packed matrix, or parts that do not fit together.
    """
    if not isinstance(w, PackedMatrix):
        raise ValueError(f"{who} got a {type(w).__name__} for w: make it by `pack`.")
    k, n = w.shape
    floats = {"scale": w.scale, "zero": w.zero, "table": w.table}
    floats = {name: a for name, a in floats.items() if a is not None}
    for name, a in floats.items():
        if not jnp.issubdtype(a.dtype, jnp.floating):
            raise ValueError(f"{who}: {name} of w is {a.dtype}; it holds floats.")
    groups = w.scale.shape[0] if w.scale.ndim == 2 else 0
    fits = groups > 0 and w.scale.shape == (groups, n) and k % groups == 0
    if not fits or (w.zero is not None and w.zero.shape != w.scale.shape):
        raise ValueError(
            f"{who}: w of shape {w.shape} has scales of shape {w.scale.shape}"
            f"{'' if w.zero is None else f' and zero points of shape {w.zero.shape}'}; both are "
            "(groups, n), with k a multiple of the groups."
        )
    if w.table is not None and w.table.shape != (1 << w.bits,):
        raise ValueError(
            f"{who}: a table of shape {w.table.shape} for codes of {w.bits} bits; it has "
            f"{1 << w.bits} numbers."
        )
    found = tuple((a.shape, np.dtype(a.dtype)) for a in w.words)
    wanted = _words_of(w.layout, w.bits, w.group, w.shape)
    if found != wanted:
        raise ValueError(
            f"{who}: words of w are {_listed(found)}, but a matrix of shape {w.shape} in the "
            f"layout {w.layout} has {_listed(wanted)}: make it by `pack`."
        )
    return dataclasses.replace(w, **{name: a.astype(jnp.float32) for name, a in floats.items()})


def _listed(words):
    return " and ".join(f"{dtype} of shape {shape}" for shape, dtype in words)


@functools.cache
def _words_of(layout, bits, group, shape):
    """Shape and dtype of the words of a layout."""
    codes = jax.ShapeDtypeStruct(shape, jnp.uint8)
    words = jax.eval_shape(lambda c: _home(layout).pack_codes(layout, c, bits, group), codes)
    return tuple((a.shape, np.dtype(a.dtype)) for a in words)


def unpack(w: PackedMatrix) -> QuantizedMatrix:
    """The matrix that `pack` was given."""
    codes = _home(w.layout).unpack_codes(w.layout, w.words, w.bits, w.group, w.shape)
    return QuantizedMatrix(codes, w.scale, w.zero, w.table, w.bits)


def _home(layout):
    return importlib.import_module(f".{_HOMES[layout]}", __package__)

"""Quantized matrices as raw arrays: the one form that all layouts and kernels are made from.

The idea that belongs here: a matrix of weights W (k, n), y = x W, is codes, a scale for each group
of rows and column, and either a zero point or a table that says what a code stands for. A layout
(`layouts`) is the same codes in the order that a kernel reads them. What a code means as a number
format, and how codes are found, belongs to `quant`.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float32

BITS = (2, 3, 4, 8)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("codes", "scale", "zero", "table"),
    meta_fields=("bits",),
)
@dataclasses.dataclass(frozen=True)
class QuantizedMatrix:
    r"""Weights (k, n) as codes: $W_{kn} = (q_{kn} - z_{gn}) s_{gn}$, or $T[q_{kn}] s_{gn}$.

    Row k belongs to the group g = k // (k_total / groups). Made by `quantized_matrix`, which checks
    it. A pytree, also of what stands for its arrays in `vmap`, `grad` and their like.

    Attributes:
        codes: uint8 (k, n), one code a weight, 0 to 2**bits - 1.
        scale: float32 (groups, n); a single group is one scale a column.
        zero: float32 (groups, n), the code (not necessarily an integer) that stands for 0; None:
            2**(bits - 1), or a table.
        table: float32 (2**bits,), what each code stands for; None: the code itself.
        bits: of a code.
    """

    codes: Any
    scale: Any
    zero: Any = None
    table: Any = None
    bits: int = 4

    @property
    def shape(self) -> tuple[int, int]:
        """(k, n)."""
        k, n = self.codes.shape
        return k, n

    @property
    def group(self) -> int:
        """The number of rows that share a scale."""
        return self.codes.shape[0] // max(1, self.scale.shape[0])


def quantized_matrix(
    codes: ArrayLike,
    scale: ArrayLike,
    zero: ArrayLike | None = None,
    *,
    table: ArrayLike | None = None,
    bits: int = 4,
) -> QuantizedMatrix:
    """Checks the parts of a quantized matrix and puts them together.

    Values are checked where they are known: not under `jit`, where a code beyond the range or a
    NaN among the scales gives numbers without a meaning.

    Args:
        codes: (k, n) unsigned integers below 2**bits.
        scale: (groups, n), or (n,) for one scale a column; finite. k is a multiple of groups.
        zero: like scale: the code of 0, at most 2**16 in magnitude. None: 2**(bits - 1).
        table: (2**bits,), finite: what the codes stand for. It takes the place of a zero point.
        bits: 2, 3, 4 or 8; a table has at most 4.

    Raises:
        ValueError: says which part does not fit, and what would.

    >>> w = quantized_matrix(jnp.array([[0], [15]], jnp.uint8), jnp.array([0.5]))
    >>> dequantize(w).tolist()
    [[-4.0], [3.5]]
    """
    who = "quantized_matrix"
    if bits not in BITS:
        raise ValueError(f"{who}(bits={bits}): a code has {', '.join(map(str, BITS))} bits.")
    codes = _array(who, "codes", codes, np.unsignedinteger, "unsigned integers such as uint8")
    scale = _array(who, "scale", scale, np.floating, "floats")
    if codes.ndim != 2:
        raise ValueError(f"{who}: codes are of shape {codes.shape}; a matrix has two axes (k, n).")
    k, n = codes.shape
    if scale.ndim == 1:
        scale = scale[None]
    if scale.ndim != 2 or scale.shape[1] != n or scale.shape[0] < 1 or k % scale.shape[0]:
        raise ValueError(
            f"{who}: scale is of shape {scale.shape} for codes of shape {codes.shape}; it must be "
            f"(groups, {n}), and {k} rows a multiple of the groups."
        )
    _check_values(
        who, "codes", codes, lambda c: c < 1 << bits, f"{bits} bits end at {(1 << bits) - 1}"
    )
    _check_values(who, "scale", scale, np.isfinite, "scales are finite")
    if table is not None:
        table = _array(who, "table", table, np.floating, "floats")
        if zero is not None or bits > 4 or table.shape != (1 << bits,):
            raise ValueError(
                f"{who}(bits={bits}): a table of shape {table.shape}"
                f"{' and a zero point' if zero is not None else ''}; a table has one number a code "
                "of at most 4 bits, and goes without a zero point."
            )
        _check_values(who, "table", table, np.isfinite, "a code stands for a finite number")
        table = table.astype(jnp.float32)
    if zero is not None:
        zero = jnp.asarray(zero)
        zero = (zero[None] if zero.ndim == 1 else zero).astype(jnp.float32)
        if zero.shape != scale.shape:
            raise ValueError(f"{who}: zero is of shape {zero.shape}, but scale of {scale.shape}.")
        _check_values(who, "zero", zero, lambda z: abs(z) <= 1 << 16, "zero points are codes")
    return QuantizedMatrix(codes.astype(jnp.uint8), scale.astype(jnp.float32), zero, table, bits)


def check_finite(who: str, name: str, values: Array) -> None:
    """Raises ValueError, in the name of `who`, where a number is known not to be finite."""
    _check_values(who, name, values, np.isfinite, f"{name} is finite")


def check_above_0(who: str, name: str, values: Array) -> None:
    """Raises ValueError, in the name of `who`, where a number is known not to be above 0."""
    _check_values(
        who, name, values, lambda v: np.isfinite(v) & (v > 0), f"{name} is finite and above 0"
    )


def _array(who: str, name: str, value: ArrayLike, kind: type, wanted: str) -> Array:
    value = jnp.asarray(value)
    if not jnp.issubdtype(value.dtype, kind):
        raise ValueError(f"{who}: {name} is {value.dtype}, but holds {wanted}.")
    return value


def _check_values(who, name, values, allowed, rule):
    if isinstance(values, Tracer) or values.size == 0:
        return
    values = np.asarray(values)
    if jnp.issubdtype(values.dtype, jnp.floating):
        values = values.astype(np.float64)
    good = np.asarray(allowed(values))
    if not good.all():
        at = tuple(int(i) for i in np.argwhere(~good)[0])
        place = f"[{', '.join(map(str, at))}]" if at else ""
        raise ValueError(
            f"{who}: {name}{place} is {values[at]}, but {rule} "
            f"({np.count_nonzero(~good)} such of {values.size})."
        )


def zero_points(
    scale: Float32[Array, "groups n"], zero: Float32[Array, "groups n"] | None, bits: int
) -> Float32[Array, "groups n"]:
    """The zero point of each group, also where it is that of symmetric codes."""
    return jnp.full_like(scale, 1 << bits - 1) if zero is None else zero


def dequantize(w: QuantizedMatrix) -> Float32[Array, "k n"]:
    """The weights as numbers: one float32 rounding each (two with a zero that is no integer)."""
    if w.table is None:
        values = w.codes.astype(jnp.float32) - _over_rows(w, zero_points(w.scale, w.zero, w.bits))
    else:
        values = w.table[w.codes.astype(jnp.int32)]
    return values * _over_rows(w, w.scale)


def _over_rows(w, of_groups):
    return jnp.repeat(of_groups, w.group, axis=0, total_repeat_length=w.codes.shape[0])

r"""Matrices of weights to codes: scales and zero points of groups, nearest codes, searched clips.

The idea that belongs here: everything that becomes of a float matrix on its way to the canonical
`QuantizedMatrix` is decided within a group of rows and a column, so one pass over the group finds
scale, zero point and codes. This file has the reference in jax.numpy and the public function;
`quantize_pack_cpu` and `quantize_pack_gpu` have the kernels. Solvers that look at more than the
weights themselves, and formats by name, belong to `quant`; the order of codes to `layouts`.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.custom_batching import sequential_vmap
from jax.typing import ArrayLike
from jaxtyping import Array, Float32, UInt8, UInt32

from . import dispatch
from .largest import largest_magnitude
from .matrix import BITS, QuantizedMatrix
from .noise import block, checked_stream

CODES = 16  # of the longest table


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Method:
    """How codes are found; without arrays, so that it may stand among the arguments of kernels.

    Attributes:
        bits: of a code.
        groups: of rows, each with a scale a column.
        zeros: whether zero points are found, from the smallest and the largest number.
        table: what codes stand for, or None.
        clips: how many clips are tried.
        given: whether scales and zero points are given.
        stochastic: whether words decide where codes go.
    """

    bits: int
    groups: int
    zeros: bool
    table: tuple[float, ...] | None
    clips: int
    given: bool
    stochastic: bool

    @property
    def steps(self) -> float:
        """What is divided by this to give a scale."""
        if self.table is not None:
            return max(map(abs, self.table)) or 1.0
        return (1 << self.bits) - 1.0 if self.zeros else (1 << self.bits - 1) - 1.0

    @property
    def ratios(self) -> np.ndarray:
        """Of the clips that are tried to the largest magnitude: from 1 down to above 1/2."""
        return (1 - np.arange(self.clips) / (2 * self.clips)).astype(np.float32)

    def nearest(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The values of the table, ascending, their codes, and from where on each of them is taken.

        Of a value that comes twice the smaller code is taken; of two equally near values that with
        the even code. Filled up to `CODES` with places that begin at NaN: no number is beyond that.
        """
        values, codes = np.unique(np.array(self.table or (0.0,), np.float32), return_index=True)
        wide = values.astype(np.float64)
        middle = (wide[1:] + wide[:-1]) / 2
        start = middle.astype(np.float32)
        goes_down = (start < middle) | ((start == middle) & (codes[:-1] % 2 == 0))
        start = np.where(goes_down, np.nextafter(start, np.float32(np.inf)), start)
        more = CODES - len(values)
        return (
            np.pad(values, (0, more)),
            np.pad(codes, (0, more)).astype(np.int32),
            np.pad(np.append(np.float32(-np.inf), start), (0, more), constant_values=np.nan),
        )


def quantize_matrix(
    w: ArrayLike,
    bits: int = 4,
    *,
    group: int | None = None,
    zeros: bool = False,
    table: Sequence[float] | np.ndarray | None = None,
    clips: int = 1,
    scale: ArrayLike | None = None,
    zero: ArrayLike | None = None,
    key: UInt32[Array, "2"] | None = None,
    stream: UInt32[Array, ""] | int = 0,
) -> QuantizedMatrix:
    r"""Codes, scales and zero points of a matrix of weights.

    In each group of rows and column, with $c$ a clip ratio and codes cut off at both ends:

    - symmetric: $s = c \max|w| / (2^{b-1} - 1)$, $q = \mathrm{round}(w / s) + 2^{b-1}$;
    - with zero points: $s = c (hi - lo) / (2^b - 1)$ with $lo = \min(w, 0)$, $hi = \max(w, 0)$,
      $z = \mathrm{round}(-c\, lo / s)$, $q = \mathrm{round}(w / s) + z$;
    - with a table: $s = c \max|w| / \max|T|$, q the code of the value nearest to w / s;
    - with scales given: $q = \mathrm{round}(w / s + z - \lfloor z \rfloor) + \lfloor z \rfloor$.

    Ties go to the even number (to the even code of a table). s is 1 where it would be subnormal.
    Where the largest magnitude is not clipped, no weight is off by more than s / 2, up to rounding
    (and one end of the range by s, if a zero point is rounded away from it). Works under `jit`, and
    under `vmap` one matrix after the other; it has no derivative.

    Args:
        w: (k, n) in float32.
        bits: of a code, 2, 3, 4 or 8.
        group: how many rows share a scale, a divisor of k; None: all.
        zeros: whether groups have zero points.
        table: 2**bits finite numbers, known when the function is traced; at most 4 bits.
        clips: how many clip ratios are tried, $1 - i / (2\, clips)$; of them the one with the least
            squared error is taken, the largest of several. About 20 are enough.
        scale: (k / group, n), positive: the scales to use.
        zero: (k / group, n): the zero points that go with them; not with a table.
        key: two words: codes are rounded stochastically, as in `stochastic_codes`, with the word of
            a weight's place in w. The search for a clip rounds to the nearest. Not with a table.
        stream: of these words.

    Raises:
        ValueError: says which argument does not fit, and what would; also for a weight that is not
            finite. Under `jit` such weights cannot be seen: their scale is NaN.

    >>> q = quantize_matrix(jnp.array([[7.0], [-3.4]]), 4)
    >>> q.codes.tolist(), q.scale.tolist()
    ([[15], [5]], [[1.0]])
    """
    who, w = "quantize_matrix", jnp.asarray(w)
    if w.ndim != 2 or w.dtype != jnp.float32:
        raise ValueError(f"{who}: w is {w.dtype} of shape {w.shape}; weights are float32 (k, n).")
    if bits not in BITS or (table is not None and bits > 4):
        raise ValueError(
            f"{who}(bits={bits!r}): a code has {', '.join(map(str, BITS))} bits, with a table at "
            "most 4."
        )
    k, n = w.shape
    if group is not None and (not isinstance(group, int) or group < 1 or k % group):
        raise ValueError(
            f"{who}(group={group!r}): w has {k} rows, which must be a multiple of the group; None "
            "is one scale a column."
        )
    groups = 1 if group is None else max(1, k // group)
    if not isinstance(clips, int) or not 1 <= clips <= 1024 or (clips > 1 and scale is not None):
        raise ValueError(f"{who}(clips={clips!r}): from 1 to 1024 are tried, 1 with scales given.")
    if (table is not None and (zeros or zero is not None or key is not None)) or (
        zero is not None and scale is None
    ):
        raise ValueError(
            f"{who}: a table goes without zero points and without a key, and zero points that are "
            "given go with scales."
        )
    if not isinstance(w, Tracer) and not bool(jnp.isfinite(w).all()):
        raise ValueError(
            f"{who}: w has {int((~jnp.isfinite(w)).sum())} weights that are not finite."
        )
    keys = jnp.zeros((1, 3), jnp.uint32)
    if key is not None:
        if key.shape != (2,) or key.dtype != jnp.uint32:
            raise ValueError(f"{who}: key is {key.dtype} of shape {key.shape}; it is two words.")
        keys = jnp.append(key, checked_stream(who, stream, w.shape))[None]
    method = Method(
        bits,
        groups,
        zeros,
        _checked_table(who, table, bits),
        clips,
        scale is not None,
        key is not None,
    )
    middle = jnp.full((groups, n), 1 << bits - 1, jnp.float32)
    scales = middle if scale is None else _of_groups(who, "scale", scale, (groups, n))
    zeros_ = middle if zero is None else _of_groups(who, "zero", zero, (groups, n))
    codes, found, found_zero = _quantize(method)(w, scales, zeros_, keys)
    known = None if table is None else jnp.asarray(method.table, jnp.float32)
    with_zero = zero is not None or (zeros and scale is None)
    return QuantizedMatrix(codes, found, found_zero if with_zero else None, known, bits)


def _checked_table(who, table, bits):
    if table is None:
        return None
    if isinstance(table, Tracer):
        raise ValueError(f"{who}: table is traced; it must be known when the function is traced.")
    values = np.asarray(table, np.float32)
    if values.shape != (1 << bits,) or not np.isfinite(values).all() or not values.any():
        raise ValueError(
            f"{who}(bits={bits}): table is of shape {values.shape}; it has {1 << bits} finite "
            "numbers, not all of them 0."
        )
    return tuple(map(float, values))


def _of_groups(who, name, values, shape):
    values = jnp.asarray(values)
    if values.shape != shape or not jnp.issubdtype(values.dtype, jnp.floating):
        raise ValueError(
            f"{who}: {name} is {values.dtype} of shape {values.shape}; it must be floats {shape}."
        )
    values = values.astype(jnp.float32)
    if not isinstance(values, Tracer):
        good = (values > 0) & jnp.isfinite(values) if name == "scale" else abs(values) <= 1 << 16
        if not bool(good.all()):
            raise ValueError(
                f"{who}: {name} has {int((~good).sum())} values that are "
                f"{'not positive and finite' if name == 'scale' else 'no codes'}."
            )
    return values


@functools.cache
def _quantize(method: Method):
    @sequential_vmap
    def quantize(w, scale, zero, keys):
        if w.size == 0:
            return matrix_reference(method, w, scale, zero, keys)
        return dispatch.run(
            "quantize_pack", "matrix", matrix_reference, method, w, scale, zero, keys
        )  # fmt: skip

    return quantize


def matrix_reference(
    method: Method,
    w: Float32[Array, "k n"],
    scale: Float32[Array, "groups n"],
    zero: Float32[Array, "groups n"],
    keys: UInt32[Array, "1 3"],
) -> tuple[UInt8[Array, "k n"], Float32[Array, "groups n"], Float32[Array, "groups n"]]:
    """Codes, scales and zero points in jax.numpy; `scale` and `zero` are read where given."""
    k, n = w.shape
    parts = w.reshape(method.groups, k // method.groups, n)
    if not method.given:
        scale, zero = _search(method, parts)
    words = None
    if method.stochastic:
        place = jnp.arange(k * n, dtype=jnp.uint32).reshape(parts.shape)
        words = block(keys[0, 0], keys[0, 1], place, keys[0, 2])[0]
    codes, _ = _nearest(method, parts, scale, zero, words)
    return codes.astype(jnp.uint8).reshape(k, n), scale, zero


def _search(method, parts):
    """Scales and zero points of the clip with the least squared error."""
    magnitude = largest_magnitude(jnp.moveaxis(parts, 1, -1))
    low, high = jnp.min(parts, 1, initial=0), jnp.max(parts, 1, initial=0)

    def clipped(ratio):
        span = (high - low if method.zeros else magnitude) * ratio
        # the choices around divisors keep XLA from multiplying by reciprocals
        scale = span / jnp.where(span > 0, np.float32(method.steps), np.float32(jnp.inf))
        scale = jnp.where(scale >= np.finfo(np.float32).tiny, scale, np.float32(1))
        scale = jnp.where(jnp.isfinite(magnitude), scale, np.float32(jnp.nan))
        if not method.zeros:
            return scale, jnp.full_like(scale, 1 << method.bits - 1)
        zero = jnp.round(_quotient(-(low * ratio), scale))
        return scale, jnp.clip(zero, 0, (1 << method.bits) - 1)

    def better(best, ratio):
        scale, zero = clipped(ratio)
        _, values = _nearest(method, parts, scale, zero, None)
        error = jnp.square(parts - values).sum(1)
        new = error < best[2]
        found = (jnp.where(new, a, b) for a, b in zip((scale, zero, error), best, strict=True))
        return tuple(found), None

    first = clipped(np.float32(1))
    if method.clips == 1:
        return first
    start = (*first, jnp.full_like(first[0], jnp.inf))
    (scale, zero, _), _ = jax.lax.scan(better, start, jnp.asarray(method.ratios))
    return scale, zero


def _quotient(a, b):
    return a / jnp.where(a == 0, np.float32(1), b)


def _nearest(method, parts, scale, zero, words):
    """The codes of weights (groups, rows, n) for scales, and what these stand for."""
    units = _quotient(parts, scale[:, None])
    units = jnp.where(jnp.isnan(units), np.float32(0), units)
    if method.table is not None:
        values, codes, starts = map(jnp.asarray, method.nearest())
        place = (units[..., None] >= starts[1:]).sum(-1)
        return codes[place], values[place] * scale[:, None]
    whole = jnp.floor(zero)[:, None]
    units = units + (zero[:, None] - whole)
    if words is None:
        code = jnp.round(units)
    else:
        magnitude = jnp.minimum(jnp.abs(units), np.float32(1 << 17))
        below = jnp.floor(magnitude)
        remainder = ((magnitude - below) * np.float32(2.0**32)).astype(jnp.uint32)
        code = jnp.sign(units) * (below + (words > ~remainder).astype(jnp.float32))
    code = jnp.clip(code + whole, 0, (1 << method.bits) - 1)
    return code.astype(jnp.int32), (code - zero[:, None]) * scale[:, None]

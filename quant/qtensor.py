"""Arrays held as integer codes and scales: the type, how it is made, and how it is read.

What a code means is said by the format, which numbers share a scale by the granularity. How codes
are packed into words and multiplied fast belongs to `kernels`.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, Shaped, UInt

from .blocks import BlockFormat
from .formats import parse
from .granularity import Granularity
from .grid import Format, check_input
from .minifloat import narrow_finite, widen
from .scaled import Scale, decode_blocks, encode_blocks, find_scale, spread
from .selftest import require_exact_backend


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("codes", "scale"),
    meta_fields=("fmt", "granularity", "dtype"),
)
@dataclasses.dataclass(frozen=True)
class QTensor:
    """An array as codes of a format, with the scales that turn them into numbers.

    A pytree: it passes through `jit`, `vmap` (over axes that no scale is shared along) and
    checkpoints; format, granularity and dtype are static.

    Attributes:
        codes: one code an element, in the shape of the array, in the smallest unsigned integer.
        scale: one scale a block (`Scale`); None for a format with a unit of its own.
        fmt: the format.
        granularity: which elements share a scale.
        dtype: of the numbers, as a string.
    """

    codes: UInt[Array, "*dims"]
    scale: Scale | None
    fmt: Format
    granularity: Granularity
    dtype: str

    @classmethod
    def from_dense(
        cls,
        w: Float[Array, "*dims"],
        fmt: Format | str,
        granularity: str | Granularity | None = None,
        *,
        rounding: str = "nearest_even",
        overflow: str = "saturate",
        key: PRNGKeyArray | None = None,
        scale: str = "absmax",
    ) -> "QTensor":
        """Quantizes an array, as `encode` does, its granularity given by name.

        Args:
            w: numbers; a weight is (out, in), activations (token, feature).
            fmt: the format or its name.
            granularity: `tensor`, `channel`, `token`, `group<k>`, `block<r>x<c>` or a
                `Granularity`; None: that of `encode`.
            rounding: see `Format.encode`.
            overflow: see `Format.encode`.
            key: random key of stochastic rounding.
            scale: how scales are chosen, see `quantize`.

        Raises:
            ValueError: as `encode`.

        >>> QTensor.from_dense(jnp.ones((4, 64)), "int4", "group32").bits_per_weight
        5.0
        """
        w, fmt = jnp.asarray(w), parse(fmt)
        if isinstance(fmt, BlockFormat) and granularity in ("tensor", "channel"):
            raise ValueError(
                f"QTensor.from_dense({fmt.name}): granularity is {granularity!r}, but {fmt.name} "
                f"brings blocks of {fmt.block}: leave granularity out, or choose group<k> or "
                "block<r>x<c> for others."
            )
        if granularity is None:
            axis = block = None
        else:
            shared = Granularity.parse(granularity, w.ndim)
            axis = tuple(range(w.ndim)) if shared.axis is None else shared.axis
            block = shared.block
        return encode(
            w, fmt, rounding=rounding, overflow=overflow, key=key, axis=axis, block=block,
            scale=scale,
        )  # fmt: skip

    def dequantize(self) -> Float[Array, "*dims"]:
        """The numbers, in the dtype of the array that was encoded."""
        return decode(self)

    def __matmul__(self, other: Shaped[Array, "*dims"]) -> Shaped[Array, "..."]:
        """The product of the numbers with another array."""
        return self.dequantize() @ other

    def __rmatmul__(self, other: Shaped[Array, "*dims"]) -> Shaped[Array, "..."]:
        """The product of another array with the numbers."""
        return other @ self.dequantize()

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        return self.codes.shape

    @property
    def bits_per_weight(self) -> float:
        """Bits of the codes, packed, and of all scales and zero points, for each element."""
        bits = self.fmt.bits * self.codes.size
        if self.scale is not None:
            unit, zero, tensor, _ = self.scale
            bits += 8 * unit.dtype.itemsize * unit.size
            bits += 0 if zero is None else self.fmt.bits * zero.size
            bits += 0 if tensor is None else 8 * tensor.dtype.itemsize * tensor.size
        return bits / max(self.codes.size, 1)


def encode(
    x: Float[Array, "*dims"],
    fmt: Format | str,
    *,
    rounding: str = "nearest_even",
    overflow: str = "saturate",
    key: PRNGKeyArray | None = None,
    axis: int | tuple[int, ...] | None = None,
    block: int | tuple[int, ...] | None = None,
    scale: str = "absmax",
) -> QTensor:
    """Rounds x to a format and gives its codes and scales; the arguments are those of `quantize`.

    `decode(encode(x, ...))` is `quantize(x, ...)`, bit for bit, but that decoding to 16-bit floats
    saturates even after `overflow="spec"`. It has no derivative.

    >>> q = encode(jnp.array([1.0, -7.0]), "int4")
    >>> q.codes.tolist(), q.scale.unit.item()
    ([1, 9], 1.0)
    """
    fmt, x = parse(fmt), jnp.asarray(x)
    check_input("encode", x, fmt, rounding, overflow, key)
    shared = sharing("encode", fmt, x.shape, axis, block, scale)
    require_exact_backend()
    return _encode(x, fmt, shared, rounding, overflow, key, scale)


def decode(q: QTensor) -> Float[Array, "*dims"]:
    """The numbers of codes and scales, in the dtype of the array that was encoded."""
    return _decode(q)


def sharing(
    who: str,
    fmt: Format,
    shape: tuple[int, ...],
    axis: int | tuple[int, ...] | None,
    block: int | tuple[int, ...] | None,
    scale: str,
) -> Granularity | None:
    """Which numbers of an array share a scale; None where the format has its own unit.

    Raises:
        ValueError: for an axis or block that does not fit, or a choice of scale where there is
            none; names `who`, the format and the shape.
    """
    own = fmt.steps is None and not isinstance(fmt, BlockFormat)
    if own and axis is None and block is None:
        if scale != "absmax":
            raise ValueError(
                f"{who}({fmt.name}): scale is {scale!r}, but {fmt.name} has a unit of its own; "
                "name an axis along which numbers share a scale as well, or leave scale out."
            )
        return None
    try:
        if isinstance(fmt, BlockFormat):
            axis = -1 if axis is None else axis
            block = fmt.block if block is None else block
        found = Granularity(axis, block)
        found.blocks(shape)
    except ValueError as error:
        raise ValueError(f"{who}({fmt.name}): {error}") from None
    return found


@functools.partial(
    jax.jit, static_argnames=("fmt", "granularity", "rounding", "overflow", "method")
)
def _encode(
    x: Array,
    fmt: Format,
    granularity: Granularity | None,
    rounding: str,
    overflow: str,
    key: Array | None,
    method: str,
) -> QTensor:
    dtype, wide = str(x.dtype), widen(x)
    if granularity is None:
        codes = fmt._encode(wide, rounding, overflow, key).astype(fmt.code_dtype)
        return QTensor(codes, None, fmt, Granularity(), dtype)
    scale = find_scale(granularity.split(wide), fmt, method)
    each = spread(scale, granularity, x.shape)
    codes = encode_blocks(wide, fmt, each, rounding=rounding, overflow=overflow, key=key)
    codes = codes.astype(fmt.code_dtype)
    return QTensor(codes, scale._replace(divisor=None), fmt, granularity, dtype)


@jax.jit
def _decode(q: QTensor) -> Array:
    dtype = np.dtype(jnp.dtype(q.dtype))
    wide = jnp.float64 if dtype == jnp.float64 else jnp.float32
    codes = q.codes.astype(jnp.uint32) & jnp.uint32(2**q.fmt.bits - 1)
    if q.scale is None:
        return narrow_finite(q.fmt._decode(codes, wide), dtype)
    values = decode_blocks(codes, q.fmt, spread(q.scale, q.granularity, q.shape), wide)
    return narrow_finite(values, dtype)

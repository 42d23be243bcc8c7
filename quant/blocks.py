"""Formats whose numbers share scales in blocks: block floating point, OCP MX, NVFP4.

A block format is an element format, a block size, and how the scales are found. Here stand the
scales; arrays come in the layout of `granularity`, the numbers of a block along the last axis.
"""

import dataclasses
import re
from abc import abstractmethod

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, PRNGKeyArray, UInt

from ..kernels import largest_magnitude
from . import scaling
from .e8m0 import NAN, SCALE_MODES, scale_codes, times_power
from .grid import Format
from .integer import FixedPoint
from .minifloat import Minifloat

_E2M1, _E4M3 = Minifloat(2, 1, 1, "none"), Minifloat(4, 3, 7, "fn")
_MX: dict[str, Format] = {
    "mxfp8_e4m3": _E4M3,
    "mxfp8_e5m2": Minifloat(5, 2, 15),
    "mxfp6_e3m2": Minifloat(3, 2, 3, "none"),
    "mxfp6_e2m3": Minifloat(2, 3, 1, "none"),
    "mxfp4": _E2M1,
}
_NAME = re.compile(rf"(?:({'|'.join(_MX)})(?:_k(\d+))?|mxint8|bfp(\d+)_k(\d+))(?:_([a-z]+))?")


class BlockFormat(Format):
    """Numbers of an element format in units of a scale that each block of numbers shares.

    `max`, `values()`, `encode` and `decode` are those of the element, in units of the scale; they
    saturate, whatever the element does elsewhere. The format has NaN, by a scale that is NaN.

    Attributes:
        element: the format of a number divided by its scale.
        block: how many numbers share a scale.
    """

    element: Format
    block: int

    @property
    def max(self) -> float:
        """Largest value of the element."""
        return self.element.max

    @property
    def min(self) -> float:
        """Most negative value of the element."""
        return self.element.min

    @property
    def smallest(self) -> float:
        """Smallest magnitude of the element above zero."""
        return self.element.smallest

    @property
    def steps(self) -> float:
        """Largest value of the element: what the largest number of a block comes near to."""
        return self.element.max

    @property
    def has_nan(self) -> bool:
        """True."""
        return True

    @property
    def bits_per_element(self) -> float:
        """Bits of a number and of its part of the scale of its block."""
        return self.bits + 8 / self.block

    @abstractmethod
    def block_scales(
        self, x: Float[Array, "*blocks k"]
    ) -> tuple[UInt[Array, "*blocks"], Float[Array, ""] | None]:
        """Codes of the scales, uint8, and the scale of the whole array, float32, if it has one."""

    @abstractmethod
    def to_units(
        self,
        x: Float[Array, "*dims"],
        codes: UInt[Array, "*#dims"],
        tensor_scale: Float[Array, ""] | None = None,
    ) -> Float[Array, "*dims"]:
        """The numbers in units of their scale; small ones do not become 0, so `up` can see them."""

    @abstractmethod
    def from_units(
        self,
        values: Float[Array, "*dims"],
        codes: UInt[Array, "*#dims"],
        tensor_scale: Float[Array, ""] | None = None,
    ) -> Float[Array, "*dims"]:
        """Numbers from values of the element; NaN where the scale is."""

    def _encode(
        self, x: Float[Array, "*dims"], rounding: str, overflow: str, key: PRNGKeyArray | None
    ) -> UInt[Array, "*dims"]:
        return self.element._encode(x, rounding, "saturate", key)

    def _round(
        self, x: Float[Array, "*dims"], rounding: str, overflow: str, key: PRNGKeyArray | None
    ) -> Float[Array, "*dims"]:
        return self.element._round(x, rounding, "saturate", key)

    def _decode(self, codes: UInt[Array, "*dims"], dtype: DTypeLike) -> Float[Array, "*dims"]:
        return self.element._decode(codes, dtype)


@dataclasses.dataclass(frozen=True)
class SharedExponent(BlockFormat):
    r"""Blocks whose scale is a power of two, held as `e8m0fnu`: block floating point and OCP MX.

    The scale is that of `scale_codes`; a block with NaN or Inf gets the scale NaN. Products and
    quotients with it are exact, down to the subnormal numbers of float32.

    Block floating point of m bits, `bfp`, has as its element the integers q of m bits without the
    most negative one, in steps of 2^-(m-2): with the exponent e of the largest number of the block,
    values $q\,2^{e - (m - 2)}$. MXINT8 is that for m = 8 and blocks of 32.

    Args:
        element: one of those of OCP MX (e4m3fn, e5m2, e3m2fn, e2m3fn, e2m1fn), or that of `bfp`.
        block: numbers that share a scale.
        mode: how the scale is chosen, one of `SCALE_MODES`.

    Raises:
        ValueError: for another element, block or mode.

    References:
        OCP Microscaling Formats (MX) Specification, version 1.0; Microscaling data formats for
        deep learning, arXiv:2310.10537.

    >>> SharedExponent(Minifloat(2, 1, 1, "none")).name, bfp(6, 16).name
    ('mxfp4', 'bfp6_k16')
    """

    element: Format
    block: int = 32
    mode: str = "floor"
    bits: int = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        who = f"SharedExponent({self.element}, {self.block}, {self.mode!r})"
        if self.element not in _MX.values() and self._integer_bits is None:
            known = ", ".join(e.name for e in _MX.values())
            raise ValueError(
                f"{who}: the element must be one of {known}, or that of bfp(bits, block)."
            )
        if self.block < 1:
            raise ValueError(f"{who}: a block holds at least one number.")
        if self.mode not in SCALE_MODES:
            raise ValueError(f"{who}: mode must be one of {', '.join(SCALE_MODES)}.")
        object.__setattr__(self, "bits", self.element.bits)

    @property
    def _integer_bits(self) -> int | None:
        """M, if the element is that of `bfp`."""
        e = self.element
        return e.bits if 1 < e.bits <= 16 and e == FixedPoint(e.bits, e.bits - 2, True) else None

    @property
    def name(self) -> str:
        """The name in OCP MX or `bfp<m>`, `_k<block>`, and `_<mode>` unless it is `floor`."""
        m, block = self._integer_bits, f"_k{self.block}"
        if m is None:
            name = next(n for n, e in _MX.items() if e == self.element)
            name += "" if self.block == 32 else block
        else:
            name = "mxint8" if (m, self.block) == (8, 32) else f"bfp{m}{block}"
        return name + ("" if self.mode == "floor" else f"_{self.mode}")

    def block_scales(self, x: Float[Array, "*blocks k"]) -> tuple[UInt[Array, "*blocks"], None]:
        """Codes of `e8m0fnu`; the array has no further scale."""
        e = self.element
        m = e.mantissa_bits if isinstance(e, Minifloat) else e.bits - 2
        codes = scale_codes(largest_magnitude(x), self.mode, largest=e.max, mantissa_bits=m)
        return codes, None

    def to_units(
        self,
        x: Float[Array, "*dims"],
        codes: UInt[Array, "*#dims"],
        tensor_scale: Float[Array, ""] | None = None,
    ) -> Float[Array, "*dims"]:
        """The numbers x 2^-c, exactly, or rounded to odd among subnormals."""
        return times_power(x, 127 - codes.astype(jnp.int32))

    def from_units(
        self,
        values: Float[Array, "*dims"],
        codes: UInt[Array, "*#dims"],
        tensor_scale: Float[Array, ""] | None = None,
    ) -> Float[Array, "*dims"]:
        """The numbers v 2^c, exactly, but that 2^128 becomes the largest float32."""
        code = codes.astype(jnp.int32)
        return jnp.where(
            code == NAN, jnp.array(jnp.nan, values.dtype), times_power(values, code - 127)
        )


def bfp(bits: int, block: int, mode: str = "floor") -> SharedExponent:
    """Block floating point of `bits` bits a number, 2 to 16, see `SharedExponent`."""
    if not 2 <= bits <= 16:
        raise ValueError(f"bfp({bits}, {block}): bits must be from 2 to 16.")
    return SharedExponent(FixedPoint(bits, bits - 2, symmetric=True), block, mode)


@dataclasses.dataclass(frozen=True)
class NVFP4(BlockFormat):
    r"""Numbers in e2m1fn; a scale in e4m3fn for each 16; one float32 scale for the array.

    In float32, with amax of the array and $amax_b$ of a block,

    $t = amax / (448 \cdot 6)$, $\quad s_b = e4m3(clip(amax_b / 6 / t, 2^{-6}, 448))$,
    $\quad q = e2m1(x \cdot ((1 / t) / s_b))$, and the number read back is $q (s_b t)$.

    Infinities do not count in amax, and saturate; a block with a NaN gets the scale NaN, and reads
    as NaN. Subnormal numbers count as 0, and so does all of an array with amax below 2^-107, whose
    scales would be subnormal (t is 1 then).

    References:
        Pretraining large language models with NVFP4, arXiv:2509.25149.

    >>> NVFP4().bits_per_element
    4.5
    """

    element: Format = dataclasses.field(default=_E2M1, init=False, repr=False, compare=False)
    block: int = dataclasses.field(default=16, init=False, repr=False, compare=False)
    bits: int = dataclasses.field(default=4, init=False, repr=False, compare=False)

    @property
    def name(self) -> str:
        """`nvfp4`."""
        return "nvfp4"

    def inside(self, x: Float[Array, "*dims"]) -> Bool[Array, "*dims"]:
        """Where x is finite: only by the rounding of its scale is it beyond 6 (up to 6.4)."""
        return jnp.isfinite(x)

    def block_scales(
        self, x: Float[Array, "*blocks k"]
    ) -> tuple[UInt[Array, "*blocks"], Float[Array, ""]]:
        """Codes of e4m3fn, and t."""
        largest = jnp.array(jnp.finfo(jnp.float32).max, x.dtype)
        amax = jnp.minimum(scaling.absmax(x), largest).astype(jnp.float32)
        t = scaling.absmax_scale(amax, _E4M3.max * _E2M1.max)
        # from here on the smallest number read back, 2^-6 t / 2, is a normal one
        t = jnp.where(t >= 2.0**-119, t, jnp.ones_like(t))
        peak = largest_magnitude(x)
        # choices instead of constants keep XLA from merging the two quotients
        tiny = jnp.finfo(x.dtype).tiny
        sixth = peak / jnp.where(peak > 0, jnp.array(_E2M1.max, x.dtype), jnp.inf)
        sixth = jnp.where(sixth < tiny, jnp.zeros_like(sixth), sixth)
        s = jnp.clip(scaling.to_units(sixth, t.astype(x.dtype)), 2.0**-6, _E4M3.max)
        codes = _E4M3._encode(s, "nearest_even", "saturate", None)
        codes = jnp.where(jnp.isnan(peak), jnp.uint32(_E4M3._nan), codes)
        return codes.astype(jnp.uint8), t

    def to_units(
        self,
        x: Float[Array, "*dims"],
        codes: UInt[Array, "*#dims"],
        tensor_scale: Float[Array, ""] | None = None,
    ) -> Float[Array, "*dims"]:
        """The numbers x ((1 / t) / s_b)."""
        s, t = self._scales(codes, tensor_scale, x.dtype)
        inverse = jnp.where(t > 0, 1 / t, jnp.ones_like(t))
        x = jnp.where(jnp.abs(x) < jnp.finfo(x.dtype).tiny, jnp.zeros_like(x), x)
        y = x * (inverse / s)
        least = jnp.copysign(jnp.array(2.0**-100, x.dtype), x)
        return jnp.where((x != 0) & (jnp.abs(y) < 2.0**-100), least, y)

    def from_units(
        self,
        values: Float[Array, "*dims"],
        codes: UInt[Array, "*#dims"],
        tensor_scale: Float[Array, ""] | None = None,
    ) -> Float[Array, "*dims"]:
        """The numbers q (s_b t)."""
        s, t = self._scales(codes, tensor_scale, values.dtype)
        unit = s * t
        return jnp.where(jnp.isnan(unit), unit, scaling.in_units(values, unit))

    @staticmethod
    def _scales(codes: Array, tensor_scale: Array | None, dtype: DTypeLike) -> tuple[Array, Array]:
        if tensor_scale is None:
            raise ValueError("nvfp4 reads its numbers with the scale of the array; got None.")
        return _E4M3._decode(codes.astype(jnp.uint32), dtype), tensor_scale.astype(dtype)


def from_name(name: str) -> BlockFormat | None:
    """The format that a name of this file means; None for any other name.

    `nvfp4`; `mxfp8_e4m3`, `mxfp8_e5m2`, `mxfp6_e3m2`, `mxfp6_e2m3`, `mxfp4`, each `[_k<block>]`;
    `mxint8`; `bfp<m>_k<block>`. All but the first take `_ceil`, `_even` or `_rceil`, the mode.
    """
    if name == "nvfp4":
        return NVFP4()
    found = _NAME.fullmatch(name)
    if not found:
        return None
    element, mx_block, bits, block, mode = found.groups()
    if element:
        return SharedExponent(_MX[element], int(mx_block or 32), mode or "floor")
    return bfp(int(bits or 8), int(block or 32), mode or "floor")

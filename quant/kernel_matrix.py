"""From an array in a format to what kernels multiply with: codes, scales, a zero point or a table.

Formats are known here and not in `kernels`; there a code is a number or a place in a table.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ..kernels import QuantizedMatrix, quantized_matrix
from .integer import AsymmetricInteger, Integer
from .qtensor import QTensor
from .scaled import unit_sizes

_WIDTHS = (2, 3, 4, 8)  # of the codes of kernels
_MOST = 4  # bits of a code with a table


def kernel_matrix(q: QTensor) -> QuantizedMatrix:
    """A weight (out, in) as the quantized matrix (in, out) of `kernels`, ready to be packed.

    `kernels.dequantize` of it is `q.dequantize().T` in float32, but for one rounding of the scale
    where a format has two. Integers of up to 8 bits stay integers; other formats of up to 4 bits
    become a table.

    Args:
        q: of two axes; each row of the weight has scales of its own or shares them, along the
            inputs in groups or altogether.

    Raises:
        ValueError: an array of other than two axes, or a format that kernels have no codes for.

    >>> w = jnp.array([[1.0, -7.0, 3.0, 0.0]])
    >>> kernel_matrix(QTensor.from_dense(w, "int4", "channel")).codes.T.tolist()
    [[9, 1, 11, 8]]
    """
    who = f"kernel_matrix({q.fmt.name})"
    if q.codes.ndim != 2:
        raise ValueError(f"{who}: codes of shape {q.shape}; a weight has two axes (out, in).")
    scale, zero = _scale(q)
    codes, table, bits = _codes(who, q)
    return quantized_matrix(codes.T, scale, zero, table=table, bits=bits)


def _scale(q: QTensor) -> tuple[Array, Array | None]:
    """Scale and zero point (groups, out)."""
    outputs = q.shape[0]
    if q.scale is None:
        return jnp.ones((1, outputs), jnp.float32), None
    shape = q.granularity.scale_shape(q.shape)

    def by_output(a: Array) -> Array:
        a = a.astype(jnp.float32).reshape(shape)
        return jnp.repeat(a, outputs // max(shape[0], 1), axis=0, total_repeat_length=outputs).T

    zero = q.scale.zero
    return by_output(unit_sizes(q.scale, q.fmt)), None if zero is None else by_output(zero)


def _codes(who: str, q: QTensor) -> tuple[Array, Array | None, int]:
    """Codes (out, in) as kernels count them, the table if it takes one, and their width."""
    fmt = q.fmt
    width = next((w for w in _WIDTHS if w >= fmt.bits), None)
    if isinstance(fmt, Integer | AsymmetricInteger) and width is not None:
        if isinstance(fmt, AsymmetricInteger):
            return q.codes, None, width
        sign = np.int32(1 << fmt.bits - 1)  # two's complement, from the middle of the codes on
        numbers = (q.codes.astype(jnp.int32) ^ sign) - sign + np.int32(1 << width - 1)
        return numbers.astype(jnp.uint8), None, width
    if fmt.bits > _MOST or width is None:
        raise ValueError(
            f"{who}: kernels have integers of up to 8 bits and tables of up to {_MOST}; "
            "multiply with q.dequantize()."
        )
    table = fmt._decode(jnp.arange(1 << fmt.bits, dtype=jnp.uint32), jnp.float32)
    room = jnp.zeros((1 << width) - len(table), jnp.float32)
    # the code of NaN never comes from finite weights, and kernels have none
    return q.codes, jnp.concatenate([jnp.nan_to_num(table), room]), width

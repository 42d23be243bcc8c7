"""Inputs of 8-bit floats x low-bit weights on a GPU: which of two kernels, and with what table.

Whole codes of 4 bits take the kernel of `integer_gpu`, by a table of what they are in e4m3; all
others take that of `low_bit_gpu`, since e4m3 is exact in bfloat16. Imported only where Triton is.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float8e4m3fn, Float32

from . import integer_gpu, low_bit_gpu, triton_bridge
from .float8 import matmul_reference
from .layouts import PackedMatrix
from .layouts_gpu import planes


def matmul(
    x_codes: Float8e4m3fn[Array, "rows k"], x_scale: Float32[Array, "rows 1"], w: PackedMatrix
) -> Float32[Array, "rows n"]:
    """Computes x_scale * (x_codes @ dequantize(w))."""
    if w.layout != "planes" or not x_codes.size or not w.shape[1]:
        return matmul_reference(x_codes, x_scale, w)
    whole = w.bits == 4 and w.table is None and planes(w.shape[0], 4, w.group).rows == 32
    if whole and triton_bridge.capability() >= 89:
        return integer_gpu.product(x_codes, x_scale, w, w.scale, table())
    x = x_codes.astype(jnp.bfloat16)
    return low_bit_gpu.product(x, w, jnp.dtype(jnp.float32)) * x_scale


def table() -> Array:
    """The bits of -8 to 7 in e4m3, as int8."""
    numbers = jnp.asarray(np.arange(-8, 8), jnp.float8_e4m3fn)
    return jax.lax.bitcast_convert_type(numbers, jnp.int8)

"""Inputs of 8-bit floats x low-bit weights on a CPU: the product of `low_bit_cpu`.

CPUs have no arithmetic for 8-bit floats, and as float32 they are exact.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float8e4m3fn, Float32

from . import low_bit_cpu
from .layouts import PackedMatrix


def matmul(
    x_codes: Float8e4m3fn[Array, "rows k"], x_scale: Float32[Array, "rows 1"], w: PackedMatrix
) -> Float32[Array, "rows n"]:
    """Computes x_scale * (x_codes @ dequantize(w))."""
    return low_bit_cpu.matmul(x_codes.astype(jnp.float32), w) * x_scale

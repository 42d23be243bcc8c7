"""The product of `low_bit` on a CPU."""

from .low_bit import matmul_reference as matmul

__all__ = ["matmul"]

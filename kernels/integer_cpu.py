"""The product of `integer` on a CPU."""

from .integer import matmul_reference as matmul

__all__ = ["matmul"]

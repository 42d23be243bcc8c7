"""Plasticity of sparse connections on a GPU: the reference, for lack of a kernel."""

from .sparse_stdp import update_reference as update

__all__ = ["update"]

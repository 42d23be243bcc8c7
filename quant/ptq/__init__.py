"""Quantizing trained models: what a grid is, how weights are rounded to it, and what it costs."""

from .gptq import Rounded, gptq
from .grid import Grid
from .layer import proxy_loss, round_to_nearest

__all__ = ["Grid", "Rounded", "gptq", "proxy_loss", "round_to_nearest"]

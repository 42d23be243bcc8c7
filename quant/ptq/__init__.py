"""Quantizing trained models: what a grid is, how weights are rounded to it, and what it costs."""

from .gptq import Rounded, gptq
from .grid import Grid
from .layer import proxy_loss, round_to_nearest
from .pipeline import LayerReport, Quantized, Recipe, quantize_model
from .statistics import Statistics

__all__ = [
    "Grid", "LayerReport", "Quantized", "Recipe", "Rounded", "Statistics", "gptq", "proxy_loss",
    "quantize_model", "round_to_nearest",
]  # fmt: skip

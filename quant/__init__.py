"""What a number can be: formats, rounding, and weights that live in a format."""

from .. import __version__ as __version__
from .formats import known_formats, parse
from .granularity import Granularity
from .grid import Format
from .integer import AsymmetricInteger, FixedPoint, Integer
from .memory import (
    StoredWeights,
    WeightMemory,
    bits_per_weight,
    float32,
    losses,
    number_format,
)
from .minifloat import Minifloat
from .qtensor import QTensor, decode, encode
from .quantize import quantize, straight_through
from .rounding import ROUNDINGS, rounds_up

__all__ = [
    "ROUNDINGS",
    "AsymmetricInteger",
    "FixedPoint",
    "Format",
    "Granularity",
    "Integer",
    "Minifloat",
    "QTensor",
    "StoredWeights",
    "WeightMemory",
    "bits_per_weight",
    "decode",
    "encode",
    "float32",
    "known_formats",
    "losses",
    "number_format",
    "parse",
    "quantize",
    "rounds_up",
    "straight_through",
]

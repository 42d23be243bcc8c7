"""What a number can be: formats, rounding, and weights that live in a format."""

from .. import __version__ as __version__
from . import training
from .few import Binary, Ternary
from .formats import known_formats, parse
from .gradients import lsq, lsq_init, rounding_pair, straight_through
from .granularity import Granularity
from .grid import Format
from .integer import AsymmetricInteger, FixedPoint, Integer
from .kernel_matrix import kernel_matrix
from .logarithmic import Logarithmic
from .memory import (
    StoredWeights,
    WeightMemory,
    bits_per_weight,
    float32,
    losses,
    number_format,
)
from .minifloat import Minifloat
from .posit import Posit
from .qtensor import QTensor, decode, encode
from .quantize import quantize
from .rounding import ROUNDINGS, rounds_up
from .state_formats import state_formats, state_losses, trace_storage
from .storage import Storage, storage
from .tables import NF4, LookUp

__all__ = [
    "NF4",
    "ROUNDINGS",
    "AsymmetricInteger",
    "Binary",
    "FixedPoint",
    "Format",
    "Granularity",
    "Integer",
    "Logarithmic",
    "LookUp",
    "Minifloat",
    "Posit",
    "QTensor",
    "Storage",
    "StoredWeights",
    "Ternary",
    "WeightMemory",
    "bits_per_weight",
    "decode",
    "encode",
    "float32",
    "kernel_matrix",
    "known_formats",
    "losses",
    "lsq",
    "lsq_init",
    "number_format",
    "parse",
    "quantize",
    "rounding_pair",
    "rounds_up",
    "state_formats",
    "state_losses",
    "storage",
    "straight_through",
    "trace_storage",
    "training",
]

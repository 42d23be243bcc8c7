"""Low-bit and spike arithmetic, computed fast: raw arrays in, raw arrays out."""

from .. import __version__ as __version__
from .explain import Explanation, explain
from .largest import largest_magnitude
from .layouts import PackedMatrix, pack, unpack
from .matrix import QuantizedMatrix, dequantize, quantized_matrix
from .memory import keep_memory
from .noise import random_words
from .spike_bits import SpikeBits, pack_spikes, unpack_spikes
from .spikes import spike_matmul
from .spikes_low_bit import spike_matmul_low_bit
from .stdp_events import stdp_events

__all__ = [
    "Explanation", "PackedMatrix", "QuantizedMatrix", "SpikeBits", "dequantize", "explain",
    "keep_memory", "largest_magnitude", "pack", "pack_spikes", "quantized_matrix", "random_words",
    "spike_matmul", "spike_matmul_low_bit", "stdp_events", "unpack", "unpack_spikes",
]  # fmt: skip

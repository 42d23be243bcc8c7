"""Low-bit and spike arithmetic, computed fast: raw arrays in, raw arrays out.

Every operation has a reference in jax.numpy, kernels for CPUs (numba) and GPUs (Triton), and one
function that chooses between them (`explain` says how).
"""

from .. import __version__ as __version__
from .explain import Explanation, explain
from .float8 import float8_matmul
from .hadamard import (
    hadamard,
    hadamard_matrix,
    hadamard_quantize,
    rotate_blocks,
    rotate_quantize,
)
from .integer import integer_matmul, two_level_scales
from .largest import largest_magnitude
from .layouts import PackedMatrix, pack, unpack
from .low_bit import low_bit_matmul
from .matrix import QuantizedMatrix, dequantize, quantized_matrix
from .memory import keep_memory
from .noise import random_words
from .quantize_pack import quantize_matrix
from .quantize_rows import QuantizedRows, quantize_rows
from .softmax import best_clip, linear_clip, low_bit_softmax
from .sparse import Csr, csr, csr_from_dense, csr_from_pairs, transposed
from .sparse24 import (
    Compressed24,
    Packed24,
    compress24,
    expand24,
    fits24,
    pack24,
    sparse24_matmul,
    unpack24,
)
from .sparse_stdp import StdpSettings, sparse_stdp
from .spike_bits import SpikeBits, pack_spikes, unpack_spikes
from .spikes import spike_matmul
from .spikes_delayed import deliver
from .spikes_low_bit import spike_matmul_low_bit
from .spikes_sparse import spike_matmul_sparse
from .stdp_events import stdp_events
from .stochastic import SmallFloat, stochastic_codes, stochastic_round

__all__ = [
    "Compressed24", "Csr", "Explanation", "Packed24", "PackedMatrix", "QuantizedMatrix",
    "QuantizedRows", "SmallFloat", "SpikeBits", "StdpSettings", "best_clip", "compress24", "csr",
    "csr_from_dense", "csr_from_pairs", "deliver", "dequantize", "expand24", "explain", "fits24",
    "float8_matmul", "hadamard", "hadamard_matrix", "hadamard_quantize", "integer_matmul",
    "keep_memory", "largest_magnitude", "linear_clip", "low_bit_matmul", "low_bit_softmax", "pack",
    "pack24", "pack_spikes", "quantize_matrix", "quantize_rows", "quantized_matrix", "random_words",
    "rotate_blocks", "rotate_quantize", "sparse24_matmul", "sparse_stdp", "spike_matmul",
    "spike_matmul_low_bit", "spike_matmul_sparse", "stdp_events", "stochastic_codes",
    "stochastic_round", "transposed", "two_level_scales", "unpack", "unpack24", "unpack_spikes",
]  # fmt: skip

"""Low-bit and spike arithmetic, computed fast: raw arrays in, raw arrays out."""

from .. import __version__ as __version__
from .largest import largest_magnitude
from .memory import keep_memory
from .noise import random_words
from .spikes import spike_matmul
from .stdp_events import stdp_events

__all__ = ["keep_memory", "largest_magnitude", "random_words", "spike_matmul", "stdp_events"]

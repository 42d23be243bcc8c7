"""Spiking and recurrent networks that learn online on imperfect weights, and low-bit numerics.

The four floors are `spikebit.kernels`, `spikebit.quant`, `spikebit.learning_rules` and
`spikebit.simulator`; imports run downwards only. This file holds the version and nothing else.
"""

__version__ = "0.1.0"

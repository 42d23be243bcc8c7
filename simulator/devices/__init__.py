"""Memristive devices: models of cells, how cells make weights, the memory of a training."""

from .cells import Pair, Single
from .device import Device
from .memory import DeviceWeights, at, memristive
from .pcm import PCMParameters, expected_read, pcm
from .presets import DEVICES, by_name
from .pulse_numbers import coincidences, update_by_trains
from .pulsed import Variation, pulsed
from .set_pulses import SetPCMParameters, set_pcm
from .tiki_taka import tiki_taka

__all__ = [
    "DEVICES",
    "Device",
    "DeviceWeights",
    "PCMParameters",
    "Pair",
    "SetPCMParameters",
    "Single",
    "Variation",
    "at",
    "by_name",
    "coincidences",
    "expected_read",
    "memristive",
    "pcm",
    "pulsed",
    "set_pcm",
    "tiki_taka",
    "update_by_trains",
]

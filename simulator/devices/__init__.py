"""Memristive devices: models of cells, how cells make weights, the memory of a training."""

from .cells import Many, Pair, Single
from .curves import from_csv
from .device import Device
from .faults import stuck_share, with_stuck_cells
from .hardware_aware import hardware_aware
from .leak import with_leak
from .memory import DeviceWeights, at, memristive
from .pcm import PCMParameters, expected_read, pcm
from .presets import DEVICES, by_name
from .pulse_numbers import coincidences, update_by_trains
from .pulsed import Variation, pulsed
from .reference_column import ReferenceColumn
from .reram import reram_cmo, reram_milo, reram_wan
from .set_pulses import SetPCMParameters, set_pcm
from .slices import Sliced
from .tiki_taka import tiki_taka

__all__ = [
    "DEVICES",
    "Device",
    "DeviceWeights",
    "Many",
    "PCMParameters",
    "Pair",
    "ReferenceColumn",
    "SetPCMParameters",
    "Single",
    "Sliced",
    "Variation",
    "at",
    "by_name",
    "coincidences",
    "expected_read",
    "from_csv",
    "hardware_aware",
    "memristive",
    "pcm",
    "pulsed",
    "reram_cmo",
    "reram_milo",
    "reram_wan",
    "set_pcm",
    "stuck_share",
    "tiki_taka",
    "update_by_trains",
    "with_leak",
    "with_stuck_cells",
]

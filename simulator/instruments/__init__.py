"""Instruments: arrays of cells behind calls, simulated, recorded, replayed, or on a real bench."""

from .instrument import Capabilities, Instrument, InstrumentLost
from .simulated import SimulatedArray

__all__ = ["Capabilities", "Instrument", "InstrumentLost", "SimulatedArray"]

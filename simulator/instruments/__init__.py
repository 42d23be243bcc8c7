"""Instruments: arrays of cells behind calls, simulated, recorded, replayed, or on a real bench."""

from .in_the_loop import on_instruments
from .instrument import Capabilities, Instrument, InstrumentLost
from .record import Recorder, record
from .replay import Replay, ReplayError, replay
from .server import serve, serving
from .simulated import SimulatedArray
from .visa import VisaInstrument, visa

__all__ = [
    "Capabilities",
    "Instrument",
    "InstrumentLost",
    "Recorder",
    "Replay",
    "ReplayError",
    "SimulatedArray",
    "VisaInstrument",
    "on_instruments",
    "record",
    "replay",
    "serve",
    "serving",
    "visa",
]

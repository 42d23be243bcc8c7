"""What is simulated: cells, networks, encoders, data, experiments, the command line."""

from .. import __version__ as __version__
from . import surrogate
from .build import build
from .data import Dataset, Split, load
from .delay_learning import LearnedDelays, delay_updates, sigma_schedule
from .delays import DelayedDense, DelayLine
from .encoding import delta, direct, latency, poisson
from .experiment import Experiment
from .launch import resume, run
from .lif import ALIFCell, LIFCell, SynapticLIFCell
from .network import Network, Recording, simulate
from .readout import LeakyReadout
from .snu import SNUCell, SoftSNUCell
from .train import train

__all__ = [
    "ALIFCell",
    "Dataset",
    "DelayLine",
    "DelayedDense",
    "Experiment",
    "LIFCell",
    "LeakyReadout",
    "LearnedDelays",
    "Network",
    "Recording",
    "SNUCell",
    "SoftSNUCell",
    "Split",
    "SynapticLIFCell",
    "build",
    "delay_updates",
    "delta",
    "direct",
    "latency",
    "load",
    "poisson",
    "resume",
    "run",
    "sigma_schedule",
    "simulate",
    "surrogate",
    "train",
]

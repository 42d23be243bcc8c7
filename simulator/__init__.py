"""What is simulated: cells, networks, encoders, data, experiments, the command line."""

from .. import __version__ as __version__

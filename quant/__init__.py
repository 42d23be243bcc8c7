"""What a number can be: formats, rounding, and weights that live in a format."""

from .. import __version__ as __version__

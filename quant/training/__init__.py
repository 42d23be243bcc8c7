"""Training in number formats: optimizers, memories and what theory says about them."""

from . import bounds

__all__ = ["bounds"]

"""Spikes that arrive later, on a GPU: the references, for lack of kernels."""

from .spikes_delayed import deliver_reference as deliver
from .spikes_delayed import input_gradient_reference as input_gradient
from .spikes_delayed import weight_gradient_reference as weight_gradient

__all__ = ["deliver", "input_gradient", "weight_gradient"]

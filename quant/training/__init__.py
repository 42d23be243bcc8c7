"""Training in number formats: optimizers, memories and what theory says about them."""

from . import bounds
from .accumulators import accumulate, matmul
from .activations import Activation
from .loss_scale import loss_scale, loss_scaling
from .memories import compensated, master_copy
from .optimizers import low_precision, quantize_gradients, quantize_state

__all__ = [
    "Activation",
    "accumulate",
    "bounds",
    "compensated",
    "loss_scale",
    "loss_scaling",
    "low_precision",
    "master_copy",
    "matmul",
    "quantize_gradients",
    "quantize_state",
]

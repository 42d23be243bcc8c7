"""Training in number formats: optimizers, memories and what theory says about them."""

from . import bounds, lognormal
from .accumulators import accumulate, matmul
from .activations import Activation
from .loss_scale import loss_scale, loss_scaling
from .luq import LUQ, fine_tuning_schedule, in_hindsight, luq_product
from .memories import compensated, master_copy
from .optimizers import low_precision, quantize_gradients, quantize_state
from .products import quantize_products, with_noise

__all__ = [
    "LUQ",
    "Activation",
    "accumulate",
    "bounds",
    "compensated",
    "fine_tuning_schedule",
    "in_hindsight",
    "lognormal",
    "loss_scale",
    "loss_scaling",
    "low_precision",
    "luq_product",
    "master_copy",
    "matmul",
    "quantize_gradients",
    "quantize_products",
    "quantize_state",
    "with_noise",
]

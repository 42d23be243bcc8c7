"""Training in number formats: optimizers, memories and what theory says about them."""

from . import bounds, lognormal
from .accumulators import accumulate, matmul
from .activations import Activation
from .coloured_noise import (
    ActivationNoise,
    add_noise,
    coloured_noise,
    noisy_weights,
    weight_noise,
)
from .loss_scale import loss_scale, loss_scaling
from .luq import LUQ, fine_tuning_schedule, in_hindsight, luq_product
from .memories import compensated, master_copy
from .optimizers import low_precision, quantize_gradients, quantize_state
from .products import quantize_products, with_noise

__all__ = [
    "LUQ",
    "Activation",
    "ActivationNoise",
    "accumulate",
    "add_noise",
    "bounds",
    "coloured_noise",
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
    "noisy_weights",
    "quantize_gradients",
    "quantize_products",
    "quantize_state",
    "weight_noise",
    "with_noise",
]

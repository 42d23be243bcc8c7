"""aihwkit's side of `../devices.py`: its C++ tile, driven as its users do.

What belongs here: how aihwkit does the cases of `devices_workload.py`, and nothing else.
"""

import numpy as np
import torch
from aihwkit.inference.compensation.drift import GlobalDriftCompensation
from aihwkit.inference.noise.pcm import PCMLikeNoiseModel
from aihwkit.nn import AnalogLinear
from aihwkit.simulator.configs import (
    BoundManagementType,
    ConstantStepDevice,
    InferenceRPUConfig,
    NoiseManagementType,
    PulseType,
    SingleRPUConfig,
    SoftBoundsDevice,
    WeightNoiseType,
)
from aihwkit.simulator.configs.utils import UpdateParameters
from aihwkit.simulator.tiles import AnalogTile
from devices_workload import (
    ADC_BOUND,
    ADC_LEVELS,
    BOUND,
    DAC_LEVELS,
    DAY,
    G_MAX,
    LENGTH,
    OUTPUT_NOISE,
    PULSE,
    RATE,
    SPREAD,
    Run,
    Sizes,
    error,
    slope,
    tile_numbers,
    train_numbers,
)

PACKAGES = ("aihwkit", "torch", "numpy")
VARIANTS = ("compressed", "bits")  # how it draws trains; the same to all other cases
DEVICES = {"constant": ConstantStepDevice, "soft": SoftBoundsDevice}
WEIGHT_NOISE = 0.0175  # its preset for PCM, times the root of sum |w| x^2


def build(case: str, variant: str, sizes: Sizes) -> Run:
    """The case, set up."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    length, _, kind = case.partition("_")
    if kind in DEVICES:
        return _trains(length, kind, variant, sizes)
    with torch.no_grad():
        if case == "normals":
            many = 4 * sizes.tile**2
            return Run(lambda: torch.randn(many), lambda: float(torch.randn(many).std()))
        return _tile(case, sizes)


def _tile(case, sizes):
    w, x = map(torch.from_numpy, tile_numbers(sizes))
    config = InferenceRPUConfig()
    config.mapping.max_input_size = config.mapping.max_output_size = 0  # one tile
    io = config.forward
    io.inp_res, io.out_res, io.out_bound = 1 / DAC_LEVELS, 1 / ADC_LEVELS, ADC_BOUND
    io.out_noise, io.w_noise, io.w_noise_type = OUTPUT_NOISE, WEIGHT_NOISE, WeightNoiseType.PCM_READ
    io.noise_management = NoiseManagementType.ABS_MAX
    io.bound_management = BoundManagementType.ITERATIVE
    config.noise_model = PCMLikeNoiseModel(g_max=G_MAX)
    compensated = case in ("product", "product_new", "age")
    config.drift_compensation = GlobalDriftCompensation() if compensated else None
    layer = AnalogLinear(sizes.tile, sizes.tile, bias=False, rpu_config=config).eval()
    layer.set_weights(w.T.contiguous())
    if case != "program":
        layer.program_analog_weights()
    if case in ("product", "product_new"):
        layer.drift_analog_weights(DAY)

    def weights():
        return layer.get_weights()[0].numpy().T

    def compensated_weights():
        tile = next(iter(layer.analog_tiles()))
        return weights() * (float(tile.alpha) if compensated else 1.0)

    def product():
        with torch.no_grad():
            return layer(x)

    def product_new():
        layer.drift_analog_weights(DAY)
        return product()

    def age():
        layer.drift_analog_weights(DAY)

    def of_y(y):
        return error(y.numpy(), (x @ w).numpy())

    return {
        "product": Run(product, lambda: of_y(product())),
        "product_new": Run(product_new, lambda: of_y(product_new())),
        "program": Run(
            layer.program_analog_weights,
            lambda: (layer.program_analog_weights(), error(weights(), w.numpy()))[1],
        ),
        "age": Run(age, lambda: (age(), error(compensated_weights(), w.numpy()))[1]),
        "age_alone": Run(age, lambda: (age(), error(weights(), w.numpy()))[1]),
        "gemm": Run(lambda: x @ w, lambda: of_y(x @ w)),
    }[case]


def _trains(length, kind, variant, sizes):
    x, d = train_numbers(sizes, length)
    device = DEVICES[kind](
        dw_min=PULSE, w_max=BOUND, w_min=-BOUND, dw_min_dtod=SPREAD, dw_min_std=SPREAD,
        w_max_dtod=SPREAD, w_min_dtod=SPREAD, up_down_dtod=0.01, construction_seed=1,
    )  # fmt: skip
    kinds = {"compressed": PulseType.STOCHASTIC_COMPRESSED, "bits": PulseType.STOCHASTIC}
    config = SingleRPUConfig(
        device=device, update=UpdateParameters(desired_bl=LENGTH, pulse_type=kinds[variant])
    )
    tile = AnalogTile(sizes.cells, sizes.cells, config)  # (outputs, inputs)
    tile.set_learning_rate(RATE)
    given, signs = torch.from_numpy(x), [torch.from_numpy(d), -torch.from_numpy(d)]
    zero = torch.zeros(sizes.cells, sizes.cells)
    tile.set_weights(zero)

    def call():
        signs.reverse()
        tile.update(given, signs[0])

    def check():
        total = np.zeros((sizes.cells, sizes.cells))
        for _ in range(20):
            tile.set_weights(zero)
            tile.update(given, torch.from_numpy(d))
            total += tile.get_weights()[0].numpy().T
        return slope(total / 20, x, d)

    return Run(call, check)

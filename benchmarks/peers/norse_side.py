"""Norse: lifted `lif_box` steps, `LIFRecurrent` where recurrent, a lifted `li_box` readout.

What belongs here: how Norse builds and runs the networks of `workload.py`, and nothing else.

The box model is Norse's membrane without a synaptic current. It has no recurrent form, so the
recurrent network uses `LIFRecurrent` with a current that decays within one step. Norse scales
every input by dt / tau, so all weights are divided by that. `norse.torch.functional.lift` is used
because `norse.torch.Lift` indexes its input, which is slow backwards.
"""

import numpy as np
import torch
from norse.torch import LIFBoxParameters, LIFParameters, LIFRecurrent, LIFState
from norse.torch.functional.leaky_integrator_box import (
    LIBoxParameters,
    LIBoxState,
    li_box_feed_forward_step,
)
from norse.torch.functional.lif_box import LIFBoxFeedForwardState, lif_box_feed_forward_step
from norse.torch.functional.lift import lift
from norse.torch.functional.reset import reset_value
from side import Side
from torch import nn
from torch_side import linear, make_side
from workload import DECAY, THRESHOLD, Workload

PACKAGES = ("norse", "torch")
DT = 1e-3  # [s], Norse's default
TAU_INV = torch.tensor((1 - DECAY) / DT)
SCALE = 1 / (1 - DECAY)


def _detached_reset(z, v, reset, threshold):
    return reset_value(z.detach(), v, reset, threshold)


class _Layer(nn.Module):
    """Linear layer and box units, spiking or not."""

    def __init__(self, w: np.ndarray, spiking: bool = True):
        super().__init__()
        self.fc = linear(w, SCALE)
        if spiking:
            p = LIFBoxParameters(
                tau_mem_inv=TAU_INV,
                v_th=torch.tensor(THRESHOLD),
                method="triangle",
                alpha=1.0,
                reset_method=_detached_reset,
            )
            self.state, self.lifted = LIFBoxFeedForwardState, lift(lif_box_feed_forward_step, p)
        else:
            p = LIBoxParameters(tau_mem_inv=TAU_INV)
            self.state, self.lifted = LIBoxState, lift(li_box_feed_forward_step, p)

    def initial(self, batch):
        return self.state(v=torch.zeros(batch, self.fc.out_features))

    def forward(self, x, state):
        return self.lifted(self.fc(x), state=state)


class _RecurrentLayer(nn.Module):
    """`LIFRecurrent`, which holds both weights."""

    def __init__(self, w: np.ndarray, h: np.ndarray):
        super().__init__()
        self.lif = LIFRecurrent(
            *w.shape,
            p=LIFParameters(
                tau_syn_inv=torch.tensor(1 / DT),
                tau_mem_inv=TAU_INV,
                v_th=torch.tensor(THRESHOLD),
                method="triangle",
                alpha=1.0,
            ),
            input_weights=linear(w, SCALE).weight,
            recurrent_weights=linear(h, SCALE).weight,
            autapses=True,
        )

    def initial(self, batch):
        zero = torch.zeros(batch, len(self.lif.recurrent_weights))
        return LIFState(z=zero, v=zero, i=zero)

    def forward(self, x, state):
        return self.lif(x, state)


def build(work: Workload, variant: str) -> Side:
    """The network on `variant`, "eager" or "torch.compile"."""
    layers: list[nn.Module] = []
    parameters = {}
    for k in range(work.depth):
        w = work.weights[f"w{k}"]
        if work.recurrent:
            layer = _RecurrentLayer(w, work.weights[f"h{k}"])
            parameters[f"w{k}"] = layer.lif.input_weights
            parameters[f"h{k}"] = layer.lif.recurrent_weights
        else:
            layer = _Layer(w)
            parameters[f"w{k}"] = layer.fc.weight
        layers.append(layer)
    readout = _Layer(work.weights[f"w{work.depth}"], spiking=False)
    parameters[f"w{work.depth}"] = readout.fc.weight
    return make_side([*layers, readout], parameters, work, variant, SCALE)

"""snnTorch: `Leaky` layers, `RLeaky` where recurrent, a `Leaky` without reset as the readout.

What belongs here: how snnTorch builds and runs the networks of `workload.py`, and nothing else.

`RLeaky` resets to zero by dropping the next input as well, so the recurrent network keeps its
default, reset by subtraction. snnTorch never differentiates through the reset.
"""

import numpy as np
import snntorch
import torch
from side import Side
from torch import nn
from torch_side import linear, make_side
from workload import DECAY, THRESHOLD, Workload

PACKAGES = ("snntorch", "torch")


class _Triangular(torch.autograd.Function):
    """snnTorch takes any function as `spike_grad`; its own "triangular" is another formula."""

    @staticmethod
    def forward(ctx, v):
        ctx.save_for_backward(v)
        return (v > 0).float()

    @staticmethod
    def backward(ctx, grad):
        (v,) = ctx.saved_tensors
        return grad * torch.relu(1 - v.abs())


class _Layer(nn.Module):
    """Linear layer and `Leaky` units; returns their spikes, or their potentials."""

    def __init__(self, w: np.ndarray, reset: str, spiking: bool = True):
        super().__init__()
        self.fc = linear(w)
        self.spiking = spiking
        self.cell = snntorch.Leaky(
            DECAY, THRESHOLD, spike_grad=_Triangular.apply, reset_mechanism=reset
        )

    def initial(self, batch):
        return torch.zeros(batch, self.fc.out_features)

    def forward(self, x, v):
        ys = []
        for z in self.fc(x).unbind(0):
            y, v = self.cell(z, v)
            ys.append(y if self.spiking else v)
        return torch.stack(ys), v


class _RecurrentLayer(nn.Module):
    """Linear layer and `RLeaky` units."""

    def __init__(self, w: np.ndarray, h: np.ndarray):
        super().__init__()
        self.fc = linear(w)
        self.cell = snntorch.RLeaky(
            DECAY, linear_features=len(h), threshold=THRESHOLD, spike_grad=_Triangular.apply
        )
        self.cell.recurrent = linear(h)

    def initial(self, batch):
        zero = torch.zeros(batch, self.fc.out_features)
        return zero, zero

    def forward(self, x, state):
        y, v = state
        ys = []
        for z in self.fc(x).unbind(0):
            y, v = self.cell(z, y, v)
            ys.append(y)
        return torch.stack(ys), (y, v)


def build(work: Workload, variant: str) -> Side:
    """The network on `variant`, "eager" or "torch.compile"."""
    layers: list[nn.Module] = []
    parameters = {}
    for k in range(work.depth):
        w = work.weights[f"w{k}"]
        if work.recurrent:
            layer = _RecurrentLayer(w, work.weights[f"h{k}"])
            parameters[f"h{k}"] = layer.cell.recurrent.weight
        else:
            layer = _Layer(w, "zero")
        parameters[f"w{k}"] = layer.fc.weight
        layers.append(layer)
    readout = _Layer(work.weights[f"w{work.depth}"], "none", spiking=False)
    parameters[f"w{work.depth}"] = readout.fc.weight
    return make_side([*layers, readout], parameters, work, variant)

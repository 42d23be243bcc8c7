"""SpikingJelly: `LIFNode` in multi-step mode, whose sequence operator has its own backward pass.

What belongs here: how SpikingJelly builds and runs the networks of `workload.py`, and nothing else.

Multi-step mode cannot hold a recurrent connection, so the recurrent layer runs `LIFNode` in
single-step mode in a loop of its own. The readout is a `LIFNode` that never reaches its threshold
and stores its potentials; `NonSpikingLIFNode` indexes its input, which is slow backwards.
"""

import numpy as np
import torch
from side import Side
from spikingjelly.activation_based import functional, neuron, surrogate
from torch import nn
from torch_side import linear, make_side
from workload import DECAY, THRESHOLD, Workload

PACKAGES = ("spikingjelly", "torch")


def _lif(step_mode: str, threshold: float = THRESHOLD, store_v_seq: bool = False):
    return neuron.LIFNode(
        tau=1 / (1 - DECAY),
        decay_input=False,
        v_threshold=threshold,
        v_reset=0.0,
        surrogate_function=surrogate.PiecewiseQuadratic(alpha=1.0),  # max(0, 1 - |v - threshold|)
        detach_reset=True,
        step_mode=step_mode,
        store_v_seq=store_v_seq,
    )


class _Layer(nn.Module):
    """Linear layer and `LIFNode`, which keeps its state itself; spikes, or potentials."""

    def __init__(self, w: np.ndarray, spiking: bool = True):
        super().__init__()
        self.fc = linear(w)
        self.spiking = spiking
        self.cell = _lif("m") if spiking else _lif("m", threshold=1e9, store_v_seq=True)

    def initial(self, batch):
        functional.reset_net(self)
        return ()

    def forward(self, x, state):
        y = self.cell(self.fc(x))
        return (y if self.spiking else self.cell.v_seq), state


class _RecurrentLayer(nn.Module):
    """Linear layers and `LIFNode` in a loop over steps."""

    def __init__(self, w: np.ndarray, h: np.ndarray):
        super().__init__()
        self.fc = linear(w)
        self.recurrent = linear(h)
        self.cell = _lif("s")

    def initial(self, batch):
        functional.reset_net(self)
        return torch.zeros(batch, self.fc.out_features)

    def forward(self, x, y):
        ys = []
        for z in self.fc(x).unbind(0):
            y = self.cell(z + self.recurrent(y))
            ys.append(y)
        return torch.stack(ys), y


def build(work: Workload, variant: str) -> Side:
    """The network on `variant`, "eager" or "torch.compile"."""
    layers: list[nn.Module] = []
    parameters = {}
    for k in range(work.depth):
        w = work.weights[f"w{k}"]
        if work.recurrent:
            layer = _RecurrentLayer(w, work.weights[f"h{k}"])
            parameters[f"h{k}"] = layer.recurrent.weight
        else:
            layer = _Layer(w)
        parameters[f"w{k}"] = layer.fc.weight
        layers.append(layer)
    readout = _Layer(work.weights[f"w{work.depth}"], spiking=False)
    parameters[f"w{work.depth}"] = readout.fc.weight
    return make_side([*layers, readout], parameters, work, variant)

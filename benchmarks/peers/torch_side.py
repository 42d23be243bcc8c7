"""What the torch libraries share: linear layers, stacks of layers, the loss, one timed step.

What belongs here: plain torch that is equal for all of them; no library but torch.

A layer is a module with `initial(batch) -> state` and `forward(x, state) -> (y, state)` over a
chunk x (steps, batch, n). Layer by layer over all steps, so that each input product is one matrix
product, took a fifth less CPU time in eager mode than step by step over all layers. Compiled, a
chunk of `CHUNK` steps is unrolled into one graph; 10 and 50 steps were not faster, and 50 took
three times as long to compile.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from side import Side
from torch import nn
from workload import Workload

CHUNK = 25


def linear(weight: np.ndarray, scale: float = 1.0) -> nn.Linear:
    """A linear layer without bias, with the weight (from, to) times scale."""
    layer = nn.Linear(*weight.shape, bias=False)
    layer.weight.data = torch.tensor(scale * weight.T).contiguous()
    return layer


class Stack(nn.Module):
    """Layers on top of each other, over one chunk of steps."""

    def __init__(self, layers: Sequence[nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def initial(self, batch: int) -> list[Any]:
        """The state of every layer before the first step."""
        return [layer.initial(batch) for layer in self.layers]

    def forward(self, x: torch.Tensor, states: list[Any]) -> tuple[torch.Tensor, list[Any]]:
        """The outputs of the last layer for the chunk x, and the states after it."""
        new = []
        for layer, state in zip(self.layers, states, strict=True):
            x, state = layer(x, state)
            new.append(state)
        return x, new


def make_side(
    layers: Sequence[nn.Module],
    parameters: dict[str, nn.Parameter],
    work: Workload,
    variant: str,
    scale: float = 1.0,
) -> Side:
    """Times a stack of layers; its parameters are `scale` times the weights of the workload."""
    stack = Stack(layers)
    run, chunk = stack, len(work.inputs)
    if variant == "torch.compile":
        run, chunk = torch.compile(stack), CHUNK
    pieces = torch.tensor(work.inputs).split(chunk)
    batch = work.inputs.shape[1]
    labels = torch.tensor(work.labels).repeat(len(work.inputs))

    def step() -> tuple[float, dict[str, torch.Tensor]]:
        for parameter in parameters.values():
            parameter.grad = None
        states, outputs = stack.initial(batch), []
        for piece in pieces:
            ys, states = run(piece, states)
            outputs.append(ys)
        logits = torch.cat(outputs).flatten(0, 1)
        loss = nn.functional.cross_entropy(logits, labels, reduction="sum") / batch
        loss.backward()
        return loss.item(), {key: scale * p.grad for key, p in parameters.items()}

    def spikes() -> list[np.ndarray]:
        found, x = [], torch.tensor(work.inputs)
        with torch.no_grad():
            for layer in stack.layers[:-1]:
                x, _ = layer(x, layer.initial(batch))
                found.append(x.numpy())
        return found

    return Side(step, spikes)

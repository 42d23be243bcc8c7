"""The two networks that every library is timed on: sizes, input spikes, labels and weights.

What belongs here: everything that must be equal in all libraries, as NumPy arrays; no library.

A hidden unit is a leaky integrate-and-fire unit that resets to zero after a spike,

    v_t = DECAY v_{t-1} (1 - y_{t-1}) + w x_t (+ h y_{t-1}),    y_t = [v_t > THRESHOLD],

differentiated with the triangular surrogate max(0, 1 - |v - THRESHOLD|) and, where a library has the
choice, not through the reset. The readout integrates without spikes, v_t = DECAY v_{t-1} + w x_t.
The loss is the cross entropy of the readout at every step: sum over steps, mean over the batch.
Weights are normal with standard deviation 2 / sqrt(fan-in) from inputs or spikes into a hidden
layer, 1 / sqrt(fan-in) elsewhere, which makes the hidden units fire in about 5 % of the steps.
"""

import math
from typing import NamedTuple

import numpy as np

DECAY = 0.9
THRESHOLD = 1.0
INPUT_RATE = 0.05
BATCH = 64
# name: (input and hidden sizes, outputs, steps, recurrent hidden layers)
SHAPES = {
    "a": ((784, 512, 512), 10, 100, False),
    "b": ((700, 256), 20, 250, True),
}
TITLES = {
    "a": "(a) 784-512-512-10, batch 64, 100 steps",
    "b": "(b) 700-256 (recurrent)-20, batch 64, 250 steps",
}


class Workload(NamedTuple):
    """One network with its data; layer k has the weights `w{k}` and, if recurrent, `h{k}`."""

    name: str
    recurrent: bool
    inputs: np.ndarray  # (steps, batch, n_in) float32, 0 or 1
    labels: np.ndarray  # (batch,) int64
    weights: dict[str, np.ndarray]  # each (from, to) float32

    @property
    def depth(self) -> int:
        """The number of hidden layers; the readout has the weights `w{depth}`."""
        return sum(key.startswith("w") for key in self.weights) - 1


def make(name: str) -> Workload:
    """Network "a" or "b": the same arrays in every process."""
    sizes, outputs, steps, recurrent = SHAPES[name]
    random = np.random.default_rng(0)

    def normal(n_in: int, n_out: int, gain: float) -> np.ndarray:
        return (random.standard_normal((n_in, n_out)) * gain / math.sqrt(n_in)).astype(np.float32)

    weights = {}
    for layer, (n_in, n) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        weights[f"w{layer}"] = normal(n_in, n, 2.0)
        if recurrent:
            weights[f"h{layer}"] = normal(n, n, 0.5)
    weights[f"w{len(sizes) - 1}"] = normal(sizes[-1], outputs, 1.0)
    inputs = (random.random((steps, BATCH, sizes[0])) < INPUT_RATE).astype(np.float32)
    labels = random.integers(0, outputs, BATCH)
    return Workload(name, recurrent, inputs, labels, weights)

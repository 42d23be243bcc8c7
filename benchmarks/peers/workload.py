"""The two networks that every library is timed on: sizes, input spikes, labels and weights.

What belongs here: everything that must be equal in all libraries, as NumPy arrays; no library.

A hidden unit is a leaky integrate-and-fire unit that resets to zero after a spike,

    v_t = DECAY v_{t-1} (1 - y_{t-1}) + w x_t (+ h y_{t-1}),    y_t = [v_t > THRESHOLD],

differentiated with the triangular surrogate max(0, 1 - |v - THRESHOLD|) and, where a library has
the choice, not through the reset. The readout never fires: v_t = DECAY v_{t-1} + w y_t. The loss is
the cross entropy of the readout at every step: sum over steps, mean over the batch.

Weights are normal; their standard deviation times sqrt(fan-in) is 2 into a hidden layer, so that
its units fire in 4 to 5 % of the steps, 1 into the readout, and 1/2 in the recurrent connection,
where 1 would let the gradient grow exponentially over the steps.
"""

import itertools
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
    for layer, (n_in, n) in enumerate(itertools.pairwise(sizes)):
        weights[f"w{layer}"] = normal(n_in, n, 2.0)
        if recurrent:
            weights[f"h{layer}"] = normal(n, n, 0.5)
    weights[f"w{len(sizes) - 1}"] = normal(sizes[-1], outputs, 1.0)
    inputs = (random.random((steps, BATCH, sizes[0])) < INPUT_RATE).astype(np.float32)
    labels = random.integers(0, outputs, BATCH)
    return Workload(name, recurrent, inputs, labels, weights)

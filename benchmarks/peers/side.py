"""What a library has to offer to be timed: one step and a look at its spikes.

What belongs here: the interface between `worker.py` and the files `*_side.py`; no library. Each of
those has `PACKAGES`, whose versions are reported, and `build(work, variant) -> Side`; the variants
are listed in `../snn_training.py`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple


class Side(NamedTuple):
    """One library with one network."""

    # forward and backward, waits for the result: loss, {"w0": gradient, ...} in any layout
    step: Callable[[], tuple[float, dict[str, Any]]]
    # forward: the spikes of each hidden layer, (steps, batch, n)
    spikes: Callable[[], list[Any]]

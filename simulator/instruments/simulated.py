"""An array of simulated cells as an instrument: a `Device`, its state, and a key for each call."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ... import __version__
from ..devices.device import Device, Key
from .instrument import Call, Capabilities, Checked


class SimulatedArray(Checked):
    """Cells of a device behind calls; the same key and the same calls give the same bits.

    An instrument has a memory, so this object has one too: `state` of the cells, `calls` made, and
    `pulses` given to each cell, up and down together.
    """

    def __init__(self, device: Device, shape: tuple[int, ...], key: Key):
        """Makes new cells at time 0.

        Args:
            device: their kind.
            shape: of the array.
            key: of the cells and of the noise of all calls.
        """
        declared = Capabilities(
            shape=tuple(shape),
            unit="uS" if device.g_min >= 0 else "1",  # a signed cell holds a number without one
            g_min=float(device.g_min),
            g_max=float(device.g_max),
            programs=device.program is not None,
            pulses=device.pulse is not None,
            resets=device.resets,
            step=None if device.step is None else float(device.step),
        )
        identity = f"spikebit,simulated {device.name},0,{__version__}"
        super().__init__(f"simulated {device.name}", identity, declared)
        for_cells, self._key = jax.random.split(key)
        self.state = device.init(declared.shape, for_cells, 0.0)
        self.calls, self.pulses = 0, np.zeros(declared.shape, np.int64)
        self._read = jax.jit(device.read)
        ways = {"program": device.program, "apply_pulses": device.pulse}
        self._write = {op: jax.jit(f) for op, f in ways.items() if f is not None}

    def _do(self, call: Call) -> Any:
        key = jax.random.fold_in(self._key, self.calls)
        if call.cells is None:
            done = np.asarray(self._read(self.state, key, call.time))
        else:
            cells = jnp.asarray(call.cells)
            done, self.state = None, self._write[call.op](self.state, cells, key, call.time)
            if call.op == "apply_pulses":
                self.pulses += np.abs(call.cells)
        self.calls += 1
        return done

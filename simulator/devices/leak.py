r"""Retention: cells that lose what they hold, as a capacitor does, $w(t) = w_0 e^{-t/\tau}$.

Any pulsed cell can leak. How phase-change cells drift is said with their models.
"""

from typing import Any

import jax.numpy as jnp

from .device import Cells, Counts, Device, Key, check_time
from .pulsed import PulsedState


def with_leak(device: Device, lifetime: float | int) -> Device:
    r"""The same pulsed device, whose cells go back to w = 0 exponentially.

    Args:
        device: made by `pulsed`.
        lifetime: $\tau$ [s]; a source that counts in updates means updates of one second here.

    Raises:
        ValueError: a lifetime that is none; by `init`, cells that are not pulsed ones.
    """
    who = f"with_leak({device.name})"
    if not lifetime > 0:
        raise ValueError(f"{who}: lifetime is {lifetime} s; it must be above 0.")
    pulse_, trains_ = device.pulse, device.trains

    def leaked(state: PulsedState, t: Any) -> PulsedState:
        check_time(device.name, "use", t, state.written)
        left = jnp.exp((state.written - t) / lifetime)
        now = jnp.full_like(state.written, t)
        return state._replace(w=state.w * left, shown=state.shown * left, written=now)

    def init(shape: tuple[int, ...], key: Key, t: Any = 0.0) -> PulsedState:
        state = device.init(shape, key, t)
        if not isinstance(state, PulsedState):
            raise ValueError(f"{who}: only pulsed cells hold a charge that leaks.")
        return state

    def read(state: PulsedState, key: Key | None, t: Any) -> Cells:
        return device.read(leaked(state, t), key, t)

    def pulse(state: PulsedState, counts: Counts, key: Key, t: Any) -> PulsedState:
        assert pulse_ is not None
        return pulse_(leaked(state, t), counts, key, t)

    def trains(state: PulsedState, rows: Any, columns: Any, key: Key, t: Any) -> PulsedState:
        assert trains_ is not None
        return trains_(leaked(state, t), rows, columns, key, t)

    return device._replace(
        init=init,
        read=read,
        pulse=None if pulse_ is None else pulse,
        trains=None if trains_ is None else trains,
    )

"""Time of 1,000 plastic, fatiguing synapses over 10 minutes of biological time in steps of 1 ms.

What belongs here: the problem and spikebit's time; `online_learning.py` has it beside Brian2.
"""

import math
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spikebit.kernels.stdp_events import Events, EventSettings, event_state, stdp_events
from spikebit.simulator.correlated import Group, correlated_poisson

INPUTS, SECONDS, DT, REPEATS = 1000, 600.0, 1e-3, 7


class Problem(NamedTuple):
    """Poisson inputs onto neurons; times in seconds. All weights begin at `weight`."""

    inputs: int
    neurons: int
    rate: float
    seconds: float
    use: float  # U of fatigue, 0: pair STDP
    dt: float = DT
    tau_membrane: float = 0.01
    tau_stdp: float = 0.02
    tau_fatigue: float = 0.2
    a_plus: float = 0.003
    a_minus: float = 0.0033
    w_max: float = 1.0
    weight: float = 0.5

    @property
    def threshold(self) -> float:
        """The mean drive of the membrane with the weights at their start."""
        transmitted = self.rate / (1 + self.use * self.rate * self.tau_fatigue)
        return self.inputs * transmitted * self.weight * self.tau_membrane

    def events(self) -> Events:
        """The input spikes."""
        group = Group(self.inputs, self.rate)
        return correlated_poisson(np.random.default_rng(0), [group], self.seconds, self.dt)

    def compiled(self, events: Events, dtype: Any = jnp.float32) -> Any:
        """A function of no arguments that runs it: the last state and the output spikes."""
        taus = (self.tau_membrane, self.tau_stdp, self.tau_stdp, self.tau_fatigue)
        decays = (math.exp(-self.dt / tau) for tau in taus)
        settings = EventSettings(
            self.threshold, *decays, self.use, self.a_plus, self.a_minus, self.w_max
        )
        state = event_state(jnp.full((self.inputs, self.neurons), self.weight, dtype))
        run = jax.jit(stdp_events).lower(state, events, settings).compile()
        return lambda: jax.block_until_ready(run(state, events, settings))


def main():
    print("| inputs [Hz] | neurons | events | output [Hz] | make the trains [s] | run, CPU [s] |")
    print("| ---: | ---: | ---: | ---: | ---: | --- |")
    for rate, neurons in ((10.0, 1), (10.0, 10), (50.0, 1)):
        problem = Problem(INPUTS, neurons, rate, SECONDS, use=0.5)
        start = time.process_time()
        events = problem.events()
        made = time.process_time() - start
        run = problem.compiled(events)
        times = []
        for _ in range(REPEATS):
            start = time.process_time()
            fired = run()[1]
            times.append(time.process_time() - start)
        output = float(fired.sum()) / neurons / SECONDS
        low, middle, high = min(times), sorted(times)[REPEATS // 2], max(times)
        print(
            f"| {rate:.0f} | {neurons} | {int(events.first[-1]):,} | {output:.1f} | {made:.2f} | "
            f"{middle:.3f} ({low:.3f} to {high:.3f}) |"
        )


if __name__ == "__main__":
    main()

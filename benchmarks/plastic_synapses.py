"""Time of 1,000 plastic, fatiguing synapses over 10 minutes of biological time in steps of 1 ms."""

import math
import time

import jax
import jax.numpy as jnp
import numpy as np

from spikebit.kernels.stdp_events import EventSettings, event_state, stdp_events
from spikebit.simulator.correlated import Group, correlated_poisson

INPUTS, SECONDS, DT, REPEATS = 1000, 600.0, 1e-3, 7


def main():
    print("| inputs [Hz] | neurons | events | output [Hz] | make the trains [s] | run, CPU [s] |")
    print("| ---: | ---: | ---: | ---: | ---: | --- |")
    for rate, neurons in ((10.0, 1), (10.0, 10), (50.0, 1)):
        start = time.process_time()
        rng = np.random.default_rng(0)
        events = correlated_poisson(rng, [Group(INPUTS, rate)], SECONDS, DT)
        made = time.process_time() - start
        membrane, stdp, fatigue = (math.exp(-DT / tau) for tau in (0.01, 0.02, 0.2))
        drive = INPUTS * rate / (1 + 0.5 * rate * 0.2) * 0.5 * 0.01  # mean, weights at their start
        settings = EventSettings(drive, membrane, stdp, stdp, fatigue, 0.5, 0.003, 0.0033, 1.0)
        state = event_state(jnp.full((INPUTS, neurons), 0.5))
        run = jax.jit(stdp_events).lower(state, events, settings).compile()
        times = []
        for _ in range(REPEATS):
            start = time.process_time()
            fired = jax.block_until_ready(run(state, events, settings))[1]
            times.append(time.process_time() - start)
        output = float(fired.sum()) / neurons / SECONDS
        low, middle, high = min(times), sorted(times)[REPEATS // 2], max(times)
        print(
            f"| {rate:.0f} | {neurons} | {int(events.first[-1]):,} | {output:.1f} | {made:.2f} | "
            f"{middle:.3f} ({low:.3f} to {high:.3f}) |"
        )


if __name__ == "__main__":
    main()

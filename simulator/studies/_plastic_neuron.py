"""One neuron that learns by fatiguing STDP, and how what it learned is compared; no study itself.

The simulation is `kernels.stdp_events`; other inputs than two groups are the studies' own.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from ...kernels.stdp_events import Events, EventSettings, event_state, stdp_events
from ..correlated import Group, correlated_poisson
from ..experiment import STRICT, Count, NotNegative, Positive

Share = Annotated[float, Field(ge=0, le=1)]
Use = Annotated[float, Field(ge=0, lt=1)]  # U; with 1 a synapse that fired once would be silent
DT = 1e-3  # [s]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Synapses:
    """The neuron and its synapses; times in seconds."""

    a_plus: Positive = 0.003
    depression: Positive = 1.1  # A- / A+
    tau_stdp: Positive = 0.02
    tau_membrane: Positive = 0.01
    tau_fatigue: Positive = 0.2
    start: Share = 0.5  # W at the start


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TwoGroups(Synapses):
    """Slow inputs with a common source, and fast independent ones."""

    correlated: Count = 20
    slow_rate: Positive = 5.0  # [Hz]
    correlation: Share = 0.4
    jitter: NotNegative = 3e-3  # [s]
    fast: Count = 40
    fast_rate: Positive = 50.0  # [Hz]
    duration: Annotated[float, Field(ge=DT)] = 300.0  # [s]

    def events(self, seed: int, run: int, correlation: float | None = None) -> Events:
        """Spikes of one run, the slow inputs first; with another correlation where it is given."""
        c = self.correlation if correlation is None else correlation
        groups = (
            Group(self.correlated, self.slow_rate, c, self.jitter),
            Group(self.fast, self.fast_rate),
        )
        return correlated_poisson(np.random.default_rng([seed, run]), groups, self.duration, DT)


def learn(
    synapses: Synapses, use: float, theta: float, events: Events, inputs: int
) -> tuple[np.ndarray, float]:
    """Weights (inputs,) at the end, and the output rate in the last third [Hz]."""
    stdp, membrane, fatigue = (
        math.exp(-DT / tau)
        for tau in (synapses.tau_stdp, synapses.tau_membrane, synapses.tau_fatigue)
    )
    numbers = EventSettings(
        threshold=theta,
        decay_membrane=membrane,
        decay_pre=stdp,
        decay_post=stdp,
        decay_fatigue=fatigue,
        use=use,
        a_plus=synapses.a_plus,
        a_minus=synapses.a_plus * synapses.depression,
        w_max=1.0,
    )
    state, fired = _run(event_state(jnp.full((inputs, 1), synapses.start)), events, numbers)
    return np.asarray(state.weights)[:, 0], float(np.asarray(fired)[-len(fired) // 3 :].mean() / DT)


def summarised(slow: Sequence[float], fast: Sequence[float]) -> dict[str, Any]:
    """What both groups' weights of all seeds come to."""
    difference = np.subtract(slow, fast)
    return {
        "slow": float(np.mean(slow)),
        "fast": float(np.mean(fast)),
        "slow_spread": [float(np.min(slow)), float(np.max(slow))],
        "fast_spread": [float(np.min(fast)), float(np.max(fast))],
        "difference": float(difference.mean()),
        "worst": float(difference.min()),
    }


def matched(rows: Sequence[Mapping[str, Any]], value: str) -> list[dict[str, Any]]:
    """For each row with fatigue its value, and that of STDP at the same output rate.

    Between the two nearest rates of STDP it is interpolated, linearly in the logarithm of the rate.
    None where that rate is beyond all of STDP's of 1 Hz and more: a neuron that is silent learns
    nothing, so its value is none of the rule.
    """
    plain = sorted((r["rate"], r[value]) for r in rows if r["use"] == 0 and r["rate"] >= 1)
    found = []
    for row in (r for r in rows if r["use"] > 0):
        stdp = None
        if plain and plain[0][0] <= row["rate"] <= plain[-1][0]:
            rates, values = np.array(plain).T
            stdp = float(np.interp(math.log(row["rate"]), np.log(rates), values))
        case = {k: row[k] for k in ("use", "theta", "rate")}
        found.append(case | {"fatiguing": row[value], "stdp": stdp})
    return found


_run = jax.jit(stdp_events)

"""Exponential traces of spikes, as spike-timing rules keep them, in a number format if wanted.

One idea belongs here: a trace that decays exactly and adds spikes. What a rule does with it is the
rule's; eligibility traces, which follow a cell's own dynamics, are those of `traces`.
"""

from jaxtyping import Array, Float, PRNGKeyArray

from ..quant.storage import Storage


def decayed_trace(
    trace: Float[Array, "*dims"],
    spikes: Float[Array, "*dims"],
    decay: float | Float[Array, "*#dims"],
    *,
    kept: Storage | None = None,
    key: PRNGKeyArray | None = None,
) -> Float[Array, "*dims"]:
    r"""One step of a trace: $x \leftarrow Q(\lambda x + s)$.

    Rounding to nearest has a dead band: $\lambda x$ rounds back to x where $(1 - \lambda) |x|$ is
    below half a step, so a trace never falls below about `dead_band`. Stochastic rounding has none:
    the mean over keys is $\lambda x + s$.

    Args:
        trace: x, the trace so far.
        spikes: s, the spikes of this step; a rule that pairs spikes reads the trace before.
        decay: $\lambda = e^{-dt / \tau}$.
        kept: Q, the format of the trace as `quant.storage` or `quant.trace_storage` gives it; None:
            kept as it is computed.
        key: of stochastic rounding; a new one at each step.
    """
    new = decay * trace + spikes
    return new if kept is None else kept.store(new, key)


def dead_band(step: float, decay: float) -> float:
    r"""$D / (2 (1 - \lambda))$: below it a trace rounded to nearest in steps D no longer decays.

    >>> dead_band(2**-4, 0.9375)  # 8 steps of 1/16
    0.5
    """
    return step / (2 * (1 - decay))

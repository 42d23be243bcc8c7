"""Gradients of one recurrent layer by braintrace's rules, and by reverse mode through its cells.

What belongs here: braintrace, brainstate, and nothing of spikebit.
"""

from collections.abc import Callable
from typing import Any

import brainstate
import braintrace
import jax
import jax.numpy as jnp

PACKAGES = ("braintrace", "brainstate")
CELLS = {
    "rnn": "ValinaRNNCell",
    "gru": "GRUCell",
    "lstm": "LSTMCell",
}
RULES = {
    "D_RTRL": "D_RTRL",
    "OSTLRecurrent": "OSTLRecurrent",
    "pp_prop": "pp_prop",
}


def ways(cell: str, n: int, xs: jax.Array, targets: jax.Array) -> dict[str, Callable[[], Any]]:
    """From the name of a rule, and "BPTT", to a function that returns the gradient.

    Args:
        cell: "rnn", "gru" or "lstm", of n units behind n inputs.
        n: units.
        xs: inputs (T, n), one sample.
        targets: of the outputs (T, n); the loss of a step is half the mean square error.
    """
    made: dict[str, Callable[[], Any]] = {"BPTT": _bptt(cell, n, xs, targets)}
    for name, rule in RULES.items():
        settings = {"decay_or_rank": 0.9} if name == "pp_prop" else {}
        made[name] = _online(cell, n, getattr(braintrace, rule), settings, xs, targets)
    return made


def _model(cell: str, n: int) -> Any:
    brainstate.random.seed(0)
    return getattr(braintrace.nn, CELLS[cell])(n, n)


def _loss(y: jax.Array, target: jax.Array) -> jax.Array:
    return 0.5 * jnp.mean((y - target) ** 2)


def _online(cell, n, rule, settings, xs, targets):
    model = _model(cell, n)
    learner = braintrace.compile(model, rule, xs[0], **settings)

    @brainstate.transform.jit
    def gradient(xs, targets):
        brainstate.nn.init_all_states(model)
        learner.reset_state()
        return learner.etrace_grad(
            xs, targets, step_fn=lambda x, t: _loss(learner(x), t), reduction="sum"
        )

    return lambda: jax.block_until_ready(gradient(xs, targets))


def _bptt(cell, n, xs, targets):
    model = _model(cell, n)
    brainstate.nn.init_all_states(model)
    weights = model.states(brainstate.ParamState)

    @brainstate.transform.jit
    def gradient(xs, targets):
        brainstate.nn.init_all_states(model)

        def total():
            return brainstate.transform.for_loop(lambda x, t: _loss(model(x), t), xs, targets).sum()

        return brainstate.transform.grad(total, weights)()

    return lambda: jax.block_until_ready(gradient(xs, targets))

"""Learning rules side by side on a random sequence: what `spikebit rules` prints.

The measuring is done by `learning_rules.compare`; here a network and inputs are made for it.
"""

from typing import Any

import jax
from flax import nnx

from ..learning_rules import LearningRule, bptt, compare, losses, ostl, ottt, rtrl, sltt
from .build import make_network
from .experiment import NetworkSettings

RULES = {
    "bptt": bptt,
    "ostl": ostl,
    "ostl_no_h": lambda network, loss: ostl(network, loss, scope="no_h"),
    "snap1": lambda network, loss: ostl(network, loss, scope="unit"),
    "sltt": sltt,
    "ottt": ottt,
    "rtrl": rtrl,
}


def rules_table(
    rules: list[str],
    *,
    cell: str = "snu",
    inputs: int = 11,
    hidden: int = 17,
    outputs: int = 5,
    steps: int = 50,
    batch: int = 3,
    seed: int = 1,
) -> list[dict[str, Any]]:
    """Gradients of one recurrent layer and a dense readout, by each rule, against BPTT.

    Inputs are normal random numbers and there is a random class at each step.

    Args:
        rules: names out of `RULES`.
        cell: `network.cell` of an experiment.
        inputs: size of the input.
        hidden: units of the recurrent layer.
        outputs: classes.
        steps: time steps.
        batch: samples.
        seed: of weights, inputs and classes.

    Returns:
        One row a rule: rule, relative_error, cosine, step_ms [ms], peak_bytes.

    Raises:
        ValueError: an unknown rule or cell, a size below 1.
    """
    sizes = {"inputs": inputs, "hidden": hidden, "outputs": outputs}
    sizes |= {"steps": steps, "batch": batch}
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"--{name} = {size}: must be at least 1")
    if not 0 <= seed < 2**31:
        raise ValueError(f"--seed = {seed}: must be at least 0 and below 2^31")
    if not rules:
        raise ValueError(f"--rules is empty: name some of {', '.join(RULES)}")
    for name in rules:
        if name not in RULES:
            raise ValueError(f"--rules: {name!r} is not known; known are {', '.join(RULES)}")
    settings = NetworkSettings(cell=cell, hidden=(hidden,), recurrent=True)  # pyright: ignore[reportArgumentType]
    weights, x, y = jax.random.split(jax.random.key(seed), 3)
    network = make_network(settings, inputs, outputs, dt=1e-3, rngs=nnx.Rngs(weights))
    xs = jax.random.normal(x, (steps, batch, inputs))
    targets = jax.random.randint(y, (steps, batch), 0, outputs)
    loss = losses.cross_entropy
    made: dict[str, LearningRule] = {name: RULES[name](network, loss) for name in rules}
    return [dict(row) for row in compare(network, loss, xs, targets, made)]

"""Learning rules side by side on a random sequence: what `spikebit rules` prints.

The measuring is done by `learning_rules.compare_to_bptt`; here network and inputs are made for it.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from ..learning_rules import RULES, compare_to_bptt
from .build import make_network
from .experiment import NetworkSettings


def rules_table(
    rules: list[str],
    *,
    cell: str = "snu",
    inputs: int = 11,
    hidden: int = 17,
    layers: int = 1,
    outputs: int = 5,
    steps: int = 50,
    batch: int = 3,
    chunk: int = 1,
    seed: int = 1,
) -> list[dict[str, Any]]:
    """Gradients of recurrent layers and a dense readout, by each rule, against BPTT.

    Inputs are normal random numbers and there is a random class at each step.

    Args:
        rules: names out of `RULES`.
        cell: `network.cell` of an experiment.
        inputs: size of the input.
        hidden: units of each recurrent layer.
        layers: recurrent layers.
        outputs: classes.
        steps: time steps.
        batch: samples.
        chunk: steps given at a time to all rules but BPTT.
        seed: of weights, inputs and classes.

    Returns:
        The rows of `compare_to_bptt` as JSON values, NaN as None.

    Raises:
        ValueError: an unknown rule or cell, a size below 1.
    """
    sizes = {"inputs": inputs, "hidden": hidden, "layers": layers, "outputs": outputs}
    sizes |= {"steps": steps, "batch": batch, "chunk": chunk}
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
    settings = NetworkSettings(cell=cell, hidden=(hidden,) * layers, recurrent=True)  # pyright: ignore[reportArgumentType]
    weights, x, y = jax.random.split(jax.random.key(seed), 3)
    network = make_network(settings, inputs, outputs, dt=1e-3, rngs=nnx.Rngs(weights))
    xs = jax.random.normal(x, (steps, batch, inputs))
    targets = jax.random.randint(y, (steps, batch), 0, outputs)
    rows = compare_to_bptt(network, (xs, targets), rules=rules, chunk=chunk)
    return [_plain(row) for row in rows]


def _plain(value: Any) -> Any:
    """The same with None in place of what JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

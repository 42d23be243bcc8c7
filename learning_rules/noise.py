"""New noise at every step for networks with quantized products, whatever the rule.

How products are quantized is `quant.training`'s.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import nnx
from jaxtyping import Array, PRNGKeyArray, PyTree

from ..quant.training.products import with_noise
from .rule import LearningRule, Loss, RuleOutput


class NoisyState(NamedTuple):
    """The state of the rule, and the key of the next step."""

    rule: PyTree
    key: PRNGKeyArray


def with_new_noise(
    make_rule: Callable[[nnx.Module, Loss], LearningRule],
) -> Callable[[nnx.Module, Loss], LearningRule]:
    """The rule for a network from `quantize_products`: each step draws new noise for its products.

    Within a step, which may be a chunk of many time steps, all of them round with the same draw.

    Args:
        make_rule: network and loss to a rule, such as `bptt`.

    Returns:
        The same, to a rule whose `init` needs a key and keeps the next one in its state.
    """

    def make(network: nnx.Module, loss: Loss) -> LearningRule:
        plain = make_rule(network, loss)

        def init(params: PyTree, batch: Any, key: PRNGKeyArray | None = None) -> NoisyState:
            if key is None:
                raise ValueError(
                    "The products of this network are rounded stochastically and init found no "
                    "key: call rule.init(params, batch, key=jax.random.key(seed))."
                )
            own, following = jax.random.split(key)
            return NoisyState(plain.init(params, batch, own), following)

        def step(
            params: PyTree,
            state: NoisyState,
            xs: Array,
            targets: Any,
            resets: Array | None = None,
        ) -> tuple[NoisyState, RuleOutput]:
            own, following = jax.random.split(state.key)
            rule = make_rule(with_noise(network, own), loss)
            new, out = rule.step(params, state.rule, xs, targets, resets)
            return NoisyState(new, following), out

        return LearningRule(init, step, plain.truncates)

    return make

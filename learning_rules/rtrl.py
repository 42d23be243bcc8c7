"""Real-time recurrent learning of a whole network: a reference that leaves nothing out."""

from typing import Any

from flax import nnx
from jaxtyping import PRNGKeyArray, PyTree

from .ostl import OSTLState, of_traces, trace_of
from .rule import LearningRule, Loss
from .stack import Layer, Stack, as_stack


def rtrl(network: nnx.Module, loss: Loss) -> LearningRule:
    """OSTL with the network taken as one cell, so that no path between layers is left out.

    Exact for every parameter of every layer and for every chunk, as BPTT over the whole sequence.
    A trace has B S P numbers, S the state of all layers and P all parameters, and a step takes
    B S^2 P operations: a reference for small networks (some tens of units).

    Args:
        network: a `Network`, or one bare cell.
        loss: loss of one time step, (batch, n_out), targets -> (batch,).

    Raises:
        ValueError: a network that is no cell; that is what `grapes` makes of one, which has no
            errors between layers to change here.

    References:
        A learning algorithm for continually running fully recurrent neural networks, Neural
        Computation 1(2) (1989).
    """
    if not isinstance(network, nnx.RNNCellBase):
        raise ValueError(
            f"rtrl takes a network that is one cell as a whole, found {type(network).__name__}: "
            "give a Network, and for GRAPES another rule, since within one cell no errors go from "
            "layer to layer."
        )
    graphdef, _, constants = nnx.split(network, nnx.Param, ...)
    whole = Stack((Layer("The network", "cell", graphdef, constants),), single=True)
    rule = of_traces(whole, [trace_of(whole.layers[0], "full", spatial=True)], loss)
    layers = as_stack(network)

    def init(params: PyTree, batch: Any, key: PRNGKeyArray | None = None) -> OSTLState:
        carries = layers.initialize_carries(params, batch, key)  # the same noise as other rules
        carry = carries[0] if layers.single else carries
        return rule.init(params, batch, key)._replace(carries=(carry,))

    return rule._replace(init=init)

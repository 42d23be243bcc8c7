"""Rules by the names they have in comparisons and on the command line, with their usual settings.

Each is made by `RULES[name](network, loss)`; what a rule does is said at the rule itself.
"""

from collections.abc import Callable

import jax
from flax import nnx

from .bptt import bptt
from .broadcast import broadcast_weights
from .eprop import eprop
from .ostl import ostl
from .osttp import osttp
from .ottt import ottt
from .rtrl import rtrl
from .rule import LearningRule, Loss
from .sltt import sltt

MakeRule = Callable[[nnx.Module, Loss], LearningRule]


def _random_eprop(network: nnx.Module, loss: Loss) -> LearningRule:
    return eprop(network, loss, feedback=broadcast_weights(network, jax.random.key(0)))


def _osttp(network: nnx.Module, loss: Loss) -> LearningRule:
    return osttp(network, loss, broadcast_weights(network, jax.random.key(0)))


RULES: dict[str, MakeRule] = {
    "bptt": bptt,
    "ostl": ostl,
    "ostl_chunk": lambda network, loss: ostl(network, loss, cross_layer="chunk"),
    "ostl_no_h": lambda network, loss: ostl(network, loss, scope="no_h"),
    "snap1": lambda network, loss: ostl(network, loss, scope="unit"),
    "sltt": sltt,
    "ottt": ottt,
    "rtrl": rtrl,
    "eprop": eprop,
    "eprop_random": _random_eprop,
    "osttp": _osttp,
}

"""How a parameter changes: rules that turn chunks of a stream into gradients.

A rule is two pure functions (`rule.LearningRule`); every rule is made the same way,
`name(network, loss, ...)`, and the gradients go into any optax optimizer.
"""

from .. import __version__ as __version__
from . import losses
from .bptt import bptt
from .compare import compare, cosine, relative_error
from .ostl import ostl
from .rule import LearningRule, RuleOutput, parameters, run_sequence

__all__ = [
    "LearningRule",
    "RuleOutput",
    "bptt",
    "compare",
    "cosine",
    "losses",
    "ostl",
    "parameters",
    "relative_error",
    "run_sequence",
]

"""How a parameter changes: rules that turn chunks of a stream into gradients.

A rule is two pure functions (`rule.LearningRule`); every rule is made the same way,
`name(network, loss, ...)`, and the gradients go into any optax optimizer.
"""

from .. import __version__ as __version__
from . import losses
from .bptt import bptt
from .broadcast import broadcast_weights
from .by_name import RULES
from .compare import compare_to_bptt, cosine, relative_error, report
from .eprop import eprop, with_feedback
from .fatigue import FatiguingSTDP
from .feedback import direct_feedback_alignment, feedback_alignment, feedback_weights
from .format_cost import format_cost, sequence_losses
from .grapes import grapes, importance, local_grapes, modulate, modulation_factor
from .homeostasis import (
    SynapticScaling,
    lateral_inhibition,
    normalised,
    threshold_change,
    winner_takes_all,
)
from .noise import with_new_noise
from .ostl import ostl
from .osttp import osttp
from .ottt import ottt
from .reward_stdp import RewardSTDP
from .rtrl import rtrl
from .rule import LearningRule, RuleOutput, parameters, run_sequence
from .sltt import sltt
from .stdp import PairSTDP, TripletSTDP, apply_update, bounded_update
from .synaptic_trace import dead_band, decayed_trace
from .voltage_stdp import VoltageSTDP

__all__ = [
    "RULES",
    "FatiguingSTDP",
    "LearningRule",
    "PairSTDP",
    "RewardSTDP",
    "RuleOutput",
    "SynapticScaling",
    "TripletSTDP",
    "VoltageSTDP",
    "apply_update",
    "bounded_update",
    "bptt",
    "broadcast_weights",
    "compare_to_bptt",
    "cosine",
    "dead_band",
    "decayed_trace",
    "direct_feedback_alignment",
    "eprop",
    "feedback_alignment",
    "feedback_weights",
    "format_cost",
    "grapes",
    "importance",
    "lateral_inhibition",
    "local_grapes",
    "losses",
    "modulate",
    "modulation_factor",
    "normalised",
    "ostl",
    "osttp",
    "ottt",
    "parameters",
    "relative_error",
    "report",
    "rtrl",
    "run_sequence",
    "sequence_losses",
    "sltt",
    "threshold_change",
    "winner_takes_all",
    "with_feedback",
    "with_new_noise",
]

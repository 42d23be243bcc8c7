"""What a training run is made of, its random keys, and how samples become a batch in time.

Nothing here learns, reads settings or writes files; `build.build` makes a `Job` from an experiment.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ..learning_rules import LearningRule
from ..learning_rules.rule import Loss
from ..quant import WeightMemory
from .data import Dataset, Split
from .network import Network

Encode = Callable[[Array, PRNGKeyArray], Array]
"""`encode(samples, key)`: (batch, *sample) to the inputs (time, batch, *features)."""


@dataclass(frozen=True)
class Exact:
    """What a run can be compared with: the same without number formats.

    Attributes:
        network: with parameters like those of the job, and no formats on states and activations.
        make_rule: the learning rule, with no formats on traces.
        read: `read(state, key)` of the memory, but in float32 where the memory keeps that.
        gradient_format: name of the format of the gradients; None: they have none.
        format_rounding: how they are rounded to it.
    """

    network: nnx.Module
    make_rule: Callable[[nnx.Module, Loss], LearningRule]
    read: Callable[..., PyTree]
    gradient_format: str | None = None
    format_rounding: str = "nearest_even"


@dataclass(frozen=True)
class Job:
    """All that a training run is made of.

    Attributes:
        dataset: what to learn.
        encode: samples to inputs in time.
        network: its parameters are where learning starts.
        loss: loss of one time step, (batch, n_out), targets -> (batch,).
        make_rule: the learning rule of a network and a loss: `bptt`, or
            `functools.partial(ostl, scope="no_h")`.
        tx: any optax optimizer.
        memory: where the weights live.
        epochs: passes through the training samples.
        batch: samples at a time; what is left of an epoch after whole batches is not used in it.
        chunk: time steps the rule takes at a time; 0: up to the next change of the weights.
        update_every: time steps between two changes of the weights; 0: the whole sequence.
        seed: of all random numbers.
        log_every: batches between two lines of metrics.
        checkpoint_every: batches between two checkpoints; 0: one an epoch.
        exact: what each line of metrics compares the gradient with; None: nothing.
    """

    dataset: Dataset
    encode: Encode
    network: Network
    loss: Loss
    make_rule: Callable[[nnx.Module, Loss], LearningRule]
    tx: optax.GradientTransformation
    memory: WeightMemory
    epochs: int = 1
    batch: int = 50
    chunk: int = 0
    update_every: int = 0
    seed: int = 0
    log_every: int = 20
    checkpoint_every: int = 0
    exact: Exact | None = None

    def __post_init__(self):
        if not self.batches:
            raise ValueError(
                f"train.batch = {self.batch} is more than the {len(self.dataset.train.inputs)} "
                f"training samples of {self.dataset.name}: choose a smaller batch"
            )

    @property
    def batches(self) -> int:
        """Batches in an epoch."""
        return len(self.dataset.train.inputs) // self.batch

    @property
    def steps(self) -> int:
        """Batches in all."""
        return self.epochs * self.batches


class Purpose(IntEnum):
    """What a random key is for; a part of the key, so its value never changes."""

    NETWORK = 0
    MEMORY = 1
    ORDER = 2
    ENCODE = 3
    READ = 4
    UPDATE = 5
    TEST_ENCODE = 6
    TEST_READ = 7
    STATE = 8
    TEST_STATE = 9
    OPTIMIZER = 10
    GRAPES = 11
    FEEDBACK = 12


def key_for(seed: int, purpose: Purpose, *place: Any) -> PRNGKeyArray:
    """The key for a purpose at a place in the run, such as (epoch, batch, update)."""
    key = jax.random.fold_in(jax.random.key(seed), int(purpose))
    for number in place:
        key = jax.random.fold_in(key, number)
    return key


class Batch(NamedTuple):
    """Some samples as a network sees them."""

    xs: Float[Array, "time batch *features"]
    targets: PyTree  # (time, batch, ...)
    present: Float[Array, "time batch"]  # 1 up to the end of each sample, then 0


class Samples:
    """A split on the device, padded in time to whole chunks.

    Attributes:
        arrays: inputs, targets and lengths (or None): hand them to the compiled function that calls
            `batch`, so that they are not compiled into it.
        frames: time steps of all sequences together, None for images.
    """

    def __init__(self, job: Job, split: Split):
        self._encode, self._prediction = job.encode, job.dataset.kind == "prediction"
        inputs, targets, lengths = split
        if lengths is not None:
            extra = -inputs.shape[1] % (job.update_every or job.chunk or 1)
            inputs = _pad_time(inputs, extra)
            targets = _pad_time(targets, extra) if self._prediction else targets
        self.frames = None if lengths is None else int(lengths.sum())
        self.arrays = jax.tree.map(jnp.asarray, (inputs, targets, lengths))

    def batch(self, arrays: Any, index: Array, key: PRNGKeyArray) -> Batch:
        """The samples with these numbers."""
        inputs, targets, lengths = jax.tree.map(lambda a: a[index], arrays)
        xs = self._encode(inputs, key)
        steps = xs.shape[0]
        if self._prediction:
            targets = jnp.moveaxis(targets, 0, 1)
        else:
            targets = jnp.broadcast_to(targets, (steps, *targets.shape))
        present = jnp.ones((steps, len(index)), xs.dtype)
        if lengths is not None:
            present = (jnp.arange(steps)[:, None] < lengths).astype(xs.dtype)
        return Batch(xs, targets, present)


def _pad_time(a: np.ndarray, extra: int) -> np.ndarray:
    return np.pad(a, [(0, 0), (0, extra), *[(0, 0)] * (a.ndim - 2)])

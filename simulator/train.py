"""The training loop on the contracts: encode, learning rule, optax, weight memory.

Everything between two lines of metrics is one compiled call. All random numbers come from the seed,
a purpose and the place in the run, so a run that stopped goes on to the same bits. Nothing here
reads settings or writes files.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from .. import quant
from ..learning_rules import losses, parameters
from ..learning_rules.compare import leaf_name
from ..learning_rules.rule import RuleOutput
from ..quant.training import loss_scale
from .diagnostics import make_diagnosis
from .evaluate import Evaluation, make_evaluation
from .job import Job, Purpose, Samples, key_for

_WRITTEN_OUT = 4  # updates of a batch up to which the compiled program has each for itself


class TrainingDiverged(ValueError):
    """The loss or a gradient is no longer a number."""


class Fault(NamedTuple):
    """Where loss or gradient was not finite for the first time; -1 for each: nowhere."""

    batch: Int[Array, ""]
    update: Int[Array, ""]  # of the batch
    leaf: Int[Array, ""]  # of the gradient; -1: the loss alone


class Sums(NamedTuple):
    """What has been added up since the last line of metrics."""

    loss: Float[Array, ""]
    correct: Int[Array, ""]
    norm: Float[Array, ""]  # of the gradient, a mean over the updates of a batch
    fault: Fault
    lost: PyTree = ()  # for diagnostics: the counts of the memory at that line


class TrainState(NamedTuple):
    """All that changes while training: what a checkpoint holds."""

    memory: PyTree
    optimizer: PyTree
    sums: Sums


def initial_state(job: Job) -> TrainState:
    """Where training starts."""
    init = jax.jit(job.memory.init)
    memory = init(parameters(job.network), key_for(job.seed, Purpose.MEMORY))
    optimizer = job.tx.init(read_parameters(job, memory))
    return TrainState(memory, optimizer, _no_sums(job, memory))


def read_parameters(job: Job, memory: PyTree) -> PyTree:
    """The weights as tests see them."""
    # the key is an argument, or XLA would draw the noise while it compiles
    return jax.jit(job.memory.read)(memory, key_for(job.seed, Purpose.TEST_READ))


def train(
    job: Job,
    *,
    test: Callable[[PyTree], Evaluation] | None = None,
    start: tuple[int, TrainState] | None = None,
    seconds: float = 0.0,
    on_metrics: Callable[[dict[str, Any]], None] = lambda line: None,
    on_checkpoint: Callable[[int, TrainState, float], None] = lambda *_: None,
) -> TrainState:
    """Trains to the end.

    Args:
        job: what to train.
        test: judges the weights after each epoch; None: `make_evaluation` on the test split.
        start: batches done and the state after them; None starts at the beginning.
        seconds: time spent before the start.
        on_metrics: called with each line of metrics: epoch (from 1), batch in it, step (batches in
            all), train_loss, train_accuracy, gradient_norm, seconds; at the end of an epoch also
            test_loss, test_accuracy, activity and lost; with `job.exact` also diagnostics.
        on_checkpoint: called with the batches done, the state and the seconds so far, always after
            the line of metrics of that batch.

    Raises:
        TrainingDiverged: loss or gradient is not finite; names epoch and batch.
        ValueError: layers, chunks, encoder or loss do not fit each other; nothing is computed then.
    """
    samples = Samples(job, job.dataset.train)
    segment = jax.jit(_make_segment(job, samples))
    test = test or make_evaluation(job, job.dataset.test)
    weighted = losses.weighted(job.loss)
    diagnose = None if job.exact is None else make_diagnosis(job, samples, weighted)
    step, state = start or (0, initial_state(job))
    begin = time.perf_counter() - seconds
    order, order_of = _order(job, 0), 0
    while step < job.steps:
        epoch, first = divmod(step, job.batches)
        if order_of != epoch:
            order, order_of = _order(job, epoch), epoch
        stop = _next_stop(job, first)
        place = [jnp.asarray(n, jnp.int32) for n in (epoch, first, stop)]
        state = segment(state, samples.arrays, order, *place)
        step += stop - first
        _check_finite(job, state, epoch)
        ends = stop == job.batches
        if ends or stop % job.log_every == 0:
            line: dict[str, Any] = {"epoch": epoch + 1, "batch": stop, "step": step}
            line |= _train_metrics(
                job, state.sums, stop - (stop - 1) // job.log_every * job.log_every
            )
            if ends:
                result = test(read_parameters(job, state.memory))
                if not np.isfinite(result.loss):
                    raise _diverged(f"the test loss is {result.loss} after epoch {epoch + 1}")
                line |= {"test_loss": result.loss, "test_accuracy": result.accuracy}
                line |= {"activity": result.activity, "lost": count_lost(state.memory)}
            if diagnose is not None:
                found = diagnose(state, samples.arrays, order[stop - 1], epoch, stop - 1)
                line |= {"diagnostics": {_short(name): of for name, of in found.items()}}
            state = state._replace(sums=_no_sums(job, state.memory))
            on_metrics(line | {"seconds": round(time.perf_counter() - begin, 3)})
        if ends or (job.checkpoint_every and stop % job.checkpoint_every == 0):
            on_checkpoint(step, state, time.perf_counter() - begin)
    return state


def check(job: Job) -> None:
    """Traces one batch without computing it, so that what does not fit is said at once.

    Raises:
        ValueError: layers, chunks, encoder or loss do not fit each other.
    """
    samples = Samples(job, job.dataset.train)
    number = jax.ShapeDtypeStruct((), jnp.int32)
    order = jax.ShapeDtypeStruct((job.batches, job.batch), jnp.int32)
    state = jax.eval_shape(lambda: initial_state(job))
    segment = _make_segment(job, samples)
    jax.eval_shape(segment, state, samples.arrays, order, number, number, number)


def count_lost(memory: Any) -> dict[str, dict[str, int]]:
    """What the weight memory lost since the beginning, see `quant.losses`: parameter -> counts."""
    return {_short(name): counts for name, counts in quant.losses(memory).items()}


def named_leaves(params: PyTree) -> dict[str, Any]:
    """The leaves of a tree like the parameters, with names such as "0.w": layer and parameter."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {_short(jax.tree_util.keystr(p, simple=True, separator=".")): v for p, v in leaves}


def _short(name: str) -> str:
    return name.removeprefix("layers.").removesuffix(".value")


def _make_segment(job: Job, samples: Samples) -> Callable[..., TrainState]:
    """The function that trains on the batches first <= i < stop of an epoch."""
    rule = job.make_rule(job.network, losses.weighted(job.loss))
    tx = optax.with_extra_args_support(job.tx)

    def one_batch(state: TrainState, arrays: Any, index: Array, epoch: Array, i: Array):
        key_read, key_update, key_encode, key_state, key_optimizer = (
            key_for(job.seed, purpose, epoch, i)
            for purpose in (
                Purpose.READ,
                Purpose.UPDATE,
                Purpose.ENCODE,
                Purpose.STATE,
                Purpose.OPTIMIZER,
            )
        )
        xs, targets, present = samples.batch(arrays, index, key_encode)
        weights = present / present.sum(0)
        every, chunk = _portions(job, xs.shape[0])
        pieces = jax.tree.map(
            lambda a: a.reshape(-1, every // chunk, chunk, *a.shape[1:]),
            (xs, (targets, weights)),
        )
        first = jax.tree.map(lambda a: a[0, 0], pieces)
        # for their shapes; a key that is known beforehand would be drawn from while compiling
        params = job.memory.read(state.memory, key_for(job.seed, Purpose.TEST_READ, epoch, i))
        traces = rule.init(params, first[0], key_state)
        shapes = jax.eval_shape(rule.step, params, traces, *first)[1]
        zero = jnp.zeros((), shapes.loss.dtype)
        no_grads = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes.grads)
        no_votes = jnp.zeros(shapes.outputs.shape[1:], shapes.outputs.dtype)

        def of_loss(out: RuleOutput, targets: Any, weights: Array) -> Array:
            """The loss anew: its scaled value can be infinite where it is not."""
            return (jax.vmap(job.loss)(out.outputs, targets) * weights).mean(1).sum()

        def one_update(carry, piece):
            memory, optimizer, traces, loss, votes, norm, fault = carry
            u, piece = piece
            params = job.memory.read(memory, jax.random.fold_in(key_read, u))
            scale = loss_scale(optimizer)

            def one_chunk(carry, piece):
                traces, grads, loss, votes = carry
                xs, (targets, weights) = piece
                weighted = weights if scale is None else weights * scale
                traces, out = rule.step(params, traces, xs, (targets, weighted))
                seen = (weights > 0).astype(out.outputs.dtype)
                votes = votes + jnp.einsum("tb...,tb->b...", out.outputs, seen)
                return (
                    traces,
                    jax.tree.map(jnp.add, grads, out.grads),
                    loss + (out.loss if scale is None else of_loss(out, targets, weights)),
                    votes,
                ), None

            start = (traces, no_grads, loss, votes)
            (traces, grads, loss, votes), _ = jax.lax.scan(one_chunk, start, piece)
            key = jax.random.fold_in(key_optimizer, u)
            changes, optimizer = tx.update(grads, optimizer, params, key=key)
            memory = job.memory.update(memory, changes, jax.random.fold_in(key_update, u))
            length, leaf = _length(grads, scale)
            new = (fault.batch < 0) & ~(jnp.isfinite(loss) & jnp.isfinite(length))
            found = Fault(jnp.asarray(i, jnp.int32), u, leaf)
            fault = jax.tree.map(lambda new_one, old: jnp.where(new, new_one, old), found, fault)
            return (memory, optimizer, traces, loss, votes, norm + length, fault), None

        start = (state.memory, state.optimizer, traces, zero, no_votes, zero, state.sums.fault)
        numbered = (jnp.arange(len(pieces[0]), dtype=jnp.int32), pieces)
        # written out, the compiler drops the traces that nobody reads after the last update
        written_out = len(pieces[0]) <= _WRITTEN_OUT
        (memory, optimizer, _, loss, votes, norm, fault), _ = jax.lax.scan(
            one_update, start, numbered, unroll=written_out
        )
        sums = state.sums
        if job.dataset.kind != "prediction":
            correct = (votes.argmax(-1) == arrays[1][index]).sum().astype(sums.correct.dtype)
            sums = sums._replace(correct=sums.correct + correct)
        sums = sums._replace(
            loss=sums.loss + loss,
            norm=sums.norm + norm / len(pieces[0]),
            fault=fault,
        )
        return TrainState(memory, optimizer, sums)

    def segment(state, arrays, order, epoch, first, stop) -> TrainState:
        def body(i, state):
            return one_batch(state, arrays, order[i], epoch, i)

        return jax.lax.fori_loop(first, stop, body, state)

    return segment


def _length(grads: PyTree, scale: Array | None) -> tuple[Array, Array]:
    """The norm of the gradient of the loss itself, and the first leaf that is not finite or -1.

    The norm of one that a smaller scale will mend is 0.
    """
    leaves = [g if scale is None else g / scale for g in jax.tree.leaves(grads)]
    squares = jnp.stack([jnp.square(g).sum() for g in leaves])
    norm, fine = jnp.sqrt(squares.sum()), jnp.isfinite(squares)
    leaf = jnp.where(fine.all(), -1, jnp.argmin(fine)).astype(jnp.int32)
    return norm if scale is None else jnp.where(jnp.isfinite(norm) | (scale <= 1), norm, 0), leaf


def _portions(job: Job, steps: int) -> tuple[int, int]:
    """Steps between two changes of the weights, and steps given to the rule at a time."""
    every = job.update_every or steps
    chunk = job.chunk or every
    if steps % every or every % chunk:
        raise ValueError(
            f"rule.chunk = {chunk} and rule.update_every = {every} do not divide the {steps} time "
            "steps: choose divisors, or 0 for the whole sequence"
        )
    return every, chunk


def _order(job: Job, epoch: int) -> Array:
    """The samples of each batch of an epoch, (batches, batch)."""
    n = len(job.dataset.train.inputs)
    order = jax.random.permutation(key_for(job.seed, Purpose.ORDER, epoch), n)
    return order[: job.batches * job.batch].reshape(job.batches, job.batch)


def _next_stop(job: Job, first: int) -> int:
    """The next batch of the epoch after which there is something to do."""
    every = [n for n in (job.log_every, job.checkpoint_every) if n]
    return min(job.batches, *((first // n + 1) * n for n in every))


def _no_sums(job: Job, memory: Any) -> Sums:
    zero, number = jnp.zeros(()), jnp.zeros((), jnp.int32)
    fault = Fault(number - 1, number - 1, number - 1)
    return Sums(zero, number, zero, fault, () if job.exact is None else memory.lost)


def _train_metrics(job: Job, sums: Sums, batches: int) -> dict[str, float | None]:
    classify = job.dataset.kind != "prediction"
    return {
        "train_loss": float(sums.loss) / batches,
        "train_accuracy": int(sums.correct) / (batches * job.batch) if classify else None,
        "gradient_norm": float(sums.norm) / batches,
    }


def _check_finite(job: Job, state: TrainState, epoch: int) -> None:
    batch, update, leaf = (int(n) for n in state.sums.fault)
    if batch < 0:
        return
    what = "loss"
    if leaf >= 0:
        paths = jax.tree_util.tree_leaves_with_path(parameters(job.network))
        what = f"gradient of {leaf_name(paths[leaf][0])}"
    when = ""
    if job.update_every:
        first = update * job.update_every
        when = f", time steps {first + 1} to {first + job.update_every}"
    raise _diverged(
        f"the {what} is not finite in epoch {epoch + 1}, batch {batch + 1} of {job.batches}{when}"
    )


def _diverged(what: str) -> TrainingDiverged:
    return TrainingDiverged(
        f"{what}: try a smaller optimizer.learning_rate or optimizer.clip = 1.0"
    )

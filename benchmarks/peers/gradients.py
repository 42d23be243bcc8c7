"""The networks whose gradients are timed, and the ways to get them.

What belongs here: spikebit's rules, and BPTT as anybody would write it in JAX, on the same arrays.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from spikebit.learning_rules import LearningRule, bptt, compare, ostl
from spikebit.learning_rules.rule import parameters, run_sequence
from spikebit.simulator.snu import SNUCell

DECAY, RATE = 0.8, 0.1  # of the units; share of inputs that spike


class Task(NamedTuple):
    """A network with one sequence."""

    network: Any
    params: Any
    xs: jax.Array  # (T, B, n_in)
    targets: jax.Array  # (T, B, n_out)


def loss(y: jax.Array, target: jax.Array) -> jax.Array:
    """Half the mean square error, one number a sample."""
    return 0.5 * jnp.mean((y - target) ** 2, -1)


def snu(n: int, *, recurrent: bool, seed: int = 0) -> SNUCell:
    """N units behind n inputs; the input weights are such that some 5 to 20 % of them fire."""
    cell = SNUCell(n, n, recurrent=recurrent, decay=DECAY, rngs=nnx.Rngs(seed))
    w = jax.random.normal(jax.random.key(seed), (n, n)) * 2 / n**0.5
    cell.w[...] = w
    return cell


def task(
    network: Any, steps: int, batch: int, n_in: int, n_out: int, *, rate: float = RATE
) -> Task:
    """Random spikes (rate 0: normal numbers) and uniform targets."""
    inputs, wanted = jax.random.split(jax.random.key(1))
    shape = (steps, batch, n_in)
    if rate:
        xs = jax.random.bernoulli(inputs, rate, shape).astype(jnp.float32)
    else:
        xs = jax.random.normal(inputs, shape)
    targets = jax.random.uniform(wanted, (steps, batch, n_out))
    return Task(network, parameters(network), xs, targets)


@jax.custom_jvp
def _spike(u: jax.Array) -> jax.Array:
    return (u > 0).astype(u.dtype)


@_spike.defjvp
def _spike_jvp(primals: tuple, tangents: tuple) -> tuple:
    return _spike(*primals), (1 - jnp.tanh(primals[0]) ** 2) * tangents[0]


def plain_bptt(*, outside: bool) -> Callable[..., Any]:
    """`jax.grad` through `lax.scan`, the SNU written down in it; nothing of spikebit.

    Args:
        outside: whether x @ w of all steps is one product before the scan.
    """

    def gradient(params: Any, xs: jax.Array, targets: jax.Array) -> Any:
        def total(params: Any) -> jax.Array:
            w, b, h = (params[k][...] if k in params else None for k in ("w", "b", "h"))

            def step(carry: tuple, inputs: tuple) -> tuple:
                (s, y), (x, target) = carry, inputs
                z = x if outside else x @ w
                z = z if h is None else z + y @ h
                s = jax.nn.relu(z + DECAY * s * (1 - y))
                y = _spike(s + b)
                return (s, y), jnp.mean(loss(y, target))

            zero = jnp.zeros((xs.shape[1], w.shape[1]))
            return jax.lax.scan(step, (zero, zero), (xs @ w if outside else xs, targets))[1].sum()

        return jax.grad(total)(params)

    return gradient


def of_rule(rule: LearningRule, chunk: int | None) -> Callable[..., Any]:
    """The gradient of a sequence by a rule, given `chunk` steps at a time."""

    def gradient(params: Any, xs: jax.Array, targets: jax.Array) -> Any:
        return run_sequence(rule, params, xs, targets, chunk=chunk).grads

    return gradient


def bptts(network: Any) -> dict[str, Callable[..., Any]]:
    """BPTT in the ways that compete; the fastest is what the rules are compared with."""
    return {
        "BPTT, jax.grad of lax.scan": plain_bptt(outside=False),
        "BPTT, same, x @ w outside": plain_bptt(outside=True),
        "BPTT, spikebit": of_rule(bptt(network, loss), None),
    }


def chunked(network: Any, chunks: tuple[int, ...], **settings: Any) -> dict[str, Callable]:
    """OSTL with several chunks."""
    rule = ostl(network, loss, **settings)
    return {f"OSTL, K = {k}": of_rule(rule, k) for k in chunks}


def compiled(ways: Mapping[str, Callable[..., Any]], on: Task) -> dict[str, Any]:
    """Every way compiled for a task's arrays, or their shapes alone."""
    arrays = (on.params, on.xs, on.targets)
    return {name: jax.jit(way).lower(*arrays).compile() for name, way in ways.items()}


def runs(programs: Mapping[str, Any], on: Task) -> dict[str, Callable[[], Any]]:
    """What `rounds.in_turns` times."""

    def run(program: Any) -> Any:
        return jax.block_until_ready(program(on.params, on.xs, on.targets))

    return {name: functools.partial(run, program) for name, program in programs.items()}


def scratch(program: Any) -> int:
    """Bytes beside inputs and outputs, as XLA plans them."""
    return int(program.memory_analysis().temp_size_in_bytes)


def error(gradient: Any, reference: Any) -> float:
    """The relative error of a gradient, all leaves together."""
    return compare.relative_error(gradient, reference)

"""Samples that begin anew inside a stream: the same as each piece in a stream of its own."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spikebit import learning_rules as rules
from spikebit.quant.state_formats import state_formats
from spikebit.simulator import ALIFCell, LIFCell, Network, SNUCell, SoftSNUCell

pytestmark = pytest.mark.usefixtures("compile_quickly")
STEPS, BATCH, N_IN, N, N_OUT = 12, 2, 4, 5, 3
XS = 2 * jax.random.normal(jax.random.key(0), (STEPS, BATCH, N_IN))
TARGETS = jax.random.randint(jax.random.key(1), (STEPS, BATCH), 0, N_OUT)
LOSS = rules.losses.cross_entropy
BEGINS = ([0, 6], [3, 9])  # of each sample: before the first step, and inside chunks of four
RESETS = jnp.zeros((STEPS, BATCH), bool)
for sample, begins in enumerate(BEGINS):
    RESETS = RESETS.at[jnp.array(begins), sample].set(True)

ALIF = partial(ALIFCell, recurrent=True, beta=0.5, refractory=1)
LIF = partial(LIFCell, recurrent=True, detach_reset=True)
SNU = partial(SNUCell, recurrent=True, train_decay=True)
RULES = {
    "bptt": rules.bptt,
    "ostl": rules.ostl,
    "chunk": partial(rules.ostl, cross_layer="chunk"),
    "unit": partial(rules.ostl, scope="unit"),
    "no_h": partial(rules.ostl, scope="no_h"),
    "sltt": rules.sltt,
    "ottt": rules.ottt,
    "rtrl": rules.rtrl,
    "grapes": rules.grapes(rules.ostl),
}


def network(*cells):
    layers = [c(N_IN if i == 0 else N, N, rngs=nnx.Rngs(i)) for i, c in enumerate(cells)]
    return Network([*layers, nnx.Linear(N, N_OUT, rngs=nnx.Rngs(9))])


def pieces():
    """Each stretch between two resets as (sample, first step, end)."""
    for sample, begins in enumerate(BEGINS):
        borders = [0, *(b for b in begins if b), STEPS]
        for first, end in itertools.pairwise(borders):
            yield sample, first, end


@pytest.mark.parametrize(
    ("name", "cells", "chunk"),
    [
        ("bptt", (SNU, nnx.GRUCell), None),
        ("ostl", (SNU, nnx.GRUCell), 4),
        ("chunk", (nnx.LSTMCell, SNU), 12),
        ("unit", (SNU, nnx.GRUCell), 4),
        ("no_h", (ALIF, nnx.GRUCell), 4),
        ("sltt", (SNU, nnx.GRUCell), 4),
        ("ottt", (LIF, LIF), 4),
        ("rtrl", (SNU, nnx.GRUCell), 4),
        ("grapes", (SNU, LIF), 4),
    ],
)
def test_a_reset_is_the_start_of_another_stream(name, cells, chunk):
    net = network(*cells)
    params, loss = rules.parameters(net), rules.losses.weighted(LOSS)
    rule = RULES[name](net, loss)

    @partial(jax.jit, static_argnames="chunk")
    def run(params, xs, targets, resets=None, chunk=None):
        return rules.run_sequence(rule, params, xs, targets, resets=resets, chunk=chunk)

    whole = run(params, XS, (TARGETS, jnp.ones((STEPS, BATCH))), RESETS, chunk=chunk)
    # the pieces are a batch: what follows the end of a short one has weight zero
    found = list(pieces())
    longest = max(end - first for _, first, end in found)
    index = np.array([np.arange(first, first + longest) % STEPS for _, first, _ in found]).T
    samples = np.array([sample for sample, *_ in found])
    inside = np.arange(longest)[:, None] < np.array([end - first for _, first, end in found])
    # chunks matter only to the rule that drops paths across their borders; there it is one
    weights = jnp.asarray(inside, jnp.float32)
    alone = run(params, XS[index, samples], (TARGETS[index, samples], weights))
    for i, (sample, first, end) in enumerate(found):
        np.testing.assert_allclose(
            whole.outputs[first:end, sample],
            alone.outputs[: end - first, i],
            rtol=1e-5,
            atol=1e-6,
        )
    more = len(found) / BATCH  # both losses are means over their batches
    np.testing.assert_allclose(whole.loss, more * alone.loss, rtol=1e-6)
    for (path, g), e in zip(
        jax.tree_util.tree_leaves_with_path(whole.grads), jax.tree.leaves(alone.grads), strict=True
    ):
        assert np.any(np.asarray(e)), path
        assert rules.relative_error(g, more * e) <= 1e-5, jax.tree_util.keystr(path)


def test_a_stream_of_sequences_is_a_batch_of_them():
    """Carried state and traces on one endless stream, and a reset at the start of each sequence."""
    net = network(SNU)
    params, rule = rules.parameters(net), rules.ostl(net, LOSS)
    stream, labels = (a.swapaxes(0, 1).reshape(-1, 1, *a.shape[2:]) for a in (XS, TARGETS))
    starts = (jnp.arange(len(stream)) % STEPS == 0)[:, None]
    step, state, total = jax.jit(rule.step), rule.init(params, stream[:4]), None
    for t in range(0, len(stream), 4):
        part = slice(t, t + 4)
        state, out = step(params, state, stream[part], labels[part], starts[part])
        total = out.grads if total is None else jax.tree.map(jnp.add, total, out.grads)
    batch = jax.jit(lambda p: rules.run_sequence(rule, p, XS, TARGETS, chunk=4))(params).grads
    for g, e in zip(jax.tree.leaves(total), jax.tree.leaves(batch), strict=True):
        assert rules.relative_error(g / BATCH, e) <= 1e-5


def test_keys_of_rounding_go_on_past_a_reset():
    net = state_formats(network(SoftSNUCell), {"membrane": "fixed8.4"}, rounding="stochastic")
    params, rule = rules.parameters(net), rules.ostl(net, LOSS)
    state = rule.init(params, XS, jax.random.key(2))
    again = jnp.ones_like(RESETS[:1])
    xs, labels = XS[:1] + 1 / 3, TARGETS[:1]
    state, first = jax.jit(rule.step)(params, state, xs, labels, again)
    _, second = jax.jit(rule.step)(params, state, xs, labels, again)
    assert not np.array_equal(first.outputs, second.outputs)  # other noise on the same input


def test_weight_zero_hides_what_is_not_finite():
    net = network(SNU)
    params, loss = rules.parameters(net), rules.losses.weighted(LOSS)
    weights = jnp.ones((STEPS, BATCH)).at[3:, 1].set(0)
    bad = XS.at[-1, 1].set(jnp.nan)
    rule = rules.bptt(net, loss)

    @jax.jit
    def run(xs, weights):
        return rules.run_sequence(rule, params, xs, (TARGETS, weights))

    good, out = run(XS, weights), run(bad, weights)
    assert np.isfinite(out.loss)
    assert good.loss == out.loss
    # the sample without a mask, and of the other one a sequence that is as short
    alone = [run(XS, jnp.zeros_like(weights).at[:end, i].set(1)) for i, end in ((0, STEPS), (1, 3))]
    np.testing.assert_allclose(good.loss, sum(a.loss for a in alone), rtol=1e-6)
    grads = jax.tree.map(jnp.add, *(a.grads for a in alone))
    assert rules.relative_error(good.grads, grads) <= 1e-5
    short = jax.jit(lambda p: rules.run_sequence(rules.bptt(net, LOSS), p, XS[:3], TARGETS[:3]))
    masked = run(XS, jnp.zeros_like(weights).at[:3].set(1))
    assert rules.relative_error(masked.grads, short(params).grads) <= 1e-5


@pytest.mark.parametrize("name", ["bptt", "ostl", "sltt"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"resets": jnp.zeros((STEPS, BATCH))}, r"resets is float32\(12, 2\).*give bool\(12, 2\)"),
        ({"resets": jnp.zeros((STEPS, 1), bool)}, r"resets is bool\(12, 1\)"),
        ({"targets": TARGETS[:, :1]}, r"targets has shape \(12, 1\).*\(12, 2, 4\)"),
        ({"xs": XS[:0], "targets": TARGETS[:0]}, "at least one time step"),
        ({"xs": XS[:, :1], "targets": TARGETS[:, :1]}, "batch of 1 and the state one of 2"),
    ],
)
def test_arrays_that_do_not_belong_together(name, change, words):
    net = network(SNU)
    params, rule = rules.parameters(net), RULES[name](net, LOSS)
    given = {"xs": XS, "targets": TARGETS} | change
    with pytest.raises(ValueError, match=words):
        rule.step(params, rule.init(params, XS), **given)

"""Study of delayed exclusive or: the task, training against identities of rules, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.learning_rules import losses, parameters, relative_error, run_sequence
from spikebit.learning_rules.bptt import sequence_loss
from spikebit.simulator import report
from spikebit.simulator.rules_table import RULES
from spikebit.simulator.studies import delayed_xor as study

pytestmark = pytest.mark.usefixtures("compile_quickly", "standard_promotion")
ALL_BITS = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], np.float32)
SMALL = study.Settings(
    cells=("soft_snu",), bits=(0, 2), cue=3, hidden=5, batch=8, updates=20, seeds=1, truncated=(1,)
)


def curve(settings=SMALL, **case):
    case = {"cell": "soft_snu", "rule": "bptt", "chunk": settings.cue + 1, "seed": 3} | case
    return study.measure(settings, 0, case)["curve"]


def test_the_task_by_hand():
    xs, (labels, weights) = study.sequences(study.Settings(), jnp.asarray(ALL_BITS))
    expected = np.zeros((14, 4, 3))
    for i, (a, b) in enumerate(ALL_BITS):
        expected[1, i, 0], expected[5, i, 1], expected[13, i, 2] = a, b, 1
    np.testing.assert_array_equal(xs, expected)
    assert labels[-1].tolist() == [[0], [1], [1], [0]]
    assert weights.tolist() == [[0] * 4] * 13 + [[1] * 4]


def test_only_the_last_step_is_judged():
    _, targets = study.sequences(SMALL, jnp.asarray(ALL_BITS))
    z = np.random.default_rng(0).normal(size=(4, 4, 1)).astype(np.float32)
    found = sequence_loss(losses.weighted(losses.sigmoid_cross_entropy), jnp.asarray(z), targets)
    sign = np.array([1, -1, -1, 1])  # of the logit that is wrong
    np.testing.assert_allclose(found, np.log1p(np.exp(sign * z[-1, :, 0])).mean(), rtol=1e-6)


def test_weighting_the_four_sequences_is_a_random_batch():
    """The gradient of all drawn sequences, one by one, from the same key."""
    network = study._network(SMALL, "soft_snu", 0)
    rule = study._rule(SMALL, "soft_snu", "bptt")
    counted = study.random_batch(SMALL, jax.random.key(7))
    drawn = jax.random.randint(jax.random.key(7), (8,), 0, 4)
    assert len(set(drawn.tolist())) > 1
    gradient = jax.jit(lambda *task: run_sequence(rule, parameters(network), *task).grads)
    xs, (labels, weights) = study.sequences(SMALL, jnp.asarray(ALL_BITS))
    weighed = gradient(xs, (labels, weights * counted))
    single = gradient(*study.sequences(SMALL, jnp.asarray(ALL_BITS)[drawn]))
    assert relative_error(weighed, single) < 1e-5


def test_the_curve_starts_with_the_loss_of_the_four_sequences():
    """A soft SNU run through time in numpy, from the same weights."""
    params = parameters(study._network(SMALL, "soft_snu", 3))
    leaves = {jax.tree_util.keystr(p): np.asarray(v) for p, v in jax.tree.leaves_with_path(params)}

    def get(layer, name):
        (found,) = [v for k, v in leaves.items() if f"[{layer}]" in k and f"['{name}']" in k]
        return found

    w, h, b = (get(0, name) for name in ("w", "h", "b"))
    s = y = np.zeros((4, 5))
    for t in range(4):
        x = np.zeros((4, 3))
        if t in (0, 2):
            x[:, t // 2] = ALL_BITS[:, t // 2]
        x[:, 2] = t == 3
        s = x @ w + y @ h + 0.9 * s * (1 - y)
        y = 1 / (1 + np.exp(-s - b))
    z = (y @ get(1, "kernel") + get(1, "bias"))[:, 0]
    expected = np.logaddexp(0, np.array([1, -1, -1, 1]) * z).mean()
    assert curve()[0] == pytest.approx(expected, rel=2e-4)  # a curve has four digits


def test_rules_that_give_one_gradient_learn_alike():
    """OSTL with H is exact in one layer; BPTT a step at a time has SLTT's gradient."""
    exact, cut = curve(), curve(chunk=1)
    assert abs(exact[-1] - cut[-1]) > 1e-3
    np.testing.assert_allclose(curve(rule="ostl", chunk=1), exact, rtol=1e-3)
    np.testing.assert_allclose(curve(rule="sltt", chunk=2), cut, rtol=1e-3)


def test_an_easy_one_is_solved_and_said_to_be():
    settings = study.Settings(bits=(0, 0), cue=1, hidden=8, updates=150, learning_rate=0.05)
    case = {"cell": "gru", "rule": "bptt", "chunk": 2, "seed": 0}
    row = study.measure(settings, 0, case)
    assert row["loss"] < 0.1
    assert row["accuracy"] == 1
    at = study.curve_updates(settings)
    assert (at[0], at[-1], len(at)) == (0, 150, len(row["curve"]))
    below = [u for u, loss in zip(at, row["curve"], strict=True) if loss < 0.1]
    assert below[0] - 4 < row["reached"] <= below[0]  # 150 / 40 updates between two points
    study._trainer.cache_clear()
    assert study.measure(settings, 0, case) == row


def test_cases_take_each_rule_as_it_learns_online():
    settings = study.Settings(cells=("soft_snu",), rules=("bptt", "ostl"), truncated=(7,), seeds=2)
    found = [(c["rule"], c["chunk"], c["seed"]) for c in study.cases(settings, 5)]
    assert found == [
        *[("bptt", 14, 5), ("bptt", 14, 6), ("ostl", 1, 5), ("ostl", 1, 6)],
        *[("bptt", 7, 5), ("bptt", 7, 6)],
    ]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"bits": (1, 13)}, r"study.bits = \[1, 13\]: both must come before study.cue = 13"),
        ({"truncated": (5,)}, r"study.truncated = 5 does not divide the 14 steps"),
        ({"chunk": 4}, r"study.chunk = 4 does not divide the 14 steps"),
        ({"rules": ("tbptt",)}, f"study.rules: 'tbptt' is not known; known are {', '.join(RULES)}"),
        ({"rules": ("ottt",), "cells": ("soft_snu",)}, "ottt does not fit study.cells: soft_snu"),
    ],
)
def test_what_is_refused(changed, said):
    with pytest.raises(ValueError, match=said):
        study.cases(study.Settings(**changed), 0)


def test_training_that_diverges_is_said():
    with pytest.raises(ValueError, match="soft_snu by bptt diverged: choose a smaller"):
        curve(study.Settings(bits=(0, 0), cue=1, hidden=2, updates=3, learning_rate=1e38))


def test_summary_and_pictures():
    settings = study.Settings(cells=("gru",), updates=40)
    points = len(study.curve_updates(settings))

    def row(rule, chunk, seed, loss, after):
        case = {"cell": "gru", "rule": rule, "chunk": chunk, "seed": seed}
        found = {"loss": loss, "accuracy": 1.0, "reached": after, "curve": [loss] * points}
        return case | found

    rows = [row("bptt", 14, 0, 0.01, 30), row("bptt", 14, 1, 0.4, 10)]  # the second lost it again
    rows += [row("bptt", 7, 0, 0.6, None), row("sltt", 1, 0, 0.5, None)]
    found = study.summary(settings, rows)["gru"]
    assert found["bptt"] == {
        "solved": "1 of 2", "reached": "2 of 2", "updates": [10, 30], "loss": [0.01, 0.4]
    }  # fmt: skip
    assert [found[k]["reached"] for k in ("bptt, 7 steps", "sltt")] == ["0 of 1", "0 of 1"]
    assert found["sltt"]["updates"] is None
    drawn = study.pictures(settings, rows)
    assert set(drawn) == {"curves_gru", "final_loss", "accuracy"}
    assert all(report.png(ax).startswith(b"\x89PNG") for ax in drawn.values())
    levels = [line.get_ydata()[0] for line in drawn["curves_gru"].lines[-2:]]
    np.testing.assert_allclose(levels, [np.log(2), settings.solved])

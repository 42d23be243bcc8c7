"""Losses by their definitions, and the comparison of rules by what it must report."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spikebit import learning_rules as rules
from spikebit.learning_rules.compare import compare_leaves, in_words
from spikebit.simulator import LIFCell, Network, SNUCell, SoftSNUCell


def test_losses_are_their_definitions():
    y = jax.random.normal(jax.random.key(0), (4, 3))
    labels = jnp.array([0, 2, 1, 1])
    bits = jnp.array([[0.0, 1, 1], [1, 0, 0], [1, 1, 1], [0, 0, 0]])
    z = np.asarray(y, np.float64)
    softmax = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    nll = -np.log(softmax[np.arange(4), labels])
    np.testing.assert_allclose(rules.losses.cross_entropy(y, labels), nll, rtol=1e-5)
    p = 1 / (1 + np.exp(-z))
    binary = -(bits * np.log(p) + (1 - bits) * np.log(1 - p)).sum(1)
    np.testing.assert_allclose(rules.losses.sigmoid_cross_entropy(y, bits), binary, rtol=1e-5)
    half = 0.5 * ((z - bits) ** 2).sum(1)
    np.testing.assert_allclose(rules.losses.squared_error(y, bits), half, rtol=1e-5)


def test_distances_of_trees():
    a = {"x": jnp.array([3.0, 0.0]), "y": jnp.array([4.0])}
    b = {"x": jnp.array([0.0, 0.0]), "y": jnp.array([4.0])}
    assert rules.relative_error(a, b) == pytest.approx(3 / 4)
    assert rules.cosine(a, b) == pytest.approx(4 / 5)
    assert rules.relative_error(a, a) == 0
    lost = {"x": jnp.array([jnp.nan, 0.0]), "y": jnp.array([4.0])}
    assert np.isnan(rules.relative_error(lost, a))


pytestmark = pytest.mark.usefixtures("compile_quickly")
SNU = partial(SoftSNUCell, recurrent=True)
LOSS = rules.losses.squared_error


def compared(cells, names, steps=20, **settings):
    layers = [cell(4 if i == 0 else 6, 6, rngs=nnx.Rngs(i)) for i, cell in enumerate(cells)]
    network = Network([*layers, nnx.Linear(6, 3, rngs=nnx.Rngs(9))])
    xs = jax.random.normal(jax.random.key(1), (steps, 2, 4))
    batch = (xs, jnp.ones((steps, 2, 3)))
    return rules.compare_to_bptt(network, batch, loss=LOSS, rules=names, repeats=1, **settings)


def test_compare_tells_exact_from_approximate_and_flat_from_growing():
    found = compared([SNU], ["bptt", "ostl", "ostl_no_h", "sltt"])
    rows = {row["rule"]: row for row in found}
    assert rows["bptt"]["relative_error"] == 0
    assert rows["ostl"]["relative_error"] <= 1e-5 < 1e-3 < rows["ostl_no_h"]["relative_error"]
    assert rows["ostl"]["cosine"] > 1 - 1e-9 > rows["ostl_no_h"]["cosine"] > 0
    assert rows["ostl"]["exact"] == "exact for every leaf"
    names = ["layers.0.b", "layers.0.h", "layers.0.w", "layers.1.bias", "layers.1.kernel"]
    for name in ("ostl_no_h", "sltt"):
        verdicts = {leaf["leaf"]: leaf["verdict"] for leaf in rows[name]["leaves"]}
        assert list(verdicts) == names
        assert {leaf for leaf, verdict in verdicts.items() if verdict == "exact"} == set(names[3:])
        assert rows[name]["exact"].startswith("exact: layers.1.bias, layers.1.kernel; approximate")
        assert "layers.0.w (cosine 0." in rows[name]["exact"]
    assert all(row["step_ms"] > 0 for row in rows.values())
    text = rules.report(list(rows.values()))
    assert text.count("\n") == 2 * len(rows) - 1
    assert "exact for every leaf" in text
    # bptt keeps at least what each of the 6 units was for each of the 2 samples, in 4 bytes
    assert rows["bptt"]["bytes_per_step"] >= 6 * 2 * 4
    for name in ("ostl", "ostl_no_h", "sltt"):
        assert rows[name]["bytes_per_step"] < 6 * 2 * 4


def test_leaves_without_a_gradient_are_not_called_exact():
    zero, one, two = jnp.zeros(3), jnp.ones(3), jnp.full(3, 2.0)
    exact = {"a": one, "b": one, "c": zero, "d": zero, "e": one}
    grads = {"a": two, "b": zero, "c": zero, "d": one, "e": one * (1 + 2**-20)}
    leaves = compare_leaves(grads, exact)
    verdicts = [leaf["verdict"] for leaf in leaves]
    assert verdicts == ["approximate", "not learned", "no gradient", "approximate", "exact"]
    assert leaves[0]["norm_ratio"] == pytest.approx(2)
    assert leaves[0]["cosine"] == pytest.approx(1)
    assert leaves[0]["relative_error"] == pytest.approx(1)
    assert in_words(leaves[:2]) == (
        "approximate: a (cosine 1.00, 2.00 times as long); not learned: b"
    )


def test_every_rule_by_its_name_and_what_has_none():
    names = sorted(set(rules.RULES) - {"rtrl", "ottt"})
    cell = partial(LIFCell, recurrent=True, detach_reset=True)
    found = compared([cell], names, steps=8, chunk=4)
    assert [row["rule"] for row in found] == names
    for row in found:
        readout = [leaf for leaf in row["leaves"] if leaf["leaf"].startswith("layers.1")]
        assert {leaf["verdict"] for leaf in readout} == {"exact"}, row["rule"]
    with pytest.raises(ValueError, match="'ostl2' is none of bptt, ostl"):
        compared([SNU], ["ostl2"])


def test_a_comparison_that_could_tell_nothing_is_refused():
    cell = nnx.SimpleCell(3, 4, rngs=nnx.Rngs(0))
    xs = jax.random.normal(jax.random.key(0), (4, 2, 3))
    targets = jnp.zeros((4, 2, 4))
    compare = partial(rules.compare_to_bptt, loss=rules.losses.squared_error, rules=["ostl"])
    with pytest.raises(ValueError, match=r"BPTT's own gradient of .* is not finite"):
        compare(cell, (xs.at[1, 0].set(jnp.nan), targets))
    coarse = SNUCell(3, 4, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"is bfloat16, whose roundings .*in float32 or float64"):
        compare(coarse, (xs, targets))

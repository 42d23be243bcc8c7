"""Study of SLTT's norms: the predicted ratio where it is exact, the training, refusals."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.learning_rules import bptt, losses, parameters, relative_error, run_sequence, sltt
from spikebit.learning_rules.stack import as_stack
from spikebit.simulator import report, simulate
from spikebit.simulator.studies import _slow_membranes as membranes
from spikebit.simulator.studies import sltt_norms as study

pytestmark = pytest.mark.usefixtures("compile_quickly", "standard_promotion")
KIND = membranes.Kind((6, 5, 4, 3), gain=2.0, surrogate="arctan")  # no unit is without a gradient
TINY = study.Settings(
    decays=(0.5, 0.9), kinds=("base", "linear"), hidden=(12, 8), steps=4, batch=8, seeds=2,
    learners=("sltt", "sltt, rescaled", "sltt-k", "bptt, adam"), sgd_rates=(0.05, 0.5),
    adam_rates=(1e-3,), images=60, image_batch=20, epochs=1, learning_seeds=1,
)  # fmt: skip


def kernels(network, tree):
    return [part.get("w", part.get("kernel")) for part in as_stack(network).split(tree)[0]]


@pytest.mark.parametrize(("readout", "count"), [("leaky", 3), ("dense", 2)])
def test_the_prediction_is_exact_where_every_path_counts_alike(readout, count):
    """Constant inputs and errors, spikes differentiated as 1, no reset: the lowest layer."""
    kind = KIND._replace(reset="none", surrogate="straight_through", readout=readout)
    network, steps = membranes.make_network(kind, 0.9, 0), 7
    xs = jnp.broadcast_to(jax.random.normal(jax.random.key(1), (2, 6)), (steps, 2, 6))
    errors = jax.random.normal(jax.random.key(2), (2, 3))
    linear = losses.weighted(lambda outputs, errors: (outputs * errors).sum(-1))

    @jax.jit
    def lowest(params, weights):
        targets = jnp.broadcast_to(errors, (steps, 2, 3)), weights
        rules = (make(network, linear) for make in (sltt, bptt))
        return [kernels(network, run_sequence(r, params, xs, targets).grads)[0] for r in rules]

    for decay, loss in itertools.product((0.091, 0.9), ("each", "last")):
        params = parameters(membranes.make_network(kind, decay, 0))
        same_step, exact = lowest(params, membranes.step_weights(steps, 2, loss))
        predicted = membranes.predicted_ratio(decay, count, steps, loss)
        assert relative_error(same_step, predicted * exact) < 1e-5, (decay, loss)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_prediction_for_a_long_time(count):
    """Of m membranes, each keeps 1 / (1 - d) of what comes in; the first steps have only k = 0."""
    assert membranes.predicted_ratio(0.5, count, 200, "last") == pytest.approx(0.5**count)
    assert membranes.predicted_ratio(0.5, count, 1, "each") == 1
    assert membranes.predicted_ratio(0.5, count, 2, "each") == pytest.approx(1 / (1 + count / 4))


def test_the_weights_of_the_steps():
    np.testing.assert_allclose(membranes.step_weights(4, 2, "each"), np.full((4, 2), 0.25))
    assert membranes.step_weights(3, 2, "last").tolist() == [[0, 0], [0, 0], [1, 1]]


def test_a_network_leaks_as_told():
    """Below its threshold a unit keeps the decay's share, in all layers."""
    network = membranes.make_network(KIND._replace(readout="leaky"), 0.7, 0)
    xs = jnp.zeros((3, 1, 6)).at[0].set(0.01)
    found = simulate(network, xs, record=["0.v"]).records["0.v"]
    np.testing.assert_allclose(found[1:], 0.7 * found[:-1], rtol=1e-6)
    assert [float(c.decay[0]) for c in network.layers] == pytest.approx([0.7] * 3)


def trained(rule, factors, k=None, scale=True, rate=0.5):
    """What one update on three images changes; the key and the order are always the same."""
    network = membranes.make_network(KIND, 0.9, 0)
    params, images = parameters(network), jax.random.uniform(jax.random.key(1), (3, 6))
    train, _ = membranes._trainer(KIND, rule, k, scale, "sgd", 4, 3)
    labels, order = jnp.array([0, 2, 1]), jnp.array([[0, 1, 2]])
    numbers = jnp.asarray(factors, jnp.float32), jnp.asarray(rate, jnp.float32)
    new = train(params, *numbers, images, labels, order, jax.random.key(5))
    return network, images, labels, jax.tree.map(lambda a, b: b - a, params, new)


def test_an_update_is_rate_times_factor_times_gradient():
    """Against `jax.grad` of the cross-entropy written out; decays stay."""
    network, images, labels, change = trained("bptt", (3.0, 0.0, 1.0))

    @jax.jit
    @jax.grad
    def gradient(network):
        outputs = simulate(network, jnp.broadcast_to(images, (4, 3, 6))).outputs
        right = jnp.take_along_axis(jax.nn.log_softmax(outputs), labels[None, :, None], -1)
        return -right.mean()

    grads = kernels(network, parameters(gradient(network)))
    for got, grad, factor in zip(kernels(network, change), grads, (3, 0, 1), strict=True):
        np.testing.assert_allclose(got, -0.5 * factor * grad, rtol=1e-4, atol=1e-6)
    assert float(jnp.abs(grads[1]).max()) > 1e-3
    assert all(not p["d"].any() for p in as_stack(network).split(change)[0] if "d" in p)


def test_sltt_k_without_its_factor_learns_by_k_of_t_as_much():
    *_, with_factor = trained("sltt", (1.0, 1.0, 1.0), k=1)
    *_, without = trained("sltt", (1.0, 1.0, 1.0), k=1, scale=False)
    *_, whole = trained("sltt", (1.0, 1.0, 1.0))
    # what changed is the difference of weights near 1: four digits of it are left
    assert relative_error(jax.tree.map(lambda a: 4 * a, without), with_factor) < 1e-4
    assert relative_error(with_factor, whole) > 0.01


def test_rows_summary_and_pictures():
    rows = [case | study.measure(TINY, 3, case) for case in study.cases(TINY, 3)]
    by = {(r.get("kind", r.get("learner")), r.get("loss"), r["decay"]): r for r in rows}
    assert len(by) == len(rows) == 2 * 2 * 2 + 4 * 2
    row = by["base", "each", 0.9]
    assert np.shape(row["cosine"]) == np.shape(row["ratio"]) == (2, 2)
    assert row["predicted"][1] == pytest.approx(membranes.predicted_ratio(0.9, 1, 4, "each"), 1e-3)
    rescaled, plain = by["sltt, rescaled", None, 0.9], by["sltt", None, 0.9]
    assert len(rescaled["factor"]) == 2
    assert min(rescaled["factor"]) > 1  # slow membranes: SLTT's gradient is shorter
    assert rescaled["train_loss"] != plain["train_loss"]
    assert rescaled["rate"] == [0.05, 0.5]
    found = study.summary(TINY, rows)
    values = found["lowest layer, loss at each: decay -> cosine, ratio, predicted"]["0.9"]
    np.testing.assert_allclose(
        values,
        [np.mean(row["cosine"][0]), np.mean(row["ratio"][0]), row["predicted"][0]],
        rtol=6e-3,
    )
    rate, train, _ = found["sltt: decay -> rate, training and test accuracy"]["0.9"]
    assert train == pytest.approx(max(plain["train_accuracy"]), abs=1e-4)
    assert rate == plain["rate"][int(np.argmax(plain["train_accuracy"]))]
    drawn = study.pictures(TINY, rows)
    assert set(drawn) == {"norm", "cosine", "kinds", "sgd", "sltt_k", "adam"}
    assert all(report.png(ax).startswith(b"\x89PNG") for ax in drawn.values())


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"study\.k = 5 is more than study\.steps = 4"):
        study.cases(study.Settings(steps=4, k=5), 0)
    case = {"part": "learning", "learner": "sltt", "decay": 0.5, "seed": 0}
    with pytest.raises(ValueError, match=r"study\.image_batch = 50 is more than the 20"):
        study.measure(study.Settings(images=20), 0, case)
    network, nothing = membranes.make_network(KIND, 0.5, 0), jnp.zeros((3, 2, 6))
    with pytest.raises(ValueError, match="layer 0 gets no gradient by BPTT"):
        membranes.compare_gradients(KIND, network, nothing, jnp.array([0, 1]), "each")

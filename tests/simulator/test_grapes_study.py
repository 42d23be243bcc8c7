"""GRAPES in experiments, and its study: the fit, the measure of forgetting, the rows; small."""

import jax
import numpy as np
import optax
import pytest

from spikebit.learning_rules import (
    direct_feedback_alignment,
    feedback_alignment,
    feedback_weights,
    local_grapes,
    losses,
    parameters,
    relative_error,
    run_sequence,
)
from spikebit.simulator import Experiment, build, experiment_file
from spikebit.simulator.experiment import Data, NetworkSettings, Optimizer, Rule
from spikebit.simulator.studies import grapes as study

pytestmark = pytest.mark.usefixtures("compile_quickly", "standard_promotion")
TINY = {"hidden": (12, 12), "epochs": 2, "tasks": 2, "task_epochs": 1, "limit": 200, "seeds": 1}


@pytest.mark.parametrize(("highest", "s"), [(0.9, 0.05), (0.8, 1.0), (0.97, 7.0)])
def test_the_fit_finds_the_curve_it_is_given(highest, s):
    e = np.arange(1, 21)
    np.testing.assert_allclose(
        study.fit_learning_curve(highest * e / (s + e)), (highest, s), rtol=1e-6
    )


def test_the_fit_has_the_least_squares():
    """Of a noisy curve: neither parameter can be moved to a smaller sum of squares."""
    e = np.arange(1, 16)
    accuracy = 0.9 * e / (0.7 + e) + np.random.default_rng(0).normal(0, 0.02, 15)

    def squares(highest, s):
        return ((highest * e / (s + e) - accuracy) ** 2).sum()

    highest, s = study.fit_learning_curve(accuracy)
    for a, b in ((1e-3, 0), (-1e-3, 0), (0, 1e-2), (0, -1e-2), (1e-3, 1e-2), (-1e-3, -1e-2)):
        assert squares(highest + a, s + b) > squares(highest, s)


def test_forgetting_is_the_loss_on_earlier_tasks():
    after = np.array([[0.9, 0.1, 0.1], [0.6, 0.8, 0.1], [0.5, 0.7, 0.9]])
    assert study.forgetting(after) == pytest.approx(((0.9 - 0.5) + (0.8 - 0.7)) / 2)


def test_every_variant_learns_in_its_own_way_and_the_summary_compares_them():
    settings = study.Settings(optimizers=("momentum",), **TINY)
    rows = [case | dict(study.measure(settings, 5, case)) for case in study.cases(settings, 5)]
    assert [r["variant"] for r in rows] == list(study.VARIANTS)
    assert all(len(r["curve"]) == 2 and np.shape(r["tasks"]) == (2, 2) for r in rows)
    assert len({(r["slowness"], r["forgetting"], *r["curve"]) for r in rows}) == len(rows)
    by = {r["variant"]: r for r in rows}
    found = study.summary(settings, rows)
    assert found["momentum"]["mean"]["slowness"] == by["mean"]["slowness"]
    difference = by["propagating"]["test_accuracy"] - by["mean"]["test_accuracy"]
    wanted = [pytest.approx(difference), None]
    assert found["momentum: propagating minus"]["mean"]["test_accuracy"] == wanted
    assert set(study.pictures(settings, rows)) == {"accuracy_momentum", "slowness", "forgetting"}


@pytest.mark.parametrize("direct", [False, True])
def test_under_feedback_alignment_a_variant_is_the_rule_with_its_factor(direct):
    """Without a floor, and the feedback weights drawn from a key; `local` is the optimizer's."""
    errors = "direct_feedback_alignment" if direct else "feedback_alignment"
    settings = study.Settings(errors=errors, optimizers=("sgd",), **TINY)
    named = [c["variant"] for c in study.cases(settings, 0)]
    assert named == [v for v in study.VARIANTS if v != "local" or not direct]
    network = study._network((12, 12), 10, 0)
    draw, shuffle = jax.random.split(jax.random.key(1))
    images = jax.random.normal(jax.random.key(0), (1, 4, 28 * 28))
    make = direct_feedback_alignment if direct else feedback_alignment
    weights = feedback_weights(network, jax.random.clone(draw), direct=direct)

    def grads(rule):
        run = jax.jit(lambda p: run_sequence(rule, p, images, np.arange(4)[None]).grads)
        return run(parameters(network))

    for variant in ("mean", "local"):
        factor = study.FACTORS.get(variant)
        wanted = grads(make(network, losses.cross_entropy, weights, factor=factor))
        keys = jax.random.clone(draw), jax.random.clone(shuffle)
        got = grads(study._rule(settings, variant, network, *keys))
        assert relative_error(got, wanted) < 1e-6


@pytest.mark.parametrize(("errors", "floor"), [("backpropagation", 1), ("feedback_alignment", 0)])
def test_local_factors_have_the_floor_of_the_errors(monkeypatch, errors, floor):
    seen = []
    monkeypatch.setattr(
        study, "local_grapes", lambda network, floor: seen.append(floor) or optax.identity()
    )
    study._trainer.cache_clear()
    study._trainer(study.Settings(errors=errors, **TINY), "local", "sgd", 10)
    study._trainer.cache_clear()
    assert seen == [floor]


def test_a_row_is_a_function_of_its_case():
    own = {"errors": "feedback_alignment", "variants": ("local",), "hidden": (12,)}
    settings = study.Settings(**TINY | own)
    case = {"optimizer": "adam", "variant": "local", "seed": 1}
    first = study.measure(settings, 0, case)
    study._trainer.cache_clear()
    assert study.measure(settings, 0, case) == first


def test_differences_go_seed_by_seed():
    def row(variant, seed, value):
        return {"optimizer": "sgd", "variant": variant, "seed": seed} | dict.fromkeys(
            study.METRICS, value
        )

    settings = study.Settings(variants=("propagating", "mean"), optimizers=("sgd",), seeds=3)
    rows = [row("mean", s, v) for s, v in ((1, 0.1), (2, 0.6), (3, 0.3))]
    rows += [row("propagating", s, v) for s, v in ((3, 0.5), (1, 0.2), (2, 0.9))]
    got = study.summary(settings, rows)["sgd: propagating minus"]["mean"]["slowness"]
    assert got == pytest.approx([0.2, 0.1 / np.sqrt(3)])  # of 0.1, 0.3, 0.2


def test_what_is_refused(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text('[study]\nname = "grapes"\nvariants = ["median"]\n')
    with pytest.raises(ValueError, match=r"study\.variants"):
        experiment_file.load(path)
    case = {"optimizer": "sgd", "variant": "plain", "seed": 0}
    direct = {"errors": "direct_feedback_alignment", "variants": ("local",)}
    with pytest.raises(ValueError, match=r'\["local"\].* this is "propagating": take that'):
        study.cases(study.Settings(**direct), 0)
    with pytest.raises(ValueError, match=r"study\.batch = 500 is more than the 200"):
        study.measure(study.Settings(**TINY, batch=500), 0, case)
    with pytest.raises(ValueError, match=r"diverged: choose a smaller study\.sgd_rate"):
        study.measure(study.Settings(**TINY, sgd_rate=1e20), 0, case)


def test_an_experiment_modulates_its_rule_or_its_updates():
    """Against the rule and the transformation themselves; the same weights from the same seed."""
    settings = {"cell": "soft_snu", "hidden": (6, 5), "recurrent": False}
    images = jax.random.normal(jax.random.key(0), (3, 2, 28 * 28))
    targets = jax.numpy.zeros((3, 2), jax.numpy.int32)

    def job(grapes, name="bptt"):
        sections = {"network": NetworkSettings(**settings), "rule": Rule(name=name, grapes=grapes)}
        optimizer = Optimizer(name="sgd", learning_rate=1.0)
        return build(Experiment(**sections, optimizer=optimizer, data=Data(limit=50)))

    def updates(job):
        params, rule = parameters(job.network), job.make_rule(job.network, job.loss)

        @jax.jit
        def run(params):
            grads = run_sequence(rule, params, images, targets).grads
            return job.tx.update(grads, job.tx.init(params), params)[0]

        return run(params)

    with pytest.raises(ValueError, match=r'rule\.grapes = "perm" .* "rtrl".*"local"'):
        job("perm", "rtrl")
    without, local = job(None), updates(job("local"))
    network, plain = without.network, updates(without)
    params = parameters(network)
    scaled = local_grapes(network).update(plain, optax.EmptyState(), params)[0]
    assert relative_error(local, scaled) < 1e-6
    modulated = updates(job("propagating"))["layers"]
    assert relative_error(modulated[1], local["layers"][1]) < 1e-6  # the highest hidden layer
    assert relative_error(modulated[0], local["layers"][0]) > 0.01
    doubled = updates(job("two", "ostl"))["layers"]
    exact = updates(job(None, "ostl"))["layers"]
    for i, factor in ((0, 4), (1, 2), (2, 1)):
        assert relative_error(doubled[i], jax.tree.map(lambda g, f=factor: f * g, exact[i])) < 1e-6
    perm = updates(job("perm"))["layers"]
    assert relative_error(perm[1], modulated[1]) > 0.01

"""Study of OSTL beside BPTT: training against identities of rules, cases, what is told."""

import jax
import numpy as np
import pytest

from spikebit.learning_rules import parameters
from spikebit.simulator import report
from spikebit.simulator.data import Dataset, Split
from spikebit.simulator.experiment import Data, Encoder
from spikebit.simulator.studies import online_vs_bptt as study

pytestmark = pytest.mark.usefixtures("compile_quickly", "standard_promotion")
SMALL = study.Settings(soft_snu=4, lstm=3, batch=4, updates=3, seeds=1)


@pytest.fixture(autouse=True)
def small_task(monkeypatch):
    """Sequences of 4 steps, some of them shorter, in two classes."""
    rng = np.random.default_rng(0)

    def split(n):
        inputs = rng.normal(size=(n, 4, 3)).astype(np.float32)
        lengths = rng.integers(2, 5, n).astype(np.int32)
        inputs[np.arange(4) >= lengths[:, None]] = 0
        return Split(inputs, (np.arange(n) % 2).astype(np.int32), lengths)

    dataset = Dataset("mine", split(12), split(6), ("a", "b"), "sequence")
    monkeypatch.setattr(study, "_dataset", lambda data: dataset)
    task = study.Task(Data(name="spoken_digits"), Encoder(name="none"), (1, 2, 4))
    monkeypatch.setitem(study.TASKS, "digits", task)
    return dataset


@pytest.fixture(scope="module", autouse=True)
def own_programs():
    """What is trained in this file is compiled once, for the small task alone."""
    forget()
    yield
    forget()


def forget():
    study._trainer.cache_clear()
    study._judge.cache_clear()


def trained(network, rule, chunk):
    params = parameters(study._job(SMALL, "digits", network, 1).network)
    params = study._trainer(SMALL, "digits", network, rule, chunk)(params, jax.random.key(1))
    return np.concatenate([np.asarray(p).ravel() for p in jax.tree.leaves(params)])


def test_one_layer_learns_as_bptt_does_whatever_the_chunk():
    exact = trained("soft_snu", "bptt", 4)
    np.testing.assert_allclose(trained("soft_snu", "chunk", 1), exact, atol=1e-4)
    np.testing.assert_allclose(trained("soft_snu", "spatial", 4), exact, atol=1e-4)
    assert np.abs(trained("soft_snu", "sltt", 4) - exact).max() > 1e-3


def test_two_layers_learn_from_the_textbook_rule_to_bptt():
    exact, textbook = (trained("soft_snu_2", *rule) for rule in (("bptt", 4), ("spatial", 4)))
    assert np.abs(textbook - exact).max() > 1e-3
    np.testing.assert_allclose(trained("soft_snu_2", "chunk", 1), textbook, atol=1e-4)
    np.testing.assert_allclose(trained("soft_snu_2", "chunk", 4), exact, atol=1e-4)


def test_nothing_is_learned_from_steps_after_the_end(small_task):
    """A network without memory sees what is there in place of the zeros, and must not care."""
    before = trained("soft_snu", "sltt", 4)
    inputs, _, lengths = small_task.train
    inputs[np.arange(4) >= lengths[:, None]] = 1e3
    forget()
    after = trained("soft_snu", "sltt", 4)
    forget()
    np.testing.assert_array_equal(after, before)


def test_networks_have_the_layers_and_sizes_of_their_names():
    def sizes(network):
        made = study._job(SMALL, "digits", network, 0).network.layers
        return [type(layer).__name__ for layer in made]

    assert sizes("lstm") == ["LSTMCell", "Linear"]
    assert sizes("lstm_2") == ["LSTMCell", "LSTMCell", "Linear"]
    assert sizes("soft_snu_2") == ["SoftSNUCell", "SoftSNUCell", "Linear"]
    assert study._job(SMALL, "digits", "soft_snu_2", 0).network.layers[1].w.shape == (4, 4)


def test_without_a_rate_the_loss_is_that_of_the_first_weights(small_task):
    """The test loss of a soft SNU run through time in numpy."""
    settings = study.Settings(soft_snu=4, batch=4, updates=1, learning_rate=1e-30, seeds=1)
    case = {"task": "digits", "network": "soft_snu", "rule": "bptt", "chunk": 4, "seed": 5}
    row = study.measure(settings, 0, case)
    params = parameters(study._job(settings, "digits", "soft_snu", 5).network)
    leaves = {jax.tree_util.keystr(p): np.asarray(v) for p, v in jax.tree.leaves_with_path(params)}

    def get(layer, name):
        (found,) = [v for k, v in leaves.items() if f"[{layer}]" in k and f"['{name}']" in k]
        return found

    losses, right = [], []
    for x, label, length in zip(*small_task.test, strict=True):
        s = y = np.zeros(4)
        logits = []
        for t in range(length):
            s = x[t] @ get(0, "w") + y @ get(0, "h") + 0.8 * s * (1 - y)
            y = 1 / (1 + np.exp(-s - get(0, "b")))
            logits.append(y @ get(1, "kernel") + get(1, "bias"))
        z = np.array(logits)
        losses.append(np.mean(np.log(np.exp(z).sum(1)) - z[:, label]))
        right.append(z.sum(0).argmax() == label)
    assert row["test_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert row["test_accuracy"] == pytest.approx(np.mean(right))


def test_a_row_depends_on_its_case_alone():
    case = {"task": "digits", "network": "soft_snu", "rule": "bptt", "chunk": 4, "seed": 0}
    row = study.measure(SMALL, 0, case)
    assert study.measure(SMALL, 7, case) == row
    assert study.measure(SMALL, 0, case | {"seed": 1}) != row


def test_cases_are_bptt_chunks_and_two_controls():
    settings = study.Settings(tasks=("digits",), shortest=1, shortest_exact=2, seeds=2)
    for network, chunks in (("lstm", (2, 4)), ("soft_snu_2", (1, 2, 4))):
        found = [
            (c["rule"], c["chunk"], c["seed"])
            for c in study.cases(settings, 3)
            if c["network"] == network
        ]
        controls = [("spatial", 4), ("sltt", 4)]
        rules = [("bptt", 4), *(("chunk", k) for k in chunks), *controls]
        assert found == [(*rule, seed) for rule in rules for seed in (3, 4)]


def test_training_that_diverges_is_said():
    settings = study.Settings(soft_snu=4, batch=4, updates=5, learning_rate=1e38)
    case = {"task": "digits", "network": "soft_snu", "rule": "bptt", "chunk": 4, "seed": 0}
    with pytest.raises(ValueError, match="soft_snu on digits by bptt diverged: choose a smaller"):
        study.measure(settings, 0, case)


def rows():
    """BPTT has the losses 1 and 2 of two seeds; the others so many percent of them."""
    percents = {
        "chunk": (100.5, 100.7),
        "spatial": (104, 100),
        "sltt": (90, 92),
        "bptt": (100, 100),
    }
    return [
        {"task": "digits", "network": "lstm", "rule": rule, "chunk": 4, "seed": seed}
        | {"test_loss": (1 + seed) * percent / 100, "test_accuracy": 0.5}
        for rule, both in percents.items()
        for seed, percent in enumerate(both)
    ]


def test_the_summary_compares_seed_by_seed():
    settings = study.Settings(tasks=("digits",), networks=("lstm",))
    (told,) = study.summary(settings, rows()).values()
    assert told["bptt"] == {"loss": 1.5, "accuracy": 0.5}
    # of two numbers the standard error is half their distance
    np.testing.assert_allclose(told["chunk 4"]["percent"], [100.6, 0.1, 100.5, 100.7], atol=1e-9)
    verdicts = {rule: found.get("verdict") for rule, found in told.items()}
    assert verdicts == {"chunk 4": "within 1 %", "spatial": "open", "sltt": "better", "bptt": None}
    (alone,) = study.summary(settings, [r for r in rows() if r["seed"] == 0]).values()
    assert alone["chunk 4"]["percent"][1] is None
    assert alone["chunk 4"]["verdict"] == "open"
    assert study.verdict(103.0, 0.9) == "worse"


def test_pictures_show_seeds_bands_and_means():
    settings = study.Settings(tasks=("digits", "rows"), networks=("lstm", "soft_snu_2"))
    drawn = study.pictures(settings, rows())  # what is not measured yet leaves a panel empty
    assert set(drawn) == {"loss", "ratio"}
    assert all(report.png(ax).startswith(b"\x89PNG") for ax in drawn.values())

    def heights(ax, label):
        return [y for line in ax.lines if line.get_label() == label for y in line.get_ydata()]

    assert heights(drawn["loss"], "BPTT: mean, and band of seeds") == [1.5, 1.5]
    assert heights(drawn["ratio"], "OSTL, spatial") == [102]
    assert heights(drawn["ratio"], "OSTL, chunk: seeds and mean") == pytest.approx([100.6])
    assert heights(drawn["ratio"], "SLTT: mean") == [91, 91]

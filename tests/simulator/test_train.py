"""The training loop against loops written out, and against itself when it stops half-way."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from spikebit import quant
from spikebit.learning_rules import LearningRule, bptt, losses, ostl, parameters
from spikebit.simulator import encoding
from spikebit.simulator.data import Dataset, Split
from spikebit.simulator.evaluate import look_inside, make_evaluation
from spikebit.simulator.job import Job, Purpose, key_for
from spikebit.simulator.network import Network, simulate
from spikebit.simulator.readout import LeakyReadout
from spikebit.simulator.snu import SNUCell, SoftSNUCell
from spikebit.simulator.train import (
    TrainingDiverged,
    check,
    count_lost,
    initial_state,
    named_leaves,
    read_parameters,
    train,
)

pytestmark = pytest.mark.usefixtures("compile_quickly")
training = importlib.import_module("spikebit.simulator.train")  # the function is called so too

FEATURES, HIDDEN, CLASSES, STEPS = 6, 5, 3, 4
FULL = functools.partial(ostl, scope="full")


def images(n=8, test=5, seed=0):
    rng = np.random.default_rng(seed)

    def split(k):
        x = rng.uniform(0, 1, (k, FEATURES)).astype(np.float32)
        return Split(x, (np.arange(k) % CLASSES).astype(np.int32))

    return Dataset("toy", split(n), split(test), ("a", "b", "c"), "image")


def sequences(kind, padding=0, n=6, longest=5, seed=0):
    """Sequences of 1 to 5 steps, filled up with zeros to 5 + padding."""
    rng = np.random.default_rng(seed)
    lengths = (1 + np.arange(n) % longest).astype(np.int32)
    inside = np.arange(longest)[None, :, None] < lengths[:, None, None]
    inputs = np.where(inside, rng.normal(size=(n, longest, FEATURES)), 0).astype(np.float32)
    frames = np.where(inside, rng.integers(0, 2, (n, longest, CLASSES)), 0).astype(np.float32)
    pad = [(0, 0), (0, padding), (0, 0)]
    prediction = kind == "prediction"
    targets = np.pad(frames, pad) if prediction else (np.arange(n) % CLASSES).astype(np.int32)
    split = Split(np.pad(inputs, pad), targets, lengths)
    return Dataset("toy", split, split, ("a", "b", "c"), kind)


def job(dataset=None, cell=SoftSNUCell, readout="dense", **changes):
    dataset = dataset or images()
    rngs = nnx.Rngs(0)
    last = nnx.Linear if readout == "dense" else LeakyReadout
    hidden = cell(FEATURES, HIDDEN, recurrent=True, rngs=rngs)
    network = Network([hidden, last(HIDDEN, CLASSES, rngs=rngs)])
    still = dataset.kind == "image"
    settings = {
        "dataset": dataset,
        "encode": lambda x, key: encoding.direct(x, STEPS) if still else jnp.moveaxis(x, 1, 0),
        "network": network,
        "loss": losses.cross_entropy,
        "make_rule": bptt,
        "tx": optax.sgd(0.5),
        "memory": quant.float32(),
        "epochs": 1,
        "batch": 3,
        "log_every": 1,
    }
    return Job(**(settings | changes))


def result(job, **options):
    """Parameters after training, and the lines of metrics."""
    lines = []
    state = train(job, on_metrics=lines.append, **options)
    return read_parameters(job, state.memory), lines


def assert_close(a, b, rtol):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol * np.abs(y).max())


def assert_same_bits(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def test_bptt_training_equals_a_loop_written_out():
    j = job(epochs=2)
    graphdef, params = nnx.split(j.network)

    def sequence_loss(params, x, y):
        xs = jnp.broadcast_to(x, (STEPS, *x.shape))
        outputs = simulate(nnx.merge(graphdef, params), xs).outputs
        logp = jax.nn.log_softmax(outputs)
        picked = jnp.take_along_axis(logp, jnp.broadcast_to(y, (STEPS, 3))[..., None], axis=-1)
        return -picked.mean(), outputs.sum(0).argmax(-1)

    grad = jax.jit(jax.value_and_grad(sequence_loss, has_aux=True))
    expected = []
    for epoch in range(2):
        order = jax.random.permutation(key_for(0, Purpose.ORDER, epoch), 8)
        for i in range(2):  # 8 samples: two whole batches of 3
            index = np.asarray(order[3 * i : 3 * i + 3])
            x, y = j.dataset.train.inputs[index], j.dataset.train.targets[index]
            (loss, winners), g = grad(params, jnp.asarray(x), jnp.asarray(y))
            params = jax.tree.map(lambda p, g: p - 0.5 * g, params, g)
            right = float((np.asarray(winners) == y).mean())
            expected.append((float(loss), right, float(optax.tree.norm(g))))

    got, lines = by_bptt()
    assert_close(got, params, 1e-5)
    names = ("train_loss", "train_accuracy", "gradient_norm")
    np.testing.assert_allclose([[m[k] for k in names] for m in lines], expected, rtol=1e-5)
    assert [(m["epoch"], m["batch"], m["step"]) for m in lines] == [
        (1, 1, 1), (1, 2, 2), (2, 1, 3), (2, 2, 4),
    ]  # fmt: skip


@functools.cache
def by_bptt():
    return result(job(epochs=2))


def test_ostl_in_chunks_with_one_update_a_sequence_trains_like_bptt():
    got, lines = result(job(make_rule=FULL, chunk=2, epochs=2))
    exact, exact_lines = by_bptt()
    assert_close(got, exact, 1e-5)
    assert lines[-1]["train_loss"] == pytest.approx(exact_lines[-1]["train_loss"], rel=1e-5)


def test_weights_change_so_often_as_asked_and_each_step_sees_the_new_ones():
    j = job(make_rule=FULL, update_every=2, batch=8)
    state = train(j)
    # the same by hand: two chunks of two steps, the state of the rule goes on, the weights change
    weighted = lambda out, target: losses.cross_entropy(out, target) / STEPS  # noqa: E731
    rule, params = ostl(j.network, weighted, scope="full"), parameters(j.network)
    index = np.asarray(jax.random.permutation(key_for(0, Purpose.ORDER, 0), 8))
    x, y = (jnp.asarray(a[index]) for a in j.dataset.train[:2])
    xs, ys = (jnp.broadcast_to(a, (2, *a.shape)) for a in (x, y))
    traces = rule.init(params, xs)
    for _ in range(2):
        traces, out = jax.jit(rule.step)(params, traces, xs, ys)
        params = jax.tree.map(lambda p, g: p - 0.5 * g, params, out.grads)
    assert_close(read_parameters(j, state.memory), params, 1e-5)


@pytest.mark.parametrize(
    ("kind", "loss", "changes"),
    [
        ("sequence", losses.cross_entropy, {"readout": "leaky"}),
        # 5 + 2 steps are filled up to 8
        ("prediction", losses.sigmoid_cross_entropy, {"make_rule": FULL, "chunk": 4}),
    ],
)
def test_what_follows_the_end_of_a_sequence_changes_nothing(kind, loss, changes):
    short, lines = result(job(sequences(kind), loss=loss, **changes | {"chunk": 0}))
    long, long_lines = result(job(sequences(kind, padding=2), loss=loss, **changes))
    assert_close(long, short, 1e-5)
    for name in ("train_loss", "test_loss", "test_accuracy"):
        a, b = lines[-1][name], long_lines[-1][name]
        assert a == b or a == pytest.approx(b, rel=1e-5)


@pytest.mark.parametrize("batch", [2, 7])
def test_evaluation_of_classes_equals_numpy_whatever_the_batch(batch):
    def encode(x, key):
        return encoding.direct(5 * x, STEPS)  # strong enough to fire

    j = job(images(n=8, test=7), cell=SNUCell, batch=batch, encode=encode)
    x, y = j.dataset.test[:2]
    run = simulate(j.network, encode(x, None), record=["0.y"])
    outputs = np.asarray(run.outputs, np.float64)
    logp = outputs - np.log(np.exp(outputs).sum(-1, keepdims=True))
    got = make_evaluation(j, j.dataset.test)(parameters(j.network))
    assert got.loss == pytest.approx(-logp[:, np.arange(7), y].mean(), rel=1e-5)
    np.testing.assert_array_equal(got.predictions, outputs.sum(0).argmax(-1))
    assert got.accuracy == (outputs.sum(0).argmax(-1) == y).mean()
    rate = np.asarray(run.records["0.y"]).mean()
    assert 0 < rate < 1
    assert got.activity == {"0": pytest.approx(rate, rel=1e-5)}


def test_prediction_is_judged_by_the_mean_over_all_frames():
    j = job(sequences("prediction"), loss=losses.sigmoid_cross_entropy)
    x, y, lengths = j.dataset.test
    outputs = np.asarray(simulate(j.network, jnp.moveaxis(x, 1, 0)).outputs, np.float64)
    nll = (np.log1p(np.exp(outputs)) - np.moveaxis(y, 1, 0) * outputs).sum(-1)
    inside = np.arange(5)[:, None] < lengths
    got = make_evaluation(j, j.dataset.test)(parameters(j.network))
    assert got.loss == pytest.approx(nll[inside].sum() / lengths.sum(), rel=1e-5)
    assert got.accuracy is None
    assert got.predictions is None


def stochastic():
    """A job that draws random numbers wherever one can."""
    return job(
        cell=SNUCell,
        encode=lambda x, key: encoding.poisson(x, STEPS, key, 800.0),
        make_rule=FULL,
        chunk=2,
        tx=optax.sgd(0.05, momentum=0.9),
        memory=quant.number_format("e4m3fn", "stochastic"),
        epochs=3,
        batch=2,
        log_every=2,
        checkpoint_every=3,
    )


def keep_the_program(monkeypatch):
    """The one job of a test is compiled when it is first trained; `test_cli` has processes."""
    make, made = training._make_segment, []

    def once(*arguments):
        if not made:
            made.append(make(*arguments))
        return made[0]

    monkeypatch.setattr(training, "_make_segment", once)


def test_a_run_that_stops_goes_on_to_the_same_bits(monkeypatch):
    j, saved, lines = stochastic(), [], []
    keep_the_program(monkeypatch)

    def on_checkpoint(*checkpoint):
        saved.append((len(lines), checkpoint))

    whole = train(j, on_metrics=lines.append, on_checkpoint=on_checkpoint)
    assert [c[0] for _, c in saved] == [3, 4, 7, 8, 11, 12]  # every 3 of 4 batches, and each epoch
    assert [m["step"] for m in lines] == [2, 4, 6, 8, 10, 12]
    for count, (step, state, seconds) in (saved[0], saved[3]):
        rest = []
        end = train(j, start=(step, state), seconds=seconds, on_metrics=rest.append)
        assert_same_bits(end, whole)
        assert [m | {"seconds": 0} for m in rest] == [m | {"seconds": 0} for m in lines[count:]]


def test_every_purpose_place_and_seed_has_a_key_of_its_own():
    places = [(), (0,), (1,), (0, 0), (0, 1), (1, 0)]
    keys = [key_for(seed, p, *place) for seed in (0, 1) for p in Purpose for place in places]
    assert len({np.asarray(jax.random.key_data(k)).tobytes() for k in keys}) == len(keys)


def test_lost_numbers_are_told_by_parameter():
    memory = quant.number_format("e4m3fn")
    params = {"layers": {0: {"w": jnp.ones((2, 3))}, 1: {"bias": jnp.zeros(2)}}}
    state = memory.init(params, None)
    tiny = jax.tree.map(lambda p: jnp.full_like(p, 1e-6), params)  # below half a step everywhere
    lost = count_lost(memory.update(state, tiny, None))
    assert set(lost) == {"0.w", "1.bias"}
    assert (lost["0.w"]["writes"], lost["0.w"]["stagnated"]) == (12, 6)
    assert (lost["1.bias"]["stagnated"], lost["1.bias"]["underflowed"]) == (2, 2)
    assert set(named_leaves(parameters(job().network))) == {
        "0.w", "0.h", "0.b", "1.kernel", "1.bias",
    }  # fmt: skip


def test_a_loss_that_is_no_number_stops_at_its_batch():
    j = job(loss=lambda out, y: jnp.square(out).sum(-1), tx=optax.sgd(1e25), epochs=2, log_every=50)
    with pytest.raises(TrainingDiverged, match=r"epoch 1, batch 2 of 2.*learning_rate"):
        train(j)


def test_a_gradient_that_is_no_number_is_named_with_its_time_steps():
    def make_rule(network, loss):
        plain = ostl(network, loss)

        def step(params, state, xs, targets):
            inner, count = state
            inner, out = plain.step(params, inner, xs, targets)
            broken = jnp.where(count == 2, jnp.inf, 0)  # at the third step
            grads = nnx.to_pure_dict(out.grads)
            grads["layers"][1]["kernel"] = grads["layers"][1]["kernel"] + broken
            grads = jax.tree.structure(params).unflatten(jax.tree.leaves(grads))
            return (inner, count + 1), out._replace(grads=grads)

        return LearningRule(lambda *a: (plain.init(*a), jnp.zeros((), jnp.int32)), step)

    with pytest.raises(
        TrainingDiverged, match=r"gradient of layers\.1\.kernel .*time steps 3 to 4"
    ):
        train(job(make_rule=make_rule, update_every=2, chunk=1))


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(ValueError, match=r"train.batch = 9 .* 8 training samples"):
        job(batch=9)


def test_chunks_that_do_not_divide_are_refused_before_anything_is_computed():
    with pytest.raises(ValueError, match=r"rule.chunk = 3 and rule.update_every = 4"):
        check(job(make_rule=FULL, chunk=3))
    check(job(make_rule=FULL, chunk=2))


def test_layers_that_do_not_fit_the_input_are_named():
    rngs = nnx.Rngs(0)
    wrong = Network([SNUCell(FEATURES + 1, 3, rngs=rngs), nnx.Linear(3, CLASSES, rngs=rngs)])
    with pytest.raises(ValueError, match=r"(?i)layer 0 \(SNUCell\)"):
        check(job(network=wrong))


def test_inside_shows_the_first_sample_and_all_potentials():
    j = job(sequences("sequence", padding=2), cell=SNUCell)
    lengths = j.dataset.test.lengths
    inside = look_inside(j, parameters(j.network), j.dataset.test)
    assert inside.inputs.shape == (lengths[0], FEATURES)
    assert inside.outputs["0"].shape == (lengths[0], HIDDEN)
    assert inside.potentials["0"].shape == (lengths[:3].sum() * HIDDEN,)  # a batch is 3 samples


def test_optimizers_start_from_the_weights_as_they_are_stored():
    j = job(memory=quant.number_format("e4m3fn"), tx=optax.ema(0.9))
    state = initial_state(j)
    values = quant.parse("e4m3fn").values()
    assert np.isin(
        np.asarray(read_parameters(j, state.memory)["layers"][0]["w"][...]), values
    ).all()

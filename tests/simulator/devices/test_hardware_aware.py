"""Noise on the weights of a mini-batch, the gradient on the clean ones, clipping."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from spikebit import quant
from spikebit.learning_rules import bptt, losses, parameters
from spikebit.quant.training import master_copy
from spikebit.simulator import encoding
from spikebit.simulator.build_memory import aware, make_memory
from spikebit.simulator.data import Dataset, Split
from spikebit.simulator.devices import hardware_aware, memristive, pcm, set_pcm
from spikebit.simulator.experiment import Experiment, Memory, resolve
from spikebit.simulator.job import Job, Purpose, Samples, key_for
from spikebit.simulator.network import Network
from spikebit.simulator.snu import SoftSNUCell
from spikebit.simulator.train import initial_state, train

pytestmark = pytest.mark.usefixtures("compile_quickly")
EXACT = pcm(programming_noise=0, drift=0, read_noise=0)
N = 200
W = np.random.default_rng(0).normal(size=(N, N)).astype(np.float32)
PARAMS = {"w": jnp.asarray(W), "b": jnp.array([1.0, -2.0])}


def key(seed=0):
    return jax.random.key(seed)


def compiled(memory):
    """The memory, each of its functions in one piece, which is quicker to compile."""
    return type(memory)(*(jax.jit(f) for f in memory))


def test_noise_is_a_share_of_the_largest_weight_and_only_on_matrices():
    memory = compiled(hardware_aware(quant.float32(), 0.05))
    state = memory.init(PARAMS, key())
    clean, noisy = memory.read(state), memory.read(state, key(1))
    np.testing.assert_array_equal(clean["w"], W)
    np.testing.assert_array_equal(noisy["b"], PARAMS["b"])
    z = np.asarray(noisy["w"] - clean["w"], float) / (0.05 * np.abs(W).max())
    assert abs(z.mean()) < 4 / N
    assert z.std() == pytest.approx(1, abs=4 / np.sqrt(2) / N)
    assert abs(np.corrcoef(z.ravel(), W.ravel())[0, 1]) < 4 / N
    np.testing.assert_array_equal(memory.read(state, key(1))["w"], noisy["w"])
    assert (np.asarray(memory.read(state, key(2))["w"]) != np.asarray(noisy["w"])).all()


def test_the_noise_of_a_device_is_that_of_writing_it():
    w = {"w": jnp.full((N, N), 0.5).at[0, 0].set(1.0)}
    memory = compiled(hardware_aware(quant.float32(), pcm()))
    error = (np.asarray(memory.read(memory.init(w), key(1))["w"], float) - 0.5).ravel()[1:] * 25
    used = 0.26348 + 1.9650 * 0.5 - 1.1731 * 0.25  # [uS]
    idle = 0.26348**2 * (0.5 - 0.5 / np.pi)  # variance of N(0, s) cut at 0
    assert error.std() == pytest.approx(np.sqrt(used**2 + idle), rel=4 / np.sqrt(2) / N)
    exact = compiled(hardware_aware(quant.float32(), EXACT))
    np.testing.assert_allclose(exact.read(exact.init(PARAMS), key())["w"], W, rtol=1e-5, atol=1e-6)


def test_the_loop_takes_the_gradient_at_noisy_weights_and_changes_the_clean_ones():
    x = np.random.default_rng(1).uniform(size=(6, 5)).astype(np.float32)
    split = Split(x, (np.arange(6) % 3).astype(np.int32))
    dataset = Dataset("toy", split, split, ("a", "b", "c"), "image")
    memory, rngs = hardware_aware(quant.float32(), 0.2), nnx.Rngs(0)
    job = Job(
        dataset,
        lambda x, key: encoding.direct(x, 3),
        Network([SoftSNUCell(5, 4, rngs=rngs), nnx.Linear(4, 3, rngs=rngs)]),
        losses.cross_entropy,
        bptt,
        optax.sgd(0.5),
        memory,
        batch=6,
    )
    start = initial_state(job).memory
    noisy = memory.read(start, jax.random.fold_in(key_for(0, Purpose.READ, 0, 0), 0))
    end = memory.read(train(job).memory)
    rule = bptt(job.network, losses.weighted(job.loss))
    samples = Samples(job, split)
    xs, targets, present = samples.batch(samples.arrays, jnp.arange(6), key())
    weighted = (targets, present / present.sum(0))

    @jax.jit
    def grads(params):
        return rule.step(params, rule.init(params, xs), xs, weighted)[1].grads

    expected = jax.tree.map(lambda p, g: p - 0.5 * g, parameters(job.network), grads(noisy))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), end, expected)
    at_clean = jax.tree.leaves(grads(parameters(job.network)))
    apart = [
        jnp.abs(a - b).max() for a, b in zip(at_clean, jax.tree.leaves(grads(noisy)), strict=True)
    ]
    assert max(apart) > 1e-3  # the test can tell both


def test_weights_are_clipped_to_a_bound_or_to_standard_deviations():
    step = {"w": jnp.full((N, N), 0.01), "b": jnp.array([1.0, 0.0])}
    fixed = compiled(hardware_aware(quant.float32(), 0.0, clip=1.5))
    state = fixed.init(PARAMS, key())
    beyond = int((np.abs(W) > 1.5).sum())
    assert quant.losses(state)["w"]["clipped"] == beyond
    held = np.clip(W, -1.5, 1.5)
    state = fixed.update(state, step, key())
    read = fixed.read(state)
    np.testing.assert_allclose(read["w"], np.minimum(held + 0.01, 1.5), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(read["b"], [2.0, -2.0])
    counts = quant.losses(state)
    assert counts["w"]["clipped"] == beyond + (held + np.float32(0.01) > 1.5).sum()
    assert counts["b"]["clipped"] == 0

    relative = compiled(hardware_aware(quant.float32(), 0.0, clip_stds=2.0))
    state = relative.init(PARAMS, key())
    held = np.asarray(relative.read(state)["w"], float)
    np.testing.assert_allclose(np.abs(held).max(), 2 * W.std(), rtol=1e-5)
    wanted = held + 0.01
    after = relative.read(relative.update(state, step, key()))["w"]
    bound = 2 * wanted.std()
    np.testing.assert_allclose(after, np.clip(wanted, -bound, bound), rtol=1e-5, atol=1e-6)
    even = {"w": jnp.ones((2, 2))}  # has no spread to clip to
    np.testing.assert_array_equal(relative.read(relative.init(even, key()))["w"], even["w"])


@pytest.mark.parametrize("inner", [quant.number_format("int8_half"), memristive(EXACT)])
def test_any_memory_can_stand_behind_it(inner):
    memory, inner = compiled(hardware_aware(inner, 0.1)), compiled(inner)
    state, plain = memory.init(PARAMS, key()), inner.init(PARAMS, key())
    np.testing.assert_array_equal(memory.read(state)["w"], inner.read(plain)["w"])
    updates = jax.tree.map(lambda p: -0.1 * p, PARAMS)
    new, same = memory.update(state, updates, key(1)), inner.update(plain, updates, key(1))
    np.testing.assert_array_equal(memory.read(new)["w"], inner.read(same)["w"])
    assert quant.losses(new)["w"].items() >= quant.losses(same)["w"].items()


def test_an_experiment_asks_for_it_with_its_memory():
    settings = Memory(format="int8_half", noise_device="pcm", clip_stds=2.5)
    memory = compiled(make_memory(settings))
    state = memory.init(PARAMS, key())
    assert float(jnp.abs(memory.read(state)["w"]).max()) < 2.6 * W.std()
    assert bool((memory.read(state, key(1))["w"] != memory.read(state)["w"]).any())
    given = Memory(device="pcm", format="e4m3fn", noise=0.03, clip=1.0)
    assert resolve(Experiment(memory=given)).memory == Memory(device="pcm", noise=0.03, clip=1.0)

    settings = Memory(format="bfloat16", master=True, noise=0.1)
    memory, in_float = make_memory(settings), aware(settings, quant.float32())
    state = jax.jit(memory.init)(PARAMS, key())
    exact, near = (jax.jit(m.read)(state, key(1))["w"] for m in (in_float, memory))  # same noise
    assert 0 < float(jnp.abs(exact - near).max()) < 2.0**-8 * 5
    assert jax.tree.structure(state.weights) == jax.tree.structure(
        master_copy("bfloat16").init(PARAMS)
    )


def test_what_is_refused():
    for settings, words in (
        ((-0.1,), "noise is -0.1; it must be at least 0"),
        ((set_pcm(),), "set_pcm takes pulses only"),
    ):
        with pytest.raises(ValueError, match=words):
            hardware_aware(quant.float32(), *settings)
    with pytest.raises(ValueError, match="clip is 0; it must be above 0"):
        hardware_aware(quant.float32(), 0.0, clip=0)
    with pytest.raises(ValueError, match="two bounds for one weight"):
        hardware_aware(quant.float32(), 0.0, clip=1, clip_stds=2)
    with pytest.raises(ValueError, match=r"memory.noise and memory.noise_device are two ways"):
        Experiment(memory=Memory(noise=0.1, noise_device="pcm"))
    with pytest.raises(ValueError, match=r"memory.clip and memory.clip_stds are two ways"):
        Experiment(memory=Memory(clip=1.0, clip_stds=2.0))
    with pytest.raises(ValueError, match=r"memory.noise_device: .*memristor.* is no device"):
        make_memory(Memory(noise_device="memristor"))

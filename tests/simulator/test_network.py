"""Networks as stacks: what runs, what is recorded and what it costs, what does not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spikebit.simulator import LeakyReadout, LIFCell, Network, SNUCell, simulate

pytestmark = pytest.mark.usefixtures("compile_quickly")

STEPS, BATCH = 12, 4


@pytest.fixture
def network():
    rngs = nnx.Rngs(0)
    layers = [LIFCell(6, 8, recurrent=True, rngs=rngs), nnx.LSTMCell(8, 5, rngs=rngs)]
    return Network([*layers, jnp.tanh, nnx.Linear(5, 7, rngs=rngs), LeakyReadout(7, 3, rngs=rngs)])


@pytest.fixture
def xs():
    return 3 * jax.random.normal(jax.random.key(0), (STEPS, BATCH, 6))


def test_simulate_is_a_loop_over_layers_and_steps(network, xs):
    lif, lstm, tanh, linear, readout = network.layers
    a = lif.initialize_carry((BATCH, 6))
    b = (jnp.zeros((BATCH, 5)), jnp.zeros((BATCH, 5)))
    c = readout.initialize_carry((BATCH, 7))
    outputs, spikes, cells = [], [], []
    for x in xs:
        a, y = lif(a, x)
        b, y = lstm(b, y)
        c, y = readout(c, linear(tanh(y)))
        outputs.append(y)
        spikes.append(a.y)
        cells.append(b[0])
    probe = {"spikes": "0.y", "cell": lambda carries: carries[1][0], "all": "4"}
    got = simulate(network, xs, record=probe)
    bound = 1e-5  # some hundred float32 operations on numbers near 1
    np.testing.assert_allclose(got.outputs, jnp.stack(outputs), atol=bound)
    np.testing.assert_array_equal(got.records["spikes"], jnp.stack(spikes))
    np.testing.assert_allclose(got.records["cell"], jnp.stack(cells), atol=bound)
    np.testing.assert_array_equal(got.records["all"].y, got.outputs)
    assert 0 < float(got.records["spikes"].mean()) < 1


def test_a_stream_goes_on_from_its_carry(network, xs):
    whole = simulate(network, xs, record=["0.v"])
    first = simulate(network, xs[:5], record=["0.v"])
    second = simulate(network, xs[5:], record=["0.v"], carry=first.carry)
    joined = jnp.concatenate([first.records["0.v"], second.records["0.v"]])
    np.testing.assert_allclose(joined, whole.records["0.v"], atol=1e-6)
    np.testing.assert_allclose(second.outputs, whole.outputs[5:], atol=1e-6)


def test_memory_is_that_of_what_is_recorded(network):
    """Output bytes of the compiled simulation: outputs and carries, plus exactly the records."""

    def output_bytes(record):
        xs = jax.ShapeDtypeStruct((1000, BATCH, 6), jnp.float32)
        run = jax.jit(lambda xs: simulate(network, xs, record=record))
        memory = run.lower(xs).compile().memory_analysis()
        return memory.output_size_in_bytes, memory.temp_size_in_bytes

    (none, scratch), (one, one_scratch) = output_bytes(()), output_bytes(["0.v"])
    record = 1000 * BATCH * 8 * 4
    assert abs(one - none - record) < 64  # a few bytes for the tuple
    assert scratch < record / 4
    assert one_scratch < record / 4


def test_convolutions_and_neurons_without_weights():
    rngs = nnx.Rngs(0)
    layers = [nnx.Conv(1, 3, (3, 3), rngs=rngs), SNUCell(None, 3), lambda y: y.mean((-3, -2))]
    network = Network([*layers, nnx.Linear(3, 2, rngs=rngs)])
    got = simulate(network, jnp.ones((5, 2, 6, 6, 1)), record=["1.s"])
    assert got.outputs.shape == (5, 2, 2)
    assert got.records["1.s"].shape == (5, 2, 6, 6, 3)


def test_a_network_is_a_cell_for_flax(network, xs):
    batch_major = nnx.RNN(network, time_major=True)(xs)
    np.testing.assert_allclose(batch_major, simulate(network, xs).outputs, atol=1e-6)


def test_simulate_under_jit_vmap_and_grad(network, xs):
    eager = simulate(network, xs).outputs
    graphdef, params, rest = nnx.split(network, nnx.Param, ...)

    def run(params, xs):
        return simulate(nnx.merge(graphdef, params, rest), xs).outputs

    np.testing.assert_allclose(jax.jit(run)(params, xs), eager, atol=1e-6)
    each = jax.jit(jax.vmap(run, (None, 1), 1))(params, xs[:, :, None])
    np.testing.assert_allclose(each[:, :, 0], eager, atol=1e-5)
    grads = jax.jit(jax.grad(lambda p: run(p, xs).sum()))(params)
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grads))


def test_layers_that_do_not_fit_are_named():
    rngs = nnx.Rngs(0)
    first = LIFCell(6, 8, rngs=rngs)
    with pytest.raises(
        ValueError, match=r"layer 0 \(LIFCell\) gives 8 .* layer 1 \(Linear\) takes 9"
    ):
        Network([first, nnx.Linear(9, 2, rngs=rngs)])
    with pytest.raises(
        ValueError, match=r"layer 1 \(LSTMCell\) gives 4 .* layer 2 \(GRUCell\) takes 5"
    ):
        Network([first, nnx.LSTMCell(8, 4, rngs=rngs), nnx.GRUCell(5, 4, rngs=rngs)])
    with pytest.raises(ValueError, match="at least one layer"):
        Network([])
    with pytest.raises(ValueError, match=r"Layer 0 \(LIFCell\) does not fit .* \(4, 5\)"):
        simulate(Network([first]), jnp.zeros((3, 4, 5)))
    flat = Network([first, lambda y: y.reshape(3, 2), nnx.Linear(2, 2, rngs=rngs)])
    with pytest.raises(ValueError, match=r"Layer 1 \(<lambda>\) does not fit"):
        simulate(flat, jnp.zeros((3, 4, 6)))


def test_records_that_do_not_exist_are_named(network, xs):
    with pytest.raises(
        ValueError, match=r"record='2.y' is not LAYER.*: layers with a state are 0, 1, 4"
    ):
        simulate(network, xs, record=["2.y"])
    with pytest.raises(ValueError, match=r"record='0.u': the state of layer 0 has the fields v, y"):
        simulate(network, xs, record=["0.u"])
    with pytest.raises(ValueError, match=r"record='spikes'"):
        simulate(network, xs, record=["spikes"])

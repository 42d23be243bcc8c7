"""Spikes x low-bit weights: every path is the sum of the weights of the events."""

import jax
import jax.numpy as jnp
import low_bit_cases as cases
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spikebit.kernels.layouts import pack, unpack
from spikebit.kernels.matrix import dequantize, quantized_matrix
from spikebit.kernels.spike_bits import SpikeBits, pack_spikes, unpack_spikes
from spikebit.kernels.spikes_low_bit import spike_matmul_low_bit

RANDOM = np.random.default_rng(0)
SHAPES = [  # rows, k, n, groups: around words (32), rows (64), tiles (256), tasks (1024)
    (3, 64, 63, 2),
    (2, 33, 255, 3),
    (1, 600, 257, 1),  # more events in a group than 16 bits hold at once
    (2, 32, 1100, 1),
]
FORMS = {"bool": lambda x: x, "bits": pack_spikes, "floats": lambda x: x.astype(jnp.float32)}


def matrix(k, n, groups, bits=8, zero=None, seed=0):
    random = np.random.default_rng(seed)
    codes = random.integers(0, 1 << bits, (k, n)).astype(np.uint8)
    scale = np.exp2(random.integers(-3, 3, (groups, n))).astype(np.float32)
    if zero is not None:
        zero = random.integers(0, 1 << bits, (groups, n)).astype(np.float32) + zero
    return quantized_matrix(codes, scale, zero, bits=bits)


def exact(x, w):
    return np.asarray(x, np.float64) @ np.asarray(dequantize(w), np.float64)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", [(1, 1), (5, 63), (3, 64), (2, 65), (4, 300), (0, 3), (3, 0)])
def test_rows_come_back_and_a_byte_has_a_column_and_the_one_32_further(bits, shape):
    w = matrix(*shape, 1, bits)
    packed = jax.jit(lambda w: pack(w, "rows"))(w)
    assert (np.asarray(unpack(packed).codes) == np.asarray(w.codes)).all()
    if bits == 4 and shape == (2, 65):
        at = np.zeros((2, 128), np.uint8)
        at[:, :65] = w.codes
        bytes_ = at[:, :32] | at[:, 32:64] << 4
        assert (np.asarray(packed.words[0])[:, :32] == bytes_).all()


def test_other_widths_have_no_place_in_rows():
    with pytest.raises(ValueError, match="codes of 3 bits; rows hold 4 or 8 bits"):
        pack(quantized_matrix(np.zeros((2, 2), np.uint8), np.ones(2), bits=3), "rows")


@pytest.mark.parametrize("size", [1, 31, 32, 33, 100])
def test_bits_are_the_spikes_in_order(size):
    spikes = RANDOM.random((3, 2, size)) < 0.4
    bits = jax.jit(pack_spikes)(jnp.asarray(spikes))
    assert (np.asarray(unpack_spikes(bits)) == spikes).all()
    assert bits.shape == spikes.shape
    for at in np.ndindex(3, 2):
        number = sum(int(s) << i for i, s in enumerate(spikes[at]))
        words = [int(word) for word in np.asarray(bits.words[at])]
        assert number == sum(word << 32 * i for i, word in enumerate(words))


def test_a_spike_is_what_is_not_0():
    assert pack_spikes(jnp.array([0.0, -0.0, 0.5, -2.0])).words[0] == 0b1100
    with pytest.raises(ValueError, match="a single number has no axis"):
        pack_spikes(jnp.array(1.0))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_exact_sum_where_sums_are_exact(shape, bits, form):
    rows, k, n, groups = shape  # scales are powers of two, zero points whole: sums have < 24 bits
    x = jnp.asarray(RANDOM.random((rows, k)) < 0.6)
    for zero in (None, 0.0):
        w = matrix(k, n, groups, bits, zero)
        y = jax.jit(spike_matmul_low_bit)(FORMS[form](x), pack(w, "rows"))
        assert (np.asarray(y) == exact(x, w)).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_graded_inputs_and_zero_points_that_are_no_codes(bits):
    x = (RANDOM.random((3, 96)) < 0.3) * RANDOM.standard_normal((3, 96))
    x = jnp.asarray(x, jnp.float32)
    w = matrix(96, 70, 3, bits, zero=0.3)
    y = spike_matmul_low_bit(x, pack(w, "rows"))
    # sums of q and of z apart: each of at most 32 terms, each up to 2**bits |x| s
    sizes = np.abs(np.asarray(x, np.float64)) @ np.repeat(np.asarray(w.scale), 32, axis=0)
    bound = 2**bits * sizes * 40 * 2.0**-24
    assert (np.abs(np.asarray(y) - exact(x, w)) <= bound).all()


def test_no_event_is_0_and_all_events_are_the_sum_of_the_column():
    largest = quantized_matrix(np.full((600, 64), 255, np.uint8), np.ones(64), bits=8)
    x = jnp.stack([jnp.zeros(600, bool), jnp.ones(600, bool)])
    y = np.asarray(spike_matmul_low_bit(x, pack(largest, "rows")))
    assert (y == np.array([[0], [600 * (255 - 128)]])).all()


@pytest.mark.parametrize("layout", ["rows", "vnni"])
def test_other_layouts_and_tables_take_the_reference(layout):
    x = jnp.asarray(RANDOM.random((3, 64)) < 0.5)
    case = cases.Case(3, 64, 10, 4, 32, "table")
    w = quantized_matrix(*cases.parts(case)[:3], table=cases.parts(case)[3])
    y = spike_matmul_low_bit(x, pack(w, layout))
    np.testing.assert_allclose(y, exact(x, w), atol=64 * 2.0**-22)


def test_gradients_are_those_of_the_weights_as_floats():
    x = jnp.asarray((RANDOM.random((2, 5, 64)) < 0.5) * RANDOM.standard_normal((2, 5, 64)))
    x, w = x.astype(jnp.float32), matrix(64, 33, 2, 4, zero=0.5)
    dy = jnp.asarray(RANDOM.standard_normal((2, 5, 33)), jnp.float32)

    def loss(x, scale, zero, matmul):
        return (dy * matmul(x, quantized_matrix(w.codes, scale, zero))).sum()

    found, wanted = (
        jax.grad(loss, (0, 1, 2))(x, w.scale, w.zero, matmul)
        for matmul in (
            lambda x, w: spike_matmul_low_bit(x, pack(w, "rows")),
            lambda x, w: x @ dequantize(w),
        )
    )
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    spikes = x != 0
    of_scale = jax.grad(
        lambda s: (
            dy * spike_matmul_low_bit(spikes, pack(quantized_matrix(w.codes, s), "rows"))
        ).sum()
    )(w.scale)
    parts = (np.asarray(w.codes, float) - 8).reshape(2, 32, 33)
    each = np.asarray(spikes, float).reshape(10, 2, 32)
    closed = np.einsum("rgk,gkn,rn->gn", each, parts, np.asarray(dy, float).reshape(10, 33))
    np.testing.assert_allclose(of_scale, closed, rtol=1e-4, atol=1e-3)


def test_vmap_over_inputs_and_over_weights_and_in_a_scan():
    x = jnp.asarray(RANDOM.random((3, 4, 40)) < 0.5)
    ws = [matrix(40, 20, 2, 4, seed=s) for s in range(3)]
    packed = [pack(w, "rows") for w in ws]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *packed)
    each = np.stack([exact(a, ws[0]) for a in x])
    assert (np.asarray(jax.vmap(spike_matmul_low_bit, (0, None))(x, packed[0])) == each).all()
    bits = jax.vmap(pack_spikes)(x)
    assert (np.asarray(jax.vmap(spike_matmul_low_bit, (0, None))(bits, packed[0])) == each).all()
    both = np.stack([exact(a, w) for a, w in zip(x, ws, strict=True)])
    assert (np.asarray(jax.vmap(spike_matmul_low_bit)(x, stacked)) == both).all()
    found = jax.lax.scan(lambda _, a: (None, spike_matmul_low_bit(a, packed[0])), None, x)[1]
    assert (np.asarray(found) == each).all()


def test_the_number_of_threads_changes_no_bit(monkeypatch):
    x = jnp.asarray((RANDOM.random((9, 1024)) < 0.2) * RANDOM.standard_normal((9, 1024)))
    x, w = x.astype(jnp.float32), pack(matrix(1024, 1100, 4, 8, zero=0.3), "rows")
    together = spike_matmul_low_bit(x, w)
    alone = jnp.concatenate([spike_matmul_low_bit(row[None], w) for row in x])
    assert (together == alone).all()


@settings(max_examples=25, deadline=None)
@given(
    x_shape=st.lists(st.integers(0, 5), min_size=1, max_size=3),
    shape=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    form=st.sampled_from(sorted(FORMS)),
)
def test_shapes_that_do_not_fit_are_refused_and_others_give_theirs(x_shape, shape, form):
    w = pack(matrix(*shape, 1), "rows")
    x = FORMS[form](jnp.ones(x_shape, bool))
    if x_shape[-1] != shape[0]:
        with pytest.raises(ValueError, match="last axis of x must be as long"):
            spike_matmul_low_bit(x, w)
    else:
        assert spike_matmul_low_bit(x, w).shape == (*x_shape[:-1], shape[1])


def test_the_packed_form_is_a_pytree():
    assert len(jax.tree.leaves(SpikeBits(jnp.zeros((2, 1), jnp.uint32), 5))) == 1

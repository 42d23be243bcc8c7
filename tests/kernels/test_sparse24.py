"""Weights of which two of four are zero: the format, its check, the product and its gradient."""

import jax
import jax.numpy as jnp
import low_bit_cases as cases
import numpy as np
import pytest

from spikebit.kernels.matrix import dequantize, quantized_matrix
from spikebit.kernels.sparse24 import (
    compress24,
    expand24,
    fits24,
    pack24,
    sparse24_matmul,
    unpack24,
)


def sparse_codes(bits, k, n, zero, seed=0):
    """Codes of which two, one or none of four rows are not `zero`, at random places."""
    random = np.random.default_rng(seed)
    codes = random.integers(0, 1 << bits, (k // 4, 4, n))
    order = random.permuted(np.broadcast_to(np.arange(4)[:, None], codes.shape), axis=1)
    codes[order >= random.integers(0, 3, (k // 4, 1, n))] = zero
    return codes.reshape(k, n).astype(np.uint8)


def fits(w, **options):
    return bool(fits24(jnp.asarray(w), **options))


@pytest.mark.parametrize("dtype", [np.float32, np.int8])
@pytest.mark.parametrize("shape", [(4, 1), (64, 7), (0, 3), (8, 0)])
def test_compression_has_an_inverse_and_keeps_two_of_four(dtype, shape):
    w = (sparse_codes(4, *shape, 8).astype(int) - 8).astype(dtype)
    assert fits(w)
    c = compress24(jnp.asarray(w))
    assert c.first.dtype == dtype
    assert (np.bitwise_count(np.asarray(c.places)) == 2).all()
    np.testing.assert_array_equal(expand24(c), w)
    traced = jax.jit(lambda w: expand24(compress24(w)))(w)
    np.testing.assert_array_equal(traced, w)


def test_the_check_knows_every_pattern_of_four():
    for pattern in range(16):
        column = np.array([pattern >> i & 1 for i in range(4)])[:, None]
        assert fits(column) == (pattern.bit_count() <= 2)
    assert not fits(np.zeros((6, 4)))
    ones = np.kron(np.eye(2), np.ones((2, 2)))  # two of four in each column and row
    assert fits(ones, transposable=True)
    tall = np.array([[1, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 1]])
    assert fits(tall)
    assert not fits(tall, transposable=True)
    assert not fits(ones[:, :3], transposable=True)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_transposable_matrix_is_compressed_in_both_directions(transposed):
    w = np.kron(np.random.default_rng(0).normal(size=(6, 5)), np.kron(np.eye(2), np.ones((2, 2))))
    w = w.T if transposed else w
    np.testing.assert_array_equal(expand24(compress24(jnp.asarray(w.T))).T, jnp.asarray(w))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("groups", "group", "n"), [(1, 4, 3), (3, 128, 5), (2, 100, 2)])
def test_packing_has_an_inverse(compile_quickly, bits, groups, group, n):
    codes = sparse_codes(bits, groups * group, n, 1 << bits - 1)
    w = quantized_matrix(codes, np.ones((groups, n)), bits=bits)
    packed = jax.jit(pack24)(w)
    assert packed.group == group
    np.testing.assert_array_equal(jax.jit(unpack24)(packed).codes, codes)


def test_zeros_of_a_table_are_left_out_whatever_their_code():
    codes = sparse_codes(4, 512, 6, 0)
    codes[codes == 0] = np.random.default_rng(1).choice([0, 8], np.count_nonzero(codes == 0))
    w = quantized_matrix(codes, np.full((8, 6), 0.5), table=cases.E2M1)
    packed = pack24(w)
    np.testing.assert_array_equal(dequantize(unpack24(packed)), dequantize(w))
    words = (packed.first[0], packed.second[0], packed.places[0])
    assert sum(a.nbytes for a in words) * 8 == 3 * codes.size


def test_the_product_and_its_gradients_are_those_of_the_weights(compile_quickly):
    codes = sparse_codes(4, 128, 6, 8)
    w = quantized_matrix(codes, np.random.default_rng(2).uniform(0.5, 1, (2, 6)))
    x = jnp.asarray(np.random.default_rng(3).normal(size=(3, 128)), jnp.float32)
    packed, dense = pack24(w), np.asarray(dequantize(w), np.float64)
    bound = 132 * 2.0**-24 * abs(np.asarray(x, np.float64)) @ abs(dense)
    y, pull = jax.vjp(lambda x, s: sparse24_matmul(x, jax.tree.map(lambda a: a, s)), x, packed)
    assert (abs(y - np.asarray(x, np.float64) @ dense) <= bound).all()
    dx, dw = pull(jnp.ones_like(y))
    np.testing.assert_allclose(dx, np.broadcast_to(dense.sum(1), x.shape), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose((dw.scale * w.scale).sum(0), y.sum(0), rtol=1e-4, atol=1e-4)
    batched = jax.vmap(sparse24_matmul, (0, None))(x[:, None], packed)
    np.testing.assert_allclose(batched[:, 0], y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: compress24(jnp.ones((8, 2))), "4 of the rows 0 to 3 of column 0"),
        (lambda: compress24(jnp.ones((6, 2))), r"w of shape \(6, 2\)"),
        (lambda: pack24(quantized_matrix(np.full((6, 1), 8, np.uint8), np.ones(1))), "of 6 rows"),
        (
            lambda: pack24(quantized_matrix(np.full((8, 1), 8, np.uint8), np.ones(1), np.ones(1))),
            "got a zero point",
        ),
        (lambda: sparse24_matmul.__wrapped__(jnp.ones((2, 4)), jnp.ones((4, 1))), "by `pack24`"),
        (
            lambda: sparse24_matmul(
                jnp.ones((2, 5)), pack24(quantized_matrix(np.full((8, 1), 8, np.uint8), np.ones(1)))
            ),
            r"x of shape \(2, 5\)",
        ),
    ],
)
def test_what_does_not_fit_is_said(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_kernel_of_gpus_equals_the_product_in_the_interpreter(triton_script):
    triton_script("triton_sparse24.py", "interpret")


@pytest.mark.parametrize("capability", ["80", "90", "100"])
def test_the_kernel_of_gpus_compiles_without_spills(triton_script, capability):
    triton_script("triton_sparse24.py", "compile", capability)


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="JAX has no GPU here")
@pytest.mark.parametrize("m", [1, 16, 600])
def test_on_the_gpu_it_equals_the_product(monkeypatch, m):
    monkeypatch.setenv("SPIKEBIT_KERNELS", "gpu")
    w = quantized_matrix(sparse_codes(4, 1024, 96, 8), np.full((8, 96), 0.5))
    x = jnp.asarray(np.random.default_rng(3).normal(size=(m, 1024)), jnp.bfloat16)
    exact = np.asarray(x, np.float64) @ np.asarray(dequantize(w), np.float64)
    y = np.asarray(jax.jit(sparse24_matmul)(x, pack24(w)), np.float64)
    assert abs(y - exact).max() <= 4e-3 * abs(exact).max()

"""Quantized matrices: what their parts stand for, and what does not fit."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.kernels.matrix import dequantize, quantized_matrix

RANDOM = np.random.default_rng(0)
E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]


def codes(bits, k, n):
    return RANDOM.integers(0, 1 << bits, (k, n)).astype(np.uint8)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("with_zero", [False, True])
def test_a_weight_is_its_code_less_the_zero_point_times_the_scale_of_its_group(bits, with_zero):
    q, scale = codes(bits, 12, 5), RANDOM.uniform(0.5, 2, (3, 5)).astype(np.float32)
    zero = RANDOM.integers(0, 1 << bits, (3, 5)).astype(np.float32) if with_zero else None
    found = np.asarray(jax.jit(dequantize)(quantized_matrix(q, scale, zero, bits=bits)))
    for (k, n), value in np.ndenumerate(found):
        z = 1 << bits - 1 if zero is None else int(zero[k // 4, n])
        exact = (int(q[k, n]) - z) * Fraction(float(scale[k // 4, n]))
        assert value == np.float32(float(exact))  # a product of 9 and 24 bits is exact in float64


def test_a_table_says_what_a_code_stands_for():
    q, scale = codes(4, 64, 3), np.exp2(RANDOM.integers(-3, 4, (2, 3))).astype(np.float32)
    w = dequantize(quantized_matrix(q, scale, table=np.array(E2M1)))
    assert (np.asarray(w) == np.array(E2M1)[q] * np.repeat(scale, 32, axis=0)).all()


def test_one_scale_a_column_may_be_a_vector_and_the_matrix_is_a_pytree():
    w = quantized_matrix(codes(8, 7, 3), np.ones(3), np.full(3, 100.5), bits=8)
    assert (w.shape, w.group, w.scale.shape) == ((7, 3), 7, (1, 3))
    assert (np.asarray(dequantize(w)) == np.asarray(w.codes) - np.float32(100.5)).all()
    assert len(jax.tree.leaves(w)) == 3


@pytest.mark.parametrize("shape", [(0, 3), (4, 0)])
def test_an_empty_matrix_has_no_weights(shape):
    w = quantized_matrix(np.zeros(shape, np.uint8), np.ones((1, shape[1])))
    assert dequantize(w).shape == shape


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 5}, "bits=5.*2, 3, 4, 8"),
        ({"codes": np.zeros((4, 2), np.int8)}, "codes is int8, but holds unsigned"),
        ({"codes": np.zeros(4, np.uint8)}, r"codes are of shape \(4,\)"),
        ({"codes": np.full((4, 2), 16, np.uint8)}, r"codes\[0, 0\] is 16, but 4 bits.*8 such"),
        ({"scale": np.ones((3, 2))}, r"scale is of shape \(3, 2\).*4 rows"),
        ({"scale": np.ones((2, 3))}, r"must be \(groups, 2\)"),
        ({"scale": np.ones((0, 2))}, r"must be \(groups, 2\)"),
        ({"scale": np.ones((2, 2), int)}, "scale is int.*, but holds floats"),
        ({"scale": np.array([[1, 1], [1, np.nan]])}, r"scale\[1, 1\] is nan.*finite \(1 such of 4"),
        ({"zero": np.ones((1, 2))}, r"zero is of shape \(1, 2\)"),
        ({"zero": np.full((2, 2), np.inf)}, r"zero\[0, 0\] is inf"),
        ({"table": np.ones(8)}, r"table of shape \(8,\)"),
        ({"table": np.ones(16), "zero": np.ones((2, 2))}, "and a zero point"),
        ({"table": np.full(16, np.nan)}, r"table\[0\] is nan"),
    ],
)
def test_what_does_not_fit_is_said_in_one_sentence(change, message):
    parts = {"codes": codes(4, 4, 2), "scale": np.ones((2, 2))} | change
    with pytest.raises(ValueError, match=message):
        quantized_matrix(parts.pop("codes"), parts.pop("scale"), parts.pop("zero", None), **parts)


def test_values_are_not_looked_at_where_they_are_not_known():
    @jax.jit
    def made(q, scale):
        return dequantize(quantized_matrix(q, scale))

    assert made(jnp.zeros((4, 2), jnp.uint8), jnp.full((1, 2), jnp.inf)).shape == (4, 2)

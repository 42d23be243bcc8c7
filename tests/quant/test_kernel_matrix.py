"""Weights in formats are the same numbers to a kernel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spikebit import kernels, quant
from spikebit.quant.kernel_matrix import kernel_matrix

W = np.random.default_rng(0).standard_normal((6, 64)).astype(np.float32)
CASES = [
    ("int4", "group32", 4),
    ("int4", "tensor", 4),
    ("int8", "channel", 8),
    ("int3", "group16", 3),
    ("int5", "channel", 8),  # kept in codes of 8 bits
    ("int2", "block2x32", 2),
    ("int4_asymmetric", "group32", 4),
    ("nf4", "group32", 4),
    ("mxfp4", None, 4),
    ("nvfp4", None, 4),
    ("ternary", "channel", 2),
    ("fixed4.2", None, 4),
    ("e2m1fn", "channel", 4),
]


@pytest.mark.parametrize(("fmt", "granularity", "bits"), CASES)
def test_a_kernel_reads_the_numbers_of_the_format(fmt, granularity, bits):
    q = quant.QTensor.from_dense(jnp.asarray(W), fmt, granularity)
    w = jax.jit(kernel_matrix)(q)
    assert w.bits == bits
    exact = np.asarray(q.dequantize()).T
    # one rounding of the scale where there are two, and one of the product
    np.testing.assert_allclose(kernels.dequantize(w), exact, rtol=2.0**-22, atol=0)


def test_products_are_those_of_the_format():
    q = quant.QTensor.from_dense(jnp.asarray(W), "int4", "group32")
    spikes = jnp.asarray(np.random.default_rng(1).random((3, 64)) < 0.3)
    y = kernels.spike_matmul_low_bit(spikes, kernels.pack(kernel_matrix(q), "rows"))
    exact = np.asarray(spikes, float) @ np.asarray(q.dequantize(), float).T
    np.testing.assert_allclose(y, exact, atol=64 * 8 * float(W.max()) * 2.0**-23)


def test_what_kernels_have_no_codes_for():
    with pytest.raises(ValueError, match=r"kernel_matrix\(e4m3fn\): kernels have integers of up"):
        kernel_matrix(quant.QTensor.from_dense(jnp.asarray(W), "e4m3fn"))
    with pytest.raises(ValueError, match=r"int12\): kernels have integers of up to 8 bits"):
        kernel_matrix(quant.QTensor.from_dense(jnp.asarray(W), "int12", "channel"))
    with pytest.raises(ValueError, match=r"codes of shape \(2, 3, 64\); a weight has two axes"):
        kernel_matrix(quant.QTensor.from_dense(jnp.asarray(W.reshape(2, 3, 64)), "int4"))

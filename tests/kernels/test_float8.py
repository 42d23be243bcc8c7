"""Products of 8-bit floats with low-bit weights, where there is no GPU."""

import jax
import jax.numpy as jnp
import low_bit_cases as cases
import numpy as np
import pytest

from spikebit.kernels.float8 import float8_matmul
from spikebit.kernels.layouts import pack
from spikebit.kernels.matrix import quantized_matrix


def made(case, layout):
    codes, scale, zero, table = cases.parts(case)
    w = pack(quantized_matrix(codes, scale, zero, table=table, bits=case.bits), layout)
    x = jnp.asarray(cases.inputs(case)).astype(jnp.float8_e4m3fn)
    return x, jnp.asarray(cases.integer_inputs(case)[1])[:, None], w


@pytest.mark.parametrize("layout", ["vnni", "planes"])
@pytest.mark.parametrize("case", cases.CASES[:5], ids=lambda case: case.name)
def test_it_equals_the_product_of_the_numbers(case, layout):
    x, x_scale, w = made(case, layout)
    exact_w, numbers = cases.weights(case, *cases.parts(case)), np.asarray(x, np.float64)
    exact = numbers @ exact_w * np.asarray(x_scale)
    largest = abs(exact_w).max() + (1 << case.bits)  # codes times scales below 1, and zero points
    bound = (case.k + 8) * 2.0**-24 * abs(numbers).sum(1, keepdims=True) * largest
    y = jax.jit(float8_matmul)(x, x_scale, w)
    assert y.dtype == jnp.float32
    assert (abs(y - exact) <= bound * np.asarray(x_scale)).all()


def test_scales_have_gradients_and_batches_may_have_any_shape():
    case = cases.CASES[2]
    x, x_scale, w = made(case, "vnni")
    y = float8_matmul(x, x_scale, w)
    grads = jax.grad(lambda s: float8_matmul(x, s, w).sum())(x_scale)
    np.testing.assert_allclose(grads, y.sum(1, keepdims=True) / x_scale, rtol=1e-4)
    by_column = jax.grad(lambda w: float8_matmul(x, x_scale, w).sum(), allow_int=True)(w).scale
    np.testing.assert_allclose((by_column * w.scale).sum(0), y.sum(0), rtol=1e-4)
    batch = float8_matmul(x.reshape(3, 1, case.k), x_scale.reshape(3, 1, 1), w)
    np.testing.assert_array_equal(batch[:, 0], y)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": jnp.zeros((3, 256))}, "x_codes of shape .* float32"),
        ({"x": jnp.zeros((3, 255), jnp.float8_e4m3fn)}, r"shape \(3, 255\)"),
        ({"x_scale": jnp.ones(3)}, r"x_scale of shape \(3,\)"),
        ({"w": jnp.ones((256, 33))}, "make it by `pack`"),
    ],
)
def test_what_does_not_fit_is_said(change, message):
    arguments = dict(zip(("x", "x_scale", "w"), made(cases.CASES[2], "vnni"), strict=True))
    with pytest.raises(ValueError, match=message):
        float8_matmul.__wrapped__(*(arguments | change).values())

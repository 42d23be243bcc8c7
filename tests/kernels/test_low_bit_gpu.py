"""The Triton kernel of low-bit products: interpreted, compiled, and on a GPU where there is one."""

import jax
import jax.numpy as jnp
import low_bit_cases as cases
import numpy as np
import pytest

from spikebit.kernels.layouts import pack
from spikebit.kernels.low_bit import low_bit_matmul
from spikebit.kernels.matrix import quantized_matrix


def test_in_the_interpreter_it_equals_the_product(triton_script):
    triton_script("triton_low_bit.py", "interpret")


@pytest.mark.parametrize("capability", ["80", "90", "100"])
def test_compiles_to_few_instructions_a_weight_without_spills(triton_script, capability):
    triton_script("triton_low_bit.py", "compile", capability)


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="JAX has no GPU here")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize(
    "case",
    [
        *cases.CASES,
        cases.Case(600, 256, 40, 4, 128, "float"),
        cases.Case(40, 8192, 96, 4, 64, "e2m1"),
    ],
    ids=lambda case: case.name,
)
def test_on_the_gpu_it_equals_the_product(monkeypatch, case, dtype):
    monkeypatch.setenv("SPIKEBIT_KERNELS", "gpu")
    parts = cases.parts(case)
    codes, scale, zero, table = parts
    w = pack(quantized_matrix(codes, scale, zero, table=table, bits=case.bits), "planes")
    x = jnp.asarray(cases.inputs(case)).astype(dtype)
    y = jax.jit(low_bit_matmul)(x, w)
    assert y.dtype == x.dtype
    exact = np.asarray(x, np.float64) @ cases.weights(case, *parts)
    bound = {"bfloat16": 4e-3, "float16": 1e-3, "float32": 1e-6 * case.k**0.5}[dtype]
    if exact.size:
        assert abs(np.asarray(y, np.float64) - exact).max() <= bound * abs(exact).max()
    again = jax.jit(low_bit_matmul)(x, w)
    np.testing.assert_array_equal(again, y)

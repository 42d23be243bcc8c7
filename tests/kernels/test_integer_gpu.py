"""The Triton kernel of 8-bit products: interpreted, compiled, and on a GPU where there is one."""

import jax
import jax.numpy as jnp
import low_bit_cases as cases
import numpy as np
import pytest

from spikebit.kernels.float8 import float8_matmul
from spikebit.kernels.integer import integer_matmul
from spikebit.kernels.layouts import pack
from spikebit.kernels.matrix import quantized_matrix


def test_in_the_interpreter_it_equals_the_product(triton_script):
    triton_script("triton_integer.py", "interpret")


@pytest.mark.parametrize("capability", ["80", "90", "100"])
def test_compiles_to_instructions_of_8_bits_without_spills(triton_script, capability):
    triton_script("triton_integer.py", "compile", capability)


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="JAX has no GPU here")
@pytest.mark.parametrize("inputs", ["int8", "float8_e4m3fn"])
@pytest.mark.parametrize(
    "case",
    [
        *(case for case in cases.CASES if case.kind != "table"),
        cases.Case(600, 4096, 40, 8, 4096, "symmetric"),
        cases.Case(40, 8192, 96, 4, 64, "e2m1"),
    ],
    ids=lambda case: case.name,
)
def test_on_the_gpu_it_equals_the_product(monkeypatch, case, inputs):
    monkeypatch.setenv("SPIKEBIT_KERNELS", "gpu")
    parts = cases.parts(case)
    codes, scale, zero, table = parts
    w = pack(quantized_matrix(codes, scale, zero, table=table, bits=case.bits), "planes")
    x, x_scale = cases.integer_inputs(case)
    x_scale = jnp.asarray(x_scale)[:, None]
    if inputs == "int8":
        y = jax.jit(integer_matmul)(jnp.asarray(x), x_scale, w)
    else:
        x = jnp.asarray(cases.inputs(case)).astype(inputs)
        y = jax.jit(float8_matmul)(x, x_scale, w)
    exact = np.asarray(x, np.float64) @ cases.weights(case, *parts) * np.asarray(x_scale)
    assert y.shape == exact.shape
    if exact.size:
        bound = 1e-6 * case.k**0.5 if inputs == "int8" else 4e-3
        assert abs(np.asarray(y, np.float64) - exact).max() <= bound * abs(exact).max()

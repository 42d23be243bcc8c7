"""The Triton kernel of spikes x low-bit weights: interpreted, compiled, and on a GPU if any."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.kernels.layouts import pack
from spikebit.kernels.matrix import dequantize, quantized_matrix
from spikebit.kernels.spike_bits import pack_spikes
from spikebit.kernels.spikes_low_bit import spike_matmul_low_bit


def test_in_the_interpreter_it_is_the_exact_sum(triton_script):
    triton_script("triton_spikes_low_bit.py", "interpret")


@pytest.mark.parametrize("capability", ["80", "90", "100"])
def test_compiles_to_tensor_core_code_without_spills(triton_script, capability):
    triton_script("triton_spikes_low_bit.py", "compile", capability)


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="JAX has no GPU here")
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (3, 64, 63, 2), (70, 33, 70, 3), (300, 4096, 130, 32)]
)
def test_on_the_gpu_it_is_the_exact_sum(monkeypatch, shape, bits):
    monkeypatch.setenv("SPIKEBIT_KERNELS", "gpu")
    rows, k, n, groups = shape
    random = np.random.default_rng(0)
    codes = random.integers(0, 1 << bits, (k, n)).astype(np.uint8)
    scale = np.exp2(random.integers(-2, 2, (groups, n))).astype(np.float32)
    w = quantized_matrix(codes, scale, bits=bits)
    x = jnp.asarray(random.random((rows, k)) < 0.05)
    exact = np.asarray(x, np.float64) @ np.asarray(dequantize(w), np.float64)
    for form in (x, pack_spikes(x), x.astype(jnp.float32)):
        y = jax.jit(spike_matmul_low_bit)(form, pack(w, "rows"))
        assert (np.asarray(y) == exact).all()

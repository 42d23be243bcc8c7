"""The Triton kernels of spikes x sparse weights: interpreted, compiled, and on a GPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.kernels.sparse import csr_from_dense, inputs_of
from spikebit.kernels.spikes_sparse import spike_matmul_sparse


def test_in_the_interpreter_they_equal_the_products(triton_script):
    triton_script("triton_spikes_sparse.py", "interpret")


@pytest.mark.parametrize("capability", ["80", "90", "100"])
def test_they_compile_without_spills_and_atomics(triton_script, capability):
    triton_script("triton_spikes_sparse.py", "compile", capability)


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="JAX has no GPU here")
@pytest.mark.parametrize("rows", [1, 3, 65, 300])
@pytest.mark.parametrize("rate", [0.0, 0.05, 1.0])
def test_on_the_gpu_they_equal_the_products(monkeypatch, rows, rate):
    monkeypatch.setenv("SPIKEBIT_KERNELS", "gpu")
    random, (k, n) = np.random.default_rng(0), (250, 1333)
    w = csr_from_dense(random.integers(1, 4, (k, n)) * 1.0, random.random((k, n)) < 0.1)
    x = jnp.asarray(
        (random.random((rows, k)) < rate) * random.integers(1, 4, (rows, k)), jnp.float32
    )
    dy = jnp.asarray(random.integers(-3, 4, (rows, n)), jnp.float32)
    needed = jnp.asarray(random.random((rows, k)) < 0.5)

    @jax.jit
    def gradients(x, data):
        def product(x, data):
            return spike_matmul_sparse(x, w._replace(data=data), needed=needed)

        y, pull = jax.vjp(product, x, data)
        return (y, *pull(dy))

    a, b, g = (np.asarray(v, np.float64) for v in (x, w.dense(), dy))
    at = np.asarray(inputs_of(w.pattern)), np.asarray(w.pattern.indices)
    expected = a @ b, (g @ b.T) * np.asarray(needed), (a.T @ g)[at]  # whole numbers: exact
    for _ in range(2):
        for result, right in zip(gradients(x, w.data), expected, strict=True):
            np.testing.assert_array_equal(result, right)

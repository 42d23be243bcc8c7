"""The Triton kernel of spikes x weights: interpreted, compiled, and on a GPU where there is one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.kernels import spike_matmul


def test_in_the_interpreter_it_equals_the_product(triton_script):
    triton_script("triton_spikes.py", "interpret")


@pytest.mark.parametrize("capability", ["80", "90"])
def test_compiles_to_tensor_core_code_without_spills(triton_script, capability):
    triton_script("triton_spikes.py", "compile", capability)


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="JAX has no GPU here")
def test_on_the_gpu_it_equals_the_product(monkeypatch):
    monkeypatch.setenv("SPIKEBIT_KERNELS", "gpu")
    random = np.random.default_rng(0)
    x = jnp.asarray(random.random((300, 250)) < 0.05, jnp.float32)
    w, dy = (jnp.asarray(random.normal(size=s), jnp.float32) for s in ((250, 133), (300, 133)))
    y, pull = jax.vjp(jax.jit(spike_matmul), x, w)
    a, b, g = (np.asarray(v, np.float64) for v in (x, w, dy))
    for result, p, q in zip((y, *pull(dy)), (a, g, a.T), (b, b.T, g), strict=True):
        bound = 2 * p.shape[1] * 2**-22 * (abs(p) @ abs(q))  # tf32x3 keeps 22 bits of a factor
        assert (abs(result - p @ q) <= bound).all()

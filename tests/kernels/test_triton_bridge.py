"""The way from JAX to Triton, as far as it goes without a GPU."""

import sys
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.kernels import triton_bridge
from spikebit.kernels.layouts import pack
from spikebit.kernels.matrix import quantized_matrix


@pytest.fixture
def no_memory():
    def forget():
        triton_bridge.why_not.cache_clear()
        triton_bridge._jax_triton.cache_clear()

    forget()
    yield
    forget()


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="there is a GPU")
def test_without_a_gpu_it_says_so(no_memory):
    assert "the default backend of JAX is cpu" in str(triton_bridge.why_not())


def test_an_older_triton_gets_the_number_that_jax_triton_looks_for(monkeypatch, no_memory):
    driver = ModuleType("triton.backends.nvidia.driver")
    for name in ("triton", "triton.backends", "triton.backends.nvidia", "jax_triton"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, driver.__name__, driver)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert triton_bridge.why_not() is None
    assert driver.TMA_TF32 == 11


def test_a_kernel_becomes_a_call_in_a_program_for_gpus(monkeypatch, no_memory):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    if triton_bridge.why_not() is not None:
        pytest.skip(str(triton_bridge.why_not()))
    from spikebit.kernels import low_bit_gpu

    monkeypatch.setattr(triton_bridge, "capability", lambda: 90)
    w = pack(quantized_matrix(np.zeros((256, 64), np.uint8), np.ones((2, 64))), "planes")
    traced = jax.jit(low_bit_gpu.matmul).trace(jnp.zeros((3, 256), jnp.bfloat16), w)
    assert "triton_kernel_call" in traced.lower(lowering_platforms=("cuda",)).as_text()

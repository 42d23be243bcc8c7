"""Settings every test runs under: no silent dtype promotion, no random key used twice."""

import functools
import os

import jax
import jax.numpy as jnp
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_debug_key_reuse", True)
os.environ.setdefault("MPLBACKEND", "Agg")


@functools.cache
def quick_options():
    """What spares XLA most of its work, without the options that this version does not know."""
    wanted = {
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
        "xla_cpu_use_fusion_emitters": False,
        "xla_cpu_parallel_codegen_split_count": 1,
    }
    known = {}
    for name, value in wanted.items():
        try:
            jax.jit(lambda: 0, compiler_options={name: value})()
        except jax.errors.JaxRuntimeError:
            continue
        known[name] = value
    return known


@pytest.fixture
def compile_quickly(monkeypatch):
    """For tests that compile a lot, compute little, and are about no property of compiled code.

    Those that compare within a tolerance, or a program with itself. Not those of the bits that two
    programs share, or of speed: these are about what XLA makes by default.
    """
    jit, quick = jax.jit, functools.partial(jax.jit, compiler_options=quick_options())

    def jit_quickly(*args, **settings):
        tracing = isinstance(jnp.zeros(()), jax.core.Tracer)  # options are for the outermost alone
        return (jit if tracing else quick)(*args, **settings)

    monkeypatch.setattr(jax, "jit", jit_quickly)
    jax.config.update("jax_disable_most_optimizations", True)  # for what runs outside of jit
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def standard_promotion():
    """For tests that train with an optimizer of optax, which mixes dtypes."""
    with jax.numpy_dtype_promotion("standard"):
        yield

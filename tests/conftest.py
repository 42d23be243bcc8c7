"""Settings every test runs under: no silent dtype promotion, no random key used twice."""

import functools
import gc
import inspect
import os
import types

import jax
import jax.numpy as jnp
import jaxtyping
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_debug_key_reuse", True)
os.environ.setdefault("MPLBACKEND", "Agg")
gc.set_threshold(100_000, 50, 100)  # tracing makes many objects that stay: a tenth of the time


def once_a_place(jaxtyped):
    """What jaxtyping decorates every function with, made cheap for functions inside of others.

    These are decorated whenever the outer one runs, which takes milliseconds. One without
    annotations has nothing to check. The checks of the rest are made once a place in the code, and
    the function to call passes through them as one more argument.
    """
    made = {}

    def relay(fn):
        @functools.wraps(fn)
        def run(*args, fn_, **kwargs):
            return fn_(*args, **kwargs)

        signature = inspect.signature(fn)
        ours = inspect.Parameter("fn_", inspect.Parameter.KEYWORD_ONLY)
        listed = sorted([*signature.parameters.values(), ours], key=lambda p: p.kind)
        run.__signature__ = signature.replace(parameters=listed)
        del run.__wrapped__
        return run

    def decorate(fn=None, *, typechecker):
        if fn is None:
            return functools.partial(decorate, typechecker=typechecker)
        if not isinstance(fn, types.FunctionType):
            return jaxtyped(fn, typechecker=typechecker)
        kinds = fn.__annotations__
        if not kinds:
            return fn
        if "<locals>" not in fn.__qualname__ or any(isinstance(k, str) for k in kinds.values()):
            return jaxtyped(fn, typechecker=typechecker)
        place = fn.__code__, repr(kinds)  # of two classes for one annotation
        if place not in made:
            made[place] = jaxtyped(relay(fn), typechecker=typechecker)
        checked = made[place]

        @functools.wraps(fn)
        def call(*args, **kwargs):
            return checked(*args, fn_=fn, **kwargs)

        return call

    return decorate


jaxtyping.jaxtyped = once_a_place(jaxtyping.jaxtyped)


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

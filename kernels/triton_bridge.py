"""The one way from JAX to Triton kernels, and the reason where there is none.

The idea that belongs here: which package hands a Triton kernel to XLA, and what that package needs
from Triton to be imported. Today it is jax-triton. Importing this file imports neither.
"""

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import jax


@functools.cache
def why_not() -> str | None:
    """Why Triton kernels cannot run here, in words; None where they can."""
    if jax.default_backend() != "gpu":
        return f"the default backend of JAX is {jax.default_backend()}"
    try:
        _jax_triton()
    except Exception as reason:  # its import fails in many ways where versions do not match
        return f"jax_triton cannot be imported ({type(reason).__name__}: {reason})"
    return None


@functools.cache
def _jax_triton():
    # jax-triton 0.4 looks for this number, which is newer than Triton 3.6, and goes on without the
    # compiler for NVIDIA's GPUs where it misses it
    driver = importlib.import_module("triton.backends.nvidia.driver")
    if not hasattr(driver, "TMA_TF32"):
        driver.TMA_TF32 = 11  # pyright: ignore[reportAttributeAccessIssue]
    return importlib.import_module("jax_triton")


@functools.cache
def capability() -> int:
    """The compute capability of the GPU, such as 90."""
    return int(jax.devices()[0].compute_capability.replace(".", ""))


def call(
    kernel: Callable,
    *arrays: jax.Array,
    out: jax.ShapeDtypeStruct | Sequence[jax.ShapeDtypeStruct],
    grid: Sequence[int],
    warps: int,
    stages: int,
    **constants: Any,
) -> Any:
    """Runs a kernel on arrays and new ones, which it writes, inside or outside of `jit`.

    Args:
        kernel: made by `triton.jit`: its arguments are the arrays, the results, the constants.
        *arrays: what it reads.
        out: shape and dtype of the result, or of each of several.
        grid: the number of programs in up to three directions.
        warps: of a program.
        stages: of the pipeline of its loads.
        **constants: what it is compiled for.
    """
    return _jax_triton().triton_call(
        *arrays,
        kernel=kernel,
        out_shape=out,
        grid=tuple(grid),
        num_warps=warps,
        num_stages=stages,
        compute_capability=capability(),
        enable_fp_fusion=True,
        **constants,
    )

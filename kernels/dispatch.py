"""Which code computes an operation: the reference, the CPU kernel or the GPU kernel.

The idea that belongs here: every operation family `f` is a module `f.py` with the reference, and
beside it `f_cpu.py` and `f_gpu.py`, where they have been written, with functions of the same names
and arguments, imported only where they are used. Where there is none, and on a machine without
numba, without Triton or without a GPU, the reference computes the same numbers. What an operation
computes does not belong here.
"""

import functools
import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable
from typing import Any

import jax

from . import triton_bridge

VARIABLE = "SPIKEBIT_KERNELS"


def forced() -> str | None:
    """The choice made by the environment variable SPIKEBIT_KERNELS, or None.

    It is read while a function is traced: functions compiled before keep what they were given.

    Raises:
        ValueError: if it is set to something other than reference, cpu or gpu.
    """
    value = os.environ.get(VARIABLE) or None
    if value not in (None, "reference", "cpu", "gpu"):
        raise ValueError(
            f"{VARIABLE}={value!r} is not a kind of kernel: set it to reference, cpu or gpu, "
            "or leave it unset to let the machine decide."
        )
    return value


@functools.cache
def _why_no_cpu_kernels() -> str | None:
    try:
        from . import ffi

        ffi.self_test()
    except Exception as reason:  # anything: numba itself may be broken
        return f"{type(reason).__name__}: {reason}"
    return None


@functools.cache
def _cpu_kernels_or_warning() -> bool:
    reason = _why_no_cpu_kernels()
    if reason is not None:
        warnings.warn(
            f"spikebit computes without its CPU kernels, correctly but more slowly ({reason}).",
            RuntimeWarning,
            stacklevel=2,
        )
    return reason is None


def why_no_kernels(backend: str) -> str | None:
    """Why operations have no kernels where `backend` is the default; None: they have."""
    if backend == "cpu":
        return _why_no_cpu_kernels()
    if backend == "gpu":
        return triton_bridge.why_not()
    return f"there are no kernels for {backend}"


def run(family: str, operation: str, reference: Callable, *args: Any) -> Any:
    """Computes `operation` of a family on arrays, for the platform it will run on.

    Args:
        family: the module of the reference, such as "spikes".
        operation: the name of the function in the family's CPU and GPU modules.
        reference: the function of the same arguments in jax.numpy.
        *args: the arrays.

    Raises:
        ValueError: if SPIKEBIT_KERNELS has a bad value, or forces what this machine lacks.
    """

    def kernel(kind):
        if importlib.util.find_spec(f".{family}_{kind}", __package__) is None:
            return reference  # no faster way has been written
        return getattr(importlib.import_module(f".{family}_{kind}", __package__), operation)

    kind = forced()
    if kind == "reference":
        return reference(*args)
    if kind is not None:
        reason = _why_no_cpu_kernels() if kind == "cpu" else triton_bridge.why_not()
        if reason is not None:
            raise ValueError(
                f"{VARIABLE}={kind} cannot be had here: {reason}; unset it or set it to reference."
            )
        return kernel(kind)(*args)
    if jax.default_backend() == "cpu" and _cpu_kernels_or_warning():
        return jax.lax.platform_dependent(*args, cpu=kernel("cpu"), default=reference)
    if jax.default_backend() == "gpu" and triton_bridge.why_not() is None:
        return jax.lax.platform_dependent(*args, cuda=kernel("gpu"), default=reference)
    return reference(*args)

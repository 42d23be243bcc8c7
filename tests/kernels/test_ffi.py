"""The bridge from XLA to numba: what it reads, what it shares out, and what it does without."""

import functools
import importlib
import os
import subprocess
import sys
import warnings
from typing import no_type_check

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.kernels import dispatch, ffi, spike_matmul, triton_bridge


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    """No choice forced, and nothing remembered from or for other tests."""
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)
    forget()
    yield
    forget()


def choose(monkeypatch, value):
    monkeypatch.setenv(dispatch.VARIABLE, value)
    jax.clear_caches()


def forget():
    jax.clear_caches()  # the choice is made while tracing, and JAX remembers traces
    ffi.api.cache_clear()
    for function in (
        dispatch._why_no_cpu_kernels,
        dispatch._cpu_kernels_or_warning,
        triton_bridge.why_not,
    ):
        function.cache_clear()


def python(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@no_type_check
@ffi.compiled
def _count(frame, zero, extra, task):
    ffi.result(frame, 0, zero)[task, 0] += extra


@no_type_check
@ffi.compiled
def _slow_second_task(frame, zero, extra, task):
    """Task 0 waits (not for ever) until another thread is in task 1, which takes long."""
    y = ffi.result(frame, 0, zero)
    second = np.int64(y.ctypes.data) + 8
    if task == 0:
        for _ in range(extra):
            if ffi._word(second, 0) != 0:
                break
        y[0, 0] = 1
    else:
        ffi._set_word(second, 0, 1)
        number = 1
        for _ in range(extra):
            number = 3 * number + 1
        y[1, 0] = number


_count_all, _slow_loop = ffi.shared_loop(_count), ffi.shared_loop(_slow_second_task)


def _count_handler(api, zero):
    @no_type_check
    def count(frame):
        if ffi.not_a_call(frame, api):
            return 0
        y = ffi.result(frame, 0, zero)
        y[:, :] = 0
        _count_all(frame, api, zero, 100, y.shape[0], 3)
        return 0

    return count


def _slow_handler(api, zero):
    @no_type_check
    def slow(frame):
        if ffi.not_a_call(frame, api):
            return 0
        ffi.result(frame, 0, zero)[:, :] = 0
        _slow_loop(frame, api, zero, 3_000_000, 2, 1)
        return 0

    return slow


def call(name, make, rows):
    ffi.register(name, make, np.int64(0))
    with jax.enable_x64(True):
        out = jax.ShapeDtypeStruct((rows, 1), jnp.int64)
        function = jax.jit(lambda: jax.ffi.ffi_call(name, out)())
        for _ in range(30):
            yield np.asarray(function())[:, 0]


def test_every_task_of_a_shared_loop_is_done_once():
    for counts in call("test_count", _count_handler, 20_000):
        assert (counts == 100).all()


def test_a_shared_loop_ends_after_its_slowest_task():
    power = pow(3, 3_000_000, 2**65)
    number = (power + (power - 1) // 2) % 2**64  # of the recurrence n -> 3 n + 1 from 1
    for first, second in call("test_slow", _slow_handler, 2):
        assert (first, int(second) % 2**64) == (1, number)


def test_self_test_passes_also_while_tracing():
    @jax.jit
    def function(x):
        ffi.self_test()
        return x + 1

    assert function(1.0) == 2


def test_version_and_words_come_from_the_header(tmp_path, monkeypatch):
    monkeypatch.setattr(jax.ffi, "include_dir", lambda: str(tmp_path))
    header = tmp_path / "xla" / "ffi" / "api" / "c_api.h"
    header.parent.mkdir(parents=True)
    names = ["Error_Create", "Error_Destroy", "ThreadPool_Schedule", "ThreadPool_NumThreads"]
    fields = "\n".join(f"  _XLA_FFI_API_STRUCT_FIELD(XLA_FFI_{name});" for name in names)
    header.write_text(f"#define XLA_FFI_API_MAJOR 2\n#define XLA_FFI_API_MINOR 5\n{fields}\n")
    assert ffi.api()[:4] == (2 + (5 << 32), 7, 8, 9)
    header.write_text("#define XLA_FFI_API_MAJOR 2\n")
    ffi.api.cache_clear()
    with pytest.raises(RuntimeError, match="header of this jaxlib has no"):
        ffi.api()


def test_without_a_working_bridge_the_reference_computes_and_one_warning_says_so(monkeypatch):
    def broken():
        raise RuntimeError("no such bridge")

    monkeypatch.setattr(ffi, "self_test", broken)
    x, w = jnp.zeros((64, 128)), jnp.zeros((128, 64)).at[0].set(jnp.inf)
    with pytest.warns(RuntimeWarning, match="no such bridge"):
        y = spike_matmul(x, w)
    assert np.isnan(y).all()  # 0 * inf: the dense product of the reference
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spike_matmul(x + 1, w)
    choose(monkeypatch, "cpu")
    with pytest.raises(ValueError, match=r"=cpu cannot be had here.*no such bridge"):
        spike_matmul(x, w)


def test_the_environment_variable_decides(monkeypatch):
    x, w = jnp.zeros((64, 128)), jnp.zeros((128, 64)).at[0].set(jnp.inf)
    for value, dense in (("reference", True), ("cpu", False), ("", False)):
        choose(monkeypatch, value)
        assert np.isnan(spike_matmul(x, w)).all() == dense
    choose(monkeypatch, "fast")
    with pytest.raises(ValueError, match=r"SPIKEBIT_KERNELS='fast' is not.*reference, cpu or gpu"):
        spike_matmul(x[:1], w)


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="there is a GPU")
def test_a_forced_gpu_that_is_not_there_is_an_error(monkeypatch):
    choose(monkeypatch, "gpu")
    with pytest.raises(ValueError, match=r"=gpu cannot be had here.*backend of JAX is"):
        spike_matmul(jnp.zeros((64, 128)), jnp.zeros((128, 64)))


def test_a_gpu_without_jax_triton_takes_the_reference(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    original = importlib.import_module

    def absent(name, package=None):
        if name == "jax_triton":
            raise ImportError("no jax_triton")
        return original(name, package)

    monkeypatch.setattr(importlib, "import_module", absent)
    x, w = jnp.zeros((64, 128)), jnp.zeros((128, 64)).at[0].set(jnp.inf)
    assert np.isnan(spike_matmul(x, w)).all()


def test_a_family_without_a_kernel_for_gpus_takes_the_reference_there(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(dispatch.triton_bridge, "why_not", functools.cache(lambda: None))
    for value in ("", "gpu"):
        choose(monkeypatch, value)
        double = dispatch.run("stdp_events", "run", lambda x: 2 * x, jnp.ones(3))
        assert (double == 2).all()


def test_import_loads_neither_numba_nor_triton():
    code = (
        "import sys, spikebit.kernels; print({'numba', 'triton', 'jax_triton'} & set(sys.modules))"
    )
    assert python(code).strip() == "set()"


def test_compiled_code_is_kept_for_the_next_process(tmp_path):
    code = (
        "from spikebit.kernels import ffi; ffi.self_test(); "
        "print(ffi._registered['spikebit_self_test'].cache_hits)"
    )
    hits = [python(code, NUMBA_CACHE_DIR=str(tmp_path)).strip() for _ in range(2)]
    assert hits == ["0", "1"]

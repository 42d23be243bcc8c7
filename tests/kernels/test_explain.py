"""What `explain` says is what runs, and its numbers are those of the arrays."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.kernels import (
    StdpSettings,
    csr,
    csr_from_dense,
    dispatch,
    explain,
    pack24,
    pack_spikes,
    spike_matmul,
    transposed,
)
from spikebit.kernels.explain import OPERATIONS
from spikebit.kernels.layouts import pack
from spikebit.kernels.matrix import quantized_matrix
from spikebit.kernels.spikes_low_bit import spike_matmul_low_bit

X = jax.ShapeDtypeStruct((8, 64), jnp.bool_)
W = pack(quantized_matrix(np.zeros((64, 32), np.uint8), np.ones(32), bits=8), "rows")


@pytest.fixture(autouse=True)
def measured(monkeypatch):
    """A machine of 1 GB/s and 1 G multiplications a second."""
    module = sys.modules[explain.__module__]  # its name in the package is that of the function
    monkeypatch.setattr(module, "_bandwidth", lambda: 1e9)
    monkeypatch.setattr(module, "_rate", lambda: 1e9)
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)


def test_the_kernel_that_would_be_called_is_named_and_bytes_are_those_of_the_arrays():
    found = explain(spike_matmul_low_bit, X, W)
    assert (found.implementation, found.kernels) == ("cpu", ("spikebit_low_bit_spikes",))
    assert found.why == "the default backend of JAX is cpu"
    rows = 64 * 64  # 32 columns are padded to 64
    assert found.moved == 8 * 64 + rows + 4 * 32 + 4 * 8 * 32
    assert found.multiplications == 8 * 64 * 32
    assert (found.at_best, found.limit) == (8 * 64 * 32 / 1e9, "arithmetic")
    assert (found.seconds, found.fraction) == (None, None)
    one = explain(spike_matmul_low_bit, jax.ShapeDtypeStruct((1, 64), jnp.bool_), W)
    assert (one.at_best, one.limit) == (one.moved / 1e9, "bandwidth")


def test_kernels_inside_conditions_and_derivatives_are_found():
    x, w = jnp.zeros((64, 784)), jnp.zeros((784, 64))
    assert explain(spike_matmul, x, w).kernels == (
        "spikebit_share_float32",
        "spikebit_forward_float32",
    )
    by_hand = explain(jax.grad(lambda w: spike_matmul(x, w).sum()), w)
    assert "spikebit_weight_gradient_float32" in by_hand.kernels


def test_rows_without_an_event_are_not_moved():
    x = jnp.zeros((8, 64), bool).at[0, :3].set(True).at[1, 2:5].set(True)  # five of 64 rows
    words = 64 * 64 + 4 * 32
    all_, some = explain(spike_matmul_low_bit, X, W), explain(spike_matmul_low_bit, x, W)
    assert all_.moved - some.moved == round(59 / 64 * words)
    assert some.multiplications == 6 * 32
    assert explain(spike_matmul_low_bit, pack_spikes(x), W).fraction is None


def test_products_count_what_they_multiply():
    x, w = jnp.ones((3, 64), jnp.int8), quantized_matrix(np.ones((64, 32), np.uint8), np.ones(32))
    found = explain("integer_matmul", x, jnp.ones((3, 1)), pack(w, "vnni"))
    assert (found.implementation, found.multiplications) == ("cpu", 3 * 64 * 32)
    sparse = csr([0, 2, 3], [0, 2, 1], [1.0, 2.0, 3.0], (2, 3))
    whole = explain("spike_matmul_sparse", jax.ShapeDtypeStruct((5, 2), "float32"), sparse)
    assert whole.multiplications == 5 * 3


def test_why_the_reference_runs(monkeypatch):
    small = explain(spike_matmul, jnp.zeros((2, 3)), jnp.zeros((3, 4)))
    assert small.implementation == "reference"
    assert small.why == "for these shapes, dtypes and layouts the operation takes jax.numpy"
    monkeypatch.setenv(dispatch.VARIABLE, "reference")
    assert explain(spike_matmul_low_bit, X, W).why == "SPIKEBIT_KERNELS=reference"
    monkeypatch.delenv(dispatch.VARIABLE)
    monkeypatch.setattr(dispatch, "_why_no_cpu_kernels", lambda: "no numba")
    monkeypatch.setattr(dispatch, "_cpu_kernels_or_warning", lambda: False)
    other = jax.ShapeDtypeStruct((9, 64), jnp.bool_)
    assert explain(spike_matmul_low_bit, other, W).why == "no numba"


def test_a_run_gives_the_share_of_the_bandwidth_and_the_table_says_it():
    found = explain(spike_matmul_low_bit, X, W, run=True)
    assert found.fraction == found.moved / found.seconds / 1e9
    lines = dict(line.split(maxsplit=1) for line in str(found).splitlines())
    assert lines["runs"] == "cpu (spikebit_low_bit_spikes)"
    assert f"{100 * found.fraction:.0f} % of bandwidth" in str(found)


def test_every_operation_is_explained_with_settings_by_place_and_by_name():
    x, key = jnp.ones((4, 64)), jnp.array([1, 2], jnp.uint32)
    w = quantized_matrix(np.full((64, 32), 9, np.uint8), np.ones(32))
    sparse = csr_from_dense(np.eye(64, dtype=np.float32))
    index, one = transposed(sparse.pattern), jnp.ones((4, 1))
    buffer, spikes = jnp.zeros((3, 4, 64)), (x, x, x, x)
    calls = {
        "deliver": (buffer, x, sparse, jnp.zeros(64, jnp.int32), 0),
        "float8_matmul": (x.astype(jnp.float8_e4m3fn), one, pack(w)),
        "hadamard": (x,),
        "hadamard_quantize": (x, 8),
        "integer_matmul": (x.astype(jnp.int8), one, pack(w)),
        "largest_magnitude": (x,),
        "low_bit_matmul": (x, pack(w)),
        "low_bit_softmax": (x, 2),
        "quantize_matrix": (x, 4),
        "quantize_rows": (x, 4),
        "random_words": (key, 0, (3, 4)),
        "rotate_blocks": (x, jnp.eye(32)),
        "rotate_quantize": (x, jnp.eye(32), 8),
        "sparse24_matmul": (x, pack24(quantized_matrix(np.full((64, 4), 8, np.uint8), np.ones(4)))),
        "sparse_stdp": (sparse, index, *spikes, StdpSettings(0.1, 0.1)),
        "spike_matmul": (x, jnp.ones((64, 8))),
        "spike_matmul_low_bit": (x != 0, pack(w, "rows")),
        "spike_matmul_sparse": (x, sparse),
        "stochastic_codes": (x, 0.5, key),
    }
    assert {*calls, "stdp_events", "stochastic_round"} == set(OPERATIONS)
    assert explain("stochastic_round", x, key, dtype=jnp.bfloat16).moved == 4 * 64 * 6 + 8
    for name, arguments in calls.items():
        assert explain(name, *arguments).operation == name
    assert explain("low_bit_matmul", x=x, w=pack(w)).multiplications == 4 * 64 * 32


def test_errors_are_those_of_the_operation():
    with pytest.raises(ValueError, match="the last axis of x must be as long"):
        explain(spike_matmul_low_bit, jax.ShapeDtypeStruct((8, 63), jnp.bool_), W)
    with pytest.raises(ValueError, match=r"'matmul' is no operation; there are .*spike_matmul"):
        explain("matmul", X, W)
    assert explain("spike_matmul_low_bit", X, W) == explain(spike_matmul_low_bit, X, W)

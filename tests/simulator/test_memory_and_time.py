"""Study of memory and time: gradients against BPTT, memory against closed bounds, refusals."""

import gc
import mmap
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.learning_rules import bptt, losses, parameters, relative_error, run_sequence
from spikebit.simulator import report
from spikebit.simulator.studies import memory_and_time as study

TINY = study.Settings(
    rules=("bptt", "bptt_remat", "ostl", "ostl_no_h"), lengths=(12, 24), chunk=4, units=6,
    inputs=3, outputs=2, batch=2, streams=(("ostl", 6),), stream_steps=24, seeds=2,
)  # fmt: skip
quickly = pytest.mark.usefixtures("compile_quickly")


def expected(seed, steps):
    """BPTT through the whole sequence, whose chunks are drawn one by one."""
    key, network = jax.random.key(seed), study._network(TINY, 6, seed)
    chunks = [study._chunk(TINY, key, jnp.asarray(i)) for i in range(steps // 4)]
    xs, targets = (jnp.concatenate(a) for a in zip(*chunks, strict=True))
    rule = bptt(network, losses.squared_error)
    return jax.jit(lambda p: run_sequence(rule, p, xs, targets).grads)(parameters(network))


@quickly
def test_sequences_and_streams_have_the_gradient_of_the_same_inputs():
    exact = expected(5, 24)
    arguments = parameters(study._network(TINY, 6, 5)), jax.random.key(5)
    for rule in ("bptt_remat", "ostl"):
        found = study.sequence_gradient(TINY, rule, 24)(*arguments)
        assert relative_error(found, exact) < 1e-5
    *_, streamed = study.stream_gradients(TINY, "ostl", 6, 5)
    assert relative_error(streamed, exact) < 1e-5


@quickly
def test_bptt_keeps_every_step_and_online_rules_none():
    """At least the membrane of each unit and step; with sqrt(T) states, less."""
    settings = study.Settings(units=64, inputs=2, outputs=1, chunk=10)
    arguments = parameters(study._network(settings, 64, 0)), jax.random.key(0)

    def scratch(rule, steps):
        program = study.sequence_gradient(settings, rule, steps).lower(*arguments).compile()
        return program.memory_analysis().temp_size_in_bytes

    least = 400 * 4 * 64
    assert scratch("bptt_remat", 400) < least < scratch("bptt", 400)
    assert scratch("sltt", 40) == scratch("sltt", 400)


def test_a_trace_with_h_has_a_number_for_each_unit_and_parameter():
    settings = study.Settings(inputs=3, outputs=1, batch=2)
    full, without = (
        study._bytes(study._state(settings, rule, 64)) for rule in ("ostl", "ostl_no_h")
    )
    kernels_and_bias = (3 + 64 + 1) * 64
    least = 4 * 2 * 64 * kernels_and_bias
    assert least < full < 1.05 * least
    assert without < full / 10


def test_the_memory_of_the_process_is_that_of_its_arrays():
    gc.collect()  # nothing else is given back meanwhile
    before = study.resident_bytes()
    if before is None:
        pytest.skip("this system does not tell it")
    with mmap.mmap(-1, 64 * 2**20) as held:  # pages of its own: an array may take freed ones
        for start in range(0, len(held), mmap.PAGESIZE):
            held[start] = 1
        deadline = time.monotonic() + 20  # a busy system may account for pages late
        while study.resident_bytes() - before <= 60 * 2**20 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert 60 * 2**20 < study.resident_bytes() - before < 80 * 2**20


@quickly
def test_rows_summary_and_pictures(monkeypatch):
    monkeypatch.setattr(study, "_TIMED_STEPS", 24)
    memory = iter([200, 200, 207, 203, 200, 200])
    monkeypatch.setattr(study, "resident_bytes", lambda: next(memory))
    settings = study.Settings(**{**vars(TINY), "rules": ("sltt",), "streams": (("sltt", 6),)})
    first, second, short, long = study.cases(settings, 3)
    assert [first["seed"], second["seed"], short["steps"], long["steps"]] == [3, 4, 12, 24]
    streamed, found = study.measure(settings, 3, first), study.measure(settings, 3, short)
    assert streamed["resident_bytes"] == [200, 200, 207, 203, 200, 200]
    assert np.shape(found["wall_us"]) == np.shape(found["cpu_us"]) == (2,)
    assert min(found["wall_us"]) > 0 < streamed["wall_us"]
    rows = [first | streamed, second | streamed, short | found, long | found]
    rows[1] = rows[1] | {"resident_bytes": [300] * 6, "wall_us": 3 * streamed["wall_us"]}
    rows[3] = rows[3] | {"scratch_bytes": found["scratch_bytes"] + 60}
    told = study.summary(settings, rows)
    assert told["stream: sltt, 6 units"]["grows_bytes"] == 7
    low, middle, high = np.divide(told["stream: sltt, 6 units"]["wall_us"], streamed["wall_us"])
    assert (low, middle, high) == pytest.approx((1, 2, 3), rel=1e-3)
    assert told["sltt"]["bytes_a_step_more"] == 5
    drawn = study.pictures(settings, rows)
    assert set(drawn) == {"length", "stream"}
    assert all(report.png(ax).startswith(b"\x89PNG") for ax in drawn.values())
    assert drawn["length"].get_xscale() == drawn["length"].get_yscale() == "log"
    untold = [r | {"resident_bytes": [None]} if r["part"] == "stream" else r for r in rows]
    assert set(study.pictures(settings, untold)) == {"length"}
    assert study.summary(settings, untold)["stream: sltt, 6 units"]["grows_bytes"] is None


def test_a_gradient_beyond_float32_is_said():
    with pytest.raises(ValueError, match="the gradient by ostl is beyond float32: choose a small"):
        study._check_finite({"w": jnp.array([1.0, jnp.inf])}, "ostl")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lengths": (10,)}, r"study\.chunk = 4 does not divide study\.lengths = 10"),
        ({"stream_steps": 10}, r"study\.chunk = 4 does not divide study\.stream_steps = 10"),
        ({"stream_steps": 4}, r"study\.stream_steps = 4: give at least two chunks"),
        ({"rules": ("ostr",)}, r"study\.rules: 'ostr' is not known; known are bptt, .*bptt_remat"),
        ({"streams": (("bptt_remat", 3),)}, r"study\.streams: 'bptt_remat' is not known"),
        ({"rules": ("ottt",)}, r"study\.rules: ottt cannot treat the network"),
    ],
)
def test_what_is_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        study.cases(study.Settings(**{**vars(TINY), **settings}), 0)

"""The client against the served array, on loopback: the same bits, each pulse once."""

import socket
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest

from spikebit.simulator.devices import pcm, set_pcm
from spikebit.simulator.instruments import (
    InstrumentLost,
    SimulatedArray,
    record,
    replay,
    scpi,
    serving,
    visa,
)
from spikebit.simulator.instruments.server import Bench

SHAPE = (2, 3)
MASK = np.array([[True, False, True], [False, True, True]])
pytestmark = pytest.mark.usefixtures("compile_quickly")
QUICK = {"timeout": 0.1, "attempts": 12, "pause": 0.01}  # a slow machine only needs more of them


def array(seed=0, device=None):
    simulated = SimulatedArray(device or set_pcm(), SHAPE, jax.random.key(seed))
    if simulated.capabilities.pulses:  # compiles both programs, which would look like a timeout
        simulated.apply_pulses(MASK, 1, 0, 0.0)
    simulated.read(0.0)
    return simulated


def pulses(end=8):
    return MASK * sum(i // 2 + 1 for i in range(0, end, 2))


def test_a_bench_is_what_is_behind_it(calls):
    with serving(array()) as resource:
        bench = visa(resource)
        assert bench.identify() == array().identify()
        assert bench.capabilities == array().capabilities
        np.testing.assert_array_equal(calls(bench), calls(array()))
        bench.close()
    programmed, alone = array(device=pcm()), array(device=pcm())
    target = np.array([[np.nan, 1 / 3, 25.0], [0.0, 7.1, np.nan]], np.float32)
    with serving(programmed) as resource:
        bench = visa(resource)
        bench.program(target, 1.0)
        reading = bench.read(1e7)
        bench.close()
    alone.program(target, 1.0)
    np.testing.assert_array_equal(reading, alone.read(1e7))


@pytest.mark.parametrize("which", range(7))
def test_each_pulse_is_given_once_whatever_goes_wrong(which, faults, proxy_to, calls):
    served, fault = array(), faults[which]
    with serving(served) as resource:
        proxy = proxy_to(resource)
        bench = visa(proxy.resource, **QUICK)
        proxy.faults = [None, fault, fault, None, fault]  # a read, its repetition, and pulses
        found = calls(bench)
        bench.close()
    assert proxy.done.count(fault) == 3
    np.testing.assert_array_equal(found, calls(array()))
    np.testing.assert_array_equal(served.pulses, pulses())


def test_any_mixture_of_faults_changes_nothing(faults, proxy_to, calls):
    rng, served = np.random.default_rng(0), array()
    with serving(served) as resource:
        proxy = proxy_to(resource)
        bench = visa(proxy.resource, **QUICK)
        proxy.faults = [f if rng.random() < 0.6 else None for f in rng.choice(faults, 40)]
        found = calls(bench, 0, 20)
        bench.close()
    assert proxy.faults == []
    np.testing.assert_array_equal(found, calls(array(), 0, 20))
    np.testing.assert_array_equal(served.pulses, pulses(20))


def test_a_dead_bench_is_reported_and_the_same_call_finishes(proxy_to, calls):
    served = array()
    with serving(served) as resource:
        proxy = proxy_to(resource)
        bench = visa(proxy.resource, timeout=0.5, attempts=2, pause=0.01)
        found = calls(bench, 0, 4)
        proxy.faults, at = ["lose the answer"] * 2, bench.position
        with pytest.raises(InstrumentLost, match=r"no answer to .* after 2 attempts of 0.5 s"):
            bench.apply_pulses(MASK, 1, 3, 4)  # given, though nobody has heard of it
        proxy.down = True
        with pytest.raises(InstrumentLost, match="If it was a call, repeat it: it is done once"):
            bench.apply_pulses(MASK, 1, 3, 4)
        proxy.down = False
        assert bench.position == at
        with pytest.raises(ValueError, match=r"apply_pulses at 4.0 s had no answer, and read at 4"):
            bench.read(4)
        found += calls(bench, 4)
        bench.close()
    np.testing.assert_array_equal(found, calls(array()))
    np.testing.assert_array_equal(served.pulses, pulses())


@pytest.mark.parametrize(("fault", "done"), [("lose the line", False), ("lose the answer", True)])
def test_what_became_of_a_call_can_be_asked(fault, done, proxy_to):
    served = array()
    with serving(served) as resource:
        proxy = proxy_to(resource)
        bench = visa(proxy.resource, timeout=0.5, attempts=1)
        assert bench.settle() is None
        proxy.faults = [fault]
        with pytest.raises(InstrumentLost):
            bench.apply_pulses(MASK, 1, 1, 1.0)
        assert bench.settle() is done
        bench.read(2.0)
        np.testing.assert_array_equal(served.pulses, MASK * done)
        bench.close()


def test_other_cells_are_not_taken_for_those_of_the_run(proxy_to, calls):
    with serving(array()) as resource, serving(array()) as other:
        proxy = proxy_to(resource)
        bench = visa(proxy.resource, timeout=0.5, attempts=2, pause=0.01)
        calls(bench, 0, 4)
        proxy.target = int(other.split("::")[2])
        proxy.drop()
        for _ in range(2):
            with pytest.raises(InstrumentLost, match="started anew after call 4"):
                bench.read(5.0)


def test_a_second_controller_is_noticed(calls):
    with serving(array()) as resource:
        first, second = visa(resource), visa(resource)
        calls(first, 0, 2)
        with pytest.raises(ValueError, match=r"refuses .*the last call was 2, another line"):
            calls(second, 0, 1)
        first.close()
        calls(visa(resource), 2, 4)
        with pytest.raises(InstrumentLost, match="at call 4, this run at 2; somebody else"):
            first.read(9.0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda i: i.apply_pulses(MASK, 1, 1.5, 9.0), "counts are float"),
        (lambda i: i.apply_pulses(MASK, 1, 1, 0.5), "t = 0.5 s, but a cell was written at 6"),
        (lambda i: i.apply_pulses(MASK.T, 1, 1, 9.0), "of shape"),
        (lambda i: i.program(np.full(SHAPE, 5e-6), 9.0), "takes pulses only"),
        (lambda i: i.read(np.inf), "time is inf"),
    ],
)
def test_bad_input_never_leaves_the_client(call, words, proxy_to, calls):
    with serving(array()) as resource:
        calls(visa(resource))
        proxy = proxy_to(resource)
        bench = visa(proxy.resource)  # a new client knows the time of the last write
        lines = len(proxy.done)
        with pytest.raises(ValueError, match=words):
            call(bench)
        assert len(proxy.done) == lines
        bench.close()


def test_a_run_that_was_killed_goes_on_with_the_call_that_was_done(tmp_path, calls):
    """Killed after the bench had done call 5 and before anyone wrote it down."""
    served = array()
    with serving(served) as resource:
        bench = visa(resource)
        with record(bench, tmp_path / "first.h5") as instrument:
            found = calls(instrument, 0, 4)
        calls(bench, 4, 5)
        bench.close()
        again = visa(resource, after=tmp_path / "first.h5")
        with record(again, tmp_path / "second.h5", after=tmp_path / "first.h5") as instrument:
            found = calls(instrument)
        again.close()
        np.testing.assert_array_equal(found, calls(array()))
        np.testing.assert_array_equal(served.pulses, pulses())
        np.testing.assert_array_equal(calls(replay(tmp_path / "second.h5")), found)
        with pytest.raises(InstrumentLost, match="at call 8, this run at 4"):
            visa(resource, after=tmp_path / "first.h5")
        last = visa(resource)
        with pytest.raises(ValueError, match="open it with visa"):
            record(last, tmp_path / "third.h5", after=tmp_path / "first.h5")
        last.close()
    with record(array(), tmp_path / "alone.h5"):
        pass
    with pytest.raises(ValueError, match="an instrument that is not on a bench"):
        visa(resource, after=tmp_path / "alone.h5")


def test_a_bench_that_takes_no_lines_or_speaks_of_siemens_is_reported(monkeypatch):
    with serving(array()) as resource:
        bench = visa(resource, timeout=0.3, attempts=2, pause=0.01)
        with socket.create_server(("127.0.0.1", 0), backlog=8) as deaf:  # nobody takes anything
            port = deaf.getsockname()[1]
            bench._resource = f"TCPIP::127.0.0.1::{port}::SOCKET"
            bench.close()
            with pytest.raises(InstrumentLost, match="no answer"):
                bench.read(1.0)
        answer = Bench._query
        siemens = lambda self, header: "S" if header == scpi.UNIT else answer(self, header)  # noqa: E731
        monkeypatch.setattr(Bench, "_query", siemens)
        with pytest.raises(ValueError, match=r"declares what does not fit: .*unit is 'S'; known"):
            visa(resource)


def test_a_long_line_that_is_not_taken_does_not_wait_for_ever():
    class Deaf:
        def write(self, line):
            threading.Event().wait(60)

    with serving(array()) as resource:
        bench = visa(resource, timeout=0.1, attempts=1)
        bench.close()
        bench._session = Deaf()
        with pytest.raises(InstrumentLost, match="the line is not taken"):
            bench.read(1.0)


TRAIN = """
import sys, time, jax, numpy as np
from spikebit.simulator.instruments import record, visa
resource, path = sys.argv[1:]
with record(visa(resource, timeout=30), path) as instrument:
    for i in range(10**6):
        instrument.apply_pulses(np.ones((2, 3), bool), 1, 1, float(i))
        instrument.read(float(i))
        print(i, flush=True)
"""


def test_a_process_that_is_killed_has_lost_nothing(tmp_path):
    """SIGKILL amid calls; the run is started again and goes on: pulses and noise as without."""
    served, alone, steps = array(), array(), 0
    with serving(served) as resource:
        with subprocess.Popen(
            [sys.executable, "-c", TRAIN, resource, tmp_path / "first.h5"],
            stdout=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            while steps < 20:
                steps = int(process.stdout.readline())
            process.kill()
            steps += 20 + len(process.stdout.read().splitlines())
        bench = visa(resource, after=tmp_path / "first.h5")
        found, expected = [], []
        with record(bench, tmp_path / "second.h5", after=tmp_path / "first.h5") as instrument:
            for readings, one in ((found, instrument), (expected, alone)):
                for i in range(steps):
                    one.apply_pulses(np.ones(SHAPE, bool), 1, 1, float(i))
                    readings.append(one.read(float(i)))
        bench.close()
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(served.pulses, alone.pulses)
    assert served.calls == alone.calls


def test_nobody_there_and_no_resource_are_one_sentence():
    with serving(array()) as resource:
        pass
    with pytest.raises(InstrumentLost, match="no answer to"):
        visa(resource, timeout=0.05, attempts=2, pause=0.01)
    with pytest.raises(ValueError, match="is no VISA resource"):
        visa("localhost:5025")
    with pytest.raises(ValueError, match="attempts is 0"):
        visa(resource, attempts=0)
    with (
        pytest.raises(OSError, match=r"address|Address"),
        serving(array(), "192.0.2.1"),
    ):
        pass

"""Recording and replay: the same bits, the first call that differs, files cut off or forged."""

import json

import h5py
import jax
import numpy as np
import pytest

from spikebit.simulator.devices import pcm, set_pcm
from spikebit.simulator.instruments import ReplayError, SimulatedArray, record, replay
from spikebit.simulator.instruments.trace import Trace

SHAPE = (2, 3)
MASK = np.array([[True, False, True], [False, True, True]])
pytestmark = pytest.mark.usefixtures("compile_quickly")


def pulsed(seed=0):
    return SimulatedArray(set_pcm(), SHAPE, jax.random.key(seed))


@pytest.fixture
def traced(tmp_path, calls):
    path = tmp_path / "run.h5"
    with record(pulsed(), path) as instrument:
        readings = calls(instrument)
    return path, readings


def test_a_recorded_instrument_is_the_same_and_its_replay_too(traced, calls):
    path, readings = traced
    again = replay(path)
    for group in (calls(pulsed()), calls(again)):
        np.testing.assert_array_equal(group, readings)
    assert again.remaining == 0
    assert again.identify() == pulsed().identify()
    assert again.capabilities == pulsed().capabilities


def test_targets_with_holes_and_readings_without_a_value_survive(tmp_path):
    target = np.array([[np.nan, 1 / 3, 25.0], [0.0, -0.0, 1e-30]], np.float32)
    instrument = SimulatedArray(pcm(), SHAPE, jax.random.key(0))
    instrument.program(np.ones(SHAPE), 0.5)
    with record(instrument, tmp_path / "a.h5") as recorder:
        recorder.program(target, 1.0)
        reading = recorder.read(1e6)
    again = replay(tmp_path / "a.h5")
    assert again.written == 0.5
    again.program(target.astype(float), 1)
    assert again.read(1e6).tobytes() == reading.tobytes()


def test_what_differs_is_refused_and_told(traced, calls):
    path, readings = traced
    again = replay(path)
    found = calls(again, 0, 4)
    other = MASK.copy()
    other[0, 1], other[1, 2] = True, False
    for refused, words in (
        (lambda: again.read(4.0), "call 4 was recorded as apply_pulses at 4.0 s, and read at 4.0"),
        (lambda: again.apply_pulses(MASK, 1, 3, 4.5), "and apply_pulses at 4.5 s is asked"),
        (lambda: again.apply_pulses(MASK, 1, 4, 4), r"with 3 at cell \(0, 0\), and 4 .* 4 cells"),
        (lambda: again.apply_pulses(MASK, -1, 3, 4), r"with 3 at cell \(0, 0\), and -3 is asked"),
        (lambda: again.apply_pulses(other, 1, 3, 4), r"with 0 at cell \(0, 1\), .*; 2 cells"),
    ):
        with pytest.raises(ReplayError, match=words):
            refused()
    found += calls(again, 4)  # what was refused was not made
    np.testing.assert_array_equal(found, readings)
    with pytest.raises(
        ReplayError, match=r"call 8, read at 7\.0 s, was not recorded.*ends after 8"
    ):
        again.read()
    with pytest.raises(ValueError, match="a mask of shape"):
        again.apply_pulses(MASK.T, 1, 1, 9)


def test_what_an_instrument_refuses_is_not_recorded(tmp_path):
    with record(pulsed(), tmp_path / "a.h5") as instrument:
        with pytest.raises(ValueError, match="counts"):
            instrument.apply_pulses(MASK, 1, 1.5, 1.0)
        assert instrument.made == 0
    with pytest.raises(ValueError, match="exists already"):
        record(pulsed(), tmp_path / "a.h5")


def test_a_cut_off_file_opens_up_to_its_last_whole_call(tmp_path, calls):
    live = tmp_path / "live.h5"
    recorder = record(pulsed(), live)
    readings, sizes = [], []
    for i in range(0, 60, 2):
        readings += calls(recorder, i, i + 2)
        sizes.append(live.stat().st_size)
    image = live.read_bytes()  # as of a process that was killed: nobody has closed it
    recorder.close()
    path, rows = tmp_path / "cut.h5", []
    for size in [len(image), *range(len(image) - 1, sizes[0], -203)]:
        path.write_bytes(image[:size])
        again = replay(path)
        rows.append(again.remaining)
        n = again.remaining // 2
        np.testing.assert_array_equal(
            calls(again, 0, 2 * n), np.array(readings[:n]).reshape(n, *SHAPE)
        )
        if again.remaining:
            calls(again, 2 * n, 2 * n + 1)
        with pytest.raises(ReplayError, match="was not recorded"):
            again.read()
        again.close()
    assert rows[0] == 60
    assert rows == sorted(rows, reverse=True)
    assert len(set(rows)) > 3


def test_a_call_that_was_half_written_is_not_whole(traced):
    path, _ = traced
    with h5py.File(path, "r+") as file:  # the cells are there, the row is not
        file["cells"].resize(9, 0)
        file["cells"][8] = 1.0
    trace = Trace(path)
    assert (trace.rows, trace.cut) == (8, True)
    trace.close()
    with h5py.File(path, "r+") as file:  # the row is there, not all of the cells
        file["cells"][7, 1, 2] = 0.0
    trace = Trace(path)
    assert (trace.rows, trace.cut) == (7, True)
    trace.close()
    with h5py.File(path, "r+") as file:
        file["cells"][3, 0, 0] += 1
    with pytest.raises(ValueError, match="damaged at call 3, though call 4 is whole"):
        Trace(path)


def change(**fields):
    def header(file):
        text = json.dumps({**json.loads(file.attrs["header"]), **fields})
        file.attrs["header"] = np.bytes_(text)

    return header


def replaced(name, **settings):
    def array(file):
        del file[name]
        file.create_dataset(name, **settings)

    return array


def linked(file):
    del file["cells"]
    file["cells"] = h5py.ExternalLink("/etc/passwd", "/")


def virtual(file):
    del file["cells"]
    layout = h5py.VirtualLayout((8, *SHAPE), "<f4")
    layout[:] = h5py.VirtualSource("other.h5", "cells", (8, *SHAPE))
    file.create_virtual_dataset("cells", layout)


DECLARED = {"shape": [2, 3], "unit": "S"}
FORGED = {
    "no header": lambda file: file.attrs.pop("header"),
    "no header, an": lambda file: file.attrs.create("header", 3),
    "no header, an attribute": lambda file: file.attrs.create("header", "{}"),
    "no JSON": lambda file: file.attrs.create("header", np.bytes_("{'a': 1}")),
    "no JSON:": lambda file: file.attrs.create("header", np.bytes_("[" * 60_000)),
    "not of a spikebit": change(format="other"),
    "is of version 2": change(version=2),
    "has the identity": change(identity=["a"]),
    "has the time": change(written="0"),
    "expected the fields shape": change(capabilities=DECLARED),
    "expected the fields boot": change(position={"calls": 1}),
    "no array 'calls'": lambda file: file.pop("calls"),
    "no array 'cells' of float32": replaced("cells", shape=(8, *SHAPE), dtype="f8"),
    "no array 'cells'": replaced("cells", shape=(8, *SHAPE), dtype=h5py.string_dtype()),
    r"of shape \(8, 3, 2\)": replaced("cells", shape=(8, 3, 2), dtype="<f4"),
    r"of shape \(6,\)": replaced("cells", shape=(6,), dtype="<f4"),
    "compressed": replaced(
        "cells", shape=(8, *SHAPE), dtype="<f4", chunks=(8, *SHAPE), compression="gzip"
    ),
    "elsewhere": replaced(
        "cells", shape=(8, *SHAPE), dtype="<f4", external=[("/etc/passwd", 0, 192)]
    ),
    "is virtual": virtual,
    "no array 'cells' of": linked,
}


@pytest.mark.parametrize("words", FORGED)
def test_a_forged_file_is_refused_in_one_sentence(traced, words):
    path, _ = traced
    with h5py.File(path, "r+") as file:
        FORGED[words](file)
    with pytest.raises(ValueError, match=f"trace run.h5 .*{words}") as refused:
        replay(path)
    assert len(str(refused.value)) < 400


def test_calls_that_no_file_could_hold_are_not_looked_for(traced):
    path, _ = traced
    with h5py.File(path, "r+") as file:
        file["calls"].resize(2**50, 0)
        file["cells"].resize(2**50, 0)
    assert replay(path).remaining == 8


def test_no_file_and_no_hdf5_are_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no such file"):
        replay(tmp_path / "a.h5")
    (tmp_path / "a.h5").write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(ValueError, match="no HDF5 file"):
        replay(tmp_path / "a.h5")


def test_noise_in_a_file_is_refused_or_cuts_it(traced, calls):
    """Bytes turned over anywhere: an error in words, or fewer calls, never other values."""
    path, readings = traced
    image, rng = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        noisy = bytearray(image)
        for at in rng.integers(0, len(image), 20):
            noisy[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(noisy)
        try:
            again = replay(path)
        except ValueError:
            refused += 1
            continue
        n = again.remaining // 2
        if again.capabilities == pulsed().capabilities and again.written == 0:
            np.testing.assert_array_equal(calls(again, 0, 2 * n), np.array(readings[:n]))
        again.close()
    assert refused > 0


def test_a_run_that_was_killed_goes_on(traced, tmp_path, calls):
    """Started again with `after`, simulated cells reach the same bits as without a break."""
    path, _ = traced
    with record(pulsed(), tmp_path / "second.h5", after=path) as instrument:
        found = calls(instrument, 0, 12)
    np.testing.assert_array_equal(found, calls(pulsed(), 0, 12))
    np.testing.assert_array_equal(found, calls(replay(tmp_path / "second.h5"), 0, 12))
    with (
        record(pulsed(), tmp_path / "third.h5", after=path) as instrument,
        pytest.raises(ReplayError, match="call 0 was recorded as apply_pulses"),
    ):
        instrument.read(0.0)
    with (
        record(pulsed(1), tmp_path / "fourth.h5", after=path) as instrument,
        pytest.raises(ReplayError, match=r"call 1, read at 1.0 s, reads otherwise now"),
    ):
        calls(instrument)
    with pytest.raises(ValueError, match="is a trace of 'spikebit,simulated set_pcm"):
        record(SimulatedArray(pcm(), SHAPE, jax.random.key(0)), tmp_path / "fifth.h5", after=path)

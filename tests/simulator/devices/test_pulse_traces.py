"""Files of pulse traces: what columns mean, recordings of an instrument, and what is refused."""

import jax
import numpy as np
import pytest

from spikebit.simulator.devices import by_name
from spikebit.simulator.devices.pulse_traces import read
from spikebit.simulator.instruments import SimulatedArray, record

pytestmark = pytest.mark.usefixtures("compile_quickly")
UP = [f"a,{i},1,{2 + 0.01 * i}" for i in range(15)]
DOWN = [f"a,{15 + i},-1,{2.15 - 0.01 * i}" for i in range(15)]
HEAD = "device,pulse_index,polarity,g_uS"


@pytest.fixture
def file(tmp_path):
    def make(*lines, head=HEAD):
        path = tmp_path / "t.csv"
        path.write_text("\n".join([head, *lines]) + "\n")
        return path

    return make


def test_pulse_numbers_and_signed_counts_say_the_same(file):
    numbered = read(file(*UP, *DOWN))
    assert (numbered.unit, numbered.cells, numbered.repeated) == ("uS", ("a",), 0)
    np.testing.assert_array_equal(numbered.pulses[:, 0], [0] + [1] * 14 + [-1] * 15)
    assert numbered.fresh[:, 0].tolist() == [True] + [False] * 29
    lines = [
        f"a,{int(p)},{float(g)!r}"
        for p, g in zip(numbered.pulses[:, 0], numbered.g[:, 0], strict=True)
    ]
    counted = read(file(*lines, head="device,pulses,g_uS"))
    for name in ("pulses", "g", "fresh"):
        np.testing.assert_array_equal(getattr(counted, name), getattr(numbered, name))
    assert numbered.reference == pytest.approx(2.1, abs=0.05)


@pytest.mark.parametrize(
    ("column", "of_uS"),
    [
        ("g", lambda g: g),
        ("g_nS", lambda g: 1e3 * g),
        ("g_mS", lambda g: 1e-3 * g),
        ("g_S", lambda g: 1e-6 * g),
        ("r_ohm", lambda g: 1e6 / g),
        ("r_kohm", lambda g: 1e3 / g),
        ("r_Mohm", lambda g: 1 / g),
    ],
)
def test_units_are_read_from_the_name(file, column, of_uS):
    wanted = read(file(*UP, *DOWN)).g
    rows = [line.rsplit(",", 1) for line in (*UP, *DOWN)]
    lines = [f"{start},{of_uS(float(g))!r}" for start, g in rows]
    found = read(file(*lines, head=f"device,pulse_index,polarity,{column}"))
    np.testing.assert_allclose(found.g, wanted, rtol=1e-12)


def test_missing_repeated_and_skipped_reads_cycles_and_cells(file):
    lines = ["a,1,0,up,2.0,0", "a,1,3,set,,1", "a,1,3,+,2.2,2", "a,1,3,1,2.2,3", "a,2,9,1,2.5,4"]
    lines += ["a,2,10,down,nan,5", "b,1,5,1,1.0,0"]
    lines += [f"b,1,{6 + i},{'up' if i < 12 else 'down'},{1 + 0.1 * i},1" for i in range(24)]
    found = read(file(*lines, head="device,cycle,pulse_index,polarity,g_uS,t"))
    assert found.cells == ("a", "b")
    assert found.pulses[:6, 0].tolist() == [0, 3, 0, 0, 0, -1]
    assert np.isnan(found.g[:, 0]).tolist() == [False, True, False, True, False, True] + [True] * 19
    assert found.repeated == 1
    assert np.flatnonzero(found.fresh[:, 0]).tolist() == [0, 4]
    assert np.flatnonzero(found.fresh[:, 1]).tolist() == [0]
    trace = found.over(1.0)
    np.testing.assert_array_equal(trace.numbers[trace.kind], found.pulses)
    np.testing.assert_array_equal(trace.g, found.g - 1)


def test_recordings_of_an_instrument_are_traces(tmp_path):
    array = SimulatedArray(by_name("ecram"), (2, 3), jax.random.key(0))
    mask, wanted = np.ones((2, 3), bool), []
    with record(array, tmp_path / "t.h5") as bench:
        for i in range(24):
            bench.apply_pulses(mask, 1 if i < 12 else -1, 2, float(i))
            bench.apply_pulses(mask, 1 if i < 12 else -1, 1, float(i))
            wanted.append(bench.read(float(i)))
        bench.read(24.0)
    found = read(tmp_path / "t.h5")
    assert (found.unit, found.cells[4]) == ("1", "1,1")
    np.testing.assert_array_equal(
        found.pulses[:24], [[3.0 if i < 12 else -3.0] * 6 for i in range(24)]
    )
    np.testing.assert_array_equal(found.g[:24], np.reshape(wanted, (24, 6)))
    assert np.isnan(found.g[24]).all()
    assert found.repeated == 6
    assert found.fresh[0].all()
    assert not found.fresh[1:].any()
    with record(
        SimulatedArray(by_name("ecram"), (2, 3), jax.random.key(0)), tmp_path / "u.h5"
    ) as bench:
        bench.apply_pulses(mask, 1, 2, 0.0)
        bench.apply_pulses(mask, -1, 2, 0.0)
    with pytest.raises(ValueError, match=r"u.h5: call 1 turns the pulses of a cell round"):
        read(tmp_path / "u.h5")


@pytest.mark.parametrize(
    ("lines", "head", "message"),
    [
        (UP, "device,pulse_index,g_uS", "no column for polarity"),
        (UP, "device,pulse_index,polarity,x", r"no column for a read \(g, g_uS"),
        (UP, "cell,pulse_index,polarity,g_uS", "no column for device"),
        (UP, "device,pulse_index,polarity,g_uS,g_S", "columns g_uS, g_S, which are mixed units"),
        ([*UP, "a,15.5,1,3"], HEAD, "line 17: pulse_index is '15.5'; a pulse count is an integer"),
        ([*UP, "a,,1,3"], HEAD, "line 17: pulse_index is ''; a pulse count is an integer"),
        (["a,0.5,2"], "device,pulses,g_uS", "line 2: pulses is '0.5'; a pulse count is an integer"),
        ([*UP, "a,3,1,3"], HEAD, "line 17: pulse_index is 3 after 14 for device a"),
        ([*UP, "a,15,left,3"], HEAD, "line 17: polarity is 'left'; give 1 or -1"),
        ([*UP, "a,15,1,high"], HEAD, "line 17: g_uS is 'high'; expected a number"),
        ([*UP, "a,15,1,inf"], HEAD, "line 17: g_uS is 'inf'; expected a number"),
        ([*UP, ",15,1,3"], HEAD, "line 17: device is empty"),
        (UP, HEAD, "has 0 rows with pulses down"),
        (["a,0,1,"], HEAD, "has no read"),
        ([], HEAD, "has no read"),
        (["a,0,1,-5"], "device,pulse_index,polarity,r_ohm", "line 2: r_ohm is -5; a resistance"),
        (["a,0,2", "a,1,2,7"], "device,pulses,g_uS", "line 3: has more fields than the 3 named"),
        (["a,0,2,3"], "device,pulses,g_uS,pulses", "more than one column pulses; keep one"),
        (["a,10000000,2"], "device,pulses,g_uS", "line 2: 10000000 pulses from one read"),
        (["a,0,2,0", "a,1,3,1", "a,1,3,1"], "device,pulses,g_uS,t", "line 4: repeats the row bef"),
        (
            ["a,0,1,2,0", "a,1,1,2,5", "a,2,1,2,4"],
            HEAD + ",t",
            "line 4: t is 4 s after 5 s for device a",
        ),
        (
            ["a,0,1,2,1.0", "a,1,1,2,1.0", "a,2,1,2,1.5"],
            HEAD + ",amp",
            "line 4: amp is 1.5 after 1.0 for pulses up",
        ),
    ],
)
def test_bad_files_are_refused_in_one_clear_sentence(file, lines, head, message):
    with pytest.raises(ValueError, match=message) as error:
        read(file(*lines, head=head))
    assert str(error.value).startswith("t.csv")
    assert "\n" not in str(error.value)


def test_wrong_units_are_seen_by_their_size(file):
    def scaled(factor, device="a"):
        rows = [line.split(",") for line in (*UP, *DOWN)]
        return [f"{device},{i},{p},{factor * float(g)!r}" for _, i, p, g in rows]

    with pytest.raises(ValueError, match=r"largest read is 2.15e-06 uS; it looks like siemens"):
        read(file(*scaled(1e-6)))
    with pytest.raises(
        ValueError, match=r"largest read is 2.15e\+06 uS, more than a cell conducts"
    ):
        read(file(*scaled(1), head=HEAD.replace("g_uS", "g_S")))
    with pytest.raises(
        ValueError, match=r"device b reads up to 2.15e-06 uS and device a up to 2.15"
    ):
        read(file(*scaled(1), *scaled(1e-6, "b")))
    with pytest.raises(ValueError, match=r"all reads are 0; nothing moves"):
        read(file(*scaled(0)))

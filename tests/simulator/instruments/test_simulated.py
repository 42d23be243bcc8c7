"""The contract of instruments on the simulated array: what a call does, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.simulator.devices import pcm, pulsed, set_pcm
from spikebit.simulator.devices.pulsed import NONE
from spikebit.simulator.instruments import Capabilities, Instrument, SimulatedArray
from spikebit.simulator.instruments.instrument import Call, as_json, check_reading, from_json

SHAPE = (2, 3)
EXACT = pcm(programming_noise=0, drift=0, read_noise=0)
IDEAL = pulsed(step=0.25, reference=0.0, variation=NONE)
ALL = np.ones(SHAPE, bool)
pytestmark = pytest.mark.usefixtures("compile_quickly")


def array(device=EXACT, seed=0):
    return SimulatedArray(device, SHAPE, jax.random.key(seed))


def test_exact_cells_show_what_was_written_and_only_there():
    instrument = array()
    assert isinstance(instrument, Instrument)
    target = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    instrument.program(target, 1.0)
    instrument.program([[np.nan, 9.5, np.nan], [np.nan] * 3], 2.0)
    target[0, 1] = 9.5
    np.testing.assert_array_equal(instrument.read(3.0), target)
    assert instrument.identify().split(",")[:2] == ["spikebit", "simulated pcm"]
    assert instrument.capabilities.unit == "uS"


def test_pulses_move_by_their_step_the_way_the_polarity_says():
    instrument = array(IDEAL)
    polarity = np.array([[1, -1, 1], [1, 1, -1]])
    instrument.apply_pulses(polarity > 0, polarity, 2, 1.0)
    instrument.apply_pulses(ALL, -1, np.array([[0, 1, 0], [0, 0, 3]]), 1.0)
    np.testing.assert_allclose(instrument.read(), [[0.5, -0.25, 0.5], [0.5, 0.5, -0.75]], rtol=1e-6)
    np.testing.assert_array_equal(instrument.pulses, [[2, 1, 2], [2, 2, 3]])
    assert instrument.calls == 3
    assert instrument.capabilities.unit == "1"


def test_same_key_and_same_calls_give_the_same_bits_and_each_read_its_own_noise():
    readings = []
    for seed in (0, 0, 1):
        instrument = array(set_pcm(), seed)
        instrument.apply_pulses(ALL, 1, 3, 1.0)
        readings.append(np.stack([instrument.read(2.0), instrument.read(2.0)]))
    np.testing.assert_array_equal(readings[0], readings[1])
    assert (readings[0] != readings[2]).all()
    assert (readings[0][0] != readings[0][1]).all()


def test_time_is_that_of_the_call_before_where_none_is_given():
    told, untold = array(pcm()), array(pcm())
    told.program(np.full(SHAPE, 10.0), 5.0)
    untold.program(np.full(SHAPE, 10.0), 5.0)
    np.testing.assert_array_equal(told.read(5.0), untold.read())
    np.testing.assert_array_equal(told.read(500.0), untold.read(500.0))
    np.testing.assert_array_equal(told.read(500.0), untold.read())


REFUSED = {
    "targets from 1 to 25.5 uS": ("program", (np.array([[1, 2, 25.5], [4, 5, 6]]), 2.0)),
    "targets from -1 to 6 uS": ("program", (np.array([[-1, 2, 3], [4, 5, 6]]), 2.0)),
    "looks like siemens": ("program", (np.full(SHAPE, 5e-6), 2.0)),
    r"targets of shape \(4, 4\) for an instrument of shape \(2, 3\)": (
        "program",
        (np.ones((4, 4)), 2.0),
    ),
    "targets are bool": ("program", (ALL, 2.0)),
    "targets are complex": ("program", (np.ones(SHAPE, complex), 2.0)),
    "t = 0.5 s, but a cell was written at 1 s": ("program", (np.ones(SHAPE), 0.5)),
    "t = 0.75 s": ("read", (0.75,)),
    "time is nan": ("read", (np.nan,)),
    "time is '3'": ("read", ("3",)),
    r"time is \[3": ("read", ([3.0, 4.0],)),
    "time is True": ("read", (True,)),
    "time is 1e\\+11 s": ("read", (1e11,)),
    "takes no pulses": ("apply_pulses", (ALL, 1, 1, 2.0)),
}
REFUSED_PULSES = {
    "takes pulses only": ("program", (np.ones(SHAPE), 2.0)),
    "counts are float": ("apply_pulses", (ALL, 1, 1.5, 2.0)),
    "counts are bool": ("apply_pulses", (ALL, 1, ALL, 2.0)),
    "counts from -1 to -1": ("apply_pulses", (ALL, 1, -1, 2.0)),
    "counts from 10001 to 10001": ("apply_pulses", (ALL, 1, 10_001, 2.0)),
    "counts from 4294967297": ("apply_pulses", (ALL, 1, 2**32 + 1, 2.0)),
    "the mask is int": ("apply_pulses", (np.ones(SHAPE, int), 1, 1, 2.0)),
    r"a mask of shape \(3, 2\)": ("apply_pulses", (ALL.T, 1, 1, 2.0)),
    r"count of shape \(3,\)": ("apply_pulses", (ALL, 1, np.ones(3, int), 2.0)),
    "polarity is neither": ("apply_pulses", (ALL, 0, 1, 2.0)),
    "polarity is neither 1": ("apply_pulses", (ALL, 0.5, 1, 2.0)),
    "but a cell was written at 1 s": ("apply_pulses", (ALL, 1, 1, 0.0)),
}


@pytest.mark.parametrize(
    ("device", "words"), [(EXACT, w) for w in REFUSED] + [(IDEAL, w) for w in REFUSED_PULSES]
)
def test_bad_input_is_one_sentence_and_nothing_is_written(device, words):
    op, args = (REFUSED if device is EXACT else REFUSED_PULSES)[words]
    instrument = array(device)
    if device is EXACT:
        instrument.program(np.ones(SHAPE), 1.0)
    else:
        instrument.apply_pulses(ALL, 1, 1, 1.0)
    state, calls, pulses = instrument.state, instrument.calls, instrument.pulses.copy()
    with pytest.raises(ValueError, match=words) as refused:
        getattr(instrument, op)(*args)
    assert "\n" not in str(refused.value)
    assert instrument.state is state
    assert instrument.calls == calls
    np.testing.assert_array_equal(instrument.pulses, pulses)
    instrument.read(1.0)  # and it goes on


def test_a_call_under_jit_is_refused():
    instrument = array()
    with pytest.raises(ValueError, match="outside of jit"):
        jax.jit(lambda t: instrument.program(t, 1.0))(jnp.ones(SHAPE))
    with pytest.raises(ValueError, match="outside of jit"):
        jax.jit(lambda t: instrument.read(t))(1.0)


def test_a_reading_that_no_cell_can_have_is_reported():
    declared = array().capabilities
    check_reading("bench", declared, np.array([[np.nan, 0, 26], [-0.5, 1, 2]]))
    for wrong in (1e6, np.inf, -1e9):
        with pytest.raises(ValueError, match=r"bench.read: cell \(1, 2\) shows .* 1 cells"):
            check_reading("bench", declared, np.array([[1, 2, 3], [4, 5, wrong]]))
    with pytest.raises(ValueError, match="of shape"):
        check_reading("bench", declared, np.ones((3, 2)))


GOOD = {"shape": (2,), "unit": "uS", "g_min": 0.0, "g_max": 25.0, "programs": True, "pulses": False}


@pytest.mark.parametrize(
    "wrong",
    [
        {"shape": ()}, {"shape": (0,)}, {"shape": (2**13, 2**13)},
        {"unit": "S"}, {"unit": "ohm"}, {"g_min": 25.0}, {"g_max": float("nan")},
        {"g_max": float("inf")}, {"programs": False}, {"step": 0.0}, {"most_pulses": 0},
        {"most_pulses": 2**25}, {"latest": 0.0},
    ],
)  # fmt: skip
def test_a_declaration_that_makes_no_sense_is_refused(wrong):
    Capabilities(**GOOD)
    with pytest.raises(ValueError, match="Capabilities: "):
        Capabilities(**{**GOOD, **wrong})


def test_a_declaration_survives_json_and_others_do_not():
    declared = array(set_pcm()).capabilities
    fields = as_json(declared)
    assert from_json(fields) == from_json({**fields, "g_max": 12}) == declared
    for wrong in (
        [],
        {k: v for k, v in fields.items() if k != "unit"},
        {**fields, "code": 1},
        {**fields, "shape": "23"},
        {**fields, "pulses": 1},
        {**fields, "shape": [2.0, 3]},
        {**fields, "g_max": float("nan")},
        {**fields, "g_max": "25"},
        {**fields, "most_pulses": True},
        {**fields, "unit": None},
    ):
        with pytest.raises(ValueError, match="Capabilities: "):
            from_json(wrong)


def test_calls_are_compared_by_their_bits():
    call = Call("program", 1.0, np.array([0.0, np.nan], np.float32))
    assert call.same(Call("program", 1.0, np.array([0.0, np.nan], np.float32)))
    assert not call.same(Call("program", 1.0, np.array([-0.0, np.nan], np.float32)))
    assert not call.same(Call("read", 1.0))
    assert not call.same(call._replace(time=np.nextafter(1.0, 2)))

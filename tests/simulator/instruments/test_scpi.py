"""The dialect and the bench without a socket: floats to the bit, what is refused, no call twice."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spikebit.simulator.devices import pcm, set_pcm
from spikebit.simulator.instruments import SimulatedArray, scpi
from spikebit.simulator.instruments.instrument import Call
from spikebit.simulator.instruments.scpi import Answer, DialectError, Numbered
from spikebit.simulator.instruments.server import Bench

SHAPE = (2, 3)
floats = st.lists(st.floats(width=32, allow_infinity=False), min_size=6, max_size=6)
ONES = ",".join("1" * 6)


def sent(asked):
    header, parameters = scpi.split(scpi.write_call(asked))
    return scpi.read_call(header, parameters, SHAPE)


@given(floats, st.floats(0, 1e300), st.integers(1, 10**17))
def test_calls_and_answers_come_back_to_the_bit(values, time, number):
    cells = np.array(values, np.float32).reshape(SHAPE)
    cells = np.where(cells == np.float32(scpi.NAN), 0, np.where(np.isnan(cells), np.nan, cells))
    cells = cells.astype(np.float32)
    for call in (Call("program", time, cells), Call("read", time)):
        back = sent(Numbered(number, "me-1", call))
        assert back[:2] == (number, "me-1")
        assert back.call.same(call)
    answer = scpi.read_answer(scpi.write_answer(Answer(number, 0, 'a "b", c', cells)), SHAPE)
    assert answer[:3] == (number, 0, 'a "b", c')
    assert answer.values.tobytes() == cells.tobytes()


@given(st.lists(st.integers(-(2**24), 2**24), min_size=6, max_size=6))
def test_counts_come_back(values):
    call = Call("apply_pulses", 1.5, np.array(values, np.int32).reshape(SHAPE))
    assert sent(Numbered(3, "a", call)).call.same(call)


@given(st.text(max_size=80))
def test_any_line_is_answered_or_is_an_error(line):
    bench = Bench(ARRAY)
    answer = bench.answer(line)
    assert answer is None or "\n" not in answer
    if answer is None and line.strip().upper() != "*CLS":
        assert bench.answer("SYST:ERR?").startswith("-1")
    assert bench.last == 0


ARRAY = SimulatedArray(pcm(), SHAPE, jax.random.key(0))
PULSED = SimulatedArray(set_pcm(), SHAPE, jax.random.key(0))


@pytest.mark.parametrize("header", scpi.HEADERS)
def test_headers_have_a_short_and_a_long_form(header):
    short = "".join(c for c in header if not c.islower())
    for form in (header, short, header.upper(), short.lower()):
        assert scpi.split(f" {form} 1,2 ") == (header, "1,2")
    for wrong in (header[:-2], header + "x", ""):
        with pytest.raises(DialectError, match="Undefined header"):
            scpi.split(wrong)


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        (f"ARR:PROG? 1,me,1,{ONES},1", -102, "7 values"),
        (f"ARR:PROG? 1,me,1,{ONES[:-2]}", -102, "5 values"),
        (f"ARR:PROG? 1,me,1,{ONES[:-1]}nan", -102, "is not a number"),
        (f"ARR:PROG? 1,me,1,{ONES[:-1]}1_0", -102, "is not a number"),
        (f"ARR:PROG? 1,me,1,{ONES[:-1]}1e39", -222, "beyond float32"),
        (f"ARR:PROG? 1,me,1,{ONES[:-1]}26", -222, "0 to 25 uS"),
        ("ARR:PROG? 1,me,1," + ",".join(["5e-6"] * 6), -222, "looks like siemens"),
        (f"ARR:PROG? 1,me,inf,{ONES}", -102, "is not a number"),
        (f"ARR:PROG? 1,me,1e999,{ONES}", -222, "beyond the floats"),
        (f"ARR:PROG? 1,me,-1,{ONES}", -222, "time is -1 s"),
        (f"ARR:PROG? 1,m e,1,{ONES}", -102, "takes N,WHO,T and values"),
        (f"ARR:PROG? 1.0,me,1,{ONES}", -102, "is not a whole number"),
        (f"ARR:PROG? 2,me,1,{ONES}", -221, "the last call was 0"),
        (f"ARR:PROG? 0,me,1,{ONES}", -221, "the last call was 0"),
        (f"ARR:PULS? 1,me,1,{ONES}", -222, "takes no pulses"),
        ("ARR:READ? 1,me,1,2", -102, "takes N,WHO,T"),
        ("ARR:READ? 1,me", -102, "takes N,WHO,T"),
    ],
)
def test_a_call_that_is_refused_is_told_and_has_no_effect(line, code, words):
    bench, before = Bench(ARRAY), ARRAY.calls
    answer = scpi.read_answer(bench.answer(line), None)
    assert answer.code == code
    assert words in answer.message
    assert bench.answer("SYST:ERR?").startswith(f"{code},")
    assert bench.answer("SYST:ERR?") == '0,"No error"'
    assert (ARRAY.calls, bench.last) == (before, 0)


def test_counts_of_a_line_are_whole_and_in_range():
    bench, before = Bench(PULSED), PULSED.calls
    for count, code in (("1.0", -102), ("1e1", -102), ("10001", -222), ("9" * 12, -222)):
        answer = bench.answer(f"ARR:PULS? 1,me,1,{ONES[:-1]}{count}")
        assert scpi.read_answer(answer, None).code == code
    assert PULSED.calls == before


def test_a_line_that_comes_again_is_answered_and_not_done_again():
    array = SimulatedArray(set_pcm(), SHAPE, jax.random.key(1))
    bench = Bench(array)
    first = f"ARR:PULS? 1,me,1,{ONES}"
    assert bench.answer(first) == bench.answer(first) == '1,0,"No error"'
    assert array.pulses.sum() == 6
    reading = bench.answer("ARR:READ? 2,me,1")
    assert bench.answer("ARR:READ? 2,me,1") == reading  # not another draw of its noise
    assert bench.answer("ARR:READ? 3,me,1") != reading
    for refused in (first, "ARR:READ? 2,me,1", "ARR:READ? 3,me,2", "ARR:READ? 3,you,1"):
        assert scpi.read_answer(bench.answer(refused), None).code == scpi.CONFLICT
    assert (array.calls, bench.last, array.pulses.sum()) == (3, 3, 6)
    assert bench.answer("ARR:STAT?") == f"{bench.boot},3,1.0"


def test_the_queue_of_errors_says_when_it_is_full():
    bench = Bench(ARRAY)
    for _ in range(20):
        bench.answer("NONSENSE?")
    told = [bench.answer("SYST:ERR?") for _ in range(17)]
    assert [t.split(",")[0] for t in told] == ["-113"] * 15 + ["-350", "0"]
    bench.answer("NONSENSE?")
    assert bench.answer("*CLS") is None
    assert bench.answer("SYST:ERR?") == '0,"No error"'


def test_an_answer_that_was_cut_is_not_taken_for_one():
    line = scpi.write_answer(Answer(7, 0, "No error", np.full(SHAPE, 0.1, np.float32)))
    for end in range(len(line)):
        cut = line[:end]
        try:
            answer = scpi.read_answer(cut, SHAPE)
        except DialectError:
            continue
        assert cut.count(",") == line.count(",")  # only the last number can be cut unseen,
        assert answer.values.shape == SHAPE  # and the newline, which ends an answer, was not there

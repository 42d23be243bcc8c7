r"""The SCPI dialect of an array of cells: what is said and how it is written; nobody speaks here.

A command is one line of ASCII, ended by a newline; so is each answer. Headers are taken in their
short or long form, in any case. Lists are separated by commas, arrays row-major; a float has the
digits that bring back its bits, 9.91E37 stands for "not a number" as in SCPI-1999.

| command | answer |
| --- | --- |
| `*IDN?` | maker, model, serial number, version |
| `SYSTem:ERRor?` | the oldest error not told yet: code, "message"; `0,"No error"` if none |
| `*CLS` | none; forgets all errors |
| `ARRay:SHAPe?` | sizes of the array |
| `ARRay:UNIT?` | of targets and readings: `uS`, or `1` for none |
| `ARRay:RANGe?` | lowest and highest target |
| `ARRay:LIMits?` | most pulses for a cell in one call, last time of the clock [s] |
| `ARRay:WAYS?` | takes targets, takes pulses, pulses down are RESETs (0 or 1 each); step |
| `ARRay:STATe?` | name of this start of the bench, number of the last call, time of a write |
| `ARRay:PROGram? N,WHO,T,g1,g2,...` | writes targets at time T [s]; 9.91E37: a cell not written |
| `ARRay:PULSe? N,WHO,T,n1,n2,...` | gives pulses at time T, down where n is below 0 |
| `ARRay:READ? N,WHO,T` | reads all cells at time T |

The last three are calls. Their answer is `N,code,"message"`, for a read followed by its values,
with code 0 if the call was done and another if it was refused, which then had no effect.

**No call is done twice.** A controller WHO (letters, digits, `-`) numbers its calls; N must be the
number of the last call plus 1. A line equal to that of the last call is answered as it was, and not
done again: who got no answer asks again, on a new connection. Any other number is refused.
"""

import itertools
import math
import re
from typing import NamedTuple

import numpy as np

from .instrument import Call

NAN = 9.91e37
IDENTIFY, ERROR, CLEAR = "*IDN?", "SYSTem:ERRor?", "*CLS"
SHAPE, UNIT, RANGE = "ARRay:SHAPe?", "ARRay:UNIT?", "ARRay:RANGe?"
LIMITS, WAYS, STATE = "ARRay:LIMits?", "ARRay:WAYS?", "ARRay:STATe?"
PROGRAM, PULSE, READ = "ARRay:PROGram?", "ARRay:PULSe?", "ARRay:READ?"
HEADERS = (
    IDENTIFY, ERROR, CLEAR, SHAPE, UNIT, RANGE, LIMITS, WAYS, STATE, PROGRAM, PULSE, READ
)  # fmt: skip
CALLS = {"program": PROGRAM, "apply_pulses": PULSE, "read": READ}
OPS = {header: op for op, header in CALLS.items()}

DONE, COMMAND, SYNTAX, RANGE_ERROR = 0, -113, -102, -222
CONFLICT, FAILED, OVERFLOW, OVERRUN = -221, -310, -350, -363
_CONTROLLER = re.compile(r"[A-Za-z0-9-]{1,40}")
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?")
_ANSWER = re.compile(r'([0-9]{1,18}),(-?[0-9]{1,4}),"((?:[^"]|"")*)"(?:,(.*))?')


class Numbered(NamedTuple):
    """A call with its number and who makes it."""

    number: int
    controller: str
    call: Call


class Answer(NamedTuple):
    """The answer to a call."""

    number: int
    code: int
    message: str
    values: np.ndarray | None = None  # of a read, float32


class DialectError(ValueError):
    """A line that is not of the dialect, with the code of the error."""

    def __init__(self, code: int, message: str):
        super().__init__(message)
        self.code = code


def split(line: str) -> tuple[str, str]:
    """The header of a command, as in `HEADERS`, and its parameters.

    Raises:
        DialectError: an unknown header.

    >>> split("array:read? 7,me,0.5")
    ('ARRay:READ?', '7,me,0.5')
    """
    word, _, parameters = line.strip().partition(" ")
    header = _FORMS.get(word.upper())
    if header is None:
        raise DialectError(COMMAND, f"Undefined header {word[:40]!r}")
    return header, parameters.strip()


def write_call(asked: Numbered) -> str:
    """A call as a line, without its end."""
    number, who, call = asked
    fields = [str(number), who, repr(call.time)]
    if call.cells is not None:
        fields.append(
            write_floats(call.cells) if call.op == "program" else write_counts(call.cells)
        )
    return f"{CALLS[call.op]} {','.join(fields)}"


def read_call(header: str, parameters: str, shape: tuple[int, ...]) -> Numbered:
    """A call from its line.

    Raises:
        DialectError: not of the dialect, or not of that many cells.
    """
    fields, op = parameters.split(",", 3), OPS[header]
    expected = 3 if op == "read" else 4
    if len(fields) != expected or not _CONTROLLER.fullmatch(fields[1]):
        raise DialectError(SYNTAX, f"{header} takes N,WHO,T{'' if op == 'read' else ' and values'}")
    number, time = int(_one(_WHOLE, fields[0])), read_float(fields[2])
    if op == "read":
        return Numbered(number, fields[1], Call(op, time))
    read = read_floats if op == "program" else read_counts
    return Numbered(number, fields[1], Call(op, time, read(fields[3], shape)))


def write_answer(answer: Answer) -> str:
    """An answer as a line, without its end."""
    message = answer.message.encode("ascii", "replace").decode().replace('"', '""')
    values = [] if answer.values is None else [write_floats(answer.values)]
    return ",".join(
        [str(answer.number), str(answer.code), f'"{" ".join(message.split())}"', *values]
    )


def read_answer(line: str, shape: tuple[int, ...] | None) -> Answer:
    """An answer from its line.

    Args:
        line: without its end.
        shape: of the values that a call which was done gives; None: it gives none.

    Raises:
        DialectError: not of the dialect, or not of that many cells.
    """
    found = _ANSWER.fullmatch(line)
    if found is None:
        raise DialectError(SYNTAX, f"Not an answer: {line[:60]!r}")
    number, code, message = int(found[1]), int(found[2]), found[3].replace('""', '"')
    if (found[4] is not None) != (shape is not None and code == DONE):
        raise DialectError(SYNTAX, f"An answer with and one without values differ: {line[:60]!r}")
    values = None if found[4] is None or shape is None else read_floats(found[4], shape)
    return Answer(number, code, message, values)


def write_floats(values: np.ndarray) -> str:
    """Float32 values as a list.

    >>> write_floats(np.array([0.1, np.nan, -0.0], np.float32))
    '0.100000001,9.91E37,-0'
    """
    return ",".join("9.91E37" if v != v else f"{v:.9g}" for v in values.ravel().tolist())


def read_floats(text: str, shape: tuple[int, ...]) -> np.ndarray:
    """A list as float32 values.

    Raises:
        DialectError: no numbers, beyond float32, or not as many.
    """
    fields = _fields(text, shape)
    values = np.array([float(_one(_NUMBER, f)) for f in fields])
    values[values == NAN] = np.nan
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    if np.isinf(narrow).any():
        raise DialectError(RANGE_ERROR, "A number is beyond float32")
    return narrow.reshape(shape)


def write_counts(values: np.ndarray) -> str:
    """Whole numbers as a list."""
    return ",".join(map(str, values.ravel().tolist()))


def read_counts(text: str, shape: tuple[int, ...]) -> np.ndarray:
    """A list as whole numbers in int32.

    Raises:
        DialectError: no whole numbers, beyond int32, or not as many.
    """
    values = np.array([int(_one(_WHOLE, f)) for f in _fields(text, shape)], np.int64)
    if (np.abs(values) > np.iinfo(np.int32).max).any():
        raise DialectError(RANGE_ERROR, "A count is beyond 32 bits")
    return values.astype(np.int32).reshape(shape)


def read_float(text: str) -> float:
    """A number that is finite.

    Raises:
        DialectError: it is not.
    """
    value = float(_one(_NUMBER, text))
    if not math.isfinite(value):
        raise DialectError(RANGE_ERROR, f"{text[:40]!r} is beyond the floats")
    return value


def read_whole(text: str) -> int:
    """A whole number.

    Raises:
        DialectError: it is not.
    """
    return int(_one(_WHOLE, text))


def _one(pattern: re.Pattern[str], text: str) -> str:
    text = text.strip()
    if not pattern.fullmatch(text):
        kind = "a whole number" if pattern is _WHOLE else "a number"
        raise DialectError(SYNTAX, f"{text[:40]!r} is not {kind}")
    return text


def _fields(text: str, shape: tuple[int, ...]) -> list[str]:
    fields = text.split(",")
    if len(fields) != math.prod(shape):
        raise DialectError(
            SYNTAX, f"{len(fields)} values for an instrument of shape {shape}, which has others"
        )
    return fields


def _forms() -> dict[str, str]:
    """All ways to write a header, in capitals."""
    forms = {}
    for header in HEADERS:
        nodes = header.removesuffix("?").split(":")
        ways = [{n.upper(), "".join(c for c in n if not c.islower())} for n in nodes]
        for way in itertools.product(*ways):
            forms[":".join(way) + "?" * header.endswith("?")] = header
    return forms


_FORMS = _forms()

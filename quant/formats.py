"""One way to name each number format."""

import difflib
import re

from . import blocks, e8m0, few, logarithmic, posit, tables
from .grid import Format
from .integer import AsymmetricInteger, FixedPoint, Integer
from .minifloat import BFLOAT16, FLOAT16, FLOAT32, Minifloat, usual_bias

_BLOCKS = (
    "mxfp8_e4m3", "mxfp8_e5m2", "mxfp6_e3m2", "mxfp6_e2m3", "mxfp4", "mxint8", "nvfp4",
)  # fmt: skip
_NAMED: dict[str, Format] = {
    fmt.name: fmt
    for fmt in (
        FLOAT32,
        FLOAT16,
        BFLOAT16,
        Minifloat(5, 2, 15),
        Minifloat(4, 3, 7),
        Minifloat(3, 4, 3),
        Minifloat(4, 3, 7, "fn"),
        Minifloat(4, 3, 8, "fnuz"),
        Minifloat(5, 2, 16, "fnuz"),
        Minifloat(4, 3, 11, "fnuz"),
        Minifloat(3, 2, 3, "none"),
        Minifloat(2, 3, 1, "none"),
        Minifloat(2, 1, 1, "none"),
        e8m0.E8M0(),
        *(Integer(b) for b in range(2, 17)),
        tables.NF4,
        few.Binary(),
        few.Ternary(),
        few.Ternary("twn"),
        logarithmic.Logarithmic(4),
        posit.Posit(8),
        posit.Posit(16),
        *filter(None, map(blocks.from_name, _BLOCKS)),
    )
}
_FAMILIES = (tables, few, logarithmic, posit, blocks, e8m0)
_MINIFLOAT = re.compile(r"e(\d+)m(\d+)(?:b(-?\d+))?(fnuz|fn|none)?")
_INTEGER = re.compile(r"int(\d+)(?:_(full|half|narrow|asymmetric))?")
_FIXED = re.compile(r"fixed(\d+)\.(-?\d+)(_symmetric)?")


def known_formats() -> tuple[str, ...]:
    """The names of the formats that others know too, such as the minifloats in use.

    `parse` reads many more.
    """
    return tuple(_NAMED)


def parse(name: str | Format) -> Format:
    """The format of a name; a format is given back as it is, and `parse(fmt.name) == fmt`.

    Args:
        name: one of `known_formats()`; or `e<E>m<M>[b<bias>][fn|fnuz|none]`, any minifloat;
            `int<b>[_half|_full|_asymmetric]`, an integer with a scale;
            `fixed<wl>.<fl>[_symmetric]`; `log<b>`, powers of two; `posit<n>`;
            `bfp<b>_k<block>`, `mx...[_k<block>][_ceil|_even|_rceil]`, numbers with block scales.

    Raises:
        ValueError: for a name that is none of these (the message proposes the nearest), or that of
            an impossible format.

    >>> parse("e4m3fn").bits, parse("fixed8.4").max
    (8, 7.9375)
    """
    if isinstance(name, Format):
        return name
    if not isinstance(name, str):
        raise ValueError(
            f"A format is a Format or a name such as 'e4m3fn' or 'int4'; got fmt={name!r}."
        )
    if name in _NAMED:
        return _NAMED[name]
    for family in _FAMILIES:
        if (fmt := family.from_name(name)) is not None:
            return fmt
    if found := _MINIFLOAT.fullmatch(name):
        e, m, bias, suffix = found.groups()
        specials = suffix or "ieee"
        bias = usual_bias(int(e), specials) if bias is None else int(bias)
        return Minifloat(int(e), int(m), bias, specials)
    if found := _INTEGER.fullmatch(name):
        if found[2] == "asymmetric":
            return AsymmetricInteger(int(found[1]))
        return Integer(int(found[1]), found[2] or "narrow")
    if found := _FIXED.fullmatch(name):
        return FixedPoint(int(found[1]), int(found[2]), found[3] is not None)
    examples = [*_NAMED, "fixed8.4", "fixed12.6", "fixed16.8", "int8_half", "int8_full"]
    near = difflib.get_close_matches(name.lower(), examples, n=3, cutoff=0.0)
    raise ValueError(
        f"parse: no number format is called {name!r}; the nearest names are {', '.join(near)}. "
        f"Forms: e<E>m<M>[b<bias>][fn|fnuz|none], int<b>[_half|_full|_asymmetric], "
        f"fixed<wl>.<fl>[_symmetric], log<b>[_<magnitudes>][_from<exponent>][_geometric], "
        f"posit<n>, bfp<b>_k<block>; names: {', '.join(known_formats())}."
    )

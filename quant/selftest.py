"""A few numbers through the compiled code of a backend, before the first result is believed.

Compilers take liberties with floats: they keep more bits than were asked for, merge a product with
a sum, fold (x + c) - c, or take subnormals for 0. Formats are written so that none of this changes
a bit; a backend on which it does is refused here instead of giving wrong numbers.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from .grid import Format
from .integer import FixedPoint, Integer
from .minifloat import BFLOAT16, FLOAT16, Minifloat
from .scaling import absmax, absmax_scale, in_units, to_units

# Numbers and what they become, from the definitions of the formats: ties, both sides of them,
# subnormals of the format and of float32, the ends of the range and beyond.
_INF, _NAN = float("inf"), float("nan")
_E4M3FN = (
    (-0.0, -0.0), (2.0**-10, 0.0), (1.001 * 2.0**-10, 2.0**-9), (3 * 2.0**-10, 2.0**-8),
    (1.0625, 1.0), (1.1875, 1.25), (-1.0624, -1.0), (-1.0626, -1.125), (464.0, 448.0),
    (1e38, 448.0), (2.0**-140, 0.0), (_INF, 448.0), (-_INF, -448.0), (_NAN, _NAN),
)  # fmt: skip
_BFLOAT16 = (
    (2.0**-134, 0.0), (1.5 * 2.0**-133, 2.0**-132), (2.0**-133, 2.0**-133), (1.00390625, 1.0),
    (-(2.0**-127), -(2.0**-127)), (1.01171875, 1.015625), (3.4e38, 255 * 2.0**120), (_NAN, _NAN),
)  # fmt: skip
_FLOAT16 = (
    (2.0**-25, 0.0), (3 * 2.0**-25, 2.0**-23), (65519.0, 65504.0), (1 + 3 * 2.0**-11, 1 + 2.0**-9),
)  # fmt: skip
_FIXED = (
    (0.03125, 0.0), (0.09375, 0.125), (-0.09375, -0.125), (7.97, 7.9375), (-9.0, -8.0),
    (1e-40, 0.0),
)  # fmt: skip
_CASES: tuple[tuple[Format, tuple[tuple[float, float], ...]], ...] = (
    (Minifloat(4, 3, 7, "fn"), _E4M3FN),
    (BFLOAT16, _BFLOAT16),
    (FLOAT16, _FLOAT16),
    (FixedPoint(8, 4), _FIXED),
)


def require_exact_backend() -> None:
    """Computes known results once for each default backend of JAX, compiled.

    Raises:
        RuntimeError: if a bit is not what the definitions say; names the format and the number.
    """
    _test(jax.default_backend())


@functools.cache
def _test(backend: str) -> None:
    with jax.ensure_compile_time_eval():
        for fmt, table in _CASES:
            x, expected = np.array(table, np.float32).T.copy()
            _compare(backend, fmt, x, jax.jit(_both, static_argnums=1)(x, fmt), expected)
        fmt, x = Integer(8), np.array([0.3, -0.7, 0.1234567], np.float32)
        scale = np.float32(0.7) / np.float32(127)
        expected = np.rint(x / scale) * scale
        behind = np.float32(1) / np.float32(3)
        got = jax.jit(_scaled)(x, behind)
        _compare(backend, fmt, x, (got[0], got[1]), expected, expected + behind)


def _both(x: jax.Array, fmt: Format) -> tuple[jax.Array, jax.Array]:
    codes = fmt._encode(x, "nearest_even", "saturate", None)
    return fmt._round(x, "nearest_even", "saturate", None), fmt._decode(codes, jnp.float32)


def _scaled(x: jax.Array, behind: jax.Array) -> tuple[jax.Array, jax.Array]:
    scale = absmax_scale(absmax(x), 127.0)
    y = in_units(Integer(8)._round(to_units(x, scale), "nearest_even", "saturate", None), scale)
    return y, y + behind


def _compare(backend: str, fmt: Format, x: np.ndarray, got: tuple, *expected: np.ndarray) -> None:
    for found, wanted in zip(got, (*expected, expected[-1])[: len(got)], strict=True):
        found = np.asarray(found)
        same = (found.view(np.uint32) == wanted.view(np.uint32)) | (
            np.isnan(found) & np.isnan(wanted)
        )
        if not same.all():
            i = int(np.argmin(same))
            raise RuntimeError(
                f"The backend {backend!r} of JAX does not compute {fmt.name} exactly: "
                f"{x[i]!r} became {found[i]!r}, not {wanted[i]!r}; its results would be wrong. Use "
                "another backend (JAX_PLATFORMS=cpu) or another version of jaxlib, and XLA_FLAGS "
                "without fast-math options."
            )

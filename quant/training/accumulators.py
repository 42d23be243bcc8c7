"""Sums in a number format: the accumulators of matrix products, as a reference.

Exact sums of a chunk, rounded to the format chunk by chunk, in plain `jax.numpy`; nothing here is
fast. Accumulators of gradients over several batches are optimizer state (`quantize_state`).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ..grid import Format, check_input
from ..storage import Storage, storage


def accumulate(
    products: Float[Array, "*dims n"],
    fmt: Format | str,
    *,
    chunk: int = 1,
    rounding: str = "nearest_even",
    key: PRNGKeyArray | None = None,
) -> Float[Array, "*dims"]:
    """Sums the last axis with an accumulator in a format: a <- Q(a + sum of the next chunk).

    A chunk is summed in the dtype of the products, as hardware does that has a wide adder tree
    before its accumulator. Chunks make the error grow with their number instead of n. The
    derivative is that of the exact sum where nothing saturates.

    Args:
        products: what is summed; n of any size.
        fmt: the format of the accumulator, with a unit of its own, or its name.
        chunk: terms summed at a time.
        rounding: one of `ROUNDINGS`.
        key: random key of stochastic rounding.

    Raises:
        ValueError: a chunk below 1, an unknown format or rounding, a format whose unit would change
            from chunk to chunk, a missing key; outside of `jit` a NaN where the format has
            none.

    References:
        Training deep neural networks with 8-bit floating point numbers, arXiv:1812.08011 (chunks).

    >>> [float(accumulate(jnp.full(1000, 0.01), "bfloat16", chunk=c)) for c in (1, 1000)]
    [4.0, 10.0]
    """
    kept = _check("accumulate", fmt, chunk, rounding)
    check_input("accumulate", products, kept.fmt, rounding, "saturate", key)
    n = products.shape[-1]
    padded = jnp.pad(products, [(0, 0)] * (products.ndim - 1) + [(0, -n % chunk)])
    sums = padded.reshape(*products.shape[:-1], -(-n // chunk), chunk).sum(-1)
    return _add_up(jnp.moveaxis(sums, -1, 0), kept, key)


def matmul(
    a: Float[Array, "*dims n"],
    b: Float[Array, "n out"],
    fmt: Format | str,
    *,
    chunk: int = 16,
    rounding: str = "nearest_even",
    key: PRNGKeyArray | None = None,
) -> Float[Array, "*dims out"]:
    """The product a @ b with accumulators in a format, see `accumulate`.

    Products, and their sums over a chunk of n, are those of the dtype of a and b.
    """
    kept = _check("matmul", fmt, chunk, rounding)
    for x in (a, b):
        check_input("matmul", x, kept.fmt, rounding, "saturate", key)
    n = a.shape[-1]
    pad = -n % chunk
    left = jnp.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, pad)])
    left = left.reshape(*a.shape[:-1], (n + pad) // chunk, chunk)
    right = jnp.pad(b, [(0, pad), (0, 0)]).reshape((n + pad) // chunk, chunk, b.shape[1])
    return _add_up(jnp.einsum("...ck,cko->c...o", left, right), kept, key)


def _add_up(
    terms: Float[Array, "n *dims"], kept: Storage, key: PRNGKeyArray | None
) -> Float[Array, "*dims"]:
    def add(total: Array, piece: tuple[Array, Array]) -> tuple[Array, None]:
        i, term = piece
        own = None if key is None else jax.random.fold_in(key, i)
        return kept.store(total + term, own), None

    numbered = (jnp.arange(len(terms)), terms)
    return jax.lax.scan(add, jnp.zeros(terms.shape[1:], terms.dtype), numbered)[0]


def _check(who: str, fmt: Format | str, chunk: int, rounding: str) -> Storage:
    if chunk < 1:
        raise ValueError(f"{who}: chunk is {chunk}; sum at least one term at a time.")
    return storage(who, fmt, rounding)

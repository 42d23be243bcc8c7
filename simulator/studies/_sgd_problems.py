"""Problems whose minimum is known: where normalised SGD is compared with its bound.

Each is a function with a minimum of 0; how it is minimised and what is measured is said in
`sgd_floor.py`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

NAMES = ("convex", "quasi_convex", "network")


class Problem(NamedTuple):
    """f = outer(inner(x)), outer increasing, so that f and inner have the same sublevel sets."""

    inner: Callable[[Array], Array]  # (n,) -> (); its gradient is the normal of the sublevel set
    outer: Callable[[Array], Array]
    minimum: Float[Array, "n"]  # x*, where f is 0
    power: float  # p of f(x) - f* <= L dist(x, X*)^p
    constant: float  # L; of `network` that close to x* only


def problem(name: str, seed: int) -> Problem:
    """One of `NAMES`, drawn from a seed.

    - `convex`: the mean of |a_i (x - x*)| over 20 random rows a_i, n = 10; p = 1.
    - `quasi_convex`: ||B (x - x*)||^(1/2) with singular values of B from 1 to 5, n = 10: sublevel
      sets are ellipsoids, but f is concave along every ray from x*; p = 1/2.
    - `network`: the root mean square difference of the outputs of two networks (4 inputs, 6 tanh
      units, 1 output, n = 37) on 64 random inputs, x* the weights of the one that teaches; p = 1,
      and L is the largest singular value of the Jacobian at x*. Not quasi-convex as a whole.
    """
    rng = np.random.default_rng([seed, NAMES.index(name)])
    if name == "network":
        return _network(rng)
    minimum = jnp.asarray(rng.uniform(-1, 1, 10), jnp.float32)
    if name == "convex":
        a = rng.normal(size=(20, 10))
        constant = float(np.linalg.norm(a, 2) / np.sqrt(len(a)))
        rows = jnp.asarray(a, jnp.float32)
        return Problem(
            lambda x: jnp.abs(rows @ (x - minimum)).mean(), lambda h: h, minimum, 1.0, constant
        )
    turn = np.linalg.qr(rng.normal(size=(10, 10)))[0]
    b = jnp.asarray(np.geomspace(1, 5, 10)[:, None] * turn, jnp.float32)
    return Problem(
        lambda x: jnp.square(b @ (x - minimum)).sum(), lambda h: h**0.25, minimum, 0.5, 5**0.5
    )


def _network(rng: np.random.Generator) -> Problem:
    inputs = jnp.asarray(rng.normal(size=(64, 4)), jnp.float32)
    minimum = jnp.asarray(rng.normal(size=37) / np.sqrt(np.repeat([4, 6], [30, 7])), jnp.float32)

    def outputs(x: Array) -> Array:
        hidden = jnp.tanh(inputs @ x[:24].reshape(4, 6) + x[24:30])
        return hidden @ x[30:36] + x[36]

    targets = outputs(minimum)
    jacobian = np.asarray(jax.jacobian(outputs)(minimum))
    constant = float(np.linalg.norm(jacobian, 2) / np.sqrt(len(inputs)))
    return Problem(
        lambda x: jnp.square(outputs(x) - targets).mean(), jnp.sqrt, minimum, 1.0, constant
    )

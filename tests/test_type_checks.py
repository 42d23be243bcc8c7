"""Annotations are checked while tests run: of the package, and of functions inside of others."""

import beartype
import jax.numpy as jnp
import jaxtyping
import pytest
from jaxtyping import Array, Float

from spikebit.learning_rules import losses


def made(change):
    """A function inside of another, as the hook of jaxtyping decorates it each time."""

    @jaxtyping.jaxtyped(typechecker=beartype.beartype)
    def total(x: Float[Array, "n"], y: Float[Array, "n"], *, k: int = 1) -> Float[Array, "n"]:
        return change(x + k * y)

    return total


def test_the_package_is_checked():
    with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'outputs'"):
        losses.squared_error(1.0, jnp.ones((2, 3)))


def test_each_function_of_one_place_is_checked_and_called_itself():
    plain, twice, wrong = made(lambda v: v), made(lambda v: 2 * v), made(lambda v: v[1:])
    x = jnp.ones(3)
    assert plain(x, x, k=2).tolist() == [3, 3, 3]
    assert twice(x, y=x).tolist() == [4, 4, 4]
    for function, arguments, said in (
        (plain, (x, jnp.ones(4)), "parameter 'y'"),
        (twice, (x, x.astype(int)), "parameter 'y'"),
        (wrong, (x, x), "return value of .*total"),
    ):
        with pytest.raises(jaxtyping.TypeCheckError, match=said):
            function(*arguments)
    with pytest.raises(jaxtyping.TypeCheckError, match="parameter 'k'"):
        plain(x, x, k=2.0)
    with pytest.raises(TypeError, match="missing a required argument: 'y'"):
        plain(x)
    assert plain.__name__ == "total"


def test_a_function_without_annotations_is_left_as_it_is():
    def function(x):
        return x

    assert jaxtyping.jaxtyped(typechecker=beartype.beartype)(function) is function

"""Sparse connectivity: what goes in comes out, and what is out of order is refused."""

import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spikebit.kernels.sparse import (
    csr,
    csr_from_dense,
    csr_from_pairs,
    inputs_of,
    transposed,
)

few = settings(max_examples=30, deadline=None)


@st.composite
def pairs(draw):
    """A shape, and pairs in any order, none twice."""
    shape = draw(st.integers(0, 6)), draw(st.integers(0, 6))
    every = [(i, j) for i in range(shape[0]) for j in range(shape[1])]
    chosen = draw(st.lists(st.sampled_from(every), unique=True)) if every else []
    return shape, chosen


@few
@given(pairs())
def test_pairs_make_the_matrix_that_holds_them(case):
    shape, chosen = case
    expected = np.zeros(shape, np.float32)
    for number, pair in enumerate(chosen):
        expected[pair] = number + 1
    pre, post = [p for p, _ in chosen], [p for _, p in chosen]
    w = csr_from_pairs(pre, post, np.arange(1, len(chosen) + 1, dtype=np.float32), shape)
    np.testing.assert_array_equal(w.dense(), expected)
    assert w.shape == shape
    again = csr_from_dense(expected)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(w), strict=True):
        np.testing.assert_array_equal(a, b)
    found = zip(inputs_of(w.pattern).tolist(), w.pattern.indices.tolist(), strict=True)
    assert list(found) == sorted(chosen)


@few
@given(pairs())
def test_the_transposed_index_lists_each_connection_under_its_output(case):
    shape, chosen = case
    w = csr_from_pairs([p for p, _ in chosen], [p for _, p in chosen], np.ones(len(chosen)), shape)
    pre, post = np.asarray(inputs_of(w.pattern)), np.asarray(w.pattern.indices)
    index = transposed(w.pattern)
    assert sorted(index.places.tolist()) == list(range(len(chosen)))
    for j in range(shape[1]):
        mine = slice(index.indptr[j], index.indptr[j + 1])
        assert (post[index.places[mine]] == j).all()
        np.testing.assert_array_equal(pre[index.places[mine]], index.inputs[mine])
        assert (np.diff(index.inputs[mine]) > 0).all()
    assert index.indptr.shape == (shape[1] + 1,)
    assert index.indptr[-1] == len(chosen)


def test_connections_may_have_the_weight_zero():
    w = csr_from_dense(np.zeros((2, 3)), [[1, 0, 1], [0, 0, 0]])
    assert w.pattern.indices.tolist() == [0, 2]
    assert w.pattern.indptr.tolist() == [0, 2, 2]
    assert w.data.tolist() == [0, 0]


def test_the_dense_matrix_has_the_gradient_of_a_copy():
    w = csr([0, 1, 3], [2, 0, 1], [5.0, 6.0, 7.0], (2, 3))
    dy = jnp.arange(6.0).reshape(2, 3)
    dense = jax.jit(lambda data: w._replace(data=data).dense())
    assert jax.vjp(dense, w.data)[1](dy)[0].tolist() == [2.0, 3.0, 4.0]


def test_under_jit_what_is_known_is_checked():
    made = jax.jit(lambda indices: csr([0, 1, 2], indices, jnp.ones(2), (2, 3)))
    assert made(jnp.array([2, 0])).dense().tolist() == [[0, 0, 1], [1, 0, 0]]
    with pytest.raises(ValueError, match="csr: indptr has shape"):
        made(jnp.array([2, 0, 1]))


GOOD = {"indptr": [0, 2, 3], "indices": [0, 2, 1], "data": [1.0, 2.0, 3.0], "shape": (2, 3)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"indptr": [0, 3]}, "give 3 places"),
        ({"indptr": [0.0, 2.0, 3.0]}, "csr: indptr is float64.*one list of whole numbers"),
        ({"indptr": [[0, 2, 3]]}, "one list of whole numbers"),
        ({"indptr": [0, 2, 2]}, r"indptr goes from 0 to 2; it must rise from 0 .* indices, 3"),
        ({"indptr": [1, 2, 3]}, "indptr goes from 1 to 3"),
        ({"indptr": [0, 4, 3]}, "and falls in between"),
        ({"indices": [0, 3, 1]}, "indices go from 0 to 3; there are outputs 0 to 2"),
        ({"indices": [-1, 2, 1]}, "indices go from -1 to 2"),
        ({"indices": [2, 0, 1]}, "index 0 follows 2 within a row, at place 1"),
        ({"indices": [2, 2, 1]}, "index 2 follows 2 within a row"),
        ({"indices": [0, 2]}, "one index for each number"),
        ({"data": [1.0]}, "one index for each number"),
        ({"data": [[1.0, 2.0, 3.0]]}, "one index for each number"),
        ({"shape": (2,)}, r"csr: the shape is \(2,\); give two whole numbers"),
        ({"shape": (-1, 3)}, "give two whole numbers"),
        ({"shape": (2, 2.5)}, "give two whole numbers"),
        ({"shape": None}, "give two whole numbers"),
        ({"shape": (2, 2**31)}, "give two whole numbers"),
    ],
)
def test_parts_that_do_not_fit_are_named(change, words):
    unchecked = inspect.unwrap(csr)  # the tests' type checking would speak first
    unchecked(**GOOD)
    with pytest.raises(ValueError, match=words):
        unchecked(**GOOD | change)


def test_pairs_that_do_not_fit_are_named():
    for pre, post, words in (
        ([0, 0], [1, 1], r"pair \(0, 1\) is given more than once"),
        ([0, 2], [1, 1], "pre goes from 0 to 2; there are units 0 to 1"),
        ([0, 1], [1, -1], "post goes from -1 to 1; there are units 0 to 2"),
        ([0], [1, 1], "got 1 inputs, 2 outputs"),
        ([0.5, 1], [1, 1], "pre is float64.*one list of whole numbers"),
    ):
        with pytest.raises(ValueError, match=words):
            csr_from_pairs(pre, post, np.ones(2), (2, 3))
    with pytest.raises(ValueError, match=r"weights of shape \(3,\)"):
        csr_from_dense(np.ones(3))
    with pytest.raises(ValueError, match=r"connections of shape \(2,\)"):
        csr_from_dense(np.ones((2, 3)), np.ones(2))


numbers = st.lists(st.integers(-1, 4), max_size=5)


@settings(max_examples=200, deadline=None)
@given(numbers, numbers, st.integers(0, 3), st.integers(0, 3))
def test_only_what_is_in_order_is_accepted(indptr, indices, k, n):
    indptr, indices = np.array(indptr, int), np.array(indices, int)
    good = len(indptr) == k + 1 and indptr[0] == 0 and indptr[-1] == len(indices)
    good = good and all(a <= b for a, b in itertools.pairwise(indptr))
    if good:
        rows = [list(indices[a:b]) for a, b in itertools.pairwise(indptr)]
        good = all(row == sorted(set(row)) and set(row) <= set(range(n)) for row in rows)
    try:
        csr(indptr, indices, np.ones(len(indices)), (k, n))
    except ValueError:
        assert not good
    else:
        assert good

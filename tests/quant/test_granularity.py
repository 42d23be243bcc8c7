"""Which numbers share a scale: the blocked layout against loops in numpy, and what is refused."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.quant import Granularity, quantize

SHAPE = (4, 6, 8)
CASES = [
    Granularity(),
    Granularity(-1),
    Granularity(0),
    Granularity((0, 2)),
    Granularity(-1, 4),
    Granularity(1, 3),
    Granularity((-2, -1), (3, 2)),
    Granularity((2, 0), (8, 2)),
    Granularity.parse("channel", 3),
    Granularity.parse("token", 3),
    Granularity.parse("group2", 3),
    Granularity.parse("block2x4", 3),
]


def groups(shape, granularity):
    """For each element, where its scale stands: by dividing its place by the block."""
    blocks = granularity.blocks(shape)
    places = itertools.product(*map(range, shape))
    return {p: tuple(i // blocks.get(a, 1) for a, i in enumerate(p)) for p in places}


@pytest.mark.parametrize("granularity", CASES, ids=str)
def test_numbers_that_share_a_scale_stand_together(granularity):
    x = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    blocked = np.asarray(granularity.split(jnp.asarray(x)))
    place = groups(SHAPE, granularity)
    assert blocked.shape[:-1] == granularity.scale_shape(SHAPE)
    for scale in np.ndindex(blocked.shape[:-1]):
        assert set(blocked[scale].tolist()) == {int(x[p]) for p in place if place[p] == scale}
    np.testing.assert_array_equal(granularity.join(jnp.asarray(blocked), SHAPE), x)


@pytest.mark.parametrize("granularity", CASES, ids=str)
def test_each_group_is_quantized_by_itself(granularity):
    """int4 with the largest |x| of each group over 7, as numpy divides in float32."""
    x = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    expected, place = np.zeros(SHAPE, np.float32), groups(SHAPE, granularity)
    for scale in set(place.values()):
        where = tuple(np.array([p for p in place if place[p] == scale]).T)
        s = np.abs(x[where]).max() / np.float32(7)
        expected[where] = np.rint(x[where] / s) * s
    got = quantize(jnp.asarray(x), "int4", axis=granularity.axis, block=granularity.block)
    np.testing.assert_array_equal(got, expected)


def test_named_granularities_of_a_weight_and_of_activations():
    assert Granularity.parse("tensor", 2).scale_shape((8, 96)) == (1, 1)
    assert Granularity.parse("channel", 2).scale_shape((8, 96)) == (8, 1)
    assert Granularity.parse("channel", 4).scale_shape((8, 3, 3, 5)) == (8, 1, 1, 1)
    assert Granularity.parse("token", 3).scale_shape((2, 7, 96)) == (2, 7, 1)
    assert Granularity.parse("group32", 2).scale_shape((8, 96)) == (8, 3)
    assert Granularity.parse("block4x16", 2).scale_shape((8, 96)) == (2, 6)
    assert Granularity.parse("channel", 1).scale_shape((8,)) == (1,)


def test_arrays_without_numbers_or_axes():
    assert quantize(jnp.zeros((0, 4)), "int4", axis=-1).shape == (0, 4)
    assert quantize(jnp.zeros((4, 0)), "int4", axis=-1).shape == (4, 0)
    assert quantize(jnp.zeros((4, 0)), "int4", axis=-1, block=8).shape == (4, 0)
    assert quantize(jnp.float32(-3), "int4") == -3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: quantize(x, "int4", axis=-1, block=5), r"quantize\(int4\): block=5 does not "
         r"divide axis -1 of an array of shape \(4, 6, 8\).*divides 8, or pad.*with 2 zeros"),
        (lambda x: quantize(x, "int4", axis=3), r"axis=3 does not fit an array of shape \(4, 6, 8"),
        (lambda x: quantize(x, "int4", axis=(0, -3)), "name different axes from -3 to 2"),
        (lambda x: quantize(x, "int4", axis=0, block=0), "needs one block >= 1 for each axis"),
        (lambda x: quantize(x, "int4", axis=(0, 1), block=(2,)), "one block >= 1 for each axis"),
        (lambda x: quantize(x, "int4", block=(2, 2)), "say with axis=... along which axes"),
        (lambda x: quantize(x, "int4", axis=()), "name at least one axis"),
        (lambda x: quantize(x[0, 0, 0], "mxfp4"), "does not fit a single number"),
        (lambda x: Granularity.parse("grp32", 2), "is 'grp32'; the nearest is 'group32'"),
    ],
)  # fmt: skip
def test_what_does_not_fit(make, message):
    with pytest.raises(ValueError, match=message):
        make(jnp.ones(SHAPE))

"""Normal numbers from words: the quantile, its symmetry, places, moments, and numba's version."""

import math

import jax
import jax.numpy as jnp
import numba
import numpy as np
import pytest

from spikebit.kernels import normals_cpu
from spikebit.kernels.noise import block
from spikebit.kernels.normals import normal_of_word, random_normals

KEY = np.array([0x12345678, 0x9ABCDEF0], np.uint32)
EDGES = np.array([0, 1 << 9, 0x7FFFFE00, 0x80000000, 0xFFFFFE00, 0xFFFFFFFF], np.uint32)
WORDS = np.concatenate([EDGES, np.random.default_rng(0).integers(0, 1 << 32, 5000, np.uint32)])


def by_numba(words):
    @numba.njit(error_model="numpy")
    def fill(words, z):
        for i in range(len(words)):
            z[i] = normals_cpu.normal_of_word(words[i])

    z = np.empty(len(words), np.float32)
    fill(words, z)
    return z


@pytest.mark.parametrize(
    ("path", "error"), [(normal_of_word, 6e-6), (by_numba, 6e-7)], ids=["jax", "numba"]
)
def test_a_word_is_the_quantile_of_the_middle_of_its_part(path, error):
    """Numbers in the tails are less exact where 1 - u^2 is a difference of rounded numbers."""
    z = np.asarray(path(jnp.asarray(WORDS) if path is normal_of_word else WORDS), float)
    below = np.array([0.5 * math.erfc(-a / math.sqrt(2)) for a in z])
    middle = ((WORDS >> 9).astype(float) + 0.5) / 2**23
    density = np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    assert (np.abs(below - middle) <= error * np.abs(z) * density + 1e-16).all()
    opposite = path(jnp.asarray(~WORDS) if path is normal_of_word else ~WORDS)
    np.testing.assert_array_equal(opposite, -z.astype(np.float32))
    assert 5.0 < np.abs(z).max() < 5.4


def test_a_number_belongs_to_its_key_stream_and_place():
    key = jnp.asarray(KEY)
    first, second = random_normals(key, 3, (4, 5))
    words = block(KEY[:1], KEY[1:], np.arange(20, dtype=np.uint32), np.array(3, np.uint32))
    for found, own in zip((first, second), words, strict=True):
        np.testing.assert_array_equal(found.ravel(), normal_of_word(jnp.asarray(own)))
    longer = random_normals(key, 3, (50,))
    np.testing.assert_array_equal(longer[0][:20], first.ravel())
    keys = jnp.stack([key, key + 1])
    many = jax.vmap(lambda k: random_normals(k, 3, (4, 5)))(keys)
    np.testing.assert_array_equal(many[0][0], first)
    assert not np.array_equal(many[0][1], first)
    for bad, message in (((1 << 40,), "elements, but a stream"), ((2,), "streams are numbered")):
        with pytest.raises(ValueError, match=f"random_normals.*{message}"):
            random_normals(key, -1, bad)


def test_both_numbers_are_normal_and_independent():
    n = 1 << 19
    both = np.stack([np.asarray(z, float) for z in random_normals(jnp.asarray(KEY), 0, (n,))])
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert (np.abs((both**power).mean(1) - mean) < 4.5 * np.sqrt(variance / n)).all()
    for a, b in ((both[0], both[1]), (both[0, 1:], both[0, :-1]), (both[0] ** 2 - 1, both[1])):
        spread = np.sqrt(np.mean(a * a) * np.mean(b * b) / n)
        assert abs(np.mean(a * b)) < 4.5 * spread

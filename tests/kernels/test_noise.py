"""Random words from a counter: known answers, the same bits in every language, and statistics."""

import itertools

import jax
import jax.numpy as jnp
import numba
import numpy as np
import pytest
from jax.extend.random import threefry_2x32
from scipy import stats

from spikebit.kernels import noise, noise_cpu
from spikebit.kernels.noise import random_words
from spikebit.quant import quantize

PI = (0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344)
ONES = ((2**32 - 1,) * 2,) * 2
ZEROS = ((0, 0),) * 2
KNOWN = [  # kat_vectors of Random123: rounds, (counter, key), words
    (13, ZEROS, (0x9D1C5EC6, 0x8BD50731)),
    (13, ONES, (0xFD36D048, 0x2D17272C)),
    (13, PI, (0xBA3E4725, 0xF27D669E)),
    (20, ZEROS, (0x6B200159, 0x99BA4EFE)),
    (20, ONES, (0x1CB996FC, 0xBB002BE7)),
    (20, PI, (0xC4923A9C, 0x483DF7A0)),
]
KEY = np.array(PI[1], np.uint32)


def block_of_integers(counter, key, rounds):
    """Threefry-2x32 on Python's integers, from the description in the paper."""
    mask, ks = 2**32 - 1, [*key, key[0] ^ key[1] ^ 0x1BD11BDA]
    x = [(c + k) & mask for c, k in zip(counter, key, strict=True)]
    for i in range(rounds):
        left = [13, 15, 26, 6, 17, 29, 16, 24][i % 8]
        x[0] = (x[0] + x[1]) & mask
        x[1] = ((x[1] << left | x[1] >> (32 - left)) & mask) ^ x[0]
        if i % 4 == 3:
            s = i // 4 + 1
            x = [(x[0] + ks[s % 3]) & mask, (x[1] + ks[(s + 1) % 3] + s) & mask]
    return tuple(x)


@numba.njit
def numba_words(key, stream, index, first, second):
    for i in range(index.size):
        first[i], second[i] = noise_cpu.block(key[0], key[1], index[i], stream)


@numba.njit
def round_to_3_bits(key, bits):
    """Rounds the mantissas of the patterns of floats stochastically, in place."""
    for i in range(bits.size):
        word = noise_cpu.block(key[0], key[1], i, 0)[0]
        bits[i] = bits[i] + (word >> 12) & 0xFFF00000


@pytest.mark.parametrize("make", [jnp.asarray, np.asarray], ids=["jax", "numpy"])
@pytest.mark.parametrize(("rounds", "given", "words"), KNOWN)
def test_known_answers(make, rounds, given, words):
    counter, key = (make(np.array(pair, np.uint32)) for pair in given)
    found = noise.block(key[:1], key[1:], counter[:1], counter[1:], rounds)
    assert (int(found[0][0]), int(found[1][0])) == words
    assert block_of_integers(*given, rounds) == words


def test_twenty_rounds_are_the_generator_of_jax():
    counter = np.random.default_rng(0).integers(0, 2**32, 2000, dtype=np.uint32)
    index, stream = counter[:1000], counter[1000:]
    expected = threefry_2x32((jnp.uint32(KEY[0]), jnp.uint32(KEY[1])), jnp.asarray(counter))
    found = noise.block(KEY[:1], KEY[1:], index, stream, 20)
    np.testing.assert_array_equal(np.concatenate(found), expected)


@pytest.mark.parametrize("stream", [0, 1, 2**32 - 1])
def test_the_same_bits_in_jax_numpy_and_numba(stream):
    index = np.r_[np.arange(1000), 2**32 - 1 - np.arange(9)].astype(np.uint32)
    expected = np.stack(noise.block(KEY[:1], KEY[1:], index, np.full(1, stream, np.uint32)))
    assert [int(w) for w in expected[:, 7]] == [*block_of_integers((7, stream), PI[1], 13)]
    compiled = np.zeros_like(expected)
    numba_words(KEY, stream, index, *compiled)
    np.testing.assert_array_equal(compiled, expected)
    low = random_words(jnp.asarray(KEY), stream, (1000,))
    np.testing.assert_array_equal(low, expected[0, :1000])
    with jax.enable_x64(True):
        both = random_words(jnp.asarray(KEY), stream, (1000,), jnp.uint64)
    assert both.dtype == np.uint64
    expected = expected.astype(np.uint64)[:, :1000]
    np.testing.assert_array_equal(both, expected[0] + 2**32 * expected[1])


def test_the_same_bits_in_triton(triton_script):
    triton_script("triton_noise.py", "interpret")


@pytest.mark.parametrize("capability", ["80", "90"])
def test_triton_compiles_to_few_instructions(triton_script, capability):
    triton_script("triton_noise.py", "compile", capability)


def test_stochastic_rounding_has_the_same_bits_in_numba():
    """As `quantize` rounds numbers in the normal range of e4m3fn; the script does so in Triton."""
    x = np.random.default_rng(3).uniform(-200, 200, (31, 17)).astype(np.float32)
    x = np.where(abs(x) < 2**-6, np.float32(1), x)
    key = jax.random.key(4)
    expected = quantize(jnp.array(x), "e4m3fn", rounding="stochastic", key=key)
    bits = x.view(np.uint32).ravel()
    round_to_3_bits(np.asarray(jax.random.bits(jax.random.clone(key), (2,), jnp.uint32)), bits)
    np.testing.assert_array_equal(bits.view(np.float32).reshape(x.shape), expected)


def test_words_follow_the_flat_place_whatever_the_shape():
    flat = random_words(jnp.asarray(KEY), 5, (24,))
    for shape in ((2, 3, 4), (4, 1, 6), (24, 1)):
        np.testing.assert_array_equal(random_words(jnp.asarray(KEY), 5, shape).ravel(), flat)
    assert random_words(jnp.asarray(KEY), 5, ()) == flat[0]
    assert random_words(jnp.asarray(KEY), 5, (3, 0)).shape == (3, 0)


def test_jit_vmap_and_scan_draw_the_same():
    keys = jnp.asarray(np.random.default_rng(1).integers(0, 2**32, (3, 2), dtype=np.uint32))
    streams = jnp.arange(4, dtype=jnp.uint32)
    expected = [[np.asarray(random_words(k, t, (5, 7))) for t in streams] for k in keys]

    def over_time(key):
        return jax.lax.scan(lambda c, t: (c, random_words(key, t, (5, 7))), 0, streams)[1]

    np.testing.assert_array_equal(jax.jit(jax.vmap(over_time))(keys), expected)
    assert len({words.tobytes() for row in expected for words in row}) == 12


@pytest.mark.parametrize(
    ("stream", "shape", "dtype", "found"),
    [
        (0, (2,), jnp.uint16, "dtype=uint16"),
        (0, (2**16, 2**16, 2), jnp.uint32, "8589934592 elements"),
        (-1, (2,), jnp.uint32, "stream=-1"),
    ],
)
def test_refuses_what_it_cannot_draw(stream, shape, dtype, found):
    with pytest.raises(ValueError, match=found):
        jax.eval_shape(lambda: random_words(jnp.asarray(KEY), stream, shape, dtype))


# Statistics. Seeds are fixed; a perfect generator fails each with a probability of some 1e-6.


def assert_uniform(cells, count):
    """The numbers `cells` are equally often each of the integers below `count`."""
    found = np.bincount(cells, minlength=count)
    p = stats.chisquare(found).pvalue
    assert 1e-6 < p < 1 - 1e-6, p


@pytest.mark.parametrize("shift", range(0, 32, 8))
@pytest.mark.parametrize("stream", [0, 1])
def test_every_byte_is_uniform(shift, stream):
    words = np.asarray(random_words(jnp.asarray(KEY), stream, (1 << 19,)))
    assert_uniform(words >> shift & 255, 256)


def test_every_bit_is_balanced():
    n = 1 << 19
    with jax.enable_x64(True):
        words = np.asarray(random_words(jnp.zeros(2, jnp.uint32), 0, (n,), jnp.uint64))
    ones = np.array([(words >> np.uint64(b) & np.uint64(1)).sum() for b in range(64)])
    assert (abs(ones - n / 2) < 5.5 * np.sqrt(n) / 2).all()


@pytest.mark.parametrize("shift", [0, 28])  # the lowest and the highest four bits
def test_neighbours_are_independent(shift):
    """Pairs of words of neighbouring places, streams and keys fall into 16 x 16 cells evenly."""
    n = 1 << 17
    one, key = np.uint32([0, 1]), jnp.asarray(KEY)
    first = random_words(key, 3, (n,))
    others = {
        "place": random_words(key, 3, (n + 1,))[1:],
        "far place": random_words(key, 3, (2 * n,))[n:],
        "stream": random_words(key, 4, (n,)),
        "key": random_words(key ^ one, 3, (n,)),
        "key and stream": random_words(key ^ one, 2, (n,)),
    }
    for other in others.values():
        a, b = (np.asarray(words) >> shift & 15 for words in (first, other))
        assert_uniform(a * 16 + b, 256)
        u, v = (np.asarray(words) / 2.0**32 - 0.5 for words in (first, other))
        assert abs((u * v).mean()) < 5 / 12 / np.sqrt(n)  # the product has a deviation of 1/12


def test_each_bit_that_goes_in_flips_half_of_those_that_come_out():
    n = 1 << 12
    given = np.random.default_rng(2).integers(0, 2**32, (4, n), dtype=np.uint32)
    base = np.stack(noise.block(*given))
    for argument, bit in itertools.product(range(4), range(32)):
        changed = given.copy()
        changed[argument] ^= np.uint32(1 << bit)
        flipped = np.stack(noise.block(*changed)) ^ base
        for b in range(32):
            rates = (flipped >> np.uint32(b) & np.uint32(1)).mean(1)
            assert (abs(rates - 0.5) < 6 * 0.5 / np.sqrt(n)).all(), (argument, bit, b)

"""The layout of CPUs: every code has one place, and comes back from it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from spikebit.kernels import layouts, layouts_cpu
from spikebit.kernels.matrix import BITS, quantized_matrix


def random_codes(k, n, bits, seed=0):
    return np.random.default_rng(seed).integers(0, 1 << bits, (k, n)).astype(np.uint8)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 70), st.integers(0, 3), st.integers(0, 40), st.sampled_from(BITS))
@example(0, 1, 5, 4).via("no rows")
@example(33, 2, 17, 3).via("ragged")
def test_codes_come_back(group, groups, n, bits):
    codes = random_codes(group * groups, n, bits)
    words = layouts_cpu.pack_codes("vnni", jnp.asarray(codes), bits, group)
    assert all(w.dtype == jnp.uint8 for w in words)
    back = layouts_cpu.unpack_codes("vnni", words, bits, group, codes.shape)
    np.testing.assert_array_equal(back, codes)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_line_is_16_columns_of_4_bytes(bits):
    codes, fields = random_codes(64, 32, bits), 8 // bits
    (words,) = layouts_cpu.pack_codes("vnni", jnp.asarray(codes), bits, 32)
    assert words.shape == (2, 64 * bits // 32, 16, 4)
    for k in range(64):
        line, row = divmod(k, 4 * fields)
        field, byte = divmod(row, 4)
        found = np.asarray(words)[:, line, :, byte].reshape(-1) >> bits * field & (1 << bits) - 1
        np.testing.assert_array_equal(found, codes[k])


def test_three_bits_are_two_and_one():
    codes = random_codes(64, 16, 3)
    low, high = layouts_cpu.pack_codes("vnni", jnp.asarray(codes), 3, 64)
    two = layouts_cpu.pack_codes("vnni", jnp.asarray(codes & 3), 2, 64)
    np.testing.assert_array_equal(low, two[0])
    for k in range(64):
        line, row = divmod(k, 32)
        found = np.asarray(high)[0, line, :, row % 4] >> row // 4 & 1
        np.testing.assert_array_equal(found, codes[k] >> 2)


def test_groups_begin_lines_and_gaps_are_zero():
    codes = np.full((6, 17), 15, np.uint8)
    (words,) = layouts_cpu.pack_codes("vnni", jnp.asarray(codes), 4, 3)
    assert words.shape == (2, 2, 16, 4)
    np.testing.assert_array_equal(words[0], np.broadcast_to([15, 15, 15, 0], (2, 16, 4)))
    assert not words[1, :, 1:].any()


def test_packing_under_jit_and_vmap():
    codes = random_codes(3 * 40, 20, 3).reshape(3, 40, 20)
    w = quantized_matrix(codes[0], np.ones((5, 20), np.float32), bits=3)
    packed = jax.jit(layouts.pack, static_argnums=1)(w, "vnni")
    np.testing.assert_array_equal(jax.jit(layouts.unpack)(packed).codes, codes[0])

    def there_and_back(codes):
        words = layouts_cpu.pack_codes("vnni", codes, 3, 8)
        return layouts_cpu.unpack_codes("vnni", words, 3, 8, (40, 20))

    np.testing.assert_array_equal(jax.vmap(there_and_back)(jnp.asarray(codes)), codes)


def test_what_does_not_fit_is_named():
    codes = jnp.zeros((12, 5), jnp.uint8)
    with pytest.raises(ValueError, match=r"layout='planes'.*the layout is vnni"):
        layouts_cpu.pack_codes("planes", codes, 4, 4)
    with pytest.raises(ValueError, match=r"bits=5.*bits are 2, 3, 4, 8"):
        layouts_cpu.pack_codes("vnni", codes, 5, 4)
    with pytest.raises(ValueError, match=r"group=5\).*rows a multiple"):
        layouts_cpu.pack_codes("vnni", codes, 4, 5)
    words = layouts_cpu.pack_codes("vnni", codes, 4, 4)
    with pytest.raises(ValueError, match=r"words are of shapes .*\(1, 3, 16, 4\).* have \[\(1, 2"):
        layouts_cpu.unpack_codes("vnni", words, 4, 6, (12, 5))

"""The layout `planes`: where each code lies, and that nothing is lost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.kernels.layouts import pack, unpack
from spikebit.kernels.layouts_gpu import planes
from spikebit.kernels.matrix import quantized_matrix


def matrix(bits, groups, group, n):
    codes = np.random.default_rng(0).integers(0, 1 << bits, (groups * group, n), np.uint8)
    return quantized_matrix(codes, np.ones((groups, n)), bits=bits)


@pytest.mark.parametrize(
    ("bits", "groups", "group", "n"),
    [
        (2, 1, 37, 3), (2, 9, 64, 5), (2, 3, 16, 0), (2, 5, 1000, 2),
        (3, 2, 32, 7), (3, 5, 100, 4), (3, 3, 512, 1), (3, 1, 0, 3),
        (4, 7, 16, 3), (4, 1, 1, 1), (4, 3, 48, 6), (4, 9, 128, 5), (4, 2, 300, 2),
        (8, 1, 100, 7), (8, 5, 32, 1), (8, 4, 0, 2), (8, 3, 0, 0), (8, 3, 17, 2),
    ],
)  # fmt: skip
def test_packing_has_an_inverse_for_every_shape(compile_quickly, bits, groups, group, n):
    w = matrix(bits, groups, group, n)
    back = jax.jit(lambda w: unpack(pack(w, "planes")))(w)
    assert back.codes.dtype == jnp.uint8
    np.testing.assert_array_equal(back.codes, w.codes)


def test_it_keeps_scales_and_zero_points():
    w = matrix(3, 2, 100, 5)
    back = unpack(pack(w, "planes"))
    for found, given_ in zip(jax.tree.leaves(back), jax.tree.leaves(w), strict=True):
        np.testing.assert_array_equal(found, given_)


@pytest.mark.parametrize(("bits", "group"), [(2, 128), (4, 16), (4, 128), (8, 32)])
def test_a_plane_is_a_shift_of_the_words_of_its_tile(bits, group):
    w = matrix(bits, 8, group, 3)
    rows, codes = 16 if group == 16 else 32, np.asarray(w.codes)
    words = np.asarray(pack(w, "planes").words[0]).view(np.uint32)
    for k in range(w.shape[0]):
        tile, inside = divmod(k, 32 // bits * rows)
        plane, row = divmod(inside, rows)
        found = words[:, tile * rows + row] >> np.uint32(bits * plane) & ((1 << bits) - 1)
        np.testing.assert_array_equal(found, codes[k])


def test_the_third_bits_of_two_tiles_share_words():
    w = matrix(3, 12, 128, 3)  # three tiles of 512 rows
    codes = np.asarray(w.codes)
    low, high = (np.asarray(a).view(np.uint32) for a in pack(w, "planes").words)
    assert (low.shape, high.shape) == ((3, 96), (3, 64))
    for k in range(w.shape[0]):
        tile, plane, row = k // 512, k % 512 // 32, k % 32
        bits = low[:, tile * 32 + row] >> np.uint32(2 * plane) & 3
        top = high[:, tile // 2 * 32 + row] >> np.uint32(tile % 2 * 16 + plane) & 1
        np.testing.assert_array_equal(bits + 4 * top, codes[k])


@pytest.mark.parametrize(
    ("bits", "group", "k", "bytes_a_weight"),
    [(4, 128, 4096, 0.5), (8, 4096, 4096, 1), (2, 64, 4096, 0.25), (3, 128, 4096, 0.375)],
)
def test_the_usual_sizes_take_no_padding(bits, group, k, bytes_a_weight):
    w = pack(matrix(bits, k // group, group, 2), "planes")
    assert sum(a.nbytes for a in w.words) == bytes_a_weight * 2 * k


def test_planes_that_are_folded_together_lie_in_one_group():
    for bits in (2, 3, 4, 8):
        for group in (1, 16, 17, 32, 37, 64, 96, 100, 128, 160, 512, 4096):
            p = planes(4 * group, bits, group)
            assert p.group % (p.fold * p.rows) == 0
            assert p.tile % (p.fold * p.rows) == 0
            assert p.group >= group
            assert p.tiles * p.tile >= 4 * p.group

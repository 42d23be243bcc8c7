"""Tiles of GPU kernels: rules, and the table that measurements are kept in."""

import json

import jax
import jax.numpy as jnp
import pytest

from spikebit.kernels import tuning
from spikebit.kernels.layouts import PackedMatrix
from spikebit.kernels.tuning import Tile, best_tile, keep, key, rule


def matrix(k=4096, n=4096, group=128, bits=4, table=None):
    scale = jax.ShapeDtypeStruct((k // group, n), jnp.float32)
    return PackedMatrix((), scale, None, table, bits, "planes", (k, n))


@pytest.fixture
def files(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    monkeypatch.setattr(tuning, "SHIPPED", tmp_path / "shipped.json")
    return tmp_path


def test_a_tile_is_found_for_its_problem_and_for_no_other(files):
    tile = Tile(32, 64, 2, 4, 5)
    keep(key("low_bit", 90, 20, matrix()), tile)
    assert best_tile("low_bit", 90, 20, matrix()) == tile
    assert best_tile("low_bit", 90, 32, matrix()) == tile  # rows up to the same power of two
    for operation, capability, m, w in [
        ("integer", 90, 20, matrix()),
        ("low_bit", 100, 20, matrix()),
        ("low_bit", 90, 33, matrix()),
        ("low_bit", 90, 20, matrix(k=8192)),
        ("low_bit", 90, 20, matrix(n=8192)),
        ("low_bit", 90, 20, matrix(group=64)),
        ("low_bit", 90, 20, matrix(bits=8)),
        ("low_bit", 90, 20, matrix(table=jnp.zeros(16))),
    ]:
        assert best_tile(operation, capability, m, w) == rule(operation, capability, m, w)


def test_what_was_measured_here_goes_before_what_was_shipped(files):
    word = key("low_bit", 90, 1, matrix())
    keep(word, Tile(16, 64, 1, 4, 3), tuning.SHIPPED)
    assert best_tile("low_bit", 90, 1, matrix()) == Tile(16, 64, 1, 4, 3)
    keep(word, None)
    assert best_tile("low_bit", 90, 1, matrix()) is None  # dense products with float weights
    assert json.loads(tuning.cache().read_text()) == {word: None}
    assert [p.name for p in tuning.cache().parent.iterdir()] == ["tiles.json"]


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 3}', '{"a": {"rows": 1, "depth": 2}}'])
def test_a_broken_table_is_as_good_as_none(files, content):
    tuning.cache().parent.mkdir(parents=True)
    tuning.cache().write_text(content)
    assert best_tile("low_bit", 90, 1, matrix()) == rule("low_bit", 90, 1, matrix())


def test_few_rows_are_split_over_the_gpu_and_many_are_left_to_dense_products():
    for k, n in [(4096, 4096), (8192, 8192), (14336, 4096), (256, 64)]:
        tile = rule("low_bit", 90, 1, matrix(k, n))
        programs = -(-n // tile.columns) * tile.split
        assert 132 <= programs <= 528 or tile.split in (1, 16) or 4 * tile.split > k // 256
    assert rule("low_bit", 90, 100_000, matrix()) is None
    assert rule("integer", 90, 100_000, matrix()).split == 1

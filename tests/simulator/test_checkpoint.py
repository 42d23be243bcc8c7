"""Checkpoints: bits in, bits out; only whole ones are used."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spikebit.simulator import checkpoint


def tree(value=1.0):
    params = {"a/b": jnp.full((3, 2), float(value)), "c": [jnp.arange(4, dtype=jnp.uint8)]}
    nan = jnp.array([jnp.nan, -0.0, jnp.inf], jnp.bfloat16)
    return (optax.adam(0.1).init(params), nan, jnp.array([7, 2**32 - 1], jnp.uint32), None)


def test_bits_come_back_in_containers_and_dtypes(tmp_path):
    checkpoint.save(tmp_path, 5, tree(2.0), {"lines": 3})
    got = checkpoint.restore(tmp_path, jax.eval_shape(tree))
    assert got is not None
    assert (got.step, got.notes, got.damaged) == (5, {"lines": 3}, [])
    assert jax.tree.structure(got.tree) == jax.tree.structure(tree())
    for a, b in zip(jax.tree.leaves(got.tree), jax.tree.leaves(tree(2.0)), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_the_last_two_are_kept_and_the_newest_is_read(tmp_path):
    for step in (8, 9, 10, 100):
        checkpoint.save(tmp_path, step, tree(step), {})
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "00000010", "00000010.json", "00000100", "00000100.json",
    ]  # fmt: skip
    assert checkpoint.restore(tmp_path, tree()).step == 100


def test_no_checkpoint_is_no_error(tmp_path):
    assert checkpoint.restore(tmp_path, tree()) is None


def largest_file(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip(folder):
    path = largest_file(folder)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(folder):
    path = largest_file(folder)
    path.write_bytes(path.read_bytes()[:-1])


def lose(folder):
    largest_file(folder).unlink()


def spoil_listing(folder):
    folder.with_suffix(".json").write_text('{"step": 9')


def empty_listing(folder):
    folder.with_suffix(".json").write_text("[]")


@pytest.mark.parametrize("damage", [flip, cut, lose, spoil_listing, empty_listing])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, damage):
    checkpoint.save(tmp_path, 1, tree(1.0), {})
    checkpoint.save(tmp_path, 2, tree(2.0), {})
    damage(tmp_path / "00000002")
    got = checkpoint.restore(tmp_path, tree())
    assert got.step == 1
    assert len(got.damaged) == 1
    assert "00000002" in got.damaged[0]
    damage(tmp_path / "00000001")
    with pytest.raises(ValueError, match=r"no checkpoint is whole: .*00000002.*00000001"):
        checkpoint.restore(tmp_path, tree())


def test_what_was_killed_while_it_was_written_is_not_a_checkpoint(tmp_path):
    checkpoint.save(tmp_path, 1, tree(1.0), {})
    checkpoint.save(tmp_path, 2, tree(2.0), {})
    (tmp_path / "00000002.json").unlink()
    assert checkpoint.restore(tmp_path, tree()).step == 1
    checkpoint.save(tmp_path, 2, tree(3.0), {})  # over the rest of it
    assert checkpoint.restore(tmp_path, tree()).tree[0][0].count == 0
    assert checkpoint.restore(tmp_path, tree()).step == 2


def test_arrays_that_do_not_fit_are_named(tmp_path):
    checkpoint.save(tmp_path, 1, {"w": jnp.zeros((3, 2))}, {})
    with pytest.raises(ValueError, match=r"does not fit experiment.toml.*w.*\(3, 2\).*\(3, 3\)"):
        checkpoint.restore(tmp_path, {"w": jnp.zeros((3, 3))})
    with pytest.raises(ValueError, match=r"float32.*int32"):
        checkpoint.restore(tmp_path, {"w": jnp.zeros((3, 2), jnp.int32)})


def test_the_listing_names_every_file(tmp_path):
    checkpoint.save(tmp_path, 1, tree(), {})
    listed = json.loads((tmp_path / "00000001.json").read_text())["files"]
    folder = tmp_path / "00000001"
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert set(listed) == found

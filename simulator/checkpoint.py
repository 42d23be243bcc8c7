"""Checkpoints: the arrays of a run at one batch, saved by orbax and used only if whole.

A checkpoint is the folder `<step>/` that orbax writes and the file `<step>.json`, written last: it
lists the folder's files with their SHA-256 sums. No list, or a sum that differs: not a checkpoint.
No pickle is written or read.
"""

import hashlib
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from .run_directory import read_json, write_json

KEEP = 2


class Restored(NamedTuple):
    """The newest whole checkpoint of a folder."""

    step: int  # batches done
    tree: PyTree
    notes: dict[str, Any]  # what `save` was given
    damaged: list[str]  # newer checkpoints that could not be used, and why


def save(folder: Path, step: int, tree: PyTree, notes: dict[str, Any]) -> None:
    """Saves a tree of arrays under a step number and drops all but the last two checkpoints.

    Args:
        folder: where checkpoints are.
        step: orders the checkpoints.
        tree: any pytree of arrays.
        notes: JSON values kept beside it.
    """
    import orbax.checkpoint as ocp

    target = folder / f"{step:08d}"
    shutil.rmtree(target, ignore_errors=True)  # left by a process that was killed here
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(target.absolute(), _flat(tree))
    content = {"step": step, "notes": notes, "files": _sums(target)}
    write_json(folder / f"{step:08d}.json", content)
    _drop_old(folder)


def restore(folder: Path, like: PyTree) -> Restored | None:
    """Reads the newest whole checkpoint.

    Args:
        folder: where checkpoints are.
        like: a tree of arrays (or shapes) as they were saved.

    Returns:
        None if there never was a checkpoint.

    Raises:
        ValueError: there are checkpoints but none is whole, or it holds other arrays than `like`.
    """
    damaged: list[str] = []
    for listing in sorted(folder.glob("[0-9]*.json"), reverse=True):
        try:
            content = read_json(listing)
            _check_files(listing, content)
        except ValueError as error:
            damaged.append(str(error))
            continue
        tree = _read(listing.with_suffix(""), like)
        return Restored(content["step"], tree, content["notes"], damaged)
    if damaged:
        raise ValueError(f"no checkpoint is whole: {'; '.join(damaged)}")
    return None


def _flat(tree: PyTree) -> dict[str, jax.Array]:
    """Leaves by their path: independent of how orbax sees our containers."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    # a number in front keeps the order and makes the name unique; a slash would make folders
    return {
        f"{i:04d}{jax.tree_util.keystr(path)}".replace("/", "|"): jnp.asarray(leaf)
        for i, (path, leaf) in enumerate(leaves)
    }


def _read(folder: Path, like: PyTree) -> PyTree:
    import orbax.checkpoint as ocp

    shapes = jax.eval_shape(_flat, like)
    with ocp.StandardCheckpointer() as checkpointer:
        saved: Any = checkpointer.metadata(folder.absolute()).item_metadata
        found = {k: (tuple(v.shape), str(v.dtype)) for k, v in saved.items()}
        wanted = {k: (tuple(v.shape), str(v.dtype)) for k, v in shapes.items()}
        if found != wanted:
            names = [k for k in sorted(found | wanted) if found.get(k) != wanted.get(k)]
            raise ValueError(
                f"{folder} does not fit experiment.toml: {names[0]} is {found.get(names[0])}, "
                f"expected {wanted.get(names[0])}"
            )
        flat = checkpointer.restore(folder.absolute(), shapes)
    return jax.tree.unflatten(jax.tree.structure(like), [flat[k] for k in shapes])


def _sums(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files
    }


def _check_files(listing: Path, content: Any) -> None:
    if not isinstance(content, dict) or {"step", "notes", "files"} - content.keys():
        raise ValueError(f"{listing} is damaged: it does not list a checkpoint")
    found = _sums(listing.with_suffix(""))
    for name, wanted in content["files"].items():
        if found.get(name) != wanted:
            state = "is missing" if name not in found else "is damaged: its SHA-256 sum differs"
            raise ValueError(f"{listing.with_suffix('') / name} {state}")


def _drop_old(folder: Path) -> None:
    whole = sorted(folder.glob("[0-9]*.json"))
    for listing in whole[:-KEEP]:
        listing.unlink()
    kept = {p.stem for p in whole[-KEEP:]}
    for path in folder.iterdir():  # also what killed processes left
        if path.is_dir() and path.name not in kept:
            shutil.rmtree(path, ignore_errors=True)

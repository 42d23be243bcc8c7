"""The folder of one run: how it comes to be, what its files are, and when it may be believed.

    run.json         state of the run; the folder is a run if and only if this file is there
    experiment.toml  all settings
    versions.json    what computed it
    metrics.jsonl    one JSON object a line: of training, or a row of a study
    checkpoints/     see `checkpoint.py`
    result.json, report.html, *.png   of a complete run

Files are replaced in one piece, so a process killed at any moment leaves whole files. Nothing here
knows what a network is.
"""

import contextlib
import itertools
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from .. import __version__
from . import experiment_file
from .experiment import Experiment
from .studies import Study

STATES = ("running", "complete", "failed", "interrupted")


@dataclass(frozen=True)
class RunDirectory:
    """One run on disk; make it with `create` or `open_run`."""

    path: Path

    def state(self) -> dict[str, Any]:
        """The content of run.json: "state", one of `STATES`, and "why" if it failed."""
        content = read_json(self.path / "run.json")
        if not isinstance(content, dict) or content.get("state") not in STATES:
            raise ValueError(
                f"{self.path / 'run.json'}: state is not one of {', '.join(STATES)}; the file is "
                "damaged or from another program"
            )
        return content

    def set_state(self, state: str, **more: Any) -> None:
        """Replaces run.json."""
        write_json(self.path / "run.json", {"state": state, "spikebit": __version__, **more})

    def experiment(self) -> Experiment | Study:
        """The settings of the run."""
        return experiment_file.load(self.path / "experiment.toml")

    def versions(self) -> dict[str, str]:
        """What computed it."""
        return read_json(self.path / "versions.json")

    def result(self) -> dict[str, Any] | None:
        """What came out, None while the run is not complete."""
        if self.state()["state"] != "complete":
            return None
        return read_json(self.path / "result.json")

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Adds one line to metrics.jsonl, on disk when this returns."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def metrics(self) -> list[dict[str, Any]]:
        """All whole lines of metrics.jsonl; a last line that was cut short is left out."""
        return [json.loads(line) for line in self._lines()]

    def cut_metrics(self, count: int) -> None:
        """Keeps the first `count` lines: those that a checkpoint knows.

        Raises:
            ValueError: there are fewer.
        """
        lines = self._lines()
        if len(lines) < count:
            raise ValueError(
                f"{self.path / 'metrics.jsonl'} has {len(lines)} lines but the checkpoint was made "
                f"after {count}: the file was changed; start a new run"
            )
        replace_text(self.path / "metrics.jsonl", "".join(f"{line}\n" for line in lines[:count]))

    def _lines(self) -> list[str]:
        path = self.path / "metrics.jsonl"
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        return text.split("\n")[:-1]  # what follows the last line break is not whole

    @contextlib.contextmanager
    def judged(self) -> Iterator[None]:
        """Says in run.json when what is done inside is interrupted or fails."""
        try:
            yield
        except KeyboardInterrupt:
            self.set_state("interrupted")
            raise
        except Exception as error:
            self.set_state("failed", why=f"{type(error).__name__}: {error}")
            raise

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes out of the run; the lock goes when the process does."""
        try:
            import fcntl
        except ImportError:  # Windows
            yield
            return
        with (self.path / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"{self.path}: another process is working on this run") from None
            yield


def open_run(path: str | Path) -> RunDirectory:
    """The run in a folder.

    Raises:
        ValueError: the folder does not exist, is not a run, or its run.json is damaged.
    """
    path = Path(path)
    if not (path / "run.json").is_file():
        what = "has no run.json, so it is not a run" if path.is_dir() else "is not a folder"
        raise ValueError(f"{path} {what}; give the folder that `spikebit run` made")
    run = RunDirectory(path)
    run.state()
    return run


def check_free(experiment: Experiment | Study) -> None:
    """Refuses a run directory that is taken, before any work is done.

    Raises:
        ValueError: run.dir exists and holds something.
    """
    if experiment.run.dir is None:
        return
    path = Path(experiment.run.dir).expanduser()
    if (path / "run.json").exists():
        raise ValueError(
            f"run.dir = {path} already holds a run: continue it with `spikebit resume {path}`, or "
            "choose another run.dir"
        )
    if path.exists() and not path.is_dir():
        raise ValueError(f"run.dir = {path} is a file: choose another run.dir")
    if path.is_dir() and any(path.iterdir()):
        raise ValueError(f"run.dir = {path} is not empty: choose another run.dir")


def create(experiment: Experiment | Study) -> RunDirectory:
    """Makes the folder of a new run; it appears whole or not at all.

    Args:
        experiment: its settings; without run.dir the folder is runs/<name>-<next free number>.

    Raises:
        ValueError: run.dir is taken.
        OSError: the folder cannot be made or written.
    """
    check_free(experiment)
    if experiment.run.dir is None:
        parent = Path("runs")
        numbered = (parent / f"{experiment.run.name}-{i}" for i in itertools.count(1))
        candidates = (p for p in numbered if not p.exists())
    else:
        path = Path(experiment.run.dir).expanduser()
        parent, candidates = path.parent, iter([path])
    try:
        parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".spikebit-", dir=parent))
    except OSError as error:
        raise OSError(
            f"run.dir: cannot write in {parent.absolute()} ({error.strerror}): choose a folder you "
            "may write with --set run.dir=DIR"
        ) from None
    try:
        draft.chmod(0o755)
        (draft / "checkpoints").mkdir()
        replace_text(draft / "experiment.toml", experiment_file.to_toml(experiment))
        write_json(draft / "versions.json", versions())
        RunDirectory(draft).set_state("running")
        for path in candidates:
            if _rename(draft, path):
                return RunDirectory(path)
        raise ValueError(f"run.dir = {experiment.run.dir} was taken meanwhile")
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def versions() -> dict[str, str]:
    """What computes here: packages, Python, platform, devices."""
    import jax

    names = ("jax", "jaxlib", "flax", "optax", "numpy", "numba", "orbax-checkpoint")
    found = {"spikebit": __version__} | {name: metadata.version(name) for name in names}
    devices = ", ".join(sorted({d.device_kind for d in jax.devices()}))
    return found | {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "devices": f"{jax.device_count()} x {devices}",
    }


def write_json(path: Path, value: Any) -> None:
    """Writes a file in one piece."""
    replace_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        ValueError: the file is missing or damaged; names it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: the run is not whole") from None
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def replace_text(path: Path, text: str) -> None:
    """Writes a text file in one piece: at any moment there is the old text or the new one."""
    draft = path.with_name(f".{path.name}.new")
    with draft.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _rename(draft: Path, path: Path) -> bool:
    """Moves the draft to a place that is free or an empty folder; False if it is taken."""
    with contextlib.suppress(OSError):
        path.rmdir()  # an empty folder may be replaced
    if path.exists():
        return False
    draft.rename(path)
    return True

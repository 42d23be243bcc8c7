"""What a run tells while it goes on; who shows it, and how, is said elsewhere (`progress.py`)."""

from collections.abc import Callable
from typing import Any, NamedTuple

from .run_directory import RunDirectory


class Watcher(NamedTuple):
    """Four functions that are called; each may be left out."""

    #: Once: the run, what it is about, how many steps there are, and how many are done already.
    started: Callable[[RunDirectory, str, int, int], None] = lambda run, text, total, done: None
    #: With each line of metrics of a training run.
    metrics: Callable[[dict[str, Any]], None] = lambda line: None
    #: With each row of a study, and how many are done with it.
    row: Callable[[dict[str, Any], int], None] = lambda row, done: None
    #: With what else a person should know.
    note: Callable[[str], None] = lambda text: None


NOBODY = Watcher()

"""What a person sees while a run goes on: a bar on a terminal, a line an epoch elsewhere."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .job import Job
from .launch import Watcher
from .run_directory import RunDirectory


class Display(contextlib.AbstractContextManager):
    """Shows a run on a text stream.

    Attributes:
        run: folder of the run, once it is known.
    """

    def __init__(self, stream: Any):
        self.run: Path | None = None
        self._console = Console(file=stream, highlight=False)
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            TextColumn("{task.percentage:.0f} %  {task.fields[text]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )

    def __enter__(self) -> "Display":
        self._progress.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._progress.stop()

    def note(self, text: str) -> None:
        """Shows a line."""
        self._console.print(text, markup=False, soft_wrap=True)

    def watcher(self, also: Callable[[dict[str, Any]], None] | None = None) -> Watcher:
        """What to give to `launch.run`; `also` gets every line of metrics too."""
        task = self._progress.add_task("", total=None, epoch=1, text="compiling")

        def started(run: RunDirectory, job: Job, step: int) -> None:
            self.run = run.path
            self.note(f"{run.path}: {job.dataset.describe()}")
            self._progress.update(task, total=job.steps, completed=step)

        def metrics(line: dict[str, Any]) -> None:
            text = describe(line, ("train",))
            self._progress.update(task, completed=line["step"], epoch=line["epoch"], text=text)
            if "test_loss" in line:
                self.note(f"epoch {line['epoch']}: {describe(line, ('train', 'test'))}")
            if also is not None:
                also(line)

        return Watcher(started, metrics, self.note)


def describe(line: dict[str, Any], parts: tuple[str, ...]) -> str:
    """Loss, and accuracy where there is one, of some parts of the data in a line of metrics."""
    told = []
    for part in parts:
        told.append(f"{part} loss {line[f'{part}_loss']:.3f}")
        if line[f"{part}_accuracy"] is not None:
            told.append(f"accuracy {line[f'{part}_accuracy']:.1%}")
    return ", ".join(told)

"""What a person sees while a run goes on: a bar on a terminal, elsewhere a line now and then.

Of training that is a line an epoch, of a study a line for each tenth of its cases.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .run_directory import RunDirectory
from .watcher import Watcher


class Display(contextlib.AbstractContextManager):
    """Shows a run on a text stream.

    Attributes:
        run: folder of the run, once it is known.
    """

    def __init__(self, stream: Any):
        self.run: Path | None = None
        self._console = Console(file=stream, highlight=False)
        self._progress = Progress(
            TextColumn("{task.fields[place]}"),
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
        """What to give to `launch.run`; `also` gets every line of metrics and every row."""
        task = self._progress.add_task("", total=None, place="", text="compiling")
        cases = 0

        def started(run: RunDirectory, text: str, total: int, done: int) -> None:
            nonlocal cases
            self.run, cases = run.path, total
            self.note(f"{run.path}: {text}")
            self._progress.update(task, total=total, completed=done)

        def metrics(line: dict[str, Any]) -> None:
            place, text = f"epoch {line['epoch']}", describe(line, ("train",))
            self._progress.update(task, completed=line["step"], place=place, text=text)
            if "test_loss" in line:
                self.note(f"epoch {line['epoch']}: {describe(line, ('train', 'test'))}")
            if also is not None:
                also(line)

        def row(row: dict[str, Any], done: int) -> None:
            place = f"case {done} of {cases}"
            self._progress.update(task, completed=done, place=place, text="")
            if not self._console.is_terminal and done * 10 // cases > (done - 1) * 10 // cases:
                self.note(place)
            if also is not None:
                also(row)

        return Watcher(started, metrics, row, self.note)


def describe(line: dict[str, Any], parts: tuple[str, ...]) -> str:
    """Loss, and accuracy where there is one, of some parts of the data in a line of metrics."""
    told = []
    for part in parts:
        told.append(f"{part} loss {line[f'{part}_loss']:.3f}")
        if line[f"{part}_accuracy"] is not None:
            told.append(f"accuracy {line[f'{part}_accuracy']:.1%}")
    return ", ".join(told)

"""Studies: what each of them must offer, and how one is found by its name.

A study measures one thing for many cases, and draws what came out. Each is a module of this folder,
named after it; a module whose name starts with an underscore helps others and is none. How a study
is carried out is said in `simulator/study.py`.
"""

import dataclasses
import difflib
import functools
import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from pydantic.dataclasses import dataclass

from ..experiment import STRICT, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@runtime_checkable
class StudyModule(Protocol):
    """What a module of this folder offers.

    It may also have `TITLES`, name of a picture -> heading (else the name), and `TEXT`, a paragraph
    for the top of the report.
    """

    #: A frozen dataclass with `config=STRICT`: the keys of the section `[study]` but for `name`.
    Settings: type

    @staticmethod
    def cases(settings: Any, seed: int) -> Sequence[Mapping[str, Any]]:
        """All cases, each a dict of JSON values that names one measurement; no two are equal.

        Raises:
            ValueError: settings that cannot be measured; called before a run directory exists.
        """
        ...

    @staticmethod
    def measure(settings: Any, seed: int, case: Mapping[str, Any]) -> Mapping[str, Any]:
        """What is found for a case, as JSON values; depends on nothing but its arguments."""
        ...

    @staticmethod
    def pictures(settings: Any, rows: Sequence[Mapping[str, Any]]) -> Mapping[str, "Axes"]:
        """By name; a row is a case with what `measure` found for it, and `seconds`."""
        ...

    @staticmethod
    def summary(settings: Any, rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        """JSON values that say in short what came out."""
        ...


@dataclasses.dataclass(frozen=True)
class Study:
    """All settings of one run of a study; `experiment_file.load` reads them."""

    run: Run
    name: str
    settings: Any  # the `Settings` of its module

    def sections(self) -> dict[str, dict[str, Any]]:
        """Section -> key -> value, as in the file."""
        own = {"name": self.name} | dataclasses.asdict(self.settings)
        return {"run": dataclasses.asdict(self.run), "study": own}


def known() -> list[str]:
    """Names of all studies."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def find(name: str) -> StudyModule:
    """The module of a study.

    Raises:
        ValueError: there is none; proposes the nearest.
    """
    if name not in known():
        near = difflib.get_close_matches(name, known(), n=1)
        guess = f"did you mean {near[0]}? " if near else ""
        raise ValueError(
            f'study.name = "{name}": {guess}known studies are {", ".join(known()) or "none"}'
        )
    return cast(StudyModule, importlib.import_module(f".{name}", __name__))


@functools.cache
def schema(settings: type) -> type:
    """The sections of a study's file, without the name: what pydantic checks."""

    @dataclass(frozen=True, kw_only=True, config=STRICT)
    class Sections:
        study: settings  # pyright: ignore[reportInvalidTypeForm]
        run: Run = Run()

    return Sections

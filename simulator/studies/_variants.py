"""An experiment some of whose settings are others: what studies that train networks vary."""

from collections.abc import Mapping
from typing import Any

from .. import experiment_file
from ..experiment import Experiment


def variant(experiment: str, changes: Mapping[str, Any], *, source: str) -> Experiment:
    """The experiment with other settings.

    Args:
        experiment: a TOML file, or the name of an experiment of the package.
        changes: "section.key" -> value.
        source: of the changes, for messages.

    Raises:
        ValueError: in one line, with the setting.
    """
    base = experiment_file.load(experiment)
    if not isinstance(base, Experiment):
        raise ValueError(
            f"study.experiment = {experiment!r} is a study: give an experiment to train"
        )
    table = {
        section: {k: v for k, v in inner.items() if v is not None}
        for section, inner in base.sections().items()
    }
    for name, value in changes.items():
        section, *keys = name.split(".")
        if not keys:
            raise ValueError(f'study: "{name}" is not a setting: write "section.key"')
        inner: dict[str, Any] = table.setdefault(section, {})
        for key in keys[:-1]:
            inner = inner.setdefault(key, {})
        inner[keys[-1]] = value
    found = experiment_file.check(table, source=source)
    assert isinstance(found, Experiment)
    return found

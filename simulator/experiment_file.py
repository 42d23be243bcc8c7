"""Experiments and studies as TOML: read, overridden by the command line, judged, written back.

Which settings there are is said in `experiment.py` and, of a study, in its module of `studies/`.
"""

import dataclasses
import difflib
import functools
import json
import math
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from . import studies
from .experiment import Experiment
from .studies import Study


def load(path: str | Path, overrides: Iterable[str] = ()) -> Experiment | Study:
    """Reads an experiment file and lays overrides over it; with a section [study] it is a study.

    Args:
        path: a TOML file, or the name of an experiment that the package brings (`shipped()`).
        overrides: texts "section.key=value", value in TOML; a bare word is a string.

    Raises:
        ValueError: in one line, with the file or the override, the field, what was found and what
            would work.
    """
    path = _find(path)
    try:
        with path.open("rb") as file:
            table = tomllib.load(file)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: this is not TOML: {error}") from None
    sources: dict[tuple[str, ...], str] = {}
    for text in overrides:
        section, key, value = _parse_override(text)
        if section not in table:
            sources[(section,)] = f"--set {text}"
        inner = table.setdefault(section, {})
        if not isinstance(inner, dict):
            break  # a section that is not a table: `check` says so
        inner[key] = value
        sources[section, key] = f"--set {text}"
    return check(table, source=str(path), sources=sources)


def shipped() -> list[str]:
    """Names of the experiments in the package."""
    return sorted(p.stem for p in _SHIPPED.glob("*.toml"))


_SHIPPED = Path(__file__).parent / "experiments"


def check(
    table: Mapping[str, Any],
    *,
    source: str = "experiment",
    sources: Mapping[tuple[str, ...], str] | None = None,
) -> Experiment | Study:
    """Turns nested tables of plain values into settings, or says what is wrong in one line.

    Args:
        table: section -> key -> value.
        source: what to call the table in an error.
        sources: what to call single fields instead.
    """
    sources = sources or {}
    if "study" not in table:
        return _validate(table, Experiment, source, sources)
    study = table["study"]
    if not isinstance(study, Mapping):
        raise ValueError(f"{source}: study = {_show(study)}: expected a table of settings")
    where, name = sources.get(("study", "name"), source), study.get("name")
    if not isinstance(name, str):
        found = f"study.name = {_show(name)}" if "name" in study else "study.name is missing"
        raise ValueError(f"{where}: {found}: known studies are {', '.join(studies.known())}")
    try:
        schema = studies.schema(studies.find(name).Settings)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    own = {key: value for key, value in study.items() if key != "name"}
    found = _validate({**table, "study": own}, schema, source, sources)
    return Study(found.run, name, found.study)


def _validate(
    table: Mapping[str, Any], kind: type, source: str, sources: Mapping[tuple[str, ...], str]
) -> Any:
    """The table as an instance of a dataclass of sections."""
    try:
        # by way of JSON: there strict means what TOML means (arrays are tuples, tables settings)
        return _adapter(kind).validate_json(json.dumps(table, default=_not_a_setting))
    except ValidationError as error:
        errors = error.errors(include_url=False)
    first = errors[0]
    loc = first["loc"]
    where = sources.get(tuple(str(p) for p in loc[:2]), source)
    more = len({e["loc"][:2] for e in errors}) - 1
    tail = f" (and {more} more)" if more else ""
    raise ValueError(f"{where}: {_explain(first, loc, kind)}{tail}")


_adapter = functools.cache(TypeAdapter)


def to_toml(experiment: Experiment | Study) -> str:
    """Writes all settings, so that `load` reads the same experiment back."""
    lines = []
    for section, settings in experiment.sections().items():
        lines.append(f"[{section}]")
        lines += [f"{k} = {_toml_value(v)}" for k, v in settings.items() if v is not None]
        lines.append("")
    return "\n".join(lines)


def _find(path: str | Path) -> Path:
    found = Path(path)
    if not found.exists() and str(path) in shipped():
        return _SHIPPED / f"{path}.toml"
    if not found.is_file():
        what = "is a folder" if found.is_dir() else "does not exist"
        raise ValueError(
            f"{path}: this experiment file {what}; give a TOML file, or one of the experiments "
            f"that come with spikebit: {', '.join(shipped())}"
        )
    return found


def _parse_override(text: str) -> tuple[str, str, Any]:
    field, equals, value = text.partition("=")
    parts = tuple(p.strip() for p in field.split("."))
    if not equals or len(parts) != 2 or not all(parts):
        raise ValueError(f"--set {text}: write section.key=value, for example --set train.epochs=5")
    return parts[0], parts[1], _parse_value(value.strip())


def _parse_value(text: str) -> Any:
    try:
        table = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    value = table["value"]
    plain = isinstance(value, (bool, int, float, str, list, dict))
    return value if plain and len(table) == 1 else text  # a date is a word here


def _not_a_setting(value: Any) -> str:
    return f"{type(value).__name__} {value}"


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{json.dumps(k)} = {_toml_value(v)}' for k, v in value.items())} }}"
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(_toml_value, value))}]"
    return repr(value)


_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": 'a text in quotes, as in "name"',
    "bool_type": "true or false",
    "tuple_type": "a list, as in [256]",
    "dataclass_type": "a table of settings",
    "too_short": "a list of at least one entry",
    "string_too_short": "a text that is not empty",
    "string_pattern_mismatch": "letters, digits, '_', '-' and '.', and a letter or digit first",
}
_RANGES = {
    "greater_than": "> {gt}",
    "greater_than_equal": ">= {ge}",
    "less_than": "< {lt}",
    "less_than_equal": "<= {le}",
}


def _explain(error: Any, loc: tuple[int | str, ...], whole: type) -> str:
    """One clause: the field, what was found, what would work."""
    field = ".".join(str(p) for p in loc)
    kind, found, context = error["type"], error["input"], error.get("ctx", {})
    if kind == "unexpected_keyword_argument":
        return _unknown_key(field, loc, whole)
    if kind == "value_error":
        return str(context["error"])
    said = f"{field} = {_show(found)}"
    if kind == "literal_error":
        known = [w.strip("' ") for w in context["expected"].replace(" or ", ", ").split(",")]
        guess = _nearest(found, known) if isinstance(found, str) else ""
        return f"{said}: {guess}known values are {', '.join(known)}"
    if kind in _RANGES:
        return f"{said}: must be {_RANGES[kind].format(**context)}"
    return f"{said}: expected {_EXPECTED.get(kind, error['msg'])}"


def _unknown_key(field: str, loc: tuple[int | str, ...], kind: Any) -> str:
    sections = {f.name: f.type for f in dataclasses.fields(kind)}
    if len(loc) == 1:
        known, what = list(sections), "section"
    else:
        section: Any = sections[str(loc[0])]
        known, what = [f.name for f in dataclasses.fields(section)], "key"
    guess = _nearest(str(loc[-1]), known)
    return f"{field} is not a known {what}: {guess}known are {', '.join(known)}"


def _nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]}? " if close else ""


def _show(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    text = json.dumps(value, ensure_ascii=False, default=_not_a_setting)
    return text if len(text) <= 60 else text[:57] + "..."

"""A device in a file: what a fit found, as JSON that every experiment can load by its path.

    format, version   of the file
    model             "soft_bounds"
    unit, reference   "uS", or "1" for a number without a unit; the place where steps are quoted
    values, errors    fields of `fit.Population`; an error is null where the traces did not tell
    source            what was fitted: file, cells, reads, log likelihood

Bounds are distances from the reference. The fit itself is in `fit.py`, the model in `pulsed.py`.
"""

import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from .device import Device
from .fit import Fitted
from .pulse_traces import Unit
from .pulsed import Variation, pulsed, soft_bounds

FORMAT: Literal["spikebit device"] = "spikebit device"
VERSION: Literal[1] = 1
_LARGEST = 10**6  # bytes
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
_Above = Annotated[float, Field(gt=0)]
_Below = Annotated[float, Field(lt=0)]
_NotNegative = Annotated[float, Field(ge=0)]
_Error = _NotNegative | None


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Values:
    """See `fit.Population`."""

    up: _Above
    down: _Above
    high: _Above
    low: _Below
    step_spread: _NotNegative
    asymmetry_spread: _NotNegative
    high_spread: _NotNegative
    low_spread: _NotNegative
    pulse: _NotNegative
    read: _NotNegative


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Errors:
    """Standard errors of `Values`."""

    up: _Error
    down: _Error
    high: _Error
    low: _Error
    step_spread: _Error
    asymmetry_spread: _Error
    high_spread: _Error
    low_spread: _Error
    pulse: _Error
    read: _Error


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Source:
    """Where the numbers come from."""

    file: str
    cells: Annotated[int, Field(ge=1)]
    reads: Annotated[int, Field(ge=1)]
    log_likelihood: float


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class DeviceFile:
    """The content of a file."""

    format: Literal["spikebit device"]
    version: Literal[1]
    model: Literal["soft_bounds"]
    unit: Unit
    reference: float
    values: Values
    errors: Errors
    source: Source

    def device(self, name: str) -> Device:
        """Cells drawn from the population, to be trained and simulated.

        Their steps and bounds are normal with the means and spreads of the fit. What a read sees
        beside the cell is drawn at each write. Conductances of a range above 0 stay there.
        """
        v = self.values
        step, mean = max(v.up, v.down), (v.up + v.down) / 2
        asymmetry = v.up / v.down - 1 if v.up < v.down else 1 - v.down / v.up
        found = pulsed(
            soft_bounds,
            step=step,
            low=v.low,
            high=v.high,
            asymmetry=asymmetry,
            reference=-self.reference,
            additive=True,
            variation=Variation(
                step=v.step_spread * mean / step,
                high=v.high_spread,
                low=v.low_spread,
                asymmetry=v.asymmetry_spread * mean / step,
                pulse=v.pulse,
                write=v.read / step,
            ),
            name=name,
        )
        if self.unit == "uS" and self.reference > 0:
            return found._replace(g_min=max(found.g_min, 0.0))
        return found


_adapter = TypeAdapter(DeviceFile)


def of_fit(fitted: Fitted, unit: Unit, reference: float, source: Source) -> DeviceFile:
    """The content of the file of a fit."""
    errors = {k: e if math.isfinite(e) else None for k, e in fitted.errors._asdict().items()}
    return DeviceFile(
        format=FORMAT,
        version=VERSION,
        model="soft_bounds",
        unit=unit,
        reference=reference,
        values=Values(**fitted.values._asdict()),
        errors=Errors(**errors),
        source=source,
    )


def write(path: str | Path, content: DeviceFile) -> None:
    """Writes a file in one piece.

    Raises:
        ValueError: the name does not end in .json, or what is there is no device file.
        OSError: it cannot be written.
    """
    from ..run_directory import write_json

    check_free(path)
    write_json(Path(path), _adapter.dump_python(content, mode="json"))


def check_free(path: str | Path) -> None:
    """Refuses a path that a device file cannot be written to.

    Raises:
        ValueError: see `write`.
    """
    path = Path(path)
    if path.suffix != ".json":
        raise ValueError(f"{path}: a device file has a name that ends in .json.")
    if path.exists():
        try:
            load(path)
        except ValueError as error:
            raise ValueError(
                f"{path} is there and no device file; choose another ({error})"
            ) from None


def load(path: str | Path) -> DeviceFile:
    """Reads a file.

    Raises:
        ValueError: there is none, it is too large or damaged, of another format or version, or a
            field is missing, unknown or out of range; names it.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: there is no such device file.")
    if path.stat().st_size > _LARGEST:
        raise ValueError(f"{path.name}: {path.stat().st_size} bytes are too many for a device.")
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name}: this is no JSON: {error}") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f'{path.name}: is no device file, which has format "{FORMAT}".')
    if found.get("version") != VERSION:
        raise ValueError(
            f"{path.name}: is of version {found.get('version')!r:.20}; read is {VERSION}."
        )
    try:
        return _adapter.validate_json(json.dumps(found))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ValueError(
            f"{path.name}: {field} is {first['input']!r:.60}: {first['msg']}."
        ) from None

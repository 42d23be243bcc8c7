"""From the settings of a memory to where the weights live, devices and noise included.

What a setting means is said here; which settings there are is said in `experiment.py`.
"""

from .. import quant
from ..quant.training import compensated, master_copy
from .devices import (
    Many,
    Pair,
    ReferenceColumn,
    Single,
    Sliced,
    by_name,
    hardware_aware,
    memristive,
    tiki_taka,
)
from .devices.cells import Arrangement
from .experiment import Memory

_ALONE = {"single": Single(), "pair": Pair(), "reference_column": ReferenceColumn()}


def make_memory(settings: Memory) -> quant.WeightMemory:
    """Where the weights live."""
    return aware(settings, _make_clean(settings))


def aware(settings: Memory, memory: quant.WeightMemory) -> quant.WeightMemory:
    """The memory, read with noise and clipped as far as the settings say."""
    if not settings.hardware_aware():
        return memory
    noise, name = settings.noise, settings.noise_device
    try:
        return hardware_aware(
            memory,
            noise if name is None else by_name(name),
            clip=settings.clip,
            clip_stds=settings.clip_stds,
        )
    except ValueError as error:
        raise ValueError(f"memory.noise_device: {error}") from None


def _make_clean(settings: Memory) -> quant.WeightMemory:
    if settings.device is not None:
        return _make_devices(settings.device, settings)
    try:
        if settings.master:
            return master_copy(settings.format, settings.rounding)
        if settings.format == "float32":
            memory = quant.float32()
        else:
            memory = quant.number_format(settings.format, settings.rounding)
    except ValueError as error:
        raise ValueError(f"memory.format = {settings.format!r}: {error}") from None
    if settings.compensation is None:
        return memory
    try:
        return compensated(memory, settings.compensation)
    except ValueError as error:
        raise ValueError(f"memory.compensation = {settings.compensation!r}: {error}") from None


def _make_devices(name: str, settings: Memory) -> quant.WeightMemory:
    try:
        device = by_name(name)
    except ValueError as error:
        raise ValueError(f"memory.device: {error}") from None
    try:
        cells = _arrangement(settings)
        memory = memristive(device, cells, writing=settings.writing, dt=settings.step_seconds)
    except ValueError as error:
        raise ValueError(f"memory.cells, memory.writing: {error}") from None
    if settings.transfer is None:
        return memory
    try:
        return tiki_taka(memory, device, settings.transfer)
    except ValueError as error:
        raise ValueError(f"memory.transfer: {error}") from None


def _arrangement(settings: Memory) -> Arrangement | None:
    if settings.cells == "many":
        return Many(settings.pairs or 4)
    if settings.cells == "sliced":
        return Sliced(settings.significances or (8, 1))
    return None if settings.cells is None else _ALONE[settings.cells]

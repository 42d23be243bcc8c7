"""Devices by name: published settings of pulsed cells, and the models of cells for inference.

Weights of pulsed cells are in units of the nominal range of the source, steps too. The shapes of
their steps are in `pulsed.py`.
"""

from collections.abc import Callable
from pathlib import Path

from . import device_file
from .device import Device
from .leak import with_leak
from .pcm import pcm
from .pulsed import Variation, exponential, linear, pulsed, soft_bounds
from .reram import reram_cmo, reram_milo, reram_wan
from .set_pulses import set_pcm


def reram_es() -> Device:
    """ReRAM with exponential steps."""
    return pulsed(
        exponential(-0.5, -0.5, (5.0, 5.0), (-1.18445, -0.081404)),
        step=0.00135,
        asymmetry=0.259359,
        reference=0.0,
        variation=Variation(step=0.2, high=0.3, low=0.3, pulse=5.0, write=75.0),
        name="reram_es",
    )


def reram_sb() -> Device:
    """ReRAM with soft bounds and a reference."""
    return pulsed(
        soft_bounds,
        step=0.002,
        low=-0.75,
        high=1.25,
        reference=0.0,
        additive=True,
        variation=Variation(step=0.3, high=0.24, low=0.4, pulse=3.75, write=56.0),
        name="reram_sb",
    )


def capacitor() -> Device:
    """A capacitor, its steps nearly constant, that leaks within a million updates of a second."""
    device = pulsed(
        linear,
        step=0.005,
        slopes=(0.05, 0.05),
        reference=0.0,
        variation=Variation(step=0.1, high=0.07, low=0.07),
        name="capacitor",
    )
    return with_leak(device, 1e6)


def ecram() -> Device:
    """A lithium ECRAM."""
    return pulsed(
        linear,
        step=0.002,
        low=-0.8276,
        high=1.1724,
        slopes=(0.1153, 0.5085),
        reference=0.0,
        variation=Variation(step=0.1, high=0.05, low=0.05),
        name="ecram",
    )


def ecram_mo() -> Device:
    """A metal-oxide ECRAM."""
    return pulsed(
        linear,
        step=2.8214e-4,
        low=-0.8286,
        high=1.1714,
        slopes=(0.4152, 0.7342),
        reference=0.0,
        variation=Variation(step=0.1, high=0.05, low=0.05, pulse=2.0),
        name="ecram_mo",
    )


def idealized() -> Device:
    """Small constant steps."""
    return pulsed(step=0.0002, reference=0.0, name="idealized")


def gokmen_vlasov() -> Device:
    """The cells of the first specification for training, with constant steps."""
    return pulsed(step=0.0016, reference=0.0, name="gokmen_vlasov")


def reram_array_om() -> Device:
    """An optimised array of ReRAM: soft bounds, read against each cell's symmetry point."""
    return _array(
        "reram_array_om", 0.0949, Variation(0.7829, 0.3499, 0.5695, pulse=0.4158, write=1.4113)
    )


def reram_array_hfo2() -> Device:
    """A baseline array of HfO2 ReRAM, as `reram_array_om`."""
    return _array(
        "reram_array_hfo2", 0.4622, Variation(0.7125, 0.4295, 0.5990, pulse=0.2174, write=0.5841)
    )


def _array(name: str, step: float, variation: Variation) -> Device:
    return pulsed(
        soft_bounds,
        step=step,
        reference=None,
        reference_std=0.05,
        additive=True,
        variation=variation._replace(log_normal=True),
        name=name,
    )


def hermes() -> Device:
    """Phase-change cells of the HERMES chip."""
    return pcm("hermes")


DEVICES: dict[str, Callable[[], Device]] = {
    "pcm": pcm,
    "hermes": hermes,
    "set_pcm": set_pcm,
    "reram_wan": reram_wan,
    "reram_cmo": reram_cmo,
    "reram_milo": reram_milo,
    "reram_es": reram_es,
    "reram_sb": reram_sb,
    "capacitor": capacitor,
    "ecram": ecram,
    "ecram_mo": ecram_mo,
    "idealized": idealized,
    "gokmen_vlasov": gokmen_vlasov,
    "reram_array_om": reram_array_om,
    "reram_array_hfo2": reram_array_hfo2,
}


def by_name(name: str) -> Device:
    """The device of a name in `DEVICES`, or of a device file, whose path ends in .json.

    Raises:
        ValueError: an unknown name, or a file that is missing or no device file.
    """
    if name.endswith(".json"):
        return device_file.load(name).device(Path(name).stem)
    if name not in DEVICES:
        raise ValueError(
            f"{name!r} is no device; known are {', '.join(DEVICES)}, and device files by a path "
            "that ends in .json."
        )
    return DEVICES[name]()

"""JSB chorales: four-part chorales by J. S. Bach as piano rolls; predict the next frame."""

import json
from pathlib import Path
from typing import Literal

import numpy as np

from .dataset import Dataset, Split
from .files import DataFile, Source, check_sha256, open_content, sha256

PARTS = ("train", "valid", "test")
LOWEST, HIGHEST = 21, 108  # MIDI numbers of the 88 keys of a piano
_HOME = "https://raw.githubusercontent.com/czhuang/JSB-Chorales-dataset/master"
FILES = {
    resolution: DataFile(
        f"jsb-chorales-{resolution}.json",
        "jsb",
        checksum,
        (f"{_HOME}/jsb-chorales-{resolution}.json",),
    )
    for resolution, checksum in {
        "quarter": "2db9329f1881a1d3f49703ec556bf1d6f84b4f6c1d702c156536e93cf31e1c91",
        "16th": "8730aca7b64e7d29493733d1cf19fad4a5b351d8f1845e57dac27728104fd39f",
    }.items()
}
_TONES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
KEYS = tuple(f"{_TONES[pitch % 12]}{pitch // 12 - 1}" for pitch in range(LOWEST, HIGHEST + 1))
_LARGEST = 2**26  # [bytes]

Chorale = list[list[int]]
"""The pitches (MIDI numbers) that sound in each frame."""


def jsb(source: Source, *, resolution: Literal["quarter", "16th"] = "quarter") -> Dataset:
    """Loads 229 + 76 + 77 chorales (train, valid, test) as frames of 88 keys, 0 or 1.

    Inputs are the frames t, targets the frames t+1. Sequences are filled up with zeros to the
    longest of all splits; `lengths` counts the frames that have a target.

    Args:
        source: where the file is.
        resolution: length of a frame, a quarter or a sixteenth note.

    References:
        Modeling temporal dependencies in high-dimensional sequences: application to polyphonic
        music generation and transcription, arXiv:1206.6392.
    """
    if resolution not in FILES:
        raise ValueError(f"jsb: resolution={resolution!r}, expected 'quarter' or '16th'.")
    file = FILES[resolution]
    chorales = source.read(file, lambda path, called: read_chorales(path, file.sha256, called))
    steps = max(len(chorale) for part in chorales.values() for chorale in part) - 1
    train, valid, test = (_split(chorales[part], steps) for part in PARTS)
    return Dataset("jsb", train, test, KEYS, "prediction", valid)


def read_chorales(
    path: Path, checksum: str | None = None, called: str | None = None
) -> dict[str, list[Chorale]]:
    """Reads `{"train": [[[pitch, ...], ...], ...], "valid": ..., "test": ...}` from a JSON file.

    Args:
        path: the file.
        checksum: SHA-256 of the file, if known.
        called: name of the file in errors, else the path.

    Raises:
        ValueError: a damaged file, a missing split, a chorale of fewer than two frames, a pitch
            that is not a whole number from 21 to 108, or a wrong checksum.
    """
    called = called or str(path)
    with open_content(path, called) as stream:
        text = stream.read(_LARGEST + 1)
    if len(text) > _LARGEST:
        raise ValueError(f"{called} has more than {_LARGEST:,} bytes, expected less.")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{called} is truncated or not JSON ({error}).") from error
    if not isinstance(document, dict):
        raise ValueError(f"{called} holds a {type(document).__name__}, expected an object.")
    chorales = {}
    for part in PARTS:
        found = document.get(part)
        if not isinstance(found, list) or not found:
            raise ValueError(
                f"{called} has no list of chorales {part!r}, expected 'train', 'valid' and 'test'."
            )
        chorales[part] = [_chorale(f"{called}, {part}[{i}]", c) for i, c in enumerate(found)]
    check_sha256(called, sha256(text), checksum)
    return chorales


def _chorale(called: str, frames: object) -> Chorale:
    if not isinstance(frames, list) or len(frames) < 2:
        raise ValueError(f"{called} is not a list of two frames or more, as expected.")
    return [_frame(f"{called}[{t}]", frame) for t, frame in enumerate(frames)]


def _frame(called: str, pitches: object) -> list[int]:
    if not isinstance(pitches, list):
        raise ValueError(f"{called} is {pitches!r:.40}, expected a list of pitches.")
    for pitch in pitches:
        is_number = isinstance(pitch, int | float) and not isinstance(pitch, bool)
        if not is_number or not LOWEST <= pitch <= HIGHEST or pitch != int(pitch):
            raise ValueError(
                f"{called} holds the pitch {pitch!r:.40}, expected a whole number from {LOWEST} to "
                f"{HIGHEST}."
            )
    return [int(pitch) for pitch in pitches]


def _split(chorales: list[Chorale], steps: int) -> Split:
    """Makes inputs (frames 0 to L-2) and targets (frames 1 to L-1) of chorales of L frames."""
    inputs = np.zeros((len(chorales), steps, len(KEYS)), np.float32)
    targets = np.zeros_like(inputs)
    lengths = np.array([len(chorale) - 1 for chorale in chorales], np.int32)
    for n, chorale in enumerate(chorales):
        roll = np.zeros((len(chorale), len(KEYS)), np.float32)
        for frame, pitches in zip(roll, chorale, strict=True):
            frame[[pitch - LOWEST for pitch in pitches]] = 1
        inputs[n, : lengths[n]] = roll[:-1]
        targets[n, : lengths[n]] = roll[1:]
    return Split(inputs, targets, lengths)

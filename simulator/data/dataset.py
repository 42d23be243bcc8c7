"""What a data set is once it is loaded: arrays, checked, in two or three splits."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float32, Int32


class Split(NamedTuple):
    """One part of a data set, as numpy arrays with the sample first.

    Images have `inputs` (n, pixels) and no lengths. Sequences have `inputs` (n, time, features),
    zero after `lengths` (n,) steps. `targets` are class numbers (n,), or for prediction what comes
    next at every step: frames (n, time, features), or class numbers (n, time).
    """

    inputs: Float32[np.ndarray, "n *sample"]
    targets: (
        Int32[np.ndarray, " n"]
        | Int32[np.ndarray, "n time"]
        | Float32[np.ndarray, "n time features"]
    )
    lengths: Int32[np.ndarray, " n"] | None = None


@dataclass(frozen=True, eq=False)
class Dataset:
    """A named data set; making one checks it.

    Attributes:
        name: what `load` calls it.
        train: the samples to learn from.
        test: the samples to judge by.
        classes: name of each output: class names, or for prediction the names of the features.
        kind: "image" (one vector, one class), "sequence" (one class a sequence) or "prediction"
            (a target vector, or a class, at every step).
        valid: a third split, where the data set has one.
        note: what a reader of results should know about this copy, such as a partial set.

    Raises:
        ValueError: shapes that do not fit, a class number or length out of range, NaN or infinity.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    kind: Literal["image", "sequence", "prediction"]
    valid: Split | None = None
    note: str = ""

    def __post_init__(self):
        for part, split in self.splits().items():
            self._check(f"{self.name}, {part} split", split)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample: (pixels,) or (time, features)."""
        return self.train.inputs.shape[1:]

    def splits(self) -> dict[str, Split]:
        """Returns the splits that there are, by name."""
        parts = {"train": self.train, "valid": self.valid, "test": self.test}
        return {part: split for part, split in parts.items() if split is not None}

    def describe(self) -> str:
        """Returns one line that says what the data set holds."""
        counts = " + ".join(f"{len(s.inputs):,} {part}" for part, s in self.splits().items())
        outputs = "outputs" if self.kind == "prediction" else "classes"
        line = f"{self.name}: {counts} samples of shape {self.sample_shape}, "
        line += f"{len(self.classes)} {outputs}"
        return f"{line} ({self.note})" if self.note else line

    def _check(self, who: str, split: Split) -> None:
        inputs, targets, lengths = split
        n = len(inputs)
        if n == 0:
            raise ValueError(f"{who}: holds no samples, expected at least one.")
        if inputs.shape[1:] != self.sample_shape:
            raise ValueError(
                f"{who}: samples have shape {inputs.shape[1:]}, expected {self.sample_shape} as in "
                "the train split."
            )
        classes = np.issubdtype(targets.dtype, np.integer)
        if self.kind == "prediction":
            features = () if classes and targets.ndim == 2 else (len(self.classes),)
            expected = (*inputs.shape[:2], *features)
        else:
            expected = (n,)
        if targets.shape != expected:
            raise ValueError(f"{who}: targets have shape {targets.shape}, expected {expected}.")
        if (lengths is None) != (self.kind == "image"):
            raise ValueError(f"{who}: lengths go with sequences and only with them.")
        if lengths is not None and lengths.shape != (n,):
            raise ValueError(f"{who}: lengths have shape {lengths.shape}, expected {(n,)}.")
        if lengths is not None:
            _in_range(who, "length", lengths, 1, inputs.shape[1])
        if classes:
            _in_range(who, "class", targets, 0, len(self.classes) - 1)
        _finite(who, "input", inputs)
        _finite(who, "target", targets)


def _in_range(who: str, what: str, values: np.ndarray, low: int, high: int) -> None:
    wrong = np.argwhere((values < low) | (values > high))
    if wrong.size:
        sample, value = wrong[0, 0], values[tuple(wrong[0])]
        raise ValueError(f"{who}: sample {sample} has {what} {value}, expected {low} to {high}.")


def _finite(who: str, what: str, values: np.ndarray) -> None:
    finite = np.isfinite(values)
    if not finite.all():
        sample, *place = (int(i) for i in np.argwhere(~finite)[0])
        raise ValueError(
            f"{who}: sample {sample} has the {what} {values[(sample, *place)]} at {tuple(place)}, "
            "expected finite numbers."
        )

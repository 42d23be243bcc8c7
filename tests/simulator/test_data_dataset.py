"""Datasets: what they say of themselves, and what they refuse."""

import numpy as np
import pytest

from spikebit.simulator.data import Dataset, Split, load


def images(n=4, **changes):
    split = Split(np.full((n, 6), 0.5, np.float32), np.arange(n, dtype=np.int32) % 3)
    return split._replace(**changes)


def sequences(n=4, **changes):
    inputs = np.ones((n, 5, 2), np.float32)
    lengths = np.full(n, 5, np.int32)
    return Split(inputs, np.zeros(n, np.int32), lengths)._replace(**changes)


def make(train, test=None, kind="image", classes=("a", "b", "c"), **more):
    return Dataset("mine", train, test or train, classes, kind, **more)


def test_describe_shape_and_splits():
    data = make(images(4), images(2), valid=images(3), note="a note")
    assert data.sample_shape == (6,)
    assert list(data.splits()) == ["train", "valid", "test"]
    assert data.describe() == (
        "mine: 4 train + 3 valid + 2 test samples of shape (6,), 3 classes (a note)"
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("part", ["train", "test", "valid"])
def test_nan_names_the_sample(value, part):
    split = images()
    split.inputs[2, 3] = value
    parts = {"train": images(), "test": images(), part: split}
    with pytest.raises(ValueError, match=rf"mine, {part} split: sample 2 has the input .* \(3,\)"):
        make(**parts)


def test_nan_in_a_target_names_the_sample():
    targets = np.zeros((4, 5, 3), np.float32)
    targets[1, 2, 0] = np.nan
    with pytest.raises(ValueError, match=r"sample 1 has the target nan at \(2, 0\)"):
        make(sequences(targets=targets), kind="prediction")


i32 = np.int32
BAD = {
    "no samples": (images(0), "image", "holds no samples"),
    "class": (images(targets=np.array([0, 1, 3, 0], i32)), "image", "sample 2 has class 3"),
    "negative": (images(targets=np.array([0, -1, 0, 0], i32)), "image", "sample 1 has class -1"),
    "count": (images(targets=np.zeros(3, i32)), "image", r"targets have shape \(3,\), exp"),
    "image lengths": (sequences(), "image", "lengths go with sequences"),
    "no lengths": (sequences(lengths=None), "sequence", "lengths go with sequences"),
    "length": (
        sequences(lengths=np.array([5, 6, 1, 1], i32)), "sequence", "sample 1 has length 6",
    ),
    "length 0": (sequences(lengths=np.array([5, 0, 1, 1], i32)), "sequence", "1 has length 0"),
    "lengths": (sequences(lengths=np.ones(3, i32)), "sequence", r"lengths have shape \(3,\)"),
    "class of a step": (
        sequences(targets=np.array([[0] * 5, [0, 0, 3, 0, 0], [0] * 5, [0] * 5], i32)),
        "prediction", "sample 1 has class 3",
    ),
    "prediction": (sequences(), "prediction", r"shape \(4,\), expected \(4, 5, 3\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused(name):
    split, kind, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        make(split, kind=kind)


def test_splits_of_unequal_shape():
    other = Split(np.zeros((2, 7), np.float32), np.zeros(2, np.int32))
    with pytest.raises(ValueError, match=r"test split: samples have shape \(7,\), expected \(6,\)"):
        make(images(), other)


def test_load_names_what_it_does_not_know():
    with pytest.raises(ValueError, match=r"'mnits'; there are fashion_mnist_sample, .* jsb"):
        load("mnits")
    with pytest.raises(
        ValueError, match=r"fashion_mnist_sample has no option 'n_mels'; it has none"
    ):
        load("fashion_mnist_sample", n_mels=3)
    with pytest.raises(ValueError, match=r"option 'mels'; it has features, n_mels, threshold"):
        load("spoken_digits", mels=3)

"""Characters of a text: windows counted by hand, the real text, and texts that are wrong."""

import gzip
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.learning_rules import losses
from spikebit.simulator.build import make_dataset, make_encoder, make_loss
from spikebit.simulator.data import characters, load
from spikebit.simulator.data.files import DataFile, sha256
from spikebit.simulator.experiment import Data, Encoder

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the data in ../shared/data")


def test_sequences_of_a_small_text_by_hand():
    # 30 characters: 27 train (3 sequences of 8, 3 left over), 3 test
    data = characters.of_text("mine", "abcabcab" * 3 + "cab" + "cba", 2)
    assert data.classes == ("a", "b", "c")
    assert data.kind == "prediction"
    assert data.sample_shape == (2, 3)
    assert (len(data.train.inputs), len(data.test.inputs)) == (13, 1)
    np.testing.assert_array_equal(data.test.inputs[0], [[0, 0, 1], [0, 1, 0]])  # cb
    np.testing.assert_array_equal(data.test.targets, [[1, 0]])  # ba
    np.testing.assert_array_equal(data.train.targets[:3], [[1, 2], [0, 1], [2, 0]])
    np.testing.assert_array_equal(data.train.lengths, [2] * 13)


def test_sequences_lie_one_after_the_other():
    text = "to be or not to be, that is the question" * 10
    data = characters.of_text("mine", text, 7)
    said = "".join(data.classes[i] for i in data.train.inputs.argmax(-1).ravel())
    next_ones = "".join(data.classes[i] for i in data.train.targets.ravel())
    n = 359 // 7 * 7  # of the 360 characters, the last of which nothing follows
    assert (said, next_ones) == (text[:n], text[1 : n + 1])
    heard = "".join(data.classes[i] for i in data.test.inputs.argmax(-1).ravel())
    assert heard == text[360 : 360 + 39 // 7 * 7]


def test_the_loss_of_a_step_is_that_of_its_character():
    data = characters.of_text("mine", "abc" * 20, 4)
    outputs = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3)), jnp.float32)
    targets = jnp.asarray(data.train.targets[:2, 1])
    found = make_loss("auto", data)(outputs, targets)
    p = np.exp(outputs) / np.exp(outputs).sum(-1, keepdims=True)
    np.testing.assert_allclose(found, -np.log(p[[0, 1], np.asarray(targets)]), rtol=1e-5)
    hot = jax.nn.one_hot(targets, 3)
    squared = make_loss("squared_error", data)(outputs, targets)
    np.testing.assert_allclose(squared, losses.squared_error(outputs, hot), rtol=1e-6)


@needs_shared
def test_the_real_text():
    data = load("characters", data_dir=SHARED, length=100)
    text = (SHARED / "text" / "tinyshakespeare.txt").read_text()
    cut = len(text) * 9 // 10
    assert data.classes == tuple(sorted(set(text[:cut])))
    assert len(data.train.inputs) == (cut - 1) // 100
    said = "".join(data.classes[i] for i in data.test.inputs[3].argmax(-1))
    assert said == text[cut + 300 : cut + 400]
    few = make_dataset(Data(name="characters", data_dir=str(SHARED), length=50, limit=5, steps=20))
    np.testing.assert_array_equal(few.train.inputs[:, :, 0].shape, (5, 20))
    np.testing.assert_array_equal(few.test.targets[1], data.test.targets[0, 50:70])
    assert set(few.test.lengths) == {20}


def test_steps_are_of_sequences_only():
    with pytest.raises(ValueError, match=r"data.steps = 5 does not apply to .*_sample"):
        make_dataset(Data(steps=5))


def test_rows_fit_images_only():
    data = characters.of_text("mine", "abc" * 20, 4)
    with pytest.raises(ValueError, match=r'"rows" does not fit data.name = "mine".* none or delta'):
        make_encoder(Encoder(name="rows", steps=28), data)


BAD = {
    "length": ("abc" * 20, 0, "mine: length=0, expected at least 1"),
    "short": ("abc" * 20, 6, r"the test part has 6 characters, expected more than length=6"),
    "unseen": ("abc" * 20 + "é", 2, "the last tenth, holds 'é', which the training part does not"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_text(name):
    text, length, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        characters.of_text("mine", text, length)


def test_a_file_is_unpacked_and_compared_with_its_checksum(tmp_path, monkeypatch):
    content = ("sein oder nicht sein, schön " * 20).encode()
    file = DataFile("tinyshakespeare.txt", "text", sha256(content), ())
    monkeypatch.setattr(characters, "TINY_SHAKESPEARE", file)
    path = tmp_path / "tinyshakespeare.txt"
    path.write_bytes(gzip.compress(content))
    assert "ö" in load("characters", tmp_path, length=10).classes
    path.write_bytes(content.replace(b"nicht", b"Nicht"))
    with pytest.raises(ValueError, match=r"tinyshakespeare.txt has a wrong checksum"):
        load("characters", tmp_path)
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(ValueError, match="is no text in UTF-8"):
        characters.read_text(path)


def test_a_missing_file_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("SPIKEBIT_DATA", raising=False)
    with pytest.raises(ValueError, match=r"tinyshakespeare.txt was not found in .*switched off"):
        load("characters", tmp_path, download=False)

"""JSB chorales: piano rolls of known chords, the real files, and files that are wrong."""

import json
from pathlib import Path

import numpy as np
import pytest

from spikebit.simulator.data import jsb, load
from spikebit.simulator.data.files import DataFile, sha256

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the data in ../shared/data")

SMALL = {
    "train": [[[60, 64], [21], []], [[108.0], [60]]],
    "valid": [[[60], [61], [62], [63]]],
    "test": [[[], []]],
}


def write(folder, monkeypatch, document):
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    (folder / "jsb-chorales-quarter.json").write_bytes(text)
    files = {"quarter": DataFile("jsb-chorales-quarter.json", "jsb", sha256(text), ())}
    monkeypatch.setattr(jsb, "FILES", files)


def test_small_piano_roll(tmp_path, monkeypatch):
    write(tmp_path, monkeypatch, SMALL)
    data = load("jsb", tmp_path)
    assert data.kind == "prediction"
    assert data.sample_shape == (3, 88)
    assert [data.classes[i] for i in (0, 39, 87)] == ["A0", "C4", "C8"]
    assert data.valid is not None
    for split, lengths in ((data.train, [2, 1]), (data.valid, [3]), (data.test, [1])):
        np.testing.assert_array_equal(split.lengths, lengths)
        assert split.targets.shape == split.inputs.shape
    on = {tuple(i) for i in np.argwhere(data.train.inputs).tolist()}
    assert on == {(0, 0, 60 - 21), (0, 0, 64 - 21), (0, 1, 0), (1, 0, 87)}
    on = {tuple(i) for i in np.argwhere(data.train.targets).tolist()}
    assert on == {(0, 0, 0), (1, 0, 60 - 21)}
    assert np.argwhere(data.valid.targets[0]).tolist() == [[0, 40], [1, 41], [2, 42]]


@needs_shared
@pytest.mark.parametrize("resolution", ["quarter", "16th"])
def test_real_chorales(resolution):
    data = load("jsb", data_dir=SHARED, resolution=resolution)
    document = json.loads((SHARED / "jsb" / f"jsb-chorales-{resolution}.json").read_text())
    assert {part: len(s.inputs) for part, s in data.splits().items()} == {
        "train": 229, "valid": 76, "test": 77,
    }  # fmt: skip
    for part, split in data.splits().items():
        chorales = document[part]
        np.testing.assert_array_equal(split.lengths, [len(c) - 1 for c in chorales])
        assert split.inputs.sum() == sum(len(set(f)) for c in chorales for f in c[:-1])
        assert split.targets.sum() == sum(len(set(f)) for c in chorales for f in c[1:])
        last = len(chorales[3]) - 2
        np.testing.assert_array_equal(split.inputs[3, 1 : last + 1], split.targets[3, :last])
        assert set(np.flatnonzero(split.inputs[3, 0]) + 21) == set(chorales[3][0])


def changed(**parts):
    return {**SMALL, **parts}


BAD = {
    "truncated": (json.dumps(SMALL).encode()[:-5], "is truncated or not JSON"),
    "empty": (b"", r"is empty \(0 bytes\)"),
    "not text": (b"\xff\xfe\x00\x01", "not JSON"),
    "too deep": (b"[" * 100_000, "not JSON"),
    "list": ([], "holds a list, expected an object"),
    "no test": ({"train": SMALL["train"], "valid": SMALL["valid"]}, "no list of chorales 'test'"),
    "no chorale": (changed(valid=[]), "no list of chorales 'valid'"),
    "short": (changed(train=[[[60]]]), r"train\[0\] is not a list of two frames"),
    "frame": (changed(test=[[[60], 61]]), r"test\[0\]\[1\] is 61, expected a list"),
    "low": (changed(train=[[[60], [20]]]), r"train\[0\]\[1\] holds the pitch 20, expected a whole"),
    "high": (changed(train=[[[60], [109]]]), "pitch 109, expected a whole number from 21 to 108"),
    "half": (changed(train=[[[60], [60.5]]]), "pitch 60.5"),
    "text": (changed(train=[[[60], ["60"]]]), "pitch '60'"),
    "true": (changed(train=[[[60], [True]]]), "pitch True"),
    "nan": (changed(train=[[[60], [float("nan")]]]), "pitch nan"),
    "infinity": (changed(train=[[[60], [float("inf")]]]), "pitch inf"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_file(tmp_path, monkeypatch, name):
    document, message = BAD[name]
    write(tmp_path, monkeypatch, document)
    with pytest.raises(ValueError, match=message) as caught:
        load("jsb", tmp_path, download=False)
    assert str(tmp_path / "jsb-chorales-quarter.json") in str(caught.value)


def test_one_changed_note_is_noticed(tmp_path, monkeypatch):
    write(tmp_path, monkeypatch, SMALL)
    path = tmp_path / "jsb-chorales-quarter.json"
    path.write_text(path.read_text().replace("64", "65"))
    with pytest.raises(ValueError, match=r"quarter.json has a wrong checksum"):
        load("jsb", tmp_path)


def test_bad_option(tmp_path):
    with pytest.raises(ValueError, match=r"resolution='8th', expected 'quarter' or '16th'"):
        jsb.jsb.__wrapped__(None, resolution="8th")  # past the type check of the tests

"""The command that scores a text, on a small model whose tokens are letters."""

import json
import re
import struct

import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.quant import models
from spikebit.simulator.cli import main

LETTERS = ["", "", "", *(chr(i) for i in range(256)), " ", "a", "b", "c"]


@pytest.fixture
def small(tmp_path):
    """A llama2.c model of random weights, whose tokens are bytes and four letters."""
    size, width, hidden, length = len(LETTERS), 8, 4, 16
    count = (
        size * width + width + 4 * width**2 + width + 3 * hidden * width + width + length * width
    )
    numbers = 0.3 * np.random.default_rng(0).standard_normal(count)
    header = struct.pack("7i", width, hidden, 1, 1, 1, size, length)
    (tmp_path / "m.bin").write_bytes(header + numbers.astype("<f4").tobytes())
    tokens = b"".join(struct.pack("<fi", 0.0, len(t.encode())) + t.encode() for t in LETTERS)
    (tmp_path / "tok.bin").write_bytes(struct.pack("<i", 2) + tokens)
    (tmp_path / "text.txt").write_text("abc cab " * 20)
    return tmp_path


def test_a_text_is_scored_as_in_python(small, capsys):
    text = str(small / "text.txt")
    assert main(["evaluate", str(small), "--text", text, "--length", "11", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    model, tokenizer = models.load(small), models.load_tokenizer(small)
    cut = models.windows(tokenizer.encode("abc cab " * 20), 11, tokenizer.bos)
    exact = models.score(model, cut)
    assert found["tokens"] == cut[:, 1:].size == 160
    assert found["nll"] == pytest.approx(exact.nll, abs=1e-6)
    assert found["perplexity"] == pytest.approx(np.exp(exact.nll))
    assert found["length"] == 11
    assert "windows one after the other" in found["protocol"]
    assert model(jnp.asarray(cut)).shape == (16, 11, len(LETTERS))


def test_without_json_it_is_read_by_people(small, capsys):
    assert main(["evaluate", str(small), "--text", str(small / "text.txt")]) == 0
    lines = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["length"] == "16"
    assert float(lines["perplexity"]) > 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--text", "{0}/none.txt"], "No such file"),
        (["--text", "{0}/m.bin"], "m.bin: no UTF-8 text"),
        (["--text", "{0}/text.txt", "--length", "900"], "161 tokens and windows of 900"),
        (
            ["--text", "{0}/text.txt", "--length", "17"],
            r"windows of shape \(10, 17\); .* at most 16",
        ),
        (["--text", "{0}/text.txt", "--batch", "0"], "--batch is 0"),
    ],
)
def test_bad_input_is_one_line(small, capsys, change, message):
    call = ["evaluate", str(small), *(c.format(small) for c in change)]
    assert main(call) == 2
    error = capsys.readouterr().err
    assert error.startswith("spikebit: ")
    assert len(error.splitlines()) == 1
    assert re.search(message, error)

"""The real small model: what it says, what its files must be."""

import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.quant import models

STORIES = Path(__file__).parents[4] / "shared" / "models" / "stories260K"
HEADER = struct.pack("7i", 8, 12, 2, 4, 2, 5, 6)
SIZES = 5 * 8 + 2 * (8 + 8 * 8 + 2 * 4 * 8 + 8 * 8 + 8 + 3 * 12 * 8) + 8 + 2 * 6 * 1


@pytest.fixture(scope="module")
def stories():
    if not STORIES.exists():
        pytest.skip("the model stories260K is not beside the checkout")
    return models.load(STORIES), models.load_tokenizer(STORIES)


def test_it_tells_its_story(stories):
    model, tokenizer = stories
    start = [tokenizer.bos, *tokenizer.encode("Once upon a time")]
    told = models.generate(model, jnp.array([start]), 60)
    text = tokenizer.decode([*start[1:], *told[0].tolist()])
    # the greedy text of this model, in every implementation of it
    assert text.startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the "
        "park. One day, she saw a big, red ball."
    )


def test_text_that_it_tells_has_the_published_perplexity(stories):
    model, _ = stories
    start = jnp.full((64, 1), 1)
    told = models.generate(model, start, 192, temperature=1.0, key=jax.random.key(0))
    found = models.score(model, jnp.concatenate([start, told], 1), batch=64)
    assert found.tokens == 64 * 192
    assert abs(found.nll - np.log(3.460)) < 3 * found.error  # of another sample: at most twice that
    assert found.error < 0.03


def test_a_text_comes_back_from_its_tokens(stories):
    _, tokenizer = stories
    for text in ("Once upon a time", "a", 'Lily\'s mom said: "no!"\n', "Zürich ☃ 7"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("") == []
    assert len(tokenizer.encode("Once upon a time")) == 4  # each word is one token


def test_a_small_file_is_its_arrays_in_order(tmp_path):
    path = tmp_path / "m.bin"
    numbers = np.arange(SIZES, dtype="<f4")
    path.write_bytes(HEADER + numbers.tobytes())
    model = models.load(path)
    assert (model.embedding[...] == numbers[:40].reshape(5, 8)).all()
    norms = numbers[40:56].reshape(2, 8)
    assert (model.blocks[1].attention_norm.weight[...] == norms[1]).all()
    q = numbers[56 : 56 + 128].reshape(2, 8, 8)  # four heads of one pair: nothing moves
    assert (model.blocks[1].attention.q.weight[...] == q[1]).all()
    assert model.head is None
    assert model.config.kv_heads == 2


def test_rotary_pairs_side_by_side_become_halves(tmp_path):
    header = struct.pack("7i", 8, 4, 1, 1, 1, 3, 6)
    size = 3 * 8 + 8 + 4 * 64 + 8 + 3 * 32 + 8 + 2 * 6 * 4
    (tmp_path / "m.bin").write_bytes(header + np.arange(size, dtype="<f4").tobytes())
    q = np.arange(32, 96, dtype=np.float32).reshape(8, 8)
    found = models.load(tmp_path / "m.bin").blocks[0].attention.q.weight[...]
    assert (found == q[[0, 2, 4, 6, 1, 3, 5, 7]]).all()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"abc", "3 bytes are no llama2.c checkpoint"),
        (struct.pack("7i", 8, 12, 2, 3, 2, 5, 6), "the header .* is none of llama2.c"),
        (struct.pack("7i", 8, 12, 2, 4, 2, 0, 6), "the header .* is none of llama2.c"),
        (HEADER + b"\0" * 400, f"100 numbers after the header, but its sizes make {SIZES}"),
    ],
)
def test_files_that_are_none(tmp_path, raw, message):
    (tmp_path / "m.bin").write_bytes(raw)
    with pytest.raises(ValueError, match=message):
        models.load(tmp_path)


def test_tokenizers_that_are_none(tmp_path):
    (tmp_path / "m.bin").write_bytes(HEADER + b"\0" * 4 * SIZES)
    with pytest.raises(ValueError, match=r"no tok\*.bin beside m.bin"):
        models.load_tokenizer(tmp_path)
    token = struct.pack("<fi", 0.0, 1) + b"a"
    (tmp_path / "tok.bin").write_bytes(struct.pack("<i", 1) + 3 * token)
    with pytest.raises(ValueError, match="ends amid token 3 of 5"):
        models.load_tokenizer(tmp_path)
    (tmp_path / "tok.bin").write_bytes(struct.pack("<i", 1) + 6 * token)
    with pytest.raises(ValueError, match="9 bytes are left after 5 tokens"):
        models.load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="no such folder or file"):
        models.load(tmp_path / "elsewhere")

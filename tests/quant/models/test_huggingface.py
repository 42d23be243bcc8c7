"""Checkpoints of Hugging Face's layout: models answer as they do in `transformers`."""

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spikebit.quant import models
from spikebit.quant.models.huggingface import Checkpoint
from spikebit.quant.models.layers import rotary

REFERENCES = Path(__file__).parent / "references"
NAMES = sorted(p.name for p in REFERENCES.iterdir() if p.is_dir())


@nnx.jit
def answers(model, *inputs):
    return model(*inputs)


@nnx.jit
def step(model, tokens, cache):
    return model.step(tokens, cache)


def copy(name, tmp_path):
    return Path(shutil.copytree(REFERENCES / name, tmp_path / name))


@pytest.mark.parametrize("name", NAMES)
def test_a_model_answers_as_it_does_elsewhere(name):
    model = models.load(REFERENCES / name)
    with np.load(REFERENCES / name / "answer.npz") as file:
        tokens, real, answer = (file[k] for k in ("tokens", "real", "answer"))
    if isinstance(model, models.Encoder):
        found = np.asarray(answers(model, jnp.asarray(tokens), jnp.asarray(real)))[real]
        answer = answer[real]
    else:
        found = np.asarray(answers(model, jnp.asarray(tokens)))
    assert np.abs(answer).max() > 1  # logits are not small: 1e-5 of them is what float32 leaves
    np.testing.assert_allclose(found, answer, atol=2e-5)


@pytest.mark.parametrize("name", ["mistral", "qwen3_in_parts"])
def test_with_a_cache_logits_are_those_of_the_whole_text(name):
    model = models.load(REFERENCES / name)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 32, (2, 20)))
    whole = answers(model, tokens)
    parts, cache = [], model.empty_cache(2, 24)
    for part in jnp.split(tokens, [7, 8, 15], axis=1):
        logits, cache = step(model, part, cache)
        parts.append(logits)
    np.testing.assert_allclose(jnp.concatenate(parts, 1), whole, atol=1e-5)
    greedy = models.generate(model, tokens, 4)
    assert (greedy[:, 0] == whole[:, -1].argmax(-1)).all()


def test_sentences_are_means_of_real_tokens():
    model = models.load(REFERENCES / "bert")
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 32, (2, 9)))
    real = jnp.arange(9) < jnp.array([[9], [4]])
    found = model.sentences(tokens, real)
    alone = model(tokens[1:, :4])[0].mean(0)
    np.testing.assert_allclose(found[1], alone / np.linalg.norm(alone), atol=1e-5)


def test_scores_are_those_of_the_logits():
    model = models.load(REFERENCES / "llama2")
    text = models.windows(list(range(32)) * 3, 13, bos=1)
    assert text.shape == (8, 13)
    assert text[:, 0].tolist() == [1] * 8
    assert text[:, 1:].ravel().tolist() == (list(range(32)) * 3)[:96]
    logits = np.asarray(answers(model, jnp.asarray(text)), np.float64)[:, :-1]
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    exact = -np.take_along_axis(logits, text[:, 1:, None].astype(int), -1)[..., 0]
    found = models.score(model, text, batch=3)
    assert abs(found.nll - exact.mean()) < 1e-5
    assert abs(found.perplexity - np.exp(exact.mean())) < 1e-4 * found.perplexity
    assert found.tokens == 96
    assert abs(found.error - exact.mean(1).std(ddof=1) / 8**0.5) < 1e-5
    other = models.load(REFERENCES / "llama3")
    q = np.asarray(answers(other, jnp.asarray(text)), np.float64)[:, :-1]
    q -= np.log(np.exp(q).sum(-1, keepdims=True))
    kl = (np.exp(logits) * (logits - q)).sum(-1).mean()
    assert abs(models.divergence(model, other, text, batch=5)[0] - kl) < 1e-4 * kl
    assert models.divergence(model, model, text)[0] == 0


def test_what_cannot_be_scored_or_told():
    model = models.load(REFERENCES / "llama2")
    with pytest.raises(ValueError, match="3 tokens and windows of 9; give a text of at least 8"):
        models.windows([1, 2, 3], 9, bos=0)
    with pytest.raises(ValueError, match=r"tokens from 0 to 40, but the model has 32"):
        models.score(model, np.array([[0, 40]]))
    with pytest.raises(ValueError, match=r"windows of shape \(1, 65\); .* at most 64"):
        models.score(model, np.zeros((1, 65), np.int32))
    with pytest.raises(ValueError, match="60 tokens and 5 more"):
        models.generate(model, jnp.zeros((1, 60), int), 5)
    with pytest.raises(ValueError, match=r"temperature=1.0\): draws need .* a key"):
        models.generate(model, jnp.zeros((1, 6), int), 5, temperature=1.0)


def change(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    config = {k: v for k, v in {**config, **fields}.items() if v != "gone"}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "falcon"}, "model_type is 'falcon'; supported are llama, mistral, .*bert"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'; supported is silu"),
        ({"vocab_size": "gone"}, "the config has no 'vocab_size'"),
        ({"vocab_size": 40}, r"embed_tokens.weight is of shape \(32, 16\), but .* \(40, 16\)"),
        ({"num_hidden_layers": 3}, r"there is no tensor model.layers.2.input_layernorm.weight"),
        ({"num_attention_heads": 3}, "heads are a multiple"),
        ({"rope_parameters": {"rope_type": "spiral"}}, "rope_type is 'spiral'; supported are"),
    ],
)
def test_configs_that_do_not_fit(tmp_path, fields, message):
    folder = copy("llama2", tmp_path)
    change(folder, **fields)
    with pytest.raises(ValueError, match=message):
        models.load(folder)


def test_files_that_are_missing_or_cut_short(tmp_path):
    folder = copy("qwen3_in_parts", tmp_path)
    part = sorted(folder.glob("*.safetensors"))[1]
    raw = part.read_bytes()
    part.write_bytes(raw[:-10])
    with pytest.raises(ValueError, match=rf"{part.name}: no whole safetensors file"):
        models.load(folder)
    part.unlink()
    with pytest.raises(ValueError, match=rf"{part.name}: the index names it, but it is not there"):
        models.load(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../a.safetensors"}}))
    with pytest.raises(ValueError, match=r"'../a.safetensors' is outside of its folder"):
        models.load(folder)
    index.write_text("[1]")
    with pytest.raises(ValueError, match="holds a list, not an object"):
        models.load(folder)
    index.unlink()
    for rest in folder.glob("*.safetensors"):
        rest.unlink()
    with pytest.raises(ValueError, match=r"no file ends in .safetensors"):
        models.load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json: no JSON"):
        models.load(folder)
    with pytest.raises(ValueError, match=r"tokenizer.json is not there"):
        models.load_tokenizer(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer.json: no tokenizer"):
        models.load_tokenizer(folder)


def test_nothing_is_read_before_it_is_asked_for():
    checkpoint = Checkpoint(REFERENCES / "llama2")
    one = checkpoint.get("model.norm.weight")
    assert (one.shape, one.dtype) == ((16,), jnp.float16)
    assert models.load(REFERENCES / "llama2", jnp.bfloat16).norm.weight[...].dtype == jnp.bfloat16


def test_slow_turns_are_slowed_and_fast_ones_kept():
    plain = np.array(rotary("", 16, 1e4, None, 64).frequencies)
    assert (plain == 1e4 ** (-np.arange(8) / 8)).all()
    linear = rotary("", 16, 1e4, {"type": "linear", "factor": 4.0}, 64)
    assert np.allclose(linear.frequencies, plain / 4)
    settings = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 32}
    limits = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaled = np.array(rotary("", 16, 1e4, settings | limits, 64).frequencies)
    turns = 32 * plain / (2 * np.pi)
    assert np.allclose(scaled[turns > 4], plain[turns > 4])
    assert np.allclose(scaled[turns < 1], plain[turns < 1] / 8)

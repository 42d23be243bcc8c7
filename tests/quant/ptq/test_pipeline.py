"""Models quantized block by block: what is watched, what is rounded, what it costs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spikebit.quant import models
from spikebit.quant.ptq.grid import Grid
from spikebit.quant.ptq.layer import proxy_loss, round_to_nearest
from spikebit.quant.ptq.pipeline import Recipe, quantize_model
from spikebit.quant.ptq.statistics import Collected, Watched

CONFIG = models.DecoderConfig(
    vocabulary=24, width=16, hidden=20, layers=2, heads=2, kv_heads=1, head_size=8, length=32
)
TEXT = np.random.default_rng(0).integers(0, 24, (6, 20))


@pytest.fixture(scope="module")
def model():
    return models.Decoder(CONFIG, models.random_fill(jax.random.key(0), 0.3))


def test_what_is_watched_are_the_moments_of_the_inputs_whatever_the_batches(model):
    x = np.random.default_rng(1).standard_normal((6, 5, 16)).astype(np.float32)
    found = []
    for size in (1, 4, 6):
        watched, sums = Watched(model.blocks[0].attention.q), Collected()
        for i in range(0, 6, size):
            y = watched(jnp.asarray(x[i : i + size]))
            sums.take(watched)
            assert (y == model.blocks[0].attention.q(jnp.asarray(x[i : i + size]))).all()
        found.append(sums.statistics())
    rows = x.reshape(30, 16).astype(np.float64)
    for seen in found:
        assert seen.tokens == 30
        np.testing.assert_allclose(seen.hessian, rows.T @ rows / 30, atol=1e-6)
        np.testing.assert_allclose(seen.mean, np.abs(rows).mean(0), rtol=1e-6)
        assert (seen.largest == np.abs(rows).max(0)).all()
    with pytest.raises(ValueError, match="no token was seen"):
        Collected().statistics()


def test_each_map_is_rounded_and_the_rest_stays(model):
    before = jax.tree.map(np.asarray, nnx.state(model))
    lines = []
    recipe = Recipe("rtn", "int4", 8, "absmax")
    done = quantize_model(model, recipe, TEXT, batch=4, say=lines.append)
    assert len(done.weights) == len(done.layers) == 2 * 7
    for name, q in done.weights.items():
        _, number, part, last = name.split(".")
        old = getattr(getattr(model.blocks[int(number)], part), last).weight[...]
        new = getattr(getattr(done.model.blocks[int(number)], part), last).weight[...]
        exact = round_to_nearest(old, Grid.of("int4"), 8)
        assert (q.codes == exact.codes).all()
        assert (new == exact.dequantize()[:, : old.shape[1]]).all()
    assert (done.model.embedding[...] == model.embedding[...]).all()
    after = jax.tree.map(np.asarray, nnx.state(model))
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), before, after))
    assert lines[1].startswith("block 2 of 2: errors of outputs q ")
    # 4 bits and a float32 a group of 8; the 20 inputs of `down` are three groups
    plain, down = 4 + 32 / 8, (24 * 4 + 3 * 32) / 20
    sizes = 2 * 16 * 16 + 2 * 8 * 16 + 2 * 20 * 16, 16 * 20
    assert done.bits_per_weight == pytest.approx(np.average([plain, down], weights=sizes))


def test_errors_are_those_of_the_outputs_for_the_inputs_that_the_block_reads(model):
    done = quantize_model(model, Recipe("rtn", "int3", None, "absmax"), TEXT)
    block = model.blocks[0]
    x = np.asarray(block.attention_norm(model.embed(jnp.asarray(TEXT)))).reshape(-1, 16)
    h = x.astype(np.float64).T @ x / len(x)
    for report in done.layers[:3]:
        w = getattr(block.attention, report.name[-1]).weight[...]
        rounded = done.weights[report.name].dequantize()
        exact = proxy_loss(w, rounded, h) / proxy_loss(w, jnp.zeros_like(w), h)
        assert report.error == pytest.approx(exact, rel=1e-4)


def test_with_as_many_bits_as_it_takes_nothing_changes(model):
    recipe = Recipe("gptq", "int16", None, "absmax")
    done = quantize_model(model, recipe, TEXT)
    np.testing.assert_allclose(done.model(jnp.asarray(TEXT)), model(jnp.asarray(TEXT)), atol=2e-3)
    kl, _ = models.divergence(model, done.model, TEXT)
    assert 0 <= kl < 1e-6


def test_feedback_beats_nearest_and_blocks_see_what_those_before_have_made(model):
    losses = {}
    for source in ("quantized", "float"):
        for solver in ("rtn", "gptq"):
            recipe = Recipe(solver, "int3_asymmetric", None, "absmax", source=source)
            losses[solver, source] = quantize_model(model, recipe, TEXT).layers
    for source in ("quantized", "float"):
        nearest, done = (sum(r.error for r in losses[solver, source]) for solver in ("rtn", "gptq"))
        assert done < nearest
    first = [[r.error for r in losses["rtn", s][:3]] for s in ("quantized", "float")]
    assert first[0] == first[1]  # nothing is quantized before the first map
    last = [losses["rtn", s][-1].error for s in ("quantized", "float")]
    assert last[0] != last[1]


def test_what_a_solver_refuses_names_the_map(model):
    recipe = Recipe("gptq", "int4", 0)
    with pytest.raises(ValueError, match=r"blocks.0.attention.q: groups of 0"):
        quantize_model(model, recipe, TEXT)
    with pytest.raises(ValueError, match=r"blocks.0.attention.q: .*mxfp4, 'search'"):
        quantize_model(model, dataclasses.replace(recipe, weights="mxfp4", group=16), TEXT)

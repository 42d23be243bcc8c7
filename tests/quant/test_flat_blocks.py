"""Weights in block formats: what is read is what `quantize` gives, block by block."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.quant import losses, number_format, parse, quantize

PARAMS = {
    "w": jnp.asarray(np.random.default_rng(0).normal(size=(5, 30)), jnp.float32),
    "b": jnp.asarray(np.random.default_rng(1).normal(size=7), jnp.float32),
}
NAMES = ["mxfp4", "mxint8", "bfp6_k16", "nvfp4"]


def flat(x, fmt):
    """Quantized by hand: flattened, filled up with zeros, cut into blocks."""
    wide = np.asarray(x, np.float32).ravel()
    padded = np.concatenate([wide, np.zeros(-len(wide) % fmt.block, np.float32)])
    q = quantize(jnp.asarray(padded.reshape(-1, fmt.block)), fmt)
    return np.asarray(q).ravel()[: len(wide)].reshape(x.shape)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_read_is_what_quantize_gives(name):
    fmt, memory = parse(name), number_format(name)
    init, look, update = (jax.jit(f) for f in (memory.init, memory.read, memory.update))
    state = init(PARAMS, None)
    read = look(state, None)
    for leaf, x in PARAMS.items():
        assert read[leaf].dtype == x.dtype
        np.testing.assert_array_equal(read[leaf], flat(x, fmt))
    updates = {"w": jnp.full((5, 30), 0.3), "b": jnp.full(7, -0.1)}
    new = look(update(state, updates, None), None)
    for leaf, u in updates.items():
        wanted = flat(np.asarray(read[leaf], np.float32) + np.asarray(u, np.float32), fmt)
        np.testing.assert_array_equal(new[leaf], wanted)
    half = {"w": PARAMS["w"].astype(jnp.bfloat16)}
    there_and_back = jax.eval_shape(lambda w: memory.read(memory.init(w, None), None), half)
    assert there_and_back["w"].dtype == jnp.bfloat16


def two_states(memory, params, updates):
    """A state, the one after updates, and what is read from each: one program, random rounding."""

    @jax.jit
    def run(params, updates):
        keys = jax.random.split(jax.random.key(0))
        state = memory.init(params, keys[0])
        new = memory.update(state, updates, keys[1])
        return state, new, memory.read(state, None), memory.read(new, None)

    return run(params, updates)


@pytest.mark.parametrize("name", ["mxfp4", "bfp6_k16"])
def test_a_block_without_a_write_keeps_its_bits(name):
    fmt, memory = parse(name), number_format(name, "stochastic")
    one = {"w": jnp.zeros((5, 30)).at[0, 3].set(10.0), "b": jnp.zeros(7)}
    state, new, old, read = two_states(memory, PARAMS, one)
    same = np.asarray(read["w"] == old["w"]).ravel()
    assert same[fmt.block :].all()
    assert not same[: fmt.block].all()  # the scale of its block has grown
    np.testing.assert_array_equal(new.codes["b"], state.codes["b"])
    counts = losses(new)["w"]
    assert counts["writes"] == 150 + 1
    assert counts["stagnated"] == 0


def test_no_update_changes_nothing_where_all_share_a_scale():
    memory = number_format("nvfp4")
    state, new, *_ = two_states(memory, PARAMS, jax.tree.map(jnp.zeros_like, PARAMS))
    for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(a, b)


def test_losses_are_counted_in_units_of_the_blocks():
    """Mode floor: of 1.9 2^k in a block led by 2^k, 7.6 in units of the scale, 6 is left."""
    memory = number_format("mxfp4")
    w = {"w": jnp.array([1.9, 1.0, 0.01, 0.0])}  # the scale is 1/4
    state = memory.init(w, None)
    assert memory.read(state, None)["w"].tolist() == [1.5, 1.0, 0.0, 0.0]
    counts = losses(state)["w"]
    assert (counts["saturated"], counts["underflowed"], counts["writes"]) == (1, 1, 4)
    nan = memory.update(state, {"w": jnp.array([jnp.nan, 0.0, 0.0, 0.0])}, None)
    assert losses(nan)["w"]["nan"] == 1
    assert np.isnan(memory.read(nan, None)["w"]).all()  # the whole block, by the definition of MX


@pytest.mark.parametrize("name", ["nf4", "log4", "posit8", "ternary", "binary"])
def test_every_other_format_is_a_memory_too(name):
    memory = number_format(name, "stochastic")
    w, updates = {"w": PARAMS["w"]}, {"w": jnp.full((5, 30), 1e-3)}
    state, _, old, read = two_states(memory, w, updates)
    unit = 1.0 if state.scale is None else float(state.scale["w"])
    values = parse(name).values() * np.float32(unit)
    assert np.isin(np.asarray(old["w"]), values).all()
    assert np.isin(np.asarray(read["w"]), values).all()


def test_formats_that_need_more_than_a_scale_are_refused():
    for name in ("int4_asymmetric", "ternary_twn"):
        with pytest.raises(ValueError, match=rf"number_format\({name}\): .* keep one scale"):
            number_format(name)
    with pytest.raises(ValueError, match="headroom is 2"):
        number_format("mxfp4", headroom=2.0)

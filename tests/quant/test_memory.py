"""Weight memories: what is stored, what is lost, and that training through them is what it says."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from spikebit.quant import bits_per_weight, float32, losses, number_format, parse

LEAVES = {"bias": (16,), "layer": {"kernel": (12, 16)}}
MEMORIES = {
    "float32": float32(),
    "e4m3fn": number_format("e4m3fn", "stochastic"),
    "bfloat16": number_format("bfloat16"),
    "int8": number_format("int8", "stochastic"),
    "fixed12.6": number_format("fixed12.6"),
}


def tree(seed, scale=1.0, dtype=jnp.float32):
    """Random numbers in the shapes of LEAVES."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(scale * rng.normal(size=shape), dtype),
        LEAVES,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def start(memory, params):
    """A new state, in one compiled call."""
    return jax.jit(memory.init)(params, jax.random.key(0))


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, "float32") for name in MEMORIES), ("e4m3fn", "bfloat16"), ("int8", "float16")],
)
def test_read_gives_back_the_tree_in_values_of_the_format(name, dtype):
    memory, params = MEMORIES[name], tree(0, dtype=dtype)
    out = jax.jit(lambda p, key: memory.read(memory.init(p, key)))(params, jax.random.key(0))
    assert jax.tree.structure(out) == jax.tree.structure(params)
    for p, q in zip(jax.tree.leaves(params), jax.tree.leaves(out), strict=True):
        assert (q.dtype, q.shape) == (p.dtype, p.shape)
        step = {"int8": jnp.abs(p).max() / 127, "fixed12.6": 2**-6}.get(
            name, 2**-6 + jnp.abs(p) / 8
        )
        own = jnp.finfo(q.dtype).eps * jnp.abs(p)  # the rounding to the dtype that is read
        assert (jnp.abs(q - p) <= step + own).all()
    if name == "e4m3fn":
        for q in jax.tree.leaves(out):
            np.testing.assert_array_equal(
                q, np.asarray(q).astype(ml_dtypes.float8_e4m3fn).astype(q.dtype)
            )


@pytest.mark.parametrize(
    ("fmt", "bytes_each"), [("e4m3fn", 1), ("e2m1fn", 1), ("bfloat16", 2), ("fixed12.6", 2)]
)
def test_a_weight_takes_one_or_two_bytes(fmt, bytes_each):
    state = start(number_format(fmt), tree(0))
    n = 16 + 12 * 16
    assert sum(a.nbytes for a in jax.tree.leaves(state.codes)) == bytes_each * n
    assert bits_per_weight(state) == 8 * bytes_each
    overhead = sum(a.nbytes for a in jax.tree.leaves(state)) - bytes_each * n
    assert overhead == 2 * (4 + 5 * 8)  # for each leaf a zero, and five counts of 64 bits
    assert bits_per_weight(start(float32(), tree(0))) == 32
    assert bits_per_weight(start(number_format("int8"), tree(0))) == (8 * n + 2 * 32) / n


def test_float32_is_plain_addition_bit_for_bit():
    memory = float32()
    params, step = tree(0), jax.jit(memory.update)
    params["bias"] = params["bias"].at[:3].set(jnp.array([-0.0, 1e-38, jnp.inf]))
    state = start(memory, params)
    add = jax.jit(lambda p, u: jax.tree.map(jnp.add, p, u))
    for seed in range(20):
        u = tree(seed + 1, scale=1e-3)
        u["bias"] = u["bias"].at[0].set(0.0)
        state, params = step(state, u, None), add(params, u)
        bits = [np.asarray(a).view(np.uint32) for a in jax.tree.leaves(params)]
        got = [np.asarray(a).view(np.uint32) for a in jax.tree.leaves(memory.read(state, None))]
        equal(got, bits)
    assert losses(state)["bias"]["saturated"] == 1 + 20  # the infinity, at init and in each update


@pytest.mark.parametrize(
    ("name", "rounding"),
    [
        ("e4m3fn", "stochastic"),
        ("int8", "stochastic"),
        ("fixed12.6", "stochastic"),
        ("bfloat16", "nearest_even"),
    ],
)
def test_a_zero_update_never_changes_a_code(name, rounding):
    memory = number_format(name, rounding)
    params = tree(0)
    params["bias"] = params["bias"].at[:4].set(jnp.array([-0.0, 0.0, 2.0**-133, -500.0]))
    state = start(memory, params)
    zeros, update = jax.tree.map(jnp.zeros_like, params), jax.jit(memory.update)
    for seed in range(10):
        after = update(state, zeros, jax.random.key(seed))
        equal(after, state)  # the counts as well: nothing was written


@pytest.mark.parametrize(
    ("rounding", "jit"), [("nearest_even", False), ("nearest_even", True), ("stochastic", True)]
)
def test_counts_equal_those_of_numpy(rounding, jit):
    memory = number_format("e4m3fn", rounding)
    update = jax.jit(memory.update) if jit else memory.update
    f8 = ml_dtypes.float8_e4m3fn

    def numbers(codes):
        return np.asarray(codes).view(f8).astype(np.float32)

    params = {"w": jnp.asarray(np.random.default_rng(0).normal(size=400) * 300, jnp.float32)}
    state = start(memory, params)
    p, w = np.asarray(params["w"]), numbers(state.codes["w"])
    expected = {
        "writes": 400,
        "saturated": (np.abs(p) > 448).sum(),
        "underflowed": ((p != 0) & (w == 0)).sum(),
        "stagnated": 0,
        "nan": 0,
    }
    for seed in range(12 if jit else 3):
        rng = np.random.default_rng(seed)
        u = (rng.normal(size=400) * 10.0 ** rng.integers(-5, 3, 400)).astype(np.float32)
        u[rng.random(400) < 0.3] = 0
        hit = rng.random(400) < 0.1
        u[hit] = -w[hit] + rng.choice([1e-3, 5e-4, 0], hit.sum()).astype(np.float32)  # towards 0
        u[rng.random(400) < 0.01] = np.nan
        with np.errstate(invalid="ignore"):
            total = w + u
        state = update(state, {"w": jnp.asarray(u)}, jax.random.key(seed + 100))
        new = numbers(state.codes["w"])
        written = u != 0
        expected["writes"] += written.sum()
        expected["saturated"] += (written & (np.abs(total) > 448)).sum()
        expected["underflowed"] += (written & (total != 0) & (new == 0)).sum()
        expected["stagnated"] += (written & (new == w)).sum()
        expected["nan"] += (written & np.isnan(total)).sum()
        if rounding == "nearest_even":
            with np.errstate(invalid="ignore"):
                nearest = np.clip(total, -448, 448).astype(f8)
            np.testing.assert_array_equal(new, np.where(written, nearest.astype(np.float32), w))
        w = new
    got = losses(state)["w"]
    assert got == expected
    assert min(got.values()) > 0


def test_counts_go_beyond_32_bits():
    memory = number_format("e4m3fn")
    state = start(memory, {"w": jnp.ones(5)})
    lost = {name: {"w": jnp.array([2**32 - 3, 1], jnp.uint32)} for name in state.lost}
    state = memory.update(state._replace(lost=lost), {"w": jnp.full(5, 1e-9)}, None)
    before = 2**32 - 3 + 2**32
    assert losses(state)["w"] == {
        "writes": before + 5,
        "saturated": before,
        "underflowed": before,
        "stagnated": before + 5,
        "nan": before,
    }


def test_stochastic_rounding_cures_stagnation():
    """w = 1 minus 10,000 updates of 1e-4 in bfloat16, 1000 weights at once."""
    n, steps = 1000, 10_000

    def train(rounding):
        memory = number_format("bfloat16", rounding)
        state = start(memory, {"w": jnp.ones(n)})
        keys = jax.random.split(jax.random.key(1), steps)
        u = {"w": jnp.full(n, -1e-4)}
        state, _ = jax.lax.scan(lambda s, k: (memory.update(s, u, k), None), state, keys)
        return np.asarray(memory.read(state, None)["w"]), losses(state)["w"]

    w, lost = train("nearest_even")
    assert (w == 1).all()
    assert lost["stagnated"] == n * steps  # 1e-4 is below half a step (2^-9) below 1: share 1
    w, lost = train("stochastic")
    # Unbiased: the mean is 1 - steps * u. The variance of a step is at most u h, where h is the
    # step of the format below w, at most 2^-8 w; summed over w from 1 to 0 it is 2^-8 / 2 at most.
    deviation = np.sqrt(2.0**-9)
    drift = 1 - steps * float(np.float32(1e-4))
    assert abs(w.mean() - drift) < 4.5 * deviation / np.sqrt(n)
    assert w.std() < 1.2 * deviation  # of 1000 draws, within 4.5 sigma (1 / sqrt(2000)) and more
    assert 0 < lost["stagnated"] < n * steps


def test_each_leaf_draws_its_own_numbers():
    memory = number_format("e4m3fn", "stochastic")
    params = {"a": jnp.full(4000, 1.0625), "b": jnp.full(4000, 1.0625)}
    w = memory.read(start(memory, params), None)
    assert abs((w["a"] == w["b"]).mean() - 0.5) < 4.5 * 0.5 / np.sqrt(4000)


def test_int_scales():
    params = {"w": jnp.array([0.5, -2.0]), "b": jnp.zeros(3), "v": jnp.array([0.1])}
    state = start(number_format("int8"), params)
    s = {k: np.float32(a) / np.float32(127) for k, a in {"w": 2, "v": 0.1, "b": 2}.items()}
    equal(jax.tree.map(np.asarray, state.scale), {k: np.asarray(s[k]) for k in params})
    # a first step of a zero leaf is not lost, and growth beyond the first maximum is counted
    up = {"w": jnp.array([0.0, -1.0]), "b": jnp.full(3, 0.02), "v": jnp.array([0.0])}
    state = jax.jit(number_format("int8").update)(state, up, None)
    out = number_format("int8").read(state, None)
    np.testing.assert_array_equal(out["b"], np.float32(1) * s["b"])
    np.testing.assert_array_equal(out["w"], np.array([32, -127], np.float32) * s["w"])
    assert [losses(state)[k]["saturated"] for k in "wbv"] == [1, 0, 0]
    wide = start(number_format("int8", headroom=2.0), params)
    np.testing.assert_array_equal(wide.scale["w"], np.float32(4) / np.float32(127))
    allzero = start(number_format("int8"), {"b": jnp.zeros(3)})
    assert allzero.scale["b"] == 1


def test_the_largest_int_weight_is_not_counted_as_saturated():
    init = jax.jit(number_format("int8").init)
    for seed in range(20):
        state = init(tree(seed), None)
        assert sum(count["saturated"] for count in losses(state).values()) == 0


def test_float64_parameters():
    with jax.enable_x64(True):
        params = {"w": jnp.array([1.0, 2.0], jnp.float64)}
        memory = number_format("float16")
        state = start(memory, params)
        # half a step (2^-11) and a little: lost if the sum were rounded to float32 first
        state = memory.update(state, {"w": jnp.array([2.0**-11 + 2.0**-40, 2.0**-10])}, None)
        w = memory.read(state, None)["w"]
        assert w.dtype == jnp.float64
        np.testing.assert_array_equal(w, [1 + 2.0**-10, 2.0])


def test_nnx_params_optax_and_a_checkpoint(tmp_path):
    """The state of a network goes in and comes back as nnx.State; orbax restores the same bits."""
    memory = MEMORIES["int8"]
    network = nnx.Linear(6, 4, rngs=nnx.Rngs(0))
    graph, params = nnx.split(network, nnx.Param)
    state = start(memory, params)
    assert isinstance(memory.read(state, None), nnx.State)
    optimizer = optax.sgd(0.02)  # adam is not strict about promotion

    @jax.jit
    def step(state, opt, x, key):
        p = memory.read(state, None)
        grads = jax.grad(lambda p: (nnx.merge(graph, p)(x) ** 2).sum())(p)
        updates, opt = optimizer.update(grads, opt, p)
        return memory.update(state, updates, key), opt

    opt = optimizer.init(params)
    x = jax.random.normal(jax.random.key(1), (3, 6))
    before = (nnx.merge(graph, memory.read(state, None))(x) ** 2).sum()
    for key in jax.random.split(jax.random.key(2), 100):
        state, opt = step(state, opt, x, key)
    assert (nnx.merge(graph, memory.read(state, None))(x) ** 2).sum() < 0.5 * before
    assert set(losses(state)) == {"bias", "kernel"}
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(0, args=ocp.args.StandardSave(state))
        manager.wait_until_finished()
        equal(manager.restore(0, args=ocp.args.StandardRestore(state)), state)


def test_vmap_over_memories_equals_one_by_one():
    memory, n = MEMORIES["int8"], 3
    params = [tree(seed) for seed in range(n)]
    stack = jax.tree.map(lambda *a: jnp.stack(a), *params)
    u = tree(9, scale=0.01)

    @jax.jit
    def run(p, key):
        a, b = jax.random.split(key)
        return memory.update(memory.init(p, a), u, b)

    many = jax.vmap(run)(stack, jax.random.split(jax.random.key(0), n))
    one = [run(p, k) for p, k in zip(params, jax.random.split(jax.random.key(0), n), strict=True)]
    equal(many, jax.tree.map(lambda *a: jnp.stack(a), *one))
    writes = sum(losses(s)["bias"]["writes"] for s in one)
    assert losses(many)["bias"]["writes"] == writes == 2 * 16 * n


@pytest.mark.parametrize("name", ["e2m1fn", "int4"])
def test_nan_updates(name):
    memory = number_format(name)
    state = memory.init({"w": jnp.ones(3)}, None)
    u = {"w": jnp.array([jnp.nan, 0.0, 1.0])}
    with pytest.raises(ValueError, match=r"holds 1 NaN"):
        memory.update(state, u, None)
    state = jax.jit(memory.update)(state, u, None)
    assert losses(state)["w"]["nan"] == 1
    assert memory.read(state, None)["w"][0] == 0


def test_errors_name_the_memory_and_the_leaf():
    with pytest.raises(ValueError, match=r"number_format\(e4m3fn\): rounding is 'nearest'"):
        number_format("e4m3fn", "nearest")
    with pytest.raises(ValueError, match="the nearest names are e4m3fn"):
        number_format("e4m3fm")
    with pytest.raises(ValueError, match=r"headroom is 2\.0.*integer format"):
        number_format("e4m3fn", headroom=2.0)
    memory = number_format("e4m3fn", "stochastic")
    with pytest.raises(ValueError, match=r"number_format\(e4m3fn, 'stochastic'\).*key=None"):
        memory.init(tree(0), None)
    state = memory.init(tree(0), jax.random.key(0))
    with pytest.raises(ValueError, match="key=None"):
        memory.update(state, tree(1), None)
    with pytest.raises(ValueError, match=r"\['b'\] of shape \(2,\) has dtype int32"):
        memory.init({"a": jnp.ones(2), "b": jnp.arange(2)}, jax.random.key(0))
    wrong = jax.tree.map(lambda a: a[:4], tree(1))
    with pytest.raises(
        ValueError, match=r"update of shape \(4,\) came for a weight of shape \(16,\)"
    ):
        memory.update(state, wrong, jax.random.key(1))
    with pytest.raises(ValueError, match="bias"):
        memory.update(state, {"layer": tree(1)["layer"]}, jax.random.key(1))
    assert parse("e4m3fn").has_nan

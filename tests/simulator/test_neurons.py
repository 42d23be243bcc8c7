"""Cells: their equations against loops in numpy, closed forms, and the protocol of all cells."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree

from spikebit.simulator import surrogate
from spikebit.simulator.lif import ALIFCell, LIFCell, SynapticLIFCell
from spikebit.simulator.readout import LeakyReadout
from spikebit.simulator.snu import SNUCell, SoftSNUCell

pytestmark = pytest.mark.usefixtures("compile_quickly")

DT, STEPS, BATCH, N_IN, N = 1e-3, 50, 3, 6, 5


# The equations once more: one function a family, one unit at a time, Python numbers only.


def snu_reference(z, last, p, soft=False):
    s = z + p["d"] * last["s"] * (1 - last["y"])
    if soft:
        return {"s": s, "y": 1 / (1 + math.exp(-(s + p["b"])))}
    s = max(0.0, s)
    return {"s": s, "y": float(s + p["b"] > 0)}


def soft_snu_reference(z, last, p):
    return snu_reference(z, last, p, soft=True)


def lif_reference(z, last, p):
    new, theta = {}, p.get("threshold", 1.0)
    if "tau_syn" in p:
        z = new["i"] = math.exp(-DT / p["tau_syn"]) * last["i"] + z
    v, fired = last["v"], last["y"] == 1
    if fired:
        v = {"subtract": v - theta, "zero": 0.0, "none": v}[p.get("reset", "subtract")]
    new["v"] = p["d"] * v + z
    if "tau_adapt" in p:
        new["a"] = math.exp(-DT / p["tau_adapt"]) * last["a"] + last["y"]
        theta = theta + p["beta"] * new["a"]
    y = float(new["v"] > theta)
    if "refractory" in p:
        new["wait"] = p["refractory"] if fired else max(0, last["wait"] - 1)
        y = 0.0 if new["wait"] else y
    return {**new, "y": y}


def readout_reference(z, last, p):
    v = p["d"] * last["v"] + z
    return {"v": v, "y": v + p["b"]}


def lif_decay(tau=20e-3):
    return math.exp(-DT / tau)


CELLS = {
    "snu": (SNUCell, {}, snu_reference, {"d": 0.8}),
    "snu from tau": (SNUCell, {"tau": 2e-3}, snu_reference, {"d": math.exp(-0.5)}),
    "snu arctan": (
        SNUCell,
        {"surrogate": surrogate.arctan(), "bias": -0.5},
        snu_reference,
        {"d": 0.8},
    ),
    "soft_snu": (SoftSNUCell, {}, soft_snu_reference, {"d": 0.4}),
    "soft_snu 0.9": (SoftSNUCell, {"decay": 0.9}, soft_snu_reference, {"d": 0.9}),
    "lif subtract": (LIFCell, {}, lif_reference, {"d": lif_decay()}),
    "lif zero": (
        LIFCell,
        {"reset": "zero", "tau": 5e-3, "threshold": 0.7},
        lif_reference,
        {"d": lif_decay(5e-3), "reset": "zero", "threshold": 0.7},
    ),
    "lif none": (LIFCell, {"reset": "none"}, lif_reference, {"d": lif_decay(), "reset": "none"}),
    "lif refractory": (
        LIFCell,
        {"refractory": 3, "detach_reset": True},
        lif_reference,
        {"d": lif_decay(), "refractory": 3},
    ),
    "synaptic_lif": (
        SynapticLIFCell,
        {"threshold": 1.5},
        lif_reference,
        {"d": lif_decay(), "tau_syn": 5e-3, "threshold": 1.5},
    ),
    "synaptic_lif refractory zero": (
        SynapticLIFCell,
        {"tau_syn": 2e-3, "refractory": 2, "reset": "zero"},
        lif_reference,
        {"d": lif_decay(), "tau_syn": 2e-3, "refractory": 2, "reset": "zero"},
    ),
    "alif": (ALIFCell, {}, lif_reference, {"d": lif_decay(), "tau_adapt": 0.2, "beta": 0.17}),
    "alif refractory none": (
        ALIFCell,
        {"tau_adapt": 10e-3, "beta": 0.6, "refractory": 1, "reset": "none"},
        lif_reference,
        {
            "d": lif_decay(),
            "tau_adapt": 10e-3,
            "beta": 0.6,
            "refractory": 1,
            "reset": "none",
        },
    ),
    "readout": (LeakyReadout, {}, readout_reference, {"d": lif_decay()}),
}
FAMILY = ["snu", "soft_snu", "lif refractory", "synaptic_lif refractory zero", "alif", "readout"]
FAMILIES = pytest.mark.parametrize("name", FAMILY)


def build(name, *, n_in=N_IN, n=N, **settings):
    kind, options, _, _ = CELLS[name]
    cell = kind(n_in, n, **{**options, **settings}, rngs=nnx.Rngs(1))
    if kind is LeakyReadout and cell.h is not None:  # integrators that excite each other explode
        cell.h[...] = cell.h[...] * 0.03
    return cell


def inputs(seed=2, shape=(STEPS, BATCH, N_IN), dtype=np.float64):
    rng = np.random.default_rng(seed)
    return jnp.array((rng.random(shape) < 0.4) * rng.uniform(0.2, 1.6, shape), dtype)


@jax.jit
def run(cell, xs, carry=None):
    """All carries over xs, time first."""

    def step(carry, x):
        carry, _ = cell(carry, x)
        return carry, carry

    first = cell.initialize_carry(xs.shape[1:]) if carry is None else carry
    return jax.lax.scan(step, first, xs)[1]


def run_reference(name, cell, xs, d=None):
    """The same from the reference, one unit and one sample at a time."""
    _, _, step, parameters = CELLS[name]
    w, h, b = (
        None if p is None else np.asarray(p[...])
        for p in (cell.w, cell.h, getattr(cell, "b", None))
    )
    fields = cell.carry_type._fields
    out = {field: np.zeros((len(xs), xs.shape[1], cell.n)) for field in fields}
    for sample in range(xs.shape[1]):
        last = [dict.fromkeys(fields, 0.0) for _ in range(cell.n)]
        for t, x in enumerate(np.asarray(xs[:, sample])):
            z = x if w is None else x @ w
            if h is not None:
                z = z + np.array([unit["y"] for unit in last]) @ h
            for k in range(cell.n):
                p = dict(parameters, d=parameters["d"] if d is None else d[k])
                last[k] = step(z[k], last[k], p if b is None else {**p, "b": b[k]})
                for field in fields:
                    out[field][t, sample, k] = last[k][field]
    return out


@pytest.mark.parametrize(
    ("name", "recurrent"), [(name, True) for name in CELLS] + [(name, False) for name in FAMILY]
)
def test_cell_follows_its_equation(name, recurrent):
    with jax.enable_x64(True):
        cell, xs = build(name, recurrent=recurrent), inputs()
        if hasattr(cell, "b"):  # units that differ
            cell.b[...] = cell.b[...] + jnp.linspace(-0.2, 0.2, N)
        carries = run(cell, xs)
        expected = run_reference(name, cell, xs)
        if name not in ("readout", "soft_snu", "soft_snu 0.9"):
            assert 0.02 < expected["y"].mean() < 0.9  # the test sees spikes and silence
        for field, values in expected.items():
            assert getattr(carries, field).dtype == jnp.float64
            np.testing.assert_allclose(getattr(carries, field), values, rtol=0, atol=1e-12)


@FAMILIES
def test_trained_decay_is_a_parameter_that_stays_between_0_and_1(name):
    with jax.enable_x64(True):
        cell, xs = build(name, train_decay=True, recurrent=True), inputs()
        assert cell.d.shape == (N,)
        start = CELLS[name][3]["d"]
        np.testing.assert_allclose(cell.decay, start, rtol=1e-12)
        cell.d[...] = jnp.linspace(-3.0, 40.0, N)
        decay = np.asarray(cell.decay)
        assert (decay > 0).all()
        assert (decay <= 1).all()
        expected = run_reference(name, cell, xs, d=decay)
        carries = run(cell, xs)
        for field, values in expected.items():
            np.testing.assert_allclose(getattr(carries, field), values, rtol=1e-12, atol=1e-12)
        slope = jax.jit(jax.grad(lambda p: run(merge(cell, p), xs).y.sum()))(
            nnx.state(cell, nnx.Param)
        )
        assert float(jnp.abs(slope["d"][...]).max()) > 0


def merge(cell, params):
    graphdef, _, rest = nnx.split(cell, nnx.Param, ...)
    return nnx.merge(graphdef, params, rest)


# What every cell keeps to


@FAMILIES
def test_protocol_of_units(name):
    @jax.jit
    def pieces(cell, carry, x):
        z = x @ cell.w[...] + carry.y @ cell.h[...]
        charged = cell.charge(carry, z)
        return charged, cell.fire(charged), cell.unit_step(carry, z), cell(carry, x)

    cell, xs = build(name, recurrent=True), inputs(dtype=np.float32)
    carry = run(cell, xs[:20])
    carry = type(carry)(*(np.asarray(c)[-1] for c in carry))
    charged, fired, stepped, (called, y) = pieces(cell, carry, xs[20])
    assert carry._fields[-1] == "y"
    assert set(cell.memory_fields) <= set(carry._fields[:-1])
    np.testing.assert_array_equal(charged.y, carry.y)
    np.testing.assert_array_equal(stepped.y, fired)
    np.testing.assert_array_equal(called.y, y)
    for field in carry._fields:
        a, b = getattr(stepped, field), getattr(called, field)
        assert a.shape == (BATCH, N)
        # two sums of at most 11 terms below 8, in another order: 11 half ulps of 8
        np.testing.assert_allclose(a, b, rtol=0, atol=11 * 2.4e-7)
    assert (cell.in_features, cell.out_features, cell.num_feature_axes) == (N_IN, N, 1)


@FAMILIES
def test_support_is_where_fire_has_a_derivative(name):
    cell, xs = build(name, recurrent=True), inputs(dtype=np.float32)
    carries = run(cell, xs)
    tangent = {field: jnp.zeros_like(carries.y) for field in carries._fields}
    tangent[cell.memory_fields[-1 if name.startswith("syn") else 0]] = jnp.ones_like(carries.y)
    slope, support = jax.jit(lambda c, dc: (jax.jvp(cell.fire, (c,), (dc,))[1], cell.support(c)))(
        carries, type(carries)(**tangent)
    )
    if support is None:
        assert bool((slope != 0).all())
    else:
        assert support.shape == slope.shape
        assert support.any()
        assert not support.all()
        np.testing.assert_array_equal(slope != 0, support)


@FAMILIES
def test_charge_derivative_is_element_wise_and_equal_in_both_modes(name):
    cell = build(name)
    carries = run(cell, inputs(dtype=np.float32))
    carry = type(carries)(*(np.asarray(c)[10, 0] for c in carries))
    z = np.linspace(0.1, 0.9, N, dtype=np.float32)
    forward, backward = jax.jit(
        lambda *at: [both(cell.unit_step, argnums=(0, 1))(*at) for both in (jax.jacfwd, jax.jacrev)]
    )(carry, z)
    for a, b in zip(jax.tree.leaves(forward), jax.tree.leaves(backward), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
        np.testing.assert_array_equal(a, np.diag(np.diag(a)))


@FAMILIES
def test_one_sample_one_batch_vmap_and_flax_agree(name):
    cell, xs = build(name, recurrent=True), inputs(dtype=np.float32)
    carries = run(cell, xs)
    vmapped = jax.vmap(lambda x: run(cell, x).y, in_axes=1, out_axes=1)(xs)
    singles = jnp.stack([run(cell, xs[:, k]).y for k in range(BATCH)], 1)
    flax = nnx.RNN(cell, rngs=False)(jnp.swapaxes(xs, 0, 1))
    # seven float32 digits; a spike that such a difference tipped would show as 1
    for ys in (vmapped, singles, jnp.swapaxes(flax, 0, 1)):
        np.testing.assert_allclose(ys, carries.y, rtol=1e-5, atol=1e-5)
    split = run(cell, xs[30:], jax.tree.map(lambda c: c[29], carries))
    np.testing.assert_allclose(split.y, carries.y[30:], rtol=1e-5, atol=1e-5)


@FAMILIES
def test_without_input_weights_the_input_drives_maps_channel_by_channel(name):
    cell = build(name, n_in=None)
    shape = (STEPS, 2, 4, 3, N)
    xs = inputs(seed=7, shape=shape, dtype=np.float32)
    assert cell.w is None
    assert cell.in_features is None
    assert cell.out_features is None
    if hasattr(cell, "b"):
        cell.b[...] = cell.b[...] + jnp.linspace(-0.2, 0.2, N)
    carries = run(cell, xs)
    flat = run(cell, xs.reshape(STEPS, 24, N))
    for a, b in zip(jax.tree.leaves(carries), jax.tree.leaves(flat), strict=True):
        assert a.shape == shape
        # the same numbers but for how XLA vectorises a sigmoid: some ulp near 1
        np.testing.assert_allclose(a.reshape(b.shape), b, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"takes 5 features .* got an input of shape \(2, 4\)"):
        cell.initialize_carry((2, 4))


def test_recurrence_without_input_weights():
    cell = build("lif subtract", n_in=None, recurrent=True)
    xs = inputs(seed=7, shape=(STEPS, BATCH, N), dtype=np.float32)
    expected = run_reference("lif subtract", cell, xs)
    np.testing.assert_array_equal(run(cell, xs).y, expected["y"])


def test_initial_carry():
    cell = build("synaptic_lif refractory zero")
    carry = cell.initialize_carry((4, N_IN))
    assert carry._fields == ("i", "v", "wait", "y")
    assert all(c.shape == (4, N) and c.dtype == jnp.float32 and not c.any() for c in carry)
    assert len({c.unsafe_buffer_pointer() for c in carry}) == 4  # so a carry can be donated
    normal = nnx.initializers.normal(1.0)
    drawn = cell.initialize_carry((4, N_IN), nnx.Rngs(carry=3), normal)
    assert drawn.i.any()
    assert (drawn.i != drawn.v).all()
    assert not drawn.y.any()
    assert not drawn.wait.any()
    with pytest.raises(ValueError, match="carry_init needs rngs"):
        cell.initialize_carry((4, N_IN), None, normal)


def test_dtype_is_that_of_the_parameters():
    cell = LIFCell(
        N_IN, N, param_dtype=jnp.bfloat16, recurrent=True, refractory=1, rngs=nnx.Rngs(0)
    )
    carry, y = cell(cell.initialize_carry((2, N_IN)), jnp.ones((2, N_IN), jnp.bfloat16))
    assert {a.dtype for a in (*carry, y, cell.w[...])} == {jnp.dtype(jnp.bfloat16)}
    with jax.enable_x64(True):
        assert SNUCell(N_IN, N, rngs=nnx.Rngs(0)).w.dtype == jnp.float64
        assert LIFCell(None, N).initialize_carry((2, N)).v.dtype == jnp.float64


def test_weights_are_glorot_uniform_and_cells_of_equal_settings_have_one_structure():
    cell = SNUCell(300, 200, recurrent=True, rngs=nnx.Rngs(0))
    for kernel, fan_in in ((cell.w, 300), (cell.h, 200)):
        w, limit = np.asarray(kernel[...]), math.sqrt(6 / (fan_in + 200))
        assert w.shape == (fan_in, 200)
        assert limit * 0.999 < np.abs(w).max() <= limit
        # the variance of n uniform draws: standard error limit^2 / 3 * sqrt(4 / 5 / n)
        error = limit**2 / 3 * math.sqrt(0.8 / w.size)
        assert abs(w.var() - limit**2 / 3) < 4.5 * error
    assert (cell.b[...] == -1).all()
    other = SNUCell(300, 200, recurrent=True, rngs=nnx.Rngs(5))
    assert nnx.graphdef(cell) == nnx.graphdef(other)


# Closed forms


def test_constant_current_without_reset_charges_exponentially():
    with jax.enable_x64(True):
        cell = LIFCell(None, 1, tau=20e-3, reset="none")
        t = np.arange(1, 101)
        for tau, current in ((20e-3, 0.06), (3e-3, 0.4)):
            cell = LIFCell(None, 1, tau=tau, reset="none")
            alpha = math.exp(-DT / tau)
            v = run(cell, jnp.full((100, 1, 1), current)).v[:, 0, 0]
            np.testing.assert_allclose(v, current * (1 - alpha**t) / (1 - alpha), rtol=1e-13)


def test_an_impulse_through_both_filters_is_a_difference_of_exponentials():
    with jax.enable_x64(True):
        cell = SynapticLIFCell(None, 1, tau=20e-3, tau_syn=5e-3, reset="none")
        alpha, kappa = math.exp(-1 / 20), math.exp(-1 / 5)
        t = np.arange(60)
        carries = run(cell, jnp.zeros((60, 1, 1)).at[0].set(1.0))
        np.testing.assert_allclose(carries.i[:, 0, 0], kappa**t, rtol=1e-13)
        expected = (alpha ** (t + 1) - kappa ** (t + 1)) / (alpha - kappa)
        np.testing.assert_allclose(carries.v[:, 0, 0], expected, rtol=1e-13)


@pytest.mark.parametrize("current", [0.0480, 0.0487, 0.0491, 0.055, 0.1, 0.6, 1.01])
def test_first_spike_is_where_the_charging_curve_crosses(current):
    with jax.enable_x64(True):
        alpha = math.exp(-DT / 20e-3)
        y = run(LIFCell(None, 1), jnp.full((300, 1, 1), current)).y[:, 0, 0]
        if current / (1 - alpha) <= 1:  # the asymptote stays below the threshold
            assert not y.any()
        else:  # v_t > 1 first for t = floor(log_alpha(1 - (1 - alpha) / I)) + 1, from t = 1
            crossing = math.log(1 - (1 - alpha) / current) / math.log(alpha)
            assert int(np.argmax(y)) == math.floor(crossing)


@pytest.mark.parametrize("refractory", [0, 1, 4])
def test_refractory_period_sets_the_shortest_interval(refractory):
    y = run(LIFCell(None, 1, refractory=refractory), jnp.full((60, 1, 1), 5.0)).y[:, 0, 0]
    np.testing.assert_array_equal(y, np.arange(60) % (refractory + 1) == 0)


def test_refractory_unit_integrates_but_its_spike_has_no_derivative():
    cell = LIFCell(None, 1, refractory=2, reset="none", surrogate=surrogate.straight_through())
    xs = jnp.full((5, 1, 1), 3.0)
    carries = run(cell, xs)
    assert carries.y[:, 0, 0].tolist() == [1, 0, 0, 1, 0]
    assert carries.wait[:, 0, 0].tolist() == [0, 2, 1, 0, 2]
    alpha = math.exp(-1 / 20)
    expected = [3 * sum(alpha**k for k in range(t + 1)) for t in range(5)]
    np.testing.assert_allclose(carries.v[:, 0, 0], expected, rtol=1e-6)
    slope = jax.vmap(jax.vmap(jax.grad(lambda v, c: cell.fire(c._replace(v=v)).sum())))
    assert slope(carries.v, carries)[:, 0, 0].tolist() == [1, 0, 0, 1, 0]
    assert cell.support(carries)[:, 0, 0].tolist() == [True, False, False, True, False]


def test_reset_by_subtraction_conserves_charge():
    with jax.enable_x64(True):
        steps, theta, alpha = 80, 0.8, math.exp(-1 / 20)
        cell = LIFCell(None, 4, threshold=theta)
        zs = inputs(seed=3, shape=(steps, 2, 4))
        carries = run(cell, zs)
        assert carries.y.sum() > 20
        left = alpha ** np.arange(steps)[::-1].reshape(-1, 1, 1)
        # v_T = sum alpha^(T-t) z_t - theta sum alpha^(T-t) y_t over the spikes before T
        expected = (left * zs).sum(0) - theta * (left[:-1] * carries.y[:-1]).sum(0)
        np.testing.assert_allclose(carries.v[-1], expected, rtol=0, atol=1e-12)
        # with no leak the count itself: what came in = v + theta * spikes
        perfect = run(LIFCell(None, 4, threshold=theta, tau=math.inf), zs)
        expected = zs.sum(0) - theta * perfect.y[:-1].sum(0)
        np.testing.assert_allclose(perfect.v[-1], expected, rtol=0, atol=1e-12)


def test_adaptation_lengthens_intervals_and_without_strength_is_lif():
    with jax.enable_x64(True):
        zs = inputs(seed=4, shape=(STEPS, 2, N))
        still = run(ALIFCell(None, N, beta=0), zs)
        plain = run(LIFCell(None, N), zs)
        np.testing.assert_array_equal(still.y, plain.y)
        np.testing.assert_array_equal(still.v, plain.v)
        rho = math.exp(-1 / 200)
        left = rho ** np.arange(STEPS - 1)[::-1].reshape(-1, 1, 1)
        np.testing.assert_allclose(still.a[-1], (left * plain.y[:-1]).sum(0), rtol=1e-13)
        times = np.flatnonzero(run(ALIFCell(None, 1), jnp.full((400, 1, 1), 0.2)).y)
        intervals = np.diff(times)
        assert len(intervals) > 5
        assert intervals[-1] > intervals[0]


# Derivatives


@pytest.mark.parametrize("kind", [SoftSNUCell, LeakyReadout])
def test_gradients_of_graded_cells_are_finite_differences(kind):
    with jax.enable_x64(True):
        cell = kind(4, 3, recurrent=True, train_decay=True, rngs=nnx.Rngs(6))
        xs = inputs(seed=8, shape=(20, 2, 4))
        params = nnx.state(cell, nnx.Param)
        flat, unravel = ravel_pytree(params)
        weight = jnp.array(np.random.default_rng(0).normal(size=(20, 2, 3)))

        def loss(flat):
            return (run(merge(cell, unravel(flat)), xs).y * weight).sum()

        gradient, step = jax.jit(jax.grad(loss))(flat), 1e-5
        shifts = np.eye(len(flat)) * step
        losses = jax.jit(jax.vmap(loss))(flat + np.stack([shifts, -shifts]).reshape(-1, len(flat)))
        finite = (losses[: len(flat)] - losses[len(flat) :]) / (2 * step)
        # truncation ~ step^2, rounding ~ 1e-16 / step: both about 1e-10 of values up to 100
        np.testing.assert_allclose(gradient, finite, rtol=1e-7, atol=1e-7)


def spiking_chain(kind, field=0, **settings):
    """One unit driven through its spike: d memory_2 / dz_1, the reset of step 1 in between."""
    cell = kind(None, 1, surrogate=surrogate.straight_through(), **settings)
    carry = cell.initialize_carry((1, 1))

    def potential(z):
        carry_1 = cell.unit_step(carry, jnp.full((1, 1), z))
        carry_2 = cell.charge(carry_1, jnp.full((1, 1), 0.2))
        return getattr(carry_2, cell.memory_fields[field])[0, 0]

    return jax.jit(jax.grad(potential))(2.0)


def test_derivative_through_the_reset():
    """v_2 = alpha R(v_1, y_1) + z_2 with v_1 = 2, y_1 = 1 and dy_1/dv_1 = 1."""
    alpha, theta = math.exp(-1 / 20), 0.7
    expected = {"subtract": 1 - theta, "zero": (1 - 1) - 2.0, "none": 1.0}
    detached = {"subtract": 1.0, "zero": 0.0, "none": 1.0}
    for reset in expected:
        whole = spiking_chain(LIFCell, reset=reset, threshold=theta)
        cut = spiking_chain(LIFCell, reset=reset, threshold=theta, detach_reset=True)
        assert float(whole) == pytest.approx(alpha * expected[reset], rel=1e-6)
        assert float(cut) == pytest.approx(alpha * detached[reset], rel=1e-6)
    # ALIF: a_2 = rho a_1 + y_1, whether or not the reset is detached
    for detach in (False, True):
        assert spiking_chain(ALIFCell, field=1, detach_reset=detach) == 1
    # SNU: s_2 = relu(z_2 + d s_1 (1 - y_1)), ds_2/ds_1 = d (1 - y_1 - s_1 dy_1/ds_1)
    assert float(spiking_chain(SNUCell, decay=0.05)) == pytest.approx(0.05 * (1 - 1 - 2), rel=1e-6)


@FAMILIES
def test_gradient_of_parameters_loses_nothing_to_the_support(name):
    """`drive` leaves out dE/dy where y has no derivative: no parameter may notice."""
    with jax.enable_x64(True):
        cell, xs = build(name, recurrent=True), inputs()
        params = nnx.state(cell, nnx.Param)

        def loss(params, dense):
            layer = merge(cell, params)

            def step(carry, x):
                if dense:
                    carry = layer.unit_step(carry, x @ layer.w[...] + carry.y @ layer.h[...])
                else:
                    carry, _ = layer(carry, x)
                return carry, carry.y

            _, ys = jax.lax.scan(step, layer.initialize_carry(xs.shape[1:]), xs)
            return (ys * jnp.arange(1.0, N + 1)).sum()

        gradient = jax.jit(jax.grad(loss), static_argnums=1)
        got, expected = (gradient(params, dense) for dense in (False, True))
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            assert bool(b.any())
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9 * float(jnp.abs(b).max()))


# What is refused


@FAMILIES
def test_an_input_of_another_size_is_refused_by_name(name):
    cell = build(name)
    wanted = rf"{type(cell).__name__} takes 6 features .* got an input of shape \(3, 7\)"
    with pytest.raises(ValueError, match=wanted):
        cell(cell.initialize_carry((3, N_IN)), jnp.ones((3, 7)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda r: LIFCell(3, 2, tau=0.0, rngs=r), "LIFCell needs 0 < dt <= tau, .* tau=0.0"),
        (lambda r: LIFCell(3, 2, tau=-1.0, rngs=r), "LIFCell needs 0 < dt <= tau"),
        (lambda r: LIFCell(3, 2, dt=0.1, rngs=r), "LIFCell needs 0 < dt <= tau, .* dt=0.1"),
        (lambda r: LIFCell(3, 2, dt=math.nan, rngs=r), "LIFCell needs 0 < dt <= tau"),
        (lambda r: LIFCell(3, 2, threshold=0, rngs=r), "LIFCell needs a threshold > 0; got 0"),
        (lambda r: ALIFCell(3, 2, threshold=-1, rngs=r), "ALIFCell needs a threshold > 0"),
        (lambda r: LIFCell(3, 2, refractory=-1, rngs=r), "refractory >= 0; got -1"),
        (lambda r: LIFCell(3, 2, refractory=True, rngs=r), "refractory >= 0; got True"),
        (lambda r: LIFCell(3, 2, reset="soft", rngs=r), "subtract, zero, none; got 'soft'"),
        (lambda r: SynapticLIFCell(3, 2, tau_syn=1e-4, rngs=r), "0 < dt <= tau_syn"),
        (lambda r: SynapticLIFCell(3, 2, tau=1e-4, rngs=r), "SynapticLIFCell needs 0 < dt <= tau,"),
        (lambda r: ALIFCell(3, 2, tau_adapt=0, rngs=r), "0 < dt <= tau_adapt"),
        (lambda r: ALIFCell(3, 2, beta=-0.1, rngs=r), "ALIFCell needs beta >= 0; got -0.1"),
        (lambda r: LeakyReadout(3, 2, tau=0, rngs=r), "LeakyReadout needs 0 < dt <= tau"),
        (lambda r: SNUCell(3, 2, decay=1.1, rngs=r), "SNUCell needs 0 <= decay <= 1; got 1.1"),
        (lambda r: SoftSNUCell(3, 2, decay=-0.1, rngs=r), "SoftSNUCell needs 0 <= decay <= 1"),
        (lambda r: SNUCell(3, 2, decay=0.5, tau=1e-2, rngs=r), "a decay or a tau, not both"),
        (lambda r: SNUCell(3, 2, decay=0, train_decay=True, rngs=r), "0 < decay < 1; got 0"),
        (lambda r: SNUCell(3, 0, rngs=r), "SNUCell needs a whole number n >= 1; got 0"),
        (lambda r: SNUCell(0, 3, rngs=r), "SNUCell needs a whole number n_in >= 1; got 0"),
        (lambda r: SNUCell(3, 2), "SNUCell draws its weights at random"),
        (lambda r: SNUCell(None, 2, recurrent=True), "SNUCell draws its weights at random"),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make(nnx.Rngs(0))

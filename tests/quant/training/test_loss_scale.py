"""Loss scaling: exact for powers of two, saves what underflows, steps back from overflow."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spikebit.quant import parse
from spikebit.quant.training import loss_scale, loss_scaling, low_precision

PARAMS = {"w": jnp.zeros(4)}
GRADS = jnp.array([1.0, -0.3, 0.02, 1e-3])


@pytest.fixture(autouse=True)
def as_users_have_it():
    """Optax's adam relies on dtype promotion."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def run(tx, grads, steps=6):
    """All updates, the gradients being those of the scaled loss.

    Not compiled as one program: that would leave out other roundings in each optimizer.
    """
    state, seen = tx.init(PARAMS), []
    for i in range(steps):
        scale = loss_scale(state)
        scaled = grads * (i + 1) * (1.0 if scale is None else scale)
        updates, state = tx.update({"w": scaled}, state, PARAMS)
        seen.append(np.asarray(updates["w"]))
    return np.stack(seen), state


@pytest.mark.parametrize("power", [-3, 0, 8, 13])
@pytest.mark.parametrize("interval", [None, 2])
def test_a_power_of_two_changes_nothing_inside_the_range(power, interval):
    wanted, _ = run(low_precision(optax.adam(0.1), gradients="bfloat16"), GRADS)
    tx = low_precision(
        optax.adam(0.1), gradients="bfloat16", loss_scale=2.0**power, growth_interval=interval
    )
    got, state = run(tx, GRADS)
    np.testing.assert_array_equal(got, wanted)
    assert float(state.scale) == 2.0 ** (power + (0 if interval is None else 3))


def test_small_gradients_survive_in_a_narrow_format():
    tiny = GRADS * 1e-6  # below half of the smallest number of e4m3fn, 2^-9
    lost, _ = run(low_precision(optax.sgd(1.0), gradients="e4m3fn"), tiny)
    assert (lost == 0).all()
    kept, _ = run(low_precision(optax.sgd(1.0), gradients="e4m3fn", loss_scale=2.0**25), tiny)
    exact = -np.asarray(tiny)[None] * np.arange(1, 7)[:, None]
    assert (abs(kept - exact) <= abs(exact) / 16 + 2.0**-35).all()


def test_an_overflow_is_left_out_and_halves_the_scale():
    tx = loss_scaling(optax.adam(0.1), 8.0, growth_interval=3)
    state = tx.init(PARAMS)
    updates, state = tx.update({"w": GRADS * 8}, state, PARAMS)
    before = state
    for n, scale in enumerate((4.0, 2.0, 1.0, 1.0), start=1):
        updates, state = tx.update({"w": GRADS.at[2].set(jnp.inf)}, state, PARAMS)
        assert (np.asarray(updates["w"]) == 0).all()
        assert (float(loss_scale(state)), int(state.skipped), int(state.good)) == (scale, n, 0)
        jax.tree.map(np.testing.assert_array_equal, state.inner, before.inner)
    for scale in (1.0, 1.0, 2.0, 2.0):  # the third good one doubles it
        updates, state = tx.update({"w": GRADS * loss_scale(state)}, state, PARAMS)
        assert float(state.scale) == scale
        assert (np.asarray(updates["w"]) != 0).all()


def test_the_format_of_the_gradients_overflows_where_the_scale_is_dynamic():
    tx = low_precision(optax.sgd(1.0), gradients="e5m2", loss_scale=2.0**15, growth_interval=100)
    updates, state = tx.update({"w": GRADS * 2.0**16}, tx.init(PARAMS), PARAMS)  # beyond 57344
    assert (np.asarray(updates["w"]) == 0).all()
    assert float(state.scale) == 2.0**14
    fixed = low_precision(optax.sgd(1.0), gradients="e5m2", loss_scale=2.0**15)
    updates, _ = fixed.update({"w": GRADS * 2.0**16}, fixed.init(PARAMS), PARAMS)
    assert float(updates["w"][0]) == -57344 / 2.0**15  # saturates


@pytest.mark.parametrize("lost", [jnp.inf, -jnp.inf, jnp.nan])
def test_a_format_that_only_saturates_does_not_hide_a_gradient_that_is_not_finite(lost):
    tx = low_precision(optax.sgd(1.0), gradients="e3m2fn", loss_scale=4.0, growth_interval=1)
    state = tx.init(PARAMS)
    updates, state = jax.jit(tx.update)({"w": GRADS.at[1].set(lost)}, state, PARAMS)
    assert (np.asarray(updates["w"]) == 0).all()
    assert (float(state.scale), int(state.skipped)) == (2.0, 1)


@pytest.mark.parametrize("fmt", ["e3m2fn", "fixed8.4", "e5m2"])
def test_a_dynamic_scale_stays_where_the_gradients_fit(fmt):
    """Equal gradients of 1: the weight goes down by lr a step, but for a few that are left out."""
    steps, rate = 300, 1e-3
    tx = low_precision(optax.sgd(rate), gradients=fmt, loss_scale=2.0**10, growth_interval=20)
    largest = parse(fmt).max

    def step(carry, _):
        params, state = carry
        scaled = {"w": jnp.ones(3) * loss_scale(state)}
        updates, state = tx.update(scaled, state, params)
        return (optax.apply_updates(params, updates), state), loss_scale(state)

    start = {"w": jnp.zeros(3)}
    (params, state), scales = jax.lax.scan(step, (start, tx.init(start)), None, length=steps)
    taken = steps - int(state.skipped)
    np.testing.assert_allclose(params["w"], -rate * taken, rtol=1e-4)
    assert 0 < int(state.skipped) <= 10 + 1 + steps // 20
    assert float(scales[-1]) <= 2 * largest


def test_an_optimizer_without_a_scale_has_none():
    assert loss_scale(optax.adam(0.1).init(PARAMS)) is None


def test_settings_that_would_do_nothing_are_refused():
    with pytest.raises(ValueError, match=r"growth_interval=10\): there is no scale to grow"):
        low_precision(optax.sgd(1.0), growth_interval=10)
    with pytest.raises(ValueError, match=r"low_precision.*'stoch'"):
        low_precision(optax.sgd(1.0), rounding="stoch")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"scale": 0.0}, "scale is 0.0"),
        ({"scale": float("nan")}, "scale is nan"),
        ({"scale": 2.0**127}, "from 2\\^-126 to 2\\^126"),
        ({"growth_interval": 0}, "growth_interval is 0"),
    ],
)
def test_a_wrong_scale_is_named(settings, said):
    with pytest.raises(ValueError, match=said):
        loss_scaling(optax.sgd(1.0), **settings)

"""The study of SGD's floor: what it measures, and that it would see a bound that is too low."""

import dataclasses

import jax
import numpy as np
import pytest

from spikebit.quant.training import bounds
from spikebit.simulator import plots, report
from spikebit.simulator.studies import _sgd_problems, sgd_floor

SMALL = sgd_floor.Settings(
    problems=("convex", "quasi_convex"),
    formats=("fixed16.4",),
    steps=(0.002, 0.05),
    iterations=400,
    seeds=3,
)


def rows_of(settings, seed=0):
    cases = sgd_floor.cases(settings, seed)
    return [case | sgd_floor.measure(settings, seed, case) for case in cases]


@pytest.fixture(scope="module")
def rows():
    return rows_of(SMALL)


def row(rows, **wanted):
    (found,) = [r for r in rows if wanted.items() <= r.items()]
    return found


@pytest.mark.parametrize("name", _sgd_problems.NAMES)
def test_problems_have_their_minimum_and_constant(name):
    p = _sgd_problems.problem(name, 3)
    value = jax.jit(jax.vmap(lambda x: p.outer(p.inner(x))))
    assert value(p.minimum[None]) == 0
    rng = np.random.default_rng(0)
    for distance in (1e-2, 0.3) if name != "network" else (1e-3,):
        ways = rng.normal(size=(100, len(p.minimum)))
        ways *= distance / np.linalg.norm(ways, axis=1, keepdims=True)
        values = np.asarray(value(p.minimum + ways.astype(np.float32)), np.float64)
        assert 0 < max(values) <= p.constant * distance**p.power * (1 + 1e-2)
        assert max(values) >= 0.3 * p.constant * distance**p.power  # L is not far too large


def test_quasi_convex_is_so_and_not_convex():
    p = _sgd_problems.problem("quasi_convex", 0)
    rng = np.random.default_rng(1)
    value = jax.jit(lambda x: p.outer(p.inner(x)))
    f = [
        [float(value(p.minimum + c * w)) for c in (1.0, 2.0, 3.0)]
        for w in rng.normal(size=(20, 10)).astype(np.float32)
    ]
    assert all(b > (a + c) / 2 for a, b, c in f)  # concave along rays from the minimum
    for a, b in rng.normal(size=(20, 2, 10)).astype(np.float32):
        ends = [value(x) for x in (a, b)]
        assert value((a + b) / 2) <= max(ends) * (1 + 1e-5)


def test_no_run_ends_above_its_bound_and_small_steps_stagnate_to_nearest_only(rows):
    assert sum(r["violated"] for r in rows) == 0
    assert all(r["best"] <= r["worst"] <= r["bound"] for r in rows)
    assert all(r["outside"] == 0 for r in rows)
    for problem in SMALL.problems:
        # 0.002 times an entry of the gradient and its noise is below half of 2^-4: nothing moves
        still = row(rows, problem=problem, rounding="nearest_even", step=0.002)
        assert still["stagnated"] == 1
        assert still["best"] == pytest.approx(still["last"])
        moving = row(rows, problem=problem, rounding="stochastic", step=0.002)
        assert moving["stagnated"] < 1
        assert moving["best"] < 0.8 * still["best"]
        assert moving["floor"] < still["floor"] / 5


@pytest.mark.usefixtures("compile_quickly")
def test_a_run_is_the_loop_in_numpy():
    settings = sgd_floor.Settings(
        problems=("quasi_convex",), formats=("fixed16.8",), roundings=("nearest_even",),
        steps=(0.05,), noise=0.0, iterations=30, seeds=1,
    )  # fmt: skip
    (found,) = rows_of(settings, seed=5)
    p = _sgd_problems.problem("quasi_convex", 5)
    (key,) = jax.random.split(jax.random.key(5), 1)
    way = np.asarray(jax.random.normal(jax.random.fold_in(key, 2**31), (10,)))
    x = np.asarray(p.minimum) + 2 * way / np.linalg.norm(way)
    values, still = [], 0
    slope = jax.jit(jax.grad(p.inner))
    x = np.round(x * 256) / 256  # rounds half to even too
    for _ in range(30):
        g = np.asarray(slope(x.astype(np.float32)), np.float64)
        values.append(float(p.outer(p.inner(x.astype(np.float32)))))
        new = np.round((x - 0.05 * g / np.linalg.norm(g)) * 256) / 256
        still += int((new == x).sum())
        x = new
    assert found["best"] == pytest.approx(min(values), rel=1e-5)
    assert found["last"] == pytest.approx(np.mean(values[-3:]), rel=1e-5)
    assert found["stagnated"] == pytest.approx(still / 300)
    assert found["violated"] == 0


@pytest.mark.usefixtures("compile_quickly")
def test_a_bound_that_is_too_low_is_seen(monkeypatch):
    monkeypatch.setattr(bounds, "distance_floor", lambda step, **_: 1e-6)
    assert sgd_floor.summary(SMALL, rows_of(SMALL))["violated"] == len(SMALL.problems) * 4 * 3


def test_in_float32_both_roundings_run_alike():
    settings = sgd_floor.Settings(
        problems=("convex",), formats=("float32",), steps=(0.05,), iterations=50, seeds=2
    )
    nearest, stochastic = rows_of(settings)
    for name in ("best", "worst", "last", "distance"):
        assert nearest[name] == stochastic[name]


@pytest.mark.usefixtures("compile_quickly")
def test_gradients_can_be_in_a_format_too():
    def floors(gradient_format):
        settings = sgd_floor.Settings(
            problems=("convex",), formats=("fixed16.8",), steps=(0.05,), iterations=50, seeds=2,
            roundings=("nearest_even",), gradient_format=gradient_format,
        )  # fmt: skip
        (found,) = rows_of(settings)
        assert found["violated"] == 0
        return found["floor"]

    assert floors("e4m3fn") > floors("float32")
    with pytest.raises(ValueError, match=r"int8.*scale"):
        sgd_floor.cases(sgd_floor.Settings(formats=("int8",)), 0)


def test_pictures_show_every_format(rows):
    drawn = sgd_floor.pictures(SMALL, rows)
    assert list(drawn) == ["convex", "quasi_convex"]
    assert all(report.png(ax).startswith(b"\x89PNG") for ax in drawn.values())
    lines = drawn["convex"].lines
    assert len(lines) == 2 * 3
    assert lines[0].get_color() == plots.COLOURS[0]
    shown = [row(rows, problem="convex", rounding="nearest_even", step=v) for v in SMALL.steps]
    np.testing.assert_allclose(lines[2].get_ydata(), [r["bound"] for r in shown])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"formats": ("fixed8.8",)}, "study.formats: the minimum of the convex problem"),
        ({"gradient_format": "fixed4.8"}, "study.gradient_format: a gradient of norm 1"),
        ({"gradient_format": "e8m0fnu"}, "e8m0fnu is a format of scales"),
    ],
)
def test_a_format_that_ends_too_early_is_refused(changed, said):
    with pytest.raises(ValueError, match=said):
        sgd_floor.cases(dataclasses.replace(SMALL, **changed), 0)


def test_gradients_that_saturate_are_counted():
    loud = dataclasses.replace(
        SMALL,
        problems=("convex",),
        steps=(0.05,),
        iterations=50,
        gradient_format="fixed4.2_symmetric",
    )
    (least,) = [sgd_floor.measure(loud, 0, case) for case in sgd_floor.cases(loud, 0)[:1]]
    assert least["saturated"] == 0  # it ends at 1.75
    wild = dataclasses.replace(loud, noise=5.0)
    (row,) = [sgd_floor.measure(wild, 0, case) for case in sgd_floor.cases(wild, 0)[:1]]
    # the noise has deviation 5 / sqrt(10) = 1.58 an entry: beyond 1.75 more than a quarter
    assert 0.2 < row["saturated"] < 0.4
    assert (
        sgd_floor.summary(
            wild, [row | {"problem": "convex", "format": "a", "rounding": "b", "step": 0.05}]
        )["gradients_saturated"]
        == row["saturated"]
    )

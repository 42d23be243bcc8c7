"""The study of delays: teacher and judgement against sums by hand, and recovery in small."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.simulator import report
from spikebit.simulator.studies import delays

SMALL = delays.Settings(
    inputs=4, rate=0.15, lags=12, threshold=2, steps=1500, updates=200, seeds=2,
    sigmas=((6.0, 0.23, 0.5), (0.23, 0.23, 1.0)), learning_rate=0.05,
    keep=(48, 4, 1), shortened=(1,),
)  # fmt: skip


@pytest.fixture(scope="module")
def rows():
    with jax.numpy_dtype_promotion("standard"):  # of optax
        return [case | delays.measure(SMALL, 0, case) for case in delays.cases(SMALL, 0)]


def row(rows, **wanted):
    (found,) = [r for r in rows if wanted.items() <= r.items()]
    return found


def test_the_teacher_counts_delayed_inputs():
    p = delays._problem(SMALL, 3, 1)
    xs, ys, lag = (np.asarray(a) for a in (p.xs, p.ys, p.delays))
    assert 0.1 < xs.mean() < 0.2
    for s in range(2):
        for t in range(60):
            seen = sum(xs[s, t - lag[i], i] for i in range(4) if t >= lag[i])
            assert ys[s, t] == (seen >= 2)
    assert (xs[0] != xs[1]).any()


def test_the_judgement_of_the_teacher_itself_and_of_a_kernel_one_step_late():
    p = delays._problem(SMALL, 3, 1)
    lag = np.asarray(p.delays)
    kernel = np.zeros((12, 4, 1), np.float32)
    kernel[lag, np.arange(4), 0] = 20

    def judged(kernel):
        return delays._judge(p, jnp.asarray(kernel), jnp.zeros(1))  # the bias is fitted

    found = judged(kernel)
    assert [found[k] for k in ("recovered", "accuracy", "recall", "precision")] == [1, 1, 1, 1]
    assert found["bce"] < 1e-2
    late = judged(np.roll(kernel, 1, 0))
    assert late["recovered"] == 0
    assert late["recall"] < 0.7
    none = judged(0 * kernel)  # calls nothing a spike
    share = [float(y.mean()) for y in p.ys]
    expected = -share[1] * np.log(share[0]) - (1 - share[1]) * np.log(1 - share[0])
    assert none["bce"] == pytest.approx(expected, rel=1e-5)
    assert none["accuracy"] == pytest.approx(1 - share[1], rel=1e-6)
    assert (none["recovered"], none["recall"], none["precision"]) == (0, 0, 0)


def test_narrowing_sigma_finds_the_delays_and_starting_narrow_does_not(rows):
    wide, narrow = row(rows, start=6.0), row(rows, start=0.23)
    assert min(wide["recovered"]) == 1
    assert min(wide["recall"]) > 0.95
    assert max(narrow["recovered"]) < 1
    assert np.mean(narrow["bce"]) > 2 * np.mean(wide["bce"])


def test_a_weight_a_synapse_is_enough_and_fewer_are_not(rows):
    whole, four, one = (row(rows, lags=12, keep=k) for k in (48, 4, 1))
    assert min(whole["recovered"]) == min(four["recovered"]) == 1
    assert min(four["recall"]) > 0.95
    assert max(one["recovered"]) == 0.25
    assert max(one["recall"]) < min(four["recall"])
    short = row(rows, lags=1)
    assert max(short["recovered"]) <= 0.5  # two of four teachers' delays at lag 0 would be chance
    assert np.mean(short["bce"]) > np.mean(four["bce"])


def test_pictures_and_summary(rows):
    drawn = delays.pictures(SMALL, rows)
    assert drawn.keys() == {"schedules", "pruning", "shortening"}
    assert all(report.png(ax).startswith(b"\x89PNG") for ax in drawn.values())
    recall = next(line for line in drawn["pruning"].lines if line.get_label() == "recall")
    assert list(recall.get_xdata()) == [1, 4, 48]
    expected = [np.mean(row(rows, lags=12, keep=k)["recall"]) for k in (1, 4, 48)]
    np.testing.assert_allclose(recall.get_ydata(), expected)
    found = delays.summary(SMALL, rows)
    assert found["recovered_by_sigma"]["6 to 0.23 in 50%"] == 1
    assert found["recovered_by_sigma"].keys() == {"6 to 0.23 in 50%", "0.23"}
    assert found["recall_by_weights_kept"].keys() == {"48", "4", "1"}
    assert found["recall_by_lags_kept"].keys() == {"1"}


def test_more_than_there_is_cannot_be_kept():
    with pytest.raises(ValueError, match=r"study.keep = 250: 2 inputs with 25 lags have 50 at"):
        delays.cases(delays.Settings(inputs=2), 0)
    with pytest.raises(ValueError, match=r"study.shortened = 24: .* 20 lags have 20 at most"):
        delays.cases(delays.Settings(lags=20, keep=()), 0)


def test_a_teacher_that_never_or_always_fires_is_refused():
    with pytest.raises(ValueError, match=r"study\.threshold = 11: .* study\.inputs = 10"):
        delays.cases(delays.Settings(threshold=11), 0)
    case = {"kernel": "learned", "start": 1.0, "end": 1.0, "share": 1.0}
    for often, change in (("0 of", {"threshold": 10}), ("40 of", {"lags": 1, "rate": 1.0})):
        settings = delays.Settings(steps=40, updates=1, **change)
        with pytest.raises(ValueError, match=rf"fires in {often} .*study\.threshold.*study\.rate"):
            delays.measure(settings, 0, case)

"""Attacks against closed forms of a linear loss; smoothing; accuracy under attack."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.simulator.robustness import accuracy, fgsm, pgd, smooth

pytestmark = pytest.mark.usefixtures("compile_quickly")
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.uniform(size=(4, 6)), jnp.float32)
W = jnp.asarray(RNG.normal(size=(6,)), jnp.float32)
FREE = (-10, 10)


def key(seed=0):
    return jax.random.key(seed)


def linear(x, key):
    del key
    return (x @ W).sum()


def curved(x, key):
    del key
    return jnp.sin(9 * x @ W).sum()


def test_a_linear_loss_grows_by_epsilon_times_the_sum_of_its_slopes():
    for attack in (
        functools.partial(fgsm, epsilon=0.1),
        functools.partial(pgd, epsilon=0.1, step=0.03, steps=5),
    ):
        grown = attack(linear, X, bounds=FREE) @ W - X @ W
        np.testing.assert_allclose(grown, 0.1 * float(jnp.abs(W).sum()), rtol=1e-5)
    short = pgd(linear, X, epsilon=0.1, step=0.03, steps=2, bounds=FREE) @ W - X @ W
    np.testing.assert_allclose(short, 0.06 * float(jnp.abs(W).sum()), rtol=1e-5)
    corner = jnp.where(W > 0, 1.0, 0.0)  # a ball that holds all inputs: the best of all of them
    np.testing.assert_array_equal(fgsm(linear, X, epsilon=2), jnp.broadcast_to(corner, X.shape))


@pytest.mark.parametrize("random_start", [False, True])
def test_an_attack_stays_in_the_ball_and_within_the_bounds(random_start):
    x = X.at[0].set(0).at[1].set(1)
    away = pgd(
        curved, x, key(), epsilon=0.1, step=0.07, steps=7, random_start=random_start, bounds=(0, 1)
    )
    away = np.asarray(away)
    assert np.abs(away - np.asarray(x)).max() <= 0.1 + 1e-7
    assert away.min() >= 0
    assert away.max() <= 1
    assert (np.abs(away - np.asarray(x)) > 0.09).any()


def test_one_step_of_pgd_is_fgsm_and_a_random_start_is_not():
    settings = {"epsilon": 0.1, "step": 0.1, "steps": 1}
    np.testing.assert_array_equal(pgd(curved, X, **settings), fgsm(curved, X, epsilon=0.1))
    start = functools.partial(pgd, curved, X, **settings | {"step": 1e-9}, random_start=True)
    a, b = np.asarray(start(key(1), bounds=FREE)), np.asarray(start(key(2), bounds=FREE))
    assert np.abs(a - b).min() > 0
    assert np.abs(a - np.asarray(X)).max() <= 0.1 + 1e-7


def test_a_random_start_is_even_over_the_ball():
    n = 20_000
    still = pgd(
        lambda x, key: 0 * x.sum(), jnp.full((n, 1), 0.5), key(), epsilon=0.2, step=0.1, steps=1,
        random_start=True,
    )  # fmt: skip
    away = (np.asarray(still, float) - 0.5) / 0.2
    assert abs(away.mean()) < 4 / np.sqrt(3 * n)
    assert abs((away**2).mean() - 1 / 3) < 4 * np.sqrt(4 / 45 / n)
    assert np.abs(away).max() <= 1 + 1e-6


@pytest.mark.parametrize("draws", [1, 16])
def test_a_gradient_averaged_over_draws_has_the_right_sign_more_often(draws):
    """Slopes 1 with noise of deviation 2: the mean of n draws is positive with Phi(sqrt(n) / 2)."""
    n = 20_000

    def noisy(x, key):
        return (x * (1 + 2 * jax.random.normal(key, x.shape))).sum()

    up = fgsm(noisy, jnp.full((1, n), 0.5), key(), epsilon=0.1, draws=draws) > 0.5
    share = 0.5 * (1 + jax.scipy.special.erf(np.sqrt(draws) / 2 / np.sqrt(2)))
    assert abs(float(up.mean()) - share) < 4 * np.sqrt(share * (1 - share) / n)


def test_each_step_draws_new_noise():
    def noisy(x, key):
        return (x * jax.random.normal(key, x.shape)).sum()

    n = 20_000
    away = pgd(noisy, jnp.zeros((1, n)), key(), epsilon=9, step=1, steps=4, bounds=FREE)
    away = np.asarray(away).ravel()  # a walk of four steps up or down
    assert abs(away.mean()) < 4 * 2 / np.sqrt(n)
    assert abs((away**2).mean() - 4) < 4 * np.sqrt((40 - 16) / n)  # E s^4 = 3 n^2 - 2 n = 40


def test_smoothing_leaves_the_nth_part_of_the_variance():
    m = 20_000

    def predict(x, key):
        return x + jax.random.normal(key, x.shape)

    for n in (1, 4, 16):
        y = np.asarray(smooth(predict, n)(jnp.full((m, 1), 0.3), key()), float)
        assert abs(y.mean() - 0.3) < 4 / np.sqrt(n * m)
        assert y.var() == pytest.approx(1 / n, rel=4 * np.sqrt(2 / m))
    slope = jax.grad(lambda x: smooth(predict, 4)(x, key()).sum())(jnp.zeros((2, 3)))
    np.testing.assert_allclose(slope, 1, rtol=1e-6)


def test_votes_are_shares_of_draws():
    def predict(x, key):
        p = jax.random.uniform(key, (x.shape[0],))
        return jnp.stack([jnp.full(x.shape[0], 0.25), p], -1)  # the first wins a quarter

    m, n = 4000, 20
    votes = np.asarray(smooth(predict, n, "votes")(jnp.zeros((m, 1)), key()), float)
    np.testing.assert_allclose(votes.sum(-1), 1, rtol=1e-6)
    np.testing.assert_allclose(votes * n, np.round(votes * n), atol=1e-5)
    assert abs(votes[:, 0].mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / (m * n))


def test_accuracy_falls_under_attack_just_where_the_margin_is_smaller_than_the_ball():
    """A linear classifier of two classes: an attack flips what is nearer than epsilon |w|_1."""

    def predict(x, key):
        del key
        margin = (x - 0.5) @ W
        return jnp.stack([margin, -margin], -1)

    x = jnp.asarray(RNG.uniform(0.2, 0.8, size=(300, 6)), jnp.float32)
    margin = np.asarray((x - 0.5) @ W)
    labels = jnp.asarray(np.where(RNG.uniform(size=300) < 0.1, margin > 0, margin < 0), jnp.int32)
    right = np.where(np.asarray(labels) == 0, margin, -margin)  # above 0: right
    attack = functools.partial(fgsm, epsilon=0.05)
    reach = 0.05 * float(jnp.abs(W).sum())
    assert float(accuracy(predict, x, labels)) == pytest.approx((right > 0).mean())
    assert float(accuracy(predict, x, labels, attack=attack)) == pytest.approx(
        (right > reach).mean()
    )
    twisted = accuracy(predict, x, labels, attack=attack, attacked=lambda x, key: -predict(x, key))
    assert float(twisted) == pytest.approx((right > -reach).mean())  # it helps instead


def test_what_is_refused():
    for settings, words in (
        ({"epsilon": 0}, "epsilon is 0; it must be above 0"),
        ({"epsilon": 0.1, "draws": 0}, "draws is 0; there must be at least 1"),
        ({"epsilon": 0.1, "draws": 2}, "draws is 2, and noise is drawn with a key"),
        ({"epsilon": 0.1, "bounds": (0, 0.5)}, "but bounds are 0 and 0.5"),
    ):
        with pytest.raises(ValueError, match=words):
            fgsm(linear, X, **settings)
    with pytest.raises(ValueError, match="a random start is drawn with a key"):
        pgd(linear, X, epsilon=0.1, step=0.1, steps=1, random_start=True)
    with pytest.raises(ValueError, match="how is 'sum'; choose logits or votes"):
        smooth(lambda x, key: x, 2, "sum")
    with pytest.raises(ValueError, match="averaged over noise and needs a key"):
        smooth(lambda x, key: x, 2)(X, None)

r"""How well a network withstands attacks: predictions smoothed over noise, FGSM, PGD and EPGD.

All take a function, `predict(x, key) -> logits` or `loss(x, key) -> sum over samples`, so that any
network will do; one without noise leaves the key alone. Noise itself is not drawn here.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, PRNGKeyArray

Inputs = Float[Array, "batch *sample"]
Logits = Float[Array, "batch classes"]
Predict = Callable[[Inputs, PRNGKeyArray | None], Logits]
Loss = Callable[[Inputs, PRNGKeyArray | None], Float[Array, ""]]
Attack = Callable[[Loss, Inputs, PRNGKeyArray | None], Inputs]


def smooth(predict: Predict, draws: int, how: str = "logits") -> Predict:
    """The prediction averaged over draws of the noise: of the logits, or of the votes for a class.

    Args:
        predict: with noise that depends on its key.
        draws: how many; the spread of what they average falls with their root.
        how: "votes" gives the share of draws in which each class was first, and no gradient.

    Raises:
        ValueError: no draws, another `how`; when called without a key.

    References:
        Cohen, Rosenfeld and Kolter, Certified adversarial robustness via randomized smoothing,
        arXiv:1902.02918; arXiv:1911.07198 (smoothed inference of networks with noise).
    """
    _check_draws("smooth", draws)
    if how not in ("logits", "votes"):
        raise ValueError(f"smooth: how is {how!r}; choose logits or votes.")

    def smoothed(x: Inputs, key: PRNGKeyArray | None) -> Logits:
        if key is None:
            raise ValueError("smooth: a prediction is averaged over noise and needs a key.")

        def one(i: Array) -> Logits:
            logits = predict(x, jax.random.fold_in(key, i))
            if how == "logits":
                return logits
            return jax.nn.one_hot(logits.argmax(-1), logits.shape[-1], dtype=logits.dtype)

        return _mean(one, draws)

    return smoothed


def fgsm(
    loss: Loss,
    x: Inputs,
    key: PRNGKeyArray | None = None,
    *,
    epsilon: float | int,
    draws: int = 1,
    bounds: tuple[float | int, float | int] = (0, 1),
) -> Inputs:
    """One step of size epsilon along the sign of the gradient: `pgd` with a single step.

    References:
        Goodfellow, Shlens and Szegedy, Explaining and harnessing adversarial examples,
        arXiv:1412.6572.
    """
    return pgd(loss, x, key, epsilon=epsilon, step=epsilon, steps=1, draws=draws, bounds=bounds)


def pgd(
    loss: Loss,
    x: Inputs,
    key: PRNGKeyArray | None = None,
    *,
    epsilon: float | int,
    step: float | int,
    steps: int,
    random_start: bool = False,
    draws: int = 1,
    bounds: tuple[float | int, float | int] = (0, 1),
) -> Inputs:
    """Inputs near x with a large loss: steps along the sign of the gradient, back into the ball.

    Args:
        loss: to be increased: the sum over samples, so that each has its own gradient.
        x: inputs, within the bounds.
        key: of a random start and of the noise of the loss, new at each step; None: neither.
        epsilon: radius of the ball, the largest change of an input.
        step: size of a step.
        steps: how many.
        random_start: from a point drawn evenly from the ball.
        draws: of the noise of the loss, over which each gradient is averaged: more than 1 is EPGD.
        bounds: of inputs.

    Raises:
        ValueError: settings out of range, no key where one is needed, and outside of `jit` for
            inputs beyond the bounds.

    References:
        Madry et al., Towards deep learning models resistant to adversarial attacks,
        arXiv:1706.06083 (PGD); arXiv:1911.07198 (EPGD).
    """
    _check(x, key, {"epsilon": epsilon, "step": step, "steps": steps}, random_start, bounds)
    _check_draws("pgd", draws)
    if draws > 1 and key is None:
        raise ValueError(f"pgd: draws is {draws}, and noise is drawn with a key; give one.")
    low = jnp.maximum(x - epsilon, bounds[0])
    high = jnp.minimum(x + epsilon, bounds[1])

    def gradient(at: Inputs, own: PRNGKeyArray | None) -> Inputs:
        if own is None:
            return jax.grad(loss)(at, None)
        return _mean(lambda i: jax.grad(loss)(at, jax.random.fold_in(own, i)), draws)

    def climb(i: Array, at: Inputs) -> Inputs:
        own = None if key is None else jax.random.fold_in(key, i + 1)
        return jnp.clip(at + step * jnp.sign(gradient(at, own)), low, high)

    start = x
    if random_start and key is not None:
        away = jax.random.uniform(jax.random.fold_in(key, 0), x.shape, x.dtype, -1, 1)
        start = jnp.clip(x + epsilon * away, low, high)
    return jax.lax.fori_loop(0, steps, climb, start)


def accuracy(
    predict: Predict,
    x: Inputs,
    labels: Int[Array, " batch"],
    key: PRNGKeyArray | None = None,
    *,
    attack: Attack | None = None,
    attacked: Predict | None = None,
) -> Float[Array, ""]:
    """The share of right predictions, under an attack if one is given.

    Args:
        predict: what is judged.
        x: inputs.
        labels: their classes.
        key: of noise and attack.
        attack: `(loss, x, key) -> x'`, such as `functools.partial(pgd, epsilon=0.1, step=0.02,
            steps=10)`; it increases the cross-entropy.
        attacked: the prediction whose gradient the attacker knows; None: the one that is judged.
            For a smoothed one give the prediction of a single draw, and the attack its `draws`.
    """
    for_attack, for_prediction = (None, None) if key is None else jax.random.split(key)
    if attack is not None:
        known = attacked or predict

        def loss(x: Inputs, key: PRNGKeyArray | None) -> Float[Array, ""]:
            logs = jax.nn.log_softmax(known(x, key))
            return -jnp.take_along_axis(logs, labels[:, None], -1).sum()

        x = attack(loss, x, for_attack)
    return jnp.mean((predict(x, for_prediction).argmax(-1) == labels).astype(jnp.float32))


def _mean(one: Callable[[Array], Array], n: int) -> Array:
    """The mean of one(0) to one(n - 1), without keeping them."""
    first = jnp.zeros((), jnp.int32)
    total = jax.lax.scan(
        lambda total, i: (total + one(i), None), one(first), jnp.arange(1, n, dtype=jnp.int32)
    )[0]
    return total / n


def _check_draws(who: str, draws: int) -> None:
    if draws < 1:
        raise ValueError(f"{who}: draws is {draws}; there must be at least 1.")


def _check(
    x: Array,
    key: PRNGKeyArray | None,
    numbers: dict[str, float | int],
    random_start: bool,
    bounds: tuple[float | int, float | int],
) -> None:
    for name, value in numbers.items():
        if not value > 0:
            raise ValueError(f"pgd: {name} is {value}; it must be above 0.")
    if random_start and key is None:
        raise ValueError("pgd: a random start is drawn with a key; give one.")
    if isinstance(x, Tracer) or not np.size(x):
        return
    least, most = float(np.min(x)), float(np.max(x))
    if not bounds[0] <= least <= most <= bounds[1]:
        raise ValueError(
            f"pgd: inputs from {least:g} to {most:g}, but bounds are {bounds[0]:g} and "
            f"{bounds[1]:g}: give the bounds of your inputs."
        )

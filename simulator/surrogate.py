r"""Surrogate derivatives: what a spike 1[v > 0] is differentiated as.

One idea belongs here: a spike function whose value is exact and whose derivative is chosen. The
cells that fire with it stand in `snu` and `lif`.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


@dataclass(frozen=True)
class Surrogate:
    """A spike function: called, it gives 1 where v > 0, else 0; differentiated, `derivative(v)`.

    The derivative is a `jax.custom_jvp`, so forward and reverse mode, `vmap` and `jit` work, and a
    second derivative is that of the formula. Equal settings make equal, hashable surrogates, so one
    can be a static part of a module or of a jitted function. A NaN does not spike, and its
    derivative is NaN wherever the formula uses v.

    >>> spike = triangular(width=2.0)
    >>> spike(jnp.array([-1.0, 0.0, 0.5])).tolist()
    [0.0, 0.0, 1.0]
    >>> jax.vmap(jax.grad(spike))(jnp.array([-1.0, 0.0, 3.0])).tolist()
    [0.25, 0.5, 0.0]

    Attributes:
        name: what the experiment file calls it.
        formula: (v, **settings) -> derivative, element-wise, used where |v| < support.
        settings: the formula's settings, as (name, value) pairs.
        support: half-width beyond which the derivative is exactly 0, or None if there is none.
    """

    name: str
    formula: Callable[..., Array]
    settings: tuple[tuple[str, float | int], ...] = ()
    support: float | int | None = None

    def __call__(self, v: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
        """1 where v > 0, else 0, in the dtype of v."""
        return _spike(self, v)

    def derivative(self, v: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
        """What dy/dv is taken to be at v."""
        slope = self.formula(v, **dict(self.settings))
        inside = self.inside(v)
        return slope if inside is None else jnp.where(inside, slope, 0)

    def inside(self, v: Float[Array, "*dims"]) -> Bool[Array, "*dims"] | None:
        """Where the derivative can be non-zero (a NaN counts as there); None: everywhere."""
        return None if self.support is None else ~(jnp.abs(v) >= self.support)

    def __repr__(self):
        return f"{self.name}({', '.join(f'{key}={value}' for key, value in self.settings)})"


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _spike(surrogate, v):
    return (v > 0).astype(v.dtype)


@_spike.defjvp
def _spike_jvp(surrogate, primals, tangents):
    (v,), (dv,) = primals, tangents
    return _spike(surrogate, v), surrogate.derivative(v) * dv


def boxcar(width: float | int = 1.0) -> Surrogate:
    r"""$\frac{1}{2 w}$ where $|v| < w$; its integral is 1.

    Args:
        width: w, the half-width. The default is Spyx's (2 wide in all, 0.5 high).

    References:
        Spatio-temporal backpropagation for training high-performance spiking neural networks,
        arXiv:1706.02609 (there w = 0.5).
    """
    return _make(boxcar, _boxcar, support=width, width=width)


def triangular(width: float | int = 1.0, gain: float | int = 1.0) -> Surrogate:
    r"""$\frac{g}{w} \max(0, 1 - |v| / w)$; its integral is the gain g.

    Args:
        width: w, the half-width of the base. The default is SpikingJelly's PiecewiseQuadratic with
            alpha = 1 / w = 1.
        gain: g. e-prop takes g = 0.3 and w = the threshold.

    References:
        A solution to the learning dilemma for recurrent networks of spiking neurons,
        Nature Communications 11:3625 (2020); arXiv:1901.09049.
    """
    return _make(triangular, _triangular, support=width, width=width, gain=gain)


def fast_sigmoid(slope: float | int = 25.0) -> Surrogate:
    r"""SuperSpike: $(1 + k |v|)^{-2}$, 1 at v = 0; its integral is 2 / k.

    Args:
        slope: k. The default is that of snnTorch and Spyx; Norse takes 100.

    References:
        SuperSpike: Supervised learning in multi-layer spiking neural networks, arXiv:1705.11146.
    """
    return _make(fast_sigmoid, _fast_sigmoid, slope=slope)


def arctan(slope: float | int = 2.0) -> Surrogate:
    r"""$\frac{\alpha}{2} / (1 + (\frac{\pi}{2} \alpha v)^2)$; its integral is 1.

    Args:
        slope: alpha. The default is that of SpikingJelly and snnTorch.

    References:
        Incorporating learnable membrane time constant to enhance learning of spiking neural
        networks, arXiv:2007.05785.
    """
    return _make(arctan, _arctan, slope=slope)


def sigmoid(slope: float | int = 4.0) -> Surrogate:
    r"""$\alpha \sigma(\alpha v) (1 - \sigma(\alpha v))$ with the logistic σ; its integral is 1.

    Args:
        slope: alpha. The default is that of SpikingJelly and Spyx; snnTorch takes 25.

    References:
        The remarkable robustness of surrogate gradient learning for instilling complex function in
        spiking neural networks, Neural Computation 33:899 (2021).
    """
    return _make(sigmoid, _sigmoid, slope=slope)


def tanh(slope: float | int = 1.0) -> Surrogate:
    r"""$1 - \tanh^2(k v)$, 1 at v = 0; its integral is 2 / k. The spike of the SNU.

    Args:
        slope: k. The default is that of the SNU.

    References:
        Deep learning incorporating biologically-inspired neural dynamics, arXiv:1812.07040.
    """
    return _make(tanh, _tanh, slope=slope)


def gaussian(sigma: float | int = 0.5) -> Surrogate:
    r"""The normal density $N(v; 0, \sigma)$; its integral is 1.

    Args:
        sigma: standard deviation. The default is that of sinabs and of the authors below.

    References:
        Accurate and efficient time-domain classification with adaptive spiking recurrent neural
        networks, arXiv:2103.12593.
    """
    return _make(gaussian, _gaussian, sigma=sigma)


def multi_gaussian(
    sigma: float | int = 0.5, h: float | int = 0.15, s: float | int = 6.0, gain: float | int = 0.5
) -> Surrogate:
    r"""A Gaussian with negative flanks; its integral is g (1 - h).

    $g [(1 + h) N(v; 0, \sigma) - h N(v; \sigma, s \sigma) - h N(v; -\sigma, s \sigma)]$.

    Args:
        sigma: standard deviation of the peak, and where the flanks are centred.
        h: height of the flanks.
        s: width of the flanks, in sigmas.
        gain: g. The default, like the others, is that of the authors' code; sinabs takes 1.

    References:
        Accurate and efficient time-domain classification with adaptive spiking recurrent neural
        networks, arXiv:2103.12593.
    """
    return _make(multi_gaussian, _multi_gaussian, sigma=sigma, h=h, s=s, gain=gain)


def straight_through() -> Surrogate:
    """1 everywhere: the spike is differentiated as the identity (snnTorch's has no setting either).

    References:
        Estimating or propagating gradients through stochastic neurons for conditional computation,
        arXiv:1308.3432.
    """
    return _make(straight_through, jnp.ones_like)


def custom(derivative: Callable[[Array], Array], support: float | int | None = None) -> Surrogate:
    """The user's own derivative.

    Args:
        derivative: an element-wise function of v, written in jax.numpy. Two surrogates are equal
            if they hold the same function object, so define it once, outside loops.
        support: half-width beyond which the derivative is 0; it is set to 0 there.

    Raises:
        ValueError: if the support is not above 0.
    """
    if support is not None:
        _check_positive("custom", support=support)
    return Surrogate(getattr(derivative, "__name__", "custom"), derivative, support=support)


def check(who: str, surrogate: object) -> Surrogate:
    """The surrogate of a cell, if it is one.

    Raises:
        ValueError: anything else, such as a function that has a derivative in reverse mode only.
    """
    if isinstance(surrogate, Surrogate):
        return surrogate
    raise ValueError(
        f"{who}(surrogate={surrogate!r}) is no Surrogate, which has derivatives in forward and in "
        "reverse mode: take one of this module, such as triangular(), or custom(derivative) for a "
        "derivative of your own."
    )


def by_name(name: str, **settings: float | int) -> Surrogate:
    """The surrogate an experiment file names, e.g. `by_name("triangular", width=0.5)`.

    Raises:
        ValueError: if there is no such surrogate, or it has no such setting.
    """
    if name not in _FACTORIES:
        known = ", ".join(_FACTORIES)
        raise ValueError(f"there is no surrogate {name!r}; the known ones are {known}.")
    known = inspect.signature(_FACTORIES[name]).parameters
    for setting in settings:
        if setting not in known:
            has = f"its settings are {', '.join(known)}" if known else "it has none"
            raise ValueError(f"the surrogate {name} has no setting {setting!r}; {has}.")
    return _FACTORIES[name](**settings)


_FACTORIES: dict[str, Callable[..., Surrogate]] = {
    factory.__name__: factory
    for factory in (
        boxcar,
        triangular,
        fast_sigmoid,
        arctan,
        sigmoid,
        tanh,
        gaussian,
        multi_gaussian,
        straight_through,
    )
}


def _make(factory, formula, support=None, **settings):
    _check_positive(factory.__name__, **settings)
    return Surrogate(factory.__name__, formula, tuple(settings.items()), support)


def _check_positive(name, **settings):
    for key, value in settings.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise ValueError(f"the surrogate {name} needs {key} > 0; got {value!r}.")


def _boxcar(v, width):
    return jnp.full_like(v, 0.5 / width)


def _triangular(v, width, gain):
    return gain / width * (1 - jnp.abs(v) / width)


def _fast_sigmoid(v, slope):
    return 1 / (1 + slope * jnp.abs(v)) ** 2


def _arctan(v, slope):
    return slope / 2 / (1 + (math.pi / 2 * slope * v) ** 2)


def _sigmoid(v, slope):
    # σ(-x) = 1 - σ(x), without the cancellation
    return slope * jax.nn.sigmoid(slope * v) * jax.nn.sigmoid(-slope * v)


def _tanh(v, slope):
    return 1 - jnp.tanh(slope * v) ** 2


def _gaussian(v, sigma, mean=0.0):
    return jnp.exp(-0.5 * ((v - mean) / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))


def _multi_gaussian(v, sigma, h, s, gain):
    flanks = _gaussian(v, s * sigma, sigma) + _gaussian(v, s * sigma, -sigma)
    return gain * ((1 + h) * _gaussian(v, sigma) - h * flanks)

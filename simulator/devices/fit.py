r"""Soft bounds fitted to measured pulse traces: the most likely population of cells.

Cells differ by draws that no one sees. The likelihood of a cell with known parameters is
`kalman.py`'s; here it is summed over the draws by Laplace's method, and the parameters of the
population are those that make the traces of all cells most likely. How the search begins is said in
`guess.py`, what becomes of a fit in `device_file.py`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .guess import Guess, guess
from .kalman import SoftBounds, Trace, scores

_MOST = 60  # steps of Newton's method
_SETTLE = 8  # steps of the draws for each
_ENOUGH = 1e-2  # of log likelihood that the next step may still bring
_SLOW = 0.05  # of log likelihood that four steps bring, where it is over
_CLOSE = 0.1  # standard deviations by which the draws may still move
_FARTHEST = 10  # widths of what was read; a bound beyond cannot be told from none
_WIDEST = 1.0  # spread of a logarithm
_LEAST_NOISE = 1e-3  # of one kind over the other; less cannot be told from none
_NONE = 1e-9  # noise whose logarithm can be taken
_SMALL = 1e-4  # change of a logarithm by which derivatives are taken
_SPREADS, _NOISE = slice(4, 8), slice(8, 10)
_MEANS = [0, 1, 2, 3, 8, 9]  # what of theta the fields of `SoftBounds` have without draws
_SIGNS = np.array([1.0, 1, 1, -1, 1, 1])
_TILT = np.array(  # how draws (step, asymmetry, upper and lower bound) move the fields
    [[1, 1, 0, 0], [1, -1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]], float
)


class Population(NamedTuple):
    """What cells are drawn from, or the standard errors of that."""

    up: float  # mean step where g is at the reference
    down: float
    high: float  # mean bounds, from the reference
    low: float
    step_spread: float  # cell to cell, relative: of what up and down share
    asymmetry_spread: float  # of half their difference
    high_spread: float  # of the bounds
    low_spread: float
    pulse: float  # noise of a pulse, relative to the step of the cell at the reference
    read: float  # noise of a read


class Fitted(NamedTuple):
    """The maximum of the likelihood."""

    values: Population
    errors: Population  # standard errors; NaN where the traces do not tell
    symmetry: float  # where mean steps are of one size, from the reference
    symmetry_error: float
    log_likelihood: float
    steps: int
    converged: bool
    cells: SoftBounds  # the most likely parameters of each cell, arrays (cells,)


class _Look(NamedTuple):
    """The likelihood of each cell about some logarithms of its parameters."""

    about: Float[np.ndarray, "6 cells"]
    log_likelihood: Float[np.ndarray, " cells"]
    gradient: Float[np.ndarray, "6 cells"]
    information: Float[np.ndarray, "6 6 cells"]
    change: Float[np.ndarray, "6 6 6 cells"]  # derivative of the information by the third


class _Top(NamedTuple):
    """Where a search ended."""

    theta: np.ndarray  # logarithms of medians (4), spreads of logarithms (4), log noise (2)
    covariance: np.ndarray
    untold: np.ndarray  # which of theta are at an end that is none of the model
    look: _Look
    steps: int
    converged: bool


def fit(trace: Trace, say: Callable[[str], None] = lambda text: None) -> Fitted:
    """Finds the most likely population, by Newton's method.

    First of cells that are all alike, then with spreads; a single cell tells of none. Logarithms of
    steps and bounds are taken as normal, so that none changes its sign; what is returned are means
    and standard deviations over means of the parameters themselves. Standard errors are those of
    the curvature of the log likelihood at its maximum.

    Args:
        trace: of all cells; pulses of both signs.
        say: gets a line for each step.
    """
    start: Guess = guess(trace)
    with jax.enable_x64(True):
        shared = Trace(*(jnp.asarray(np.asarray(a)) for a in trace))
        theta, free = np.zeros(10), np.ones(10, bool)
        theta[_MEANS], free[_SPREADS] = np.log(np.abs(start)), False
        top = _maximum(theta, free, shared, say)
        steps = top.steps
        if trace.g.shape[1] > 1:
            theta = top.theta.copy()
            theta[_SPREADS], free[_SPREADS] = (0.1, 0.05, 0.1, 0.1), True
            top = _maximum(theta, free, shared, say)
            steps += top.steps
    values = _natural(top.theta)
    moved = [_natural(top.theta + s * _SMALL * np.eye(10)) for s in (1, -1)]
    tilt = (moved[0] - moved[1]).T / (2 * _SMALL)
    variances = np.einsum("ij,jk,ik->i", tilt, top.covariance, tilt)
    errors = np.sqrt(np.where(variances > 0, variances, np.nan))
    errors[:10][top.untold] = np.nan
    values[_SPREADS] = np.abs(values[_SPREADS])
    return Fitted(
        Population(*values[:10].tolist()),
        Population(*errors[:10].tolist()),
        float(values[10]),
        float(errors[10]),
        float(top.look.log_likelihood.sum()),
        steps,
        top.converged,
        _sizes(top.look),
    )


def cells_given(values: Population, trace: Trace) -> SoftBounds:
    """The most likely parameters of each cell of a known population, arrays (cells,)."""
    spreads = np.sqrt(np.log1p(np.square(values[_SPREADS])))
    step, skew, high, low = spreads**2
    widths = np.array([step + skew, step + skew, high, low])
    means = np.log(np.abs(values[:4])) - widths / 2
    theta = np.array([*means, *spreads, *np.log(np.maximum(values[_NOISE], _NONE))])
    with jax.enable_x64(True):
        shared = Trace(*(jnp.asarray(np.asarray(a)) for a in trace))
        look = _settled(theta, np.zeros((4, trace.g.shape[1])), shared)[0]
    return _sizes(look)


def _sizes(look: _Look) -> SoftBounds:
    return SoftBounds._make(np.exp(look.about) * _SIGNS[:, None])


def _natural(theta: np.ndarray) -> np.ndarray:
    """The fields of `Population` and the symmetry point (..., 11), of theta (..., 10).

    Spreads have the sign that they have in theta, where it means nothing.
    """
    v = theta[..., _SPREADS] ** 2
    shared = v[..., 0] + v[..., 1]
    widths = np.stack([shared, shared, v[..., 2], v[..., 3]], -1)
    means = np.exp(theta[..., :4] + widths / 2)
    up, down, high, low = np.moveaxis(means, -1, 0)
    middle = (up - down) / (up / high + down / low)
    spreads = np.sign(theta[..., _SPREADS]) * np.sqrt(np.expm1(v))
    return np.concatenate(
        [means * _SIGNS[:4], spreads, np.exp(theta[..., _NOISE]), middle[..., None]], -1
    )


def _maximum(theta: np.ndarray, free: np.ndarray, trace: Trace, say: Callable[[str], None]) -> _Top:
    """Damped Newton steps in the free entries of theta."""
    draws = np.zeros((4, trace.g.shape[1]))
    width = float(np.ptp(np.nanquantile(trace.g, (0.01, 0.99))))
    damping, best, converged, step, values = 1e-2, None, False, 0, []
    while not converged and step < _MOST:
        look, draws, shift, (value, gradient, hessian) = _settled(theta, draws, trace)
        step += 1
        say(f"step {step}, cells {'differ' if free[4] else 'alike'}: log likelihood {value:.2f}")
        better = best is None or value > best[0] - _ENOUGH
        damping = damping / 10 if better else max(10 * damping, 0.1)
        if best is None or better:
            values.append(value)
            best = (value, theta, draws, gradient, hessian, look)
        _, theta, draws, gradient, hessian, _ = best
        open_ = free & ~_at_end(theta, gradient, width)
        move = np.zeros(10)
        move[open_] = _newton(gradient[open_], hessian[np.ix_(open_, open_)], damping)
        slow = len(values) > 5 and values[-1] < values[-5] + _SLOW
        converged = bool(shift < _CLOSE and (slow or gradient @ move < 2 * _ENOUGH))
        theta = theta + move / max(1.0, np.abs(move).max() / 0.7)
        theta = np.clip(theta, *_ends(theta, width))
    assert best is not None
    _, theta, _, gradient, hessian, look = best
    ended = free & _at_end(theta, gradient, width)
    open_ = free & ~ended
    covariance = np.zeros((10, 10))
    covariance[np.ix_(open_, open_)] = np.linalg.inv(-hessian[np.ix_(open_, open_)])
    # near 0 the likelihood is a Gaussian of the noise itself, of which the gradient tells the width
    silent = ended & (np.arange(10) >= 8)
    covariance[silent, silent] = -1 / gradient[silent]
    return _Top(theta, covariance, ended & ~silent, look, step, converged)


def _settled(
    theta: np.ndarray, draws: np.ndarray, trace: Trace
) -> tuple[_Look, np.ndarray, float, tuple[float, np.ndarray, np.ndarray]]:
    """Likelihoods about the most likely draws, these draws, how far they moved, derivatives."""
    count = 0
    while True:
        about = theta[_MEANS, None] + (_TILT * theta[_SPREADS]) @ draws
        look = _Look(about, *map(np.asarray, _look_at(jnp.asarray(about), trace)))
        value, new, gradient, hessian = _derivatives(theta, look)
        shift = float(np.abs(new - draws).max())
        draws, count = draws + np.clip(new - draws, -1, 1), count + 1
        if shift < _CLOSE or count == _SETTLE:
            return look, draws, shift, (value, gradient, hessian)


def _ends(theta: np.ndarray, width: float) -> tuple[np.ndarray, np.ndarray]:
    """The least and the largest theta that is tried."""
    low, high = np.full(10, -np.inf), np.full(10, np.inf)
    step = theta[:2].mean()
    low[_NOISE] = np.array([theta[9] - step, theta[8] + step]) + np.log(_LEAST_NOISE)
    high[2:4] = np.log(_FARTHEST * width)
    low[_SPREADS], high[_SPREADS] = -_WIDEST, _WIDEST
    return low, high


def _at_end(theta: np.ndarray, gradient: np.ndarray, width: float) -> np.ndarray:
    """Where theta is at an end, and beyond it the traces would be likelier still."""
    low, high = _ends(theta, width)
    below, above = theta <= low + 1e-9, theta >= high - 1e-9
    return (below & (gradient < 0)) | (above & (gradient > 0))


def _newton(gradient: np.ndarray, hessian: np.ndarray, damping: float) -> np.ndarray:
    """A step uphill, whatever the signs of the curvatures."""
    scale = np.sqrt(np.abs(np.diag(hessian)) + 1e-12)
    values, vectors = np.linalg.eigh(hessian / scale / scale[:, None])
    return vectors @ ((vectors.T @ (gradient / scale)) / (np.abs(values) + damping)) / scale


@jax.jit
def _look_at(about: Float[Array, "6 cells"], trace: Trace) -> tuple[Array, Array, Array, Array]:
    """The fields of `_Look` after the first."""
    moved = about[:, None] + _SMALL * jnp.eye(6, dtype=about.dtype)[:, :, None]
    sizes = jnp.exp(jnp.concatenate([about[:, None], moved], 1))
    sets = sizes * jnp.asarray(_SIGNS, about.dtype)[:, None, None]
    scored = scores(SoftBounds._make(sets), trace)
    information = scored.information * sets[:, None] * sets
    change = (information[:, :, 1:] - information[:, :, :1]) / _SMALL
    gradient = (scored.gradient * sets)[:, 0]
    return scored.log_likelihood[0], gradient, information[:, :, 0], change


def _joint(theta: np.ndarray, look: _Look) -> tuple[np.ndarray, np.ndarray]:
    """The log likelihood of populations (sets, 10), and the most likely draws (sets, cells, 4).

    To second order about `look`: logarithms are linear in the draws, so that the best draws and
    the sum over all are closed forms. The volume is that of the information at the best draws.
    """
    tilt = theta[:, None, _SPREADS] * _TILT  # (sets, 6, 4)
    moved = theta[:, None, _MEANS] - look.about.T  # (sets, cells, 6)
    pull = look.gradient.T - np.einsum("ijc,scj->sci", look.information, moved)
    log = look.log_likelihood + 0.5 * ((look.gradient.T + pull) * moved).sum(-1)
    by_draw = pull @ tilt

    def curvature(information: np.ndarray) -> np.ndarray:  # (sets or 1, cells, 6, 6)
        return np.eye(4) + tilt.swapaxes(1, 2)[:, None] @ information @ tilt[:, None]

    here = np.moveaxis(look.information, -1, 0)[None]
    draws = np.linalg.solve(curvature(here), by_draw[..., None])[..., 0]
    log = log + 0.5 * (by_draw * draws).sum(-1)
    at = moved + np.einsum("sia,sca->sci", tilt, draws)
    there = here + np.einsum("ijkc,sck->scij", look.change, at)
    return (log - 0.5 * np.linalg.slogdet(curvature(there))[1]).sum(-1), draws


def _derivatives(
    theta: np.ndarray, look: _Look
) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    """Value, draws (4, cells), gradient and Hessian: by differences, as the value costs little."""
    one = _SMALL * np.eye(10)
    pairs = (one[:, None] + one).reshape(-1, 10)
    places = np.concatenate([np.zeros((1, 10)), one, -one, pairs, -pairs])
    values, draws = _joint(theta + places, look)
    up, down = values[1:11] - values[0], values[11:21] - values[0]
    both = (values[21:121] + values[121:] - 2 * values[0]).reshape(10, 10)
    alone = up + down
    hessian = (both - alone - alone[:, None]) / (2 * _SMALL**2)
    return float(values[0]), draws[0].T, (up - down) / (2 * _SMALL), hessian

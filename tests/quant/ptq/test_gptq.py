"""GPTQ: its identities, and what it does with Hessians that are none."""

import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.quant.ptq.gptq import gptq
from spikebit.quant.ptq.grid import Grid
from spikebit.quant.ptq.layer import proxy_loss, round_to_nearest

RANDOM = np.random.default_rng(0)
INPUTS = 48
X = RANDOM.standard_normal((400, 12)) @ RANDOM.standard_normal((12, INPUTS))
X = X + 0.3 * RANDOM.standard_normal(X.shape)
H = X.T @ X / len(X)
W = jnp.asarray(RANDOM.standard_normal((20, INPUTS)), jnp.float32)
GRIDS = {
    "symmetric": Grid.of("int4"),
    "asymmetric": Grid.of("int3_asymmetric"),
    "searched": Grid.of("int3_asymmetric", "search"),
    "nf4": Grid.of("nf4"),
}


def plain(w, h, scale, zero, top, damping):
    """The published loop in float64 numpy, with one asymmetric scale a row."""
    w, h = w.astype(np.float64), h + damping * np.diag(h).mean() * np.eye(len(h))
    upper = np.linalg.cholesky(np.linalg.inv(h)).T
    codes, errors = np.zeros(w.shape), np.zeros(w.shape)
    for j in range(w.shape[1]):
        codes[:, j] = np.clip(np.round(w[:, j] / scale) + zero, 0, top)
        errors[:, j] = (w[:, j] - scale * (codes[:, j] - zero)) / upper[j, j]
        w[:, j:] -= np.outer(errors[:, j], upper[j, j:])
    return codes, (errors**2).sum()


def test_it_is_the_published_loop():
    done = gptq(W, H, GRIDS["asymmetric"])
    scale = done.weights.scale
    unit, zero = (np.asarray(a, np.float64)[:, 0] for a in (scale.unit, scale.zero))
    codes, loss = plain(np.asarray(W), H, unit, zero, 7, 0.01)
    same = np.asarray(done.weights.codes) == codes
    assert same.all(1).mean() > 0.8  # float32 may take the other side of a tie, and goes on from it
    assert abs(done.loss - loss) < 0.02 * loss


@pytest.mark.parametrize("group", [None, 16])
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_the_errors_over_the_diagonal_of_u_are_the_loss(grid, group):
    done = gptq(W, H, grid, group)
    damped = H + 0.01 * np.diag(H).mean() * np.eye(INPUTS)
    exact = proxy_loss(W, done.weights.dequantize(), damped)
    assert abs(done.loss - exact) < 1e-3 * exact


@pytest.mark.parametrize("group", [None, 8])
def test_blocks_do_not_matter(group):
    whole = gptq(W, H, GRIDS["symmetric"], group, block=INPUTS)
    parts = gptq(W, H, GRIDS["symmetric"], group, block=8)
    same = np.asarray(whole.weights.codes) == np.asarray(parts.weights.codes)
    assert same.all(1).mean() > 0.8
    assert abs(whole.loss - parts.loss) < 0.01 * whole.loss


@pytest.mark.parametrize("by_importance", [False, True])
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_inputs_without_correlation_leave_nothing_to_make_up_for(grid, by_importance):
    done = gptq(W, np.diag(np.diag(H)), grid, 16, by_importance=by_importance)
    nearest = round_to_nearest(W, grid, 16)
    assert (done.weights.codes == nearest.codes).all()
    assert (done.weights.scale.unit == nearest.scale.unit).all()


def test_the_names_of_inputs_do_not_matter_where_the_order_is_that_of_the_diagonal():
    order = RANDOM.permutation(INPUTS)
    grid = GRIDS["symmetric"]
    one = gptq(W, H, grid, by_importance=True).weights.codes
    other = gptq(W[:, order], H[np.ix_(order, order)], grid, by_importance=True).weights.codes
    same = np.asarray(one)[:, order] == np.asarray(other)
    assert same.all(1).mean() > 0.8


@pytest.mark.parametrize("grid", [GRIDS["symmetric"], GRIDS["asymmetric"]], ids=["sym", "asym"])
def test_outputs_are_nearer_than_to_nearest_although_weights_are_farther(grid):
    nearest, done = round_to_nearest(W, grid).dequantize(), gptq(W, H, grid).weights.dequantize()
    assert proxy_loss(W, done, H) < 0.8 * proxy_loss(W, nearest, H)
    assert ((done - W) ** 2).sum() > ((nearest - W) ** 2).sum()


def test_block_formats_keep_the_scales_of_the_weights():
    w = jnp.asarray(RANDOM.standard_normal((8, 64)), jnp.float32)
    x = RANDOM.standard_normal((300, 8)) @ RANDOM.standard_normal((8, 64))
    h = x.T @ x / 300 + 0.1 * np.eye(64)
    for name, group in (("mxfp4", 32), ("nvfp4", 16)):
        done = gptq(w, h, Grid.of(name), group).weights
        nearest = round_to_nearest(w, Grid.of(name), group)
        assert (done.scale.unit == nearest.scale.unit).all()
        loss = proxy_loss(w, done.dequantize(), h)
        assert loss < proxy_loss(w, nearest.dequantize(), h)


def test_inputs_that_are_always_0_get_weights_of_0():
    x = X.copy()
    x[:, [3, 7]] = 0
    done = gptq(W, x.T @ x, GRIDS["symmetric"], 16)
    assert (np.asarray(done.weights.dequantize())[:, [3, 7]] == 0).all()


def test_inputs_that_are_no_whole_number_of_groups_are_padded():
    for grid in GRIDS.values():
        nearest, done = round_to_nearest(W, grid, 20), gptq(W, H, grid, 20).weights
        assert nearest.shape == done.shape == (20, 60)
        assert (np.asarray(done.dequantize())[:, 48:] == 0).all()
        whole = round_to_nearest(W[:, :40], grid, 20)
        assert (nearest.codes[:, :40] == whole.codes).all()
        alone = round_to_nearest(W[:, 40:], grid)  # zeros change no range that holds 0
        assert (nearest.dequantize()[:, 40:48] == alone.dequantize()).all()
        assert proxy_loss(W, done.dequantize()[:, :48], H) < proxy_loss(
            W, nearest.dequantize()[:, :48], H
        )


def test_damping_is_raised_until_it_is_enough_and_then_refused():
    few = X[:3].T @ X[:3]  # rank 3
    assert gptq(W, few, GRIDS["symmetric"], damping=0.01).damping == 0.01
    negative = few - 0.05 * np.trace(few) / INPUTS * np.eye(INPUTS)
    assert gptq(W, negative, GRIDS["symmetric"], damping=0.01).damping == pytest.approx(0.1)
    with pytest.raises(ValueError, match=r"of 48 inputs is not positive definite.* at least 192"):
        gptq(W, -1e3 * few, GRIDS["symmetric"])


def test_what_does_not_fit():
    with pytest.raises(ValueError, match=r"a Hessian of shape \(3, 3\) for 48 inputs"):
        gptq(W, np.eye(3), GRIDS["symmetric"])
    with pytest.raises(ValueError, match="not finite"):
        gptq(W, np.full((INPUTS, INPUTS), np.inf), GRIDS["symmetric"])
    with pytest.raises(ValueError, match=r"groups of 0: needs at least one input"):
        gptq(W, H, GRIDS["symmetric"], 0)
    with pytest.raises(ValueError, match="its scales are codes themselves"):
        round_to_nearest(W, Grid.of("mxfp4", "search"), 16)


def test_the_search_never_loses_to_the_whole_range():
    grid = GRIDS["searched"]
    w = jnp.asarray(RANDOM.standard_t(3, (30, 64)), jnp.float32)
    whole = round_to_nearest(w, Grid.of("int3_asymmetric"), 16).dequantize()
    found = round_to_nearest(w, grid, 16).dequantize()
    errors = [
        (np.abs(np.asarray(q - w, np.float64)) ** 2.4).reshape(30, 4, 16).sum(-1)
        for q in (found, whole)
    ]
    assert (errors[0] <= errors[1] * (1 + 1e-5)).all()
    assert errors[0].sum() < 0.95 * errors[1].sum()

"""Plasticity of sparse connections: the spikes and traces of a step change the weights they meet.

The idea that belongs here: a spike of an input visits its connections, a spike of an output those
that lead to it, and no other weight is read. This file has the reference and the public function;
`sparse_stdp_cpu` has the kernel. How traces are kept, and dense rules, belong to
`learning_rules.stdp`; whole runs of fatiguing synapses to `stdp_events`.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from . import dispatch
from .sparse import Csr, Transposed, checked_connections, inputs_of


class StdpSettings(NamedTuple):
    """Numbers, or arrays without axes to `vmap` over."""

    a_plus: float | Array  # A_+
    a_minus: float | Array  # A_-
    w_min: float | Array = 0.0
    w_max: float | Array = 1.0
    mu: float | Array = 0.0  # 0: additive, 1: fully multiplicative


def sparse_stdp(
    weights: Csr,
    index: Transposed,
    pre: Float[Array, "*batch k"],
    post: Float[Array, "*batch n"],
    pre_trace: Float[Array, "*batch k"],
    post_trace: Float[Array, "*batch n"],
    settings: StdpSettings,
) -> tuple[Csr, Int32[Array, ""]]:
    r"""Changes the weights by the spikes of one step.

    At the connections with a spike on either side, with means over the batch,

    $$W_{ij} \leftarrow clip(W_{ij} + A_+ (w_{max} - W_{ij})^\mu \langle x_i s^{post}_j \rangle
      - A_- (W_{ij} - w_{min})^\mu \langle s^{pre}_i o_j \rangle, w_{min}, w_{max}),$$

    where $\mu = 0$ is additive and a negative distance to a bound counts as 0. All other weights
    are left as they are, and not read on CPUs.

    What a pair of spikes within one step does is decided by the traces that are given: as they were
    before the spikes of this step were added, such a pair changes nothing, which is the default of
    `learning_rules.stdp.PairSTDP`. With the spikes of this step in `pre_trace` it potentiates, with
    those in `post_trace` it depresses.

    Works under `jit`, `scan` and `vmap` (one by one). On CPUs the weights of a `scan` are changed
    in place, and results do not depend on the number of threads. It has no derivative.

    Args:
        weights: (k, n), float32 or float64.
        index: `sparse.transposed(weights.pattern)`, of this pattern and no other.
        pre: spikes of the inputs; what is not 0 is a spike.
        post: spikes of the outputs.
        pre_trace: x, of the inputs.
        post_trace: o, of the outputs.
        settings: of the rule.

    Returns:
        The new weights, and how many of them a bound stopped.

    Raises:
        ValueError: arrays that do not fit, a batch without a sample, or another dtype.

    >>> from spikebit.kernels.sparse import csr, transposed
    >>> w = csr([0, 2, 3], [0, 1, 0], [0.5, 0.5, 1.0], (2, 2))
    >>> pre, post = jnp.array([1.0, 0.0]), jnp.array([1.0, 0.0])
    >>> traces = jnp.array([0.5, 1.0]), jnp.array([0.0, 1.0])
    >>> new, stopped = sparse_stdp(
    ...     w, transposed(w.pattern), pre, post, *traces, StdpSettings(0.5, 0.25)
    ... )
    >>> new.data.tolist(), int(stopped)
    ([0.75, 0.25, 1.0], 1)
    """
    _check(weights, index, pre, post, pre_trace, post_trace)
    rows = math.prod(pre.shape[:-1])
    flat = (a.reshape(rows, a.shape[-1]) for a in (pre, post, pre_trace, post_trace))
    numbers = jnp.stack([jnp.asarray(a, weights.data.dtype) for a in settings])
    data, stopped = dispatch.run(
        "sparse_stdp", "update", update_reference, weights, index, *flat, numbers
    )
    return Csr(data, weights.pattern), stopped


def update_reference(
    weights: Csr,
    index: Transposed,
    pre: Float[Array, "rows k"],
    post: Float[Array, "rows n"],
    pre_trace: Float[Array, "rows k"],
    post_trace: Float[Array, "rows n"],
    numbers: Float[Array, "5"],
) -> tuple[Float[Array, " nnz"], Int32[Array, ""]]:
    """The same for all connections in jax.numpy; `numbers` are the settings."""
    del index
    w, pattern = weights
    i, j = inputs_of(pattern), pattern.indices
    a_plus, a_minus, w_min, w_max, mu = numbers
    up = a_plus * jnp.maximum(w_max - w, 0) ** mu * (pre_trace[:, i] * post[:, j]).mean(0)
    down = a_minus * jnp.maximum(w - w_min, 0) ** mu * (pre[:, i] * post_trace[:, j]).mean(0)
    new = w + (up - down)
    touched = (pre != 0).any(0)[i] | (post != 0).any(0)[j]
    stopped = touched & ((new < w_min) | (new > w_max))
    return jnp.where(touched, jnp.clip(new, w_min, w_max), w), stopped.sum(dtype=jnp.int32)


def _check(weights, index, pre, post, pre_trace, post_trace):
    checked_connections("sparse_stdp", weights)
    (k, n), batch = weights.shape, pre.shape[:-1]
    shapes = tuple(a.shape for a in (pre, post, pre_trace, post_trace))
    if shapes != ((*batch, k), (*batch, n)) * 2 or pre.ndim < 1 or 0 in batch:
        raise ValueError(
            f"sparse_stdp got pre, post, pre_trace and post_trace of shapes {shapes} for weights "
            f"of shape {(k, n)}; give (*batch, {k}), (*batch, {n}) and the same again, with at "
            "least one sample."
        )
    dtypes = {str(a.dtype) for a in (weights.data, pre, post, pre_trace, post_trace)}
    if dtypes not in ({"float32"}, {"float64"}):
        raise ValueError(
            f"sparse_stdp got {', '.join(sorted(dtypes))}; make weights, spikes and traces all "
            "float32 or all float64."
        )
    nnz = len(weights.data)
    whole = all(a.dtype == jnp.int32 for a in index)
    if not whole or tuple(a.shape for a in index) != ((n + 1,), (nnz,), (nnz,)):
        raise ValueError(
            f"sparse_stdp got an index of {len(index.places)} connections to "
            f"{len(index.indptr) - 1} outputs for a pattern of {nnz} to {n}; make it by "
            "transposed(weights.pattern)."
        )

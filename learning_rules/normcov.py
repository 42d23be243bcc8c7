"""The offline counterpart of fatiguing STDP: covariance normalised by rates, clusters, weights.

What is computed from recorded counts without any spiking network belongs here.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def normalised_covariance(counts: Float[Array, "bins n"]) -> Float[Array, "n n"]:
    r"""$C_{ij} = cov(x_i, x_j) / (\bar x_i \bar x_j)$ of counts in bins; 0 for silent inputs.

    Scaling the rate of an input leaves its row as it is. The division by both rates follows from
    the efficacy of fatigue, 1 / r for fast inputs; it is not read from a paper.

    >>> normalised_covariance(jnp.array([[1.0, 10.0], [3.0, 30.0]])).tolist()
    [[0.25, 0.25], [0.25, 0.25]]
    """
    mean = jnp.mean(counts, 0)
    ratio = jnp.where(mean > 0, counts / jnp.where(mean > 0, mean, 1), 1) - 1
    return ratio.T @ ratio / counts.shape[0]


def cluster(similarity: Float[np.ndarray, "n columns"], count: int) -> Int[np.ndarray, " n"]:
    """Merges the two most similar clusters (mean over pairs) until `count` are left.

    Runs on the host. Clusters are numbered by their first member.

    Raises:
        ValueError: a matrix that is not square, or a count that is not 1 to n.
    """
    n = len(similarity)
    if similarity.shape != (n, n) or not 1 <= count <= n:
        raise ValueError(
            f"cluster: got a matrix of shape {similarity.shape} and count={count}; give a square "
            "one and 1 to n clusters."
        )
    total = np.array(similarity, np.float64)  # sums over the pairs between clusters
    size, member = np.ones(n), np.arange(n)
    alive = np.ones(n, bool)
    for _ in range(n - count):
        mean = np.where(np.outer(alive, alive), total / np.outer(size, size), -np.inf)
        np.fill_diagonal(mean, -np.inf)
        a, b = sorted(int(i) for i in np.unravel_index(np.argmax(mean), mean.shape))
        total[a] += total[b]
        total[:, a] += total[:, b]
        size[a] += size[b]
        alive[b] = False
        member[member == b] = a
    return np.unique(member, return_inverse=True)[1]


def weights_by_cluster(
    similarity: Float[np.ndarray, "n n"], labels: Int[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """The mean similarity of the pairs within its cluster, as a share of the largest; in [0, 1].

    An input that is alone in its cluster has weight 0.
    """
    same = labels[:, None] == labels[None]
    np.fill_diagonal(same, False)
    pairs = same.sum(1)
    own = np.where(pairs > 0, (similarity * same).sum(1) / np.maximum(pairs, 1), 0.0)
    within = np.array([own[labels == label].mean() for label in labels])
    top = within.max(initial=0.0)
    return np.clip(within / top, 0, 1) if top > 0 else np.zeros(len(labels))

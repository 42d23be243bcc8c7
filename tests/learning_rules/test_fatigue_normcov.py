"""Normalised covariance: free of rates, and clusters that are found from it."""

import jax.numpy as jnp
import numpy as np
import pytest

from spikebit.learning_rules import normcov


def test_normalised_covariance_is_that_of_numpy_and_knows_no_rates():
    counts = np.random.default_rng(0).poisson(5, (400, 4)).astype(np.float32)
    counts[:, 1] += counts[:, 0]
    mean = counts.mean(0)
    expected = np.cov(counts.T, bias=True) / np.outer(mean, mean)
    found = normcov.normalised_covariance(jnp.asarray(counts))
    np.testing.assert_allclose(found, expected, atol=2e-6)
    scaled = normcov.normalised_covariance(counts * jnp.array([1, 8, 0.25, 2]))
    np.testing.assert_allclose(scaled, found, atol=2e-6)
    silent = normcov.normalised_covariance(counts * jnp.array([1.0, 0, 1, 1]))
    assert (np.asarray(silent)[1] == 0).all()


def test_clusters_and_their_weights():
    groups = np.array([0, 1, 0, 2, 1, 0, 2])
    similarity = np.where(groups[:, None] == groups, np.array([0.8, 0.4, 0.2])[groups], 0.05)
    labels = normcov.cluster(similarity, 3)
    np.testing.assert_array_equal(labels, groups)
    weights = normcov.weights_by_cluster(similarity, labels)
    np.testing.assert_allclose(weights, np.array([1, 0.5, 0.25])[groups])
    assert len(set(normcov.cluster(similarity, 7))) == 7
    assert not normcov.cluster(similarity, 1).any()
    np.testing.assert_array_equal(normcov.weights_by_cluster(similarity, np.arange(7)), 0)


def test_mean_linkage_not_the_nearest_pair():
    # 0-1 and 2-3 are pairs; 1-2 is one strong link between them, 4 is nearer to 0-1 on average
    s = np.array([
        [1, 0.9, 0.0, 0.0, 0.4],
        [0.9, 1, 0.6, 0.0, 0.4],
        [0.0, 0.6, 1, 0.8, 0.0],
        [0.0, 0.0, 0.8, 1, 0.0],
        [0.4, 0.4, 0.0, 0.0, 1],
    ])  # fmt: skip
    np.testing.assert_array_equal(normcov.cluster(s, 2), [0, 0, 1, 1, 0])


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\) and count=1"):
        normcov.cluster(np.zeros((2, 3)), 1)
    with pytest.raises(ValueError, match="count=3"):
        normcov.cluster(np.zeros((2, 2)), 3)

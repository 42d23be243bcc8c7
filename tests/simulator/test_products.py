"""4-bit products as an experiment file says them: what is quantized, that a run is its seed's."""

import jax
import numpy as np
import pytest
from flax import nnx

from spikebit.learning_rules import parameters
from spikebit.quant.training.products import QuantizedProduct
from spikebit.simulator import build
from spikebit.simulator import experiment_file as f
from spikebit.simulator.train import read_parameters, train

pytestmark = pytest.mark.usefixtures("compile_quickly")
TINY = {
    "data": {"limit": 40},
    "encoder": {"name": "direct", "steps": 2},
    "network": {"cell": "snu", "recurrent": True, "hidden": [8]},
    "optimizer": {"name": "sgd", "learning_rate": 0.1},
    "train": {"epochs": 1, "batch": 20},
}


def job(products, rule):
    network = TINY["network"] | {"products": products}
    return build(f.check(TINY | {"network": network, "rule": rule}))


def weights(j):
    return [np.asarray(w) for w in jax.tree.leaves(read_parameters(j, train(j).memory))]


@pytest.mark.parametrize(
    "rule", [{"name": "bptt"}, {"name": "ostl", "scope": "full", "update_every": 1, "chunk": 1}]
)
def test_all_products_in_four_bits_train_under_a_rule(rule):
    four_bits = job("luq_all", rule)
    kinds = [m for _, m in nnx.iter_modules(four_bits.network) if isinstance(m, QuantizedProduct)]
    assert len(kinds) == 2  # of the recurrent cell, for both its products, and of the readout
    after = weights(four_bits)
    before = [np.asarray(w) for w in jax.tree.leaves(parameters(four_bits.network))]
    moved = [np.linalg.norm(a - b) for a, b in zip(after, before, strict=True)]
    assert all(m > 0 for m in moved)
    again = weights(job("luq_all", rule))  # the noise belongs to the seed
    for a, b in zip(after, again, strict=True):
        np.testing.assert_array_equal(a, b)

"""A backend that computes otherwise is refused; and what sharded arrays and numpy must agree on."""

import importlib
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from spikebit.quant import Minifloat, quantize

selftest = importlib.import_module("spikebit.quant.selftest")


@pytest.fixture
def fresh():
    selftest._test.cache_clear()
    jax.clear_caches()
    yield
    selftest._test.cache_clear()
    jax.clear_caches()


def test_this_backend_passes_and_is_asked_once(fresh, monkeypatch):
    selftest.require_exact_backend()
    monkeypatch.setattr(selftest, "_compare", None)  # would be called if it were asked again
    selftest.require_exact_backend()


def _one_last_bit(y):
    return jax.lax.bitcast_convert_type(
        jax.lax.bitcast_convert_type(y, jnp.uint32) ^ (y == 1.25).astype(jnp.uint32), jnp.float32
    )


def _no_subnormals(y):
    return jnp.where(jnp.abs(y) < 2.0**-126, jnp.zeros_like(y), y)


def _lost_sign_of_zero(y):
    return jnp.where(y == 0, jnp.zeros_like(y), y)


@pytest.mark.parametrize("broken", [_one_last_bit, _no_subnormals, _lost_sign_of_zero])
def test_a_backend_that_is_off_by_a_bit_is_an_error(fresh, monkeypatch, broken):
    decode = Minifloat._decode
    monkeypatch.setattr(
        Minifloat, "_decode", lambda self, codes, dtype: broken(decode(self, codes, dtype))
    )
    with pytest.raises(RuntimeError, match=r"backend 'cpu' of JAX does not compute .* exactly"):
        quantize(jnp.ones(2), "int8")


_SHARDED = """
import json, jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from spikebit.quant import encode, decode, quantize
mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
x = jax.random.normal(jax.random.key(0), (8, 64))
on = jax.device_put(x, NamedSharding(mesh, P("d", None)))
columns = jax.device_put(x, NamedSharding(mesh, P(None, "d")))
random, equal = {"rounding": "stochastic", "key": jax.random.key(1)}, {}
for name, shared in (
    ("int4", {}), ("int4", {"axis": -1}), ("int4", {"axis": -1, "block": 16}),
    ("int8", {"axis": 0}), ("e4m3fn", {"axis": -1}),
):
    f = jax.jit(lambda x: (quantize(x, name, **shared, **random), quantize(x, name, **shared)))
    g = jax.jit(
        lambda x: (quantize(x, name, **shared, **random), decode(encode(x, name, **shared))))
    one = f(x)
    for where, array in (("rows", on), ("columns", columns)):
        for what, a, b in zip(("random", "codes"), g(array), one):
            equal[f"{what} {name} {shared} {where}"] = bool((np.asarray(a) == np.asarray(b)).all())
mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Explicit,))
on = jax.device_put(x, NamedSharding(mesh, P("d", None)))
for name in ("e4m3fn", "mxfp4", "nf4", "posit16"):
    def both(x):
        found = [(quantize(x, name, **how), encode(x, name, **how)) for how in ({}, random)]
        return [(y, q.codes, decode(q)) for y, q in found]
    alone = jax.jit(lambda x: [quantize(x, name, **how) for how in ({}, random)])(x)
    with jax.set_mesh(mesh):
        for how, one, (y, codes, decoded) in zip(("nearest", "random"), alone, jax.jit(both)(on)):
            assert jax.typeof(y).sharding.spec == jax.typeof(codes).sharding.spec == P("d", None)
            same = (np.asarray(y) == np.asarray(one)) & (np.asarray(decoded) == np.asarray(one))
            equal[f"explicit {name} {how}"] = bool(same.all())
print(json.dumps({"devices": jax.device_count(), "equal": equal}))
"""


def test_sharded_arrays_give_the_same_bits():
    """Four devices in a process of their own: rows and columns split, random bits included."""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    env = os.environ | {"XLA_FLAGS": flags}
    out = subprocess.run(
        [sys.executable, "-c", _SHARDED], env=env, capture_output=True, text=True, check=True
    ).stdout
    result = json.loads(out.splitlines()[-1])
    assert result["devices"] == 4
    assert len(result["equal"]) == 20 + 8
    assert all(result["equal"].values()), [k for k, v in result["equal"].items() if not v]

"""A network whose layers multiply in another way: the switch, and the noise it needs.

Layers of Flax take their product as an attribute (`dot_general`, `conv_general_dilated`), and so do
the cells of the simulator (`product`); here it is exchanged. What a quantized product computes is
`luq`'s.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, PRNGKeyArray

from .luq import LUQ, luq_product


class Noise(nnx.Variable):
    """The random key, as data, that a product rounds its gradient with; see `with_noise`."""


class Maximum(nnx.Variable):
    """The largest gradient of earlier steps (`in_hindsight`); its gradient is that of this step."""


class QuantizedProduct(nnx.Module):
    """Stands in for `jax.lax.dot_general`, `conv_general_dilated` or a product (x, w) of a layer.

    Attributes:
        product: what it stands in for.
        luq: what is rounded to what.
        noise: the key of this step, as data.
        maximum: 0, or the maximum in hindsight.
    """

    def __init__(self, product: Callable, luq: LUQ):
        """Takes a product of two arrays and settings; the noise is of key 0 until it is set."""
        self.product, self.luq = product, luq
        self.noise = Noise(jax.random.key_data(jax.random.key(0)))
        self.maximum = Maximum(jnp.zeros((), jnp.float32))

    def __call__(self, a: Array, w: Array, *args: Any, **settings: Any) -> Array:
        """The product of a and w; all else is passed on."""
        settings.pop("needed", None)  # of sparse products, which only save work by it

        def product(a: Array, w: Array) -> Array:
            return self.product(a, w, *args, **settings)

        return luq_product(product, self.luq, a, w, self.noise[...], self.maximum[...])


def quantize_products(
    network: nnx.Module, luq: LUQ | None = None, *, first_and_last: bool = False
) -> Any:
    """The network with quantized products in its dense, convolution and recurrent layers.

    Dense and convolution layers of Flax, the dense layers inside its recurrent cells, and cells of
    the simulator with their input and recurrent weights. The network itself stays as it is; the new
    one has the same parameters. Give it new noise for every step:

        network = with_noise(network, key)

    Args:
        network: any Flax module, a `Network` too.
        luq: what is rounded to what; None: the defaults of `LUQ`.
        first_and_last: also the first and the last layer with a product, which are usually kept in
            high precision: the one sees the data, the other makes the loss.

    Raises:
        ValueError: if no layer is left to be quantized.
    """
    luq, copy = luq or LUQ(), nnx.clone(network)
    modules = {tuple(map(str, path)): m for path, m in nnx.iter_modules(copy)}
    # in the order in which the layers were made, which a copy does not keep
    places = [(modules[path], name) for path in _paths(network) for name in _places(modules[path])]
    owners = list(dict.fromkeys(id(m) for m, _ in places))
    ends = set() if first_and_last else {*owners[:1], *owners[-1:]}
    chosen = [(m, name) for m, name in places if id(m) not in ends]
    if not chosen:
        raise ValueError(
            f"quantize_products: {type(network).__name__} has {len(owners)} layers with a product, "
            "and the first and the last stay as they are; set first_and_last=True."
        )
    for module, name in chosen:
        setattr(module, name, nnx.data(QuantizedProduct(getattr(module, name), luq)))
    return copy


def with_noise(network: Any, key: PRNGKeyArray) -> Any:
    """The network with a new key in each of its quantized products, all drawn from one.

    A pure function, to be used under `jit`; one draw serves all that the network computes until it
    is called again.
    """
    graphdef, noise, rest = nnx.split(network, Noise, ...)
    return nnx.merge(graphdef, new_noise(noise, key), rest)


def new_noise(state: Any, key: PRNGKeyArray) -> Any:
    """New keys for the `Noise` of a state."""
    leaves, tree = jax.tree.flatten(state)
    keys = jax.random.split(key, len(leaves)) if leaves else []
    return tree.unflatten([jax.random.key_data(k) for k in keys])


def _places(module: Any) -> list[str]:
    """The attributes of a module that are products of activations and weights."""
    if isinstance(module, nnx.Conv):
        return ["conv_general_dilated"]
    if isinstance(module, nnx.Linear | nnx.LinearGeneral):
        return ["dot_general"]
    return ["product"] if hasattr(module, "product") and hasattr(module, "memory_fields") else []


def _paths(module: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The paths of a module and those inside of it, in the order of their attributes."""
    found = [path]
    for name, child in vars(module).items():
        if isinstance(child, nnx.Module):
            found += _paths(child, (*path, name))
    return found

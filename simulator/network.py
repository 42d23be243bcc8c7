"""Networks as stacks of layers, and running one forward while recording what one wants to see.

Cells stand in files of their own; how a network learns is `learning_rules`'.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
from flax import nnx
from jaxtyping import Array, Float, PyTree

from ..learning_rules.stack import as_stack

Probe = str | Callable[[tuple[Any, ...]], PyTree]


class Network(nnx.RNNCellBase):
    """A stack of layers, lowest first; itself a cell whose carry is the tuple of its layers'.

    A layer is a cell (ours, Flax's `LSTMCell`, `GRUCell`, any `nnx.RNNCellBase`), a Flax layer
    without state (`nnx.Linear`, `nnx.Conv`), or any function of one array.
    """

    is_stack: ClassVar[bool] = True  # to the rules, which see through it to its layers

    def __init__(self, layers: Sequence[Any]):
        """Takes the layers; neighbours that cannot fit are refused with their names."""
        if not layers:
            raise ValueError("Network(layers=[]): give at least one layer.")
        _check_neighbours(layers)
        self.layers = nnx.List(layers)

    def __call__(self, carry: tuple[Any, ...], x: Array) -> tuple[tuple[Any, ...], Array]:
        """One time step: x (*batch, *features) through every layer."""
        new = []
        for layer, c in zip(self.layers, carry, strict=True):
            if isinstance(layer, nnx.RNNCellBase):
                c, x = layer(c, x)
            else:
                x = layer(x)
            new.append(c)
        return tuple(new), x

    def initialize_carry(
        self, input_shape: tuple[int, ...], rngs: Any = None, carry_init: Any = None
    ) -> tuple[Any, ...]:
        """Zero carries for inputs of shape (batch, *features); () for a layer without state.

        An `nnx.Rngs` is read only where a state is rounded stochastically.
        """
        of_indices = isinstance(self.layers[0], nnx.Embed)
        dtype = jax.numpy.zeros((), int if of_indices else float).dtype
        batch = jax.ShapeDtypeStruct((1, *input_shape), dtype)
        stack = as_stack(self)
        draws = any(layer.draws for layer in stack.layers)
        key = rngs.carry() if rngs is not None and draws else None
        return stack.initialize_carries(nnx.state(self, nnx.Param), batch, key)

    @property
    def num_feature_axes(self) -> int:
        """Of the first cell in the stack."""
        cells = [m for m in self.layers if isinstance(m, nnx.RNNCellBase)]
        return cells[0].num_feature_axes if cells else 1


class Recording(NamedTuple):
    """What `simulate` returns."""

    outputs: Float[Array, "time batch *features"]
    carry: tuple[Any, ...]  # after the last step; pass it on to continue the stream
    records: dict[str, PyTree]  # each leaf (time, batch, ...)


def simulate(
    network: Network,
    xs: Float[Array, "time batch *features"],
    *,
    record: Mapping[str, Probe] | Sequence[str] = (),
    carry: tuple[Any, ...] | None = None,
) -> Recording:
    """Runs a network forward, step by step; keeps the outputs and what is asked for, nothing else.

    Args:
        network: the network.
        xs: its inputs.
        record: names of states, "0.y" for field y of layer 0 ("0" for its whole carry), or a
            mapping of names to such strings or to functions of the tuple of all carries.
        carry: where to continue; None starts from zero.

    Raises:
        ValueError: a layer that does not fit its input, or a record that does not exist.
    """
    if not isinstance(record, Mapping):
        record = {name: name for name in record}
    if carry is None:
        carry = network.initialize_carry(xs.shape[1:])
    probes = {name: _probe(p, carry) if isinstance(p, str) else p for name, p in record.items()}

    def step(carry: tuple[Any, ...], x: Array) -> tuple[Any, Any]:
        carry, y = network(carry, x)
        return carry, (y, {name: probe(carry) for name, probe in probes.items()})

    last, (outputs, records) = jax.lax.scan(step, carry, xs)
    return Recording(outputs, last, records)


def _probe(text: str, carry: tuple[Any, ...]) -> Callable[[tuple[Any, ...]], PyTree]:
    """The function behind "layer" or "layer.field"."""
    index, _, field = text.partition(".")
    if not index.isdigit() or int(index) >= len(carry) or carry[int(index)] == ():
        cells = [str(i) for i, c in enumerate(carry) if c != ()]
        raise ValueError(
            f"record={text!r} is not LAYER or LAYER.FIELD: layers with a state are "
            f"{', '.join(cells)}; the spikes of layer 0 are '0.y'."
        )
    i = int(index)
    known = getattr(carry[i], "_fields", ())
    if not field:
        return lambda c: c[i]
    if field not in known:
        raise ValueError(
            f"record={text!r}: the state of layer {i} has the fields {', '.join(known) or 'none'}; "
            f"for its whole state record {index!r}."
        )
    return lambda c: getattr(c[i], field)


def _check_neighbours(layers: Sequence[Any]) -> None:
    """Refuses two neighbours whose declared feature numbers differ."""
    width, source = None, ""
    for i, layer in enumerate(layers):
        name = f"layer {i} ({getattr(layer, '__name__', type(layer).__name__)})"
        wanted = getattr(layer, "in_features", None)
        if width is not None and wanted is not None and wanted != width:
            raise ValueError(
                f"Network: {source} gives {width} features but {name} takes {wanted}: make "
                "them equal."
            )
        known = getattr(layer, "out_features", None) or getattr(layer, "hidden_features", None)
        inner = isinstance(layer, Network)  # which says nothing of its widths
        if known is None and isinstance(layer, nnx.RNNCellBase) and wanted is None and not inner:
            continue  # a cell that keeps the shape of its input
        width, source = (known if isinstance(known, int) else None), name

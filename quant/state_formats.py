"""The state of recurrent and spiking cells in number formats: membranes, currents, traces.

A cell says which of its variables plays which role; here the variables that were given a format are
stored in it after every step. Traces belong to learning rules: their formats are kept here with the
cell, and rules read them (`trace_storage`). Formats and rounding stand in files of their own.
"""

import difflib
import functools
import math
from collections import namedtuple
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from flax import nnx
from jaxtyping import Array, UInt32

from .grid import Format
from .storage import Lost, Storage, storage

TRACES = ("eligibility_trace", "stdp_trace")

#: Roles of the cells of Flax: the paths of their leaves in the carry.
_FLAX_ROLES: tuple[tuple[type, dict[str, str]], ...] = (
    (nnx.LSTMCell, {"cell": "0", "hidden": "1"}),
    (nnx.OptimizedLSTMCell, {"cell": "0", "hidden": "1"}),
    (nnx.GRUCell, {"hidden": ""}),
    (nnx.SimpleCell, {"hidden": ""}),
)


class NoisyCarry(NamedTuple):
    """The carry of any cell, with the random keys of its stochastic rounding."""

    carry: Any
    noise: UInt32[Array, "*batch words"]  # data of one key a sample


def state_formats(
    cell: Any, formats: Mapping[str, Format | str], *, rounding: str = "nearest_even"
) -> Any:
    """The cell with state variables kept in number formats; the cell itself stays as it is.

    After each step, and before the output is found from it where the cell has a `fire`, a variable
    is rounded to its format; the arithmetic of the step is that of the cell. The derivative of the
    rounding is straight-through: 1 inside the range and 0 where it saturates. What saturates can be
    counted with `state_losses`.

    The result is of a class derived from the cell's: it has the same parameters, and works wherever
    the cell does, on the fast path of the rules too. Formats given in several calls add up, each
    with its own rounding. Without formats, or in float32, all bits stay the same.

    Stochastic rounding reads one random key a sample, carried along as the field `noise`, so that
    the samples of a batch are rounded independently. `initialize_carry` draws it from its `rngs`.

    Args:
        cell: a cell with `memory_fields` and `charge`, such as those of the simulator; a recurrent
            cell of Flax; any other `nnx.RNNCellBase` whose class says in `roles` which leaf of the
            carry plays which role, by its path (`{"membrane": "0.v"}`); or a network with `layers`,
            of which every cell takes the roles that it has.
        formats: by role, such as "membrane", "synaptic_current", "adaptation", "cell" and "hidden"
            (LSTM), or by a field of the carry; "eligibility_trace" and "stdp_trace" are read by the
            rules that keep such traces.
        rounding: one of `quant.rounding.ROUNDINGS`, for all of them.

    Raises:
        ValueError: a role that the cell does not have, or a format that has no unit of its own.
    """
    if not hasattr(cell, "layers"):
        known = _roles(cell)
        _check_roles(type(cell).__name__, formats, known)
        return _with_formats(cell, formats, known, rounding)
    roles = [_roles(layer) if _is_cell(layer) else {} for layer in cell.layers]
    _check_roles(type(cell).__name__, formats, functools.reduce(lambda a, b: a | b, roles))
    network = nnx.clone(cell)
    layers = []
    for layer, known in zip(network.layers, roles, strict=True):
        own = {name: fmt for name, fmt in formats.items() if name in known}
        layers.append(_with_formats(layer, own, known, rounding) if own else layer)
    network.layers = nnx.List(layers)
    return network


def trace_storage(cell: Any, role: str) -> Storage | None:
    """The format that `state_formats` gave to a trace of a cell, one of `TRACES`; None if none."""
    return dict(getattr(cell, "storages", ())).get(role)


def rounds_stochastically(cell: Any) -> bool:
    """Whether the carry of a cell holds random keys, so that `initialize_carry` needs `rngs`."""
    return any(kept.draws for _, kept in _of_states(getattr(cell, "storages", ())))


def state_losses(cell: Any, carry: Any, x: Array) -> dict[str, Lost]:
    """What one step (carry, x) of a cell loses in its formats, by role.

    Args:
        cell: any cell; one without formats loses nothing.
        carry: its carry before the step.
        x: its input.
    """
    if not getattr(cell, "storages", ()):
        return {}
    exact, stored = cell.exact_and_stored(carry, x)
    names = {place: role for role, place in reversed(_roles(cell).items())}
    return {
        names[place]: kept.lost(exact[place], stored[place])
        for place, kept in cell.storages
        if place not in TRACES
    }


def _is_cell(layer: Any) -> bool:
    return isinstance(layer, nnx.RNNCellBase)


def _is_unitwise(cell: Any) -> bool:
    return hasattr(cell, "memory_fields") and hasattr(cell, "charge")


def _roles(cell: Any) -> dict[str, str]:
    """All names that a variable of the cell can be given a format by, and its place."""
    own: Mapping[str, str] = getattr(cell, "roles", None) or next(
        (roles for kind, roles in _FLAX_ROLES if isinstance(cell, kind)), {}
    )
    fields = cell.memory_fields if _is_unitwise(cell) else ()
    return dict(own) | {k: k for k in fields} | {k: k for k in TRACES}


def _check_roles(who: str, formats: Mapping[str, Any], known: Mapping[str, str]) -> None:
    for name in formats:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            guess = f"did you mean {near[0]}? " if near else ""
            raise ValueError(
                f"state_formats: {who} has no state {name!r}; {guess}it has {', '.join(known)}."
            )


def _with_formats(
    cell: Any, formats: Mapping[str, Format | str], known: Mapping[str, str], rounding: str
) -> Any:
    new = {
        known[name]: storage(f"state_formats({name}={str(fmt)!r})", fmt, rounding)
        for name, fmt in formats.items()
    }
    kind = type(cell)
    if not issubclass(kind, (_StoredUnits, _StoredCarry)):
        kind = _stored_class(kind, _is_unitwise(cell))
    result = object.__new__(kind)
    vars(result).update(vars(nnx.clone(cell)))
    result.storages = tuple((dict(getattr(cell, "storages", ())) | new).items())
    return result


@functools.cache
def _stored_class(kind: type, unitwise: bool) -> type:
    """One class for each class of cells, so that equal cells stay equal to `jax.jit`."""
    mixin = _StoredUnits if unitwise else _StoredCarry
    return type(f"{kind.__name__}InFormats", (mixin, kind), {"__doc__": kind.__doc__})


class _StoredUnits:
    """Stores the memory fields that `charge` gives, before `fire` reads them."""

    storages: tuple[tuple[str, Storage], ...]

    def charge(self, carry: Any, z: Array) -> Any:
        new = self._charge(carry, z)
        exact = {place: getattr(new, place) for place, _ in _of_states(self.storages)}
        stored, noise = _store(self.storages, exact, getattr(carry, "noise", None))
        return new._replace(**stored, **({} if noise is None else {"noise": noise}))

    def fire(self, carry: Any) -> Array:
        cell: Any = super()
        return cell.fire(_quiet(carry))

    def support(self, carry: Any) -> Array | None:
        cell: Any = super()
        return cell.support(_quiet(carry))

    def initialize_carry(
        self, input_shape: tuple[int, ...], rngs: Any = None, carry_init: Any = None
    ) -> Any:
        cell: Any = super()
        carry = cell.initialize_carry(input_shape, rngs, carry_init)
        if not rounds_stochastically(self):
            return carry
        noise = _noise(self, rngs, carry.y.shape[:-1])
        return _noisy_type(type(carry))(*carry[:-1], noise, carry.y)

    def exact_and_stored(self, carry: Any, x: Array) -> tuple[dict[str, Array], dict[str, Array]]:
        """The variables after a step, before and after they are stored."""
        z = self.drive(carry, x)  # pyright: ignore[reportAttributeAccessIssue]
        places = [place for place, _ in _of_states(self.storages)]
        exact, stored = self._charge(carry, z), self.charge(carry, z)
        return {p: getattr(exact, p) for p in places}, {p: getattr(stored, p) for p in places}

    def _charge(self, carry: Any, z: Array) -> Any:
        cell: Any = super()
        new = cell.charge(_quiet(carry), z)
        return carry._replace(**new._asdict())


class _StoredCarry:
    """Stores leaves of the carry after the step of any cell."""

    storages: tuple[tuple[str, Storage], ...]

    def __call__(self, carry: Any, x: Array) -> tuple[Any, Array]:
        new, y, exact = self._step(carry, x)
        noisy = isinstance(carry, NoisyCarry)
        stored, noise = _store(self.storages, exact, carry.noise if noisy else None)

        def replace(path: Any, leaf: Any) -> Any:
            return stored.get(_path(path), leaf)

        for place, value in exact.items():
            y = stored[place] if y is value else y  # the output is what is stored
        new = jax.tree_util.tree_map_with_path(replace, new)
        return (NoisyCarry(new, noise) if noise is not None else new), y

    def initialize_carry(
        self, input_shape: tuple[int, ...], rngs: Any = None, *args: Any, **settings: Any
    ) -> Any:
        cell: Any = super()
        carry = cell.initialize_carry(input_shape, rngs, *args, **settings)
        if not rounds_stochastically(self):
            return carry
        axes: int = self.num_feature_axes  # pyright: ignore[reportAttributeAccessIssue]
        return NoisyCarry(carry, _noise(self, rngs, tuple(input_shape[:-axes])))

    def exact_and_stored(self, carry: Any, x: Array) -> tuple[dict[str, Array], dict[str, Array]]:
        """The variables after a step, before and after they are stored."""
        exact = self._step(carry, x)[2]
        noise = carry.noise if isinstance(carry, NoisyCarry) else None
        return exact, _store(self.storages, exact, noise)[0]

    def _step(self, carry: Any, x: Array) -> tuple[Any, Array, dict[str, Array]]:
        """The step of the cell, and the leaves of its carry that are to be stored."""
        cell: Any = super()
        new, y = cell.__call__(carry.carry if isinstance(carry, NoisyCarry) else carry, x)
        leaves = {_path(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(new)}
        for place, _ in _of_states(self.storages):
            if place not in leaves:
                raise ValueError(
                    f"state_formats: {type(self).__name__} declares a state at {place!r}, but its "
                    f"carry has the leaves {', '.join(map(repr, leaves))}: correct its `roles`."
                )
        return new, y, {place: leaves[place] for place, _ in _of_states(self.storages)}


def _of_states(storages: tuple[tuple[str, Storage], ...]) -> list[tuple[str, Storage]]:
    return [(place, kept) for place, kept in storages if place not in TRACES]


def _path(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _store(
    storages: tuple[tuple[str, Storage], ...], exact: dict[str, Array], noise: Array | None
) -> tuple[dict[str, Array], Array | None]:
    """The variables as stored, and the noise of the next step."""
    kept = dict(_of_states(storages))
    if noise is None:
        return {place: kept[place].store(x) for place, x in exact.items()}, None
    batch = noise.shape[:-1]

    def split(words: Array) -> Array:
        keys = jax.random.split(jax.random.wrap_key_data(words), len(exact) + 1)
        return jax.random.key_data(keys)

    words = jax.vmap(split, out_axes=1)(noise.reshape(-1, noise.shape[-1]))

    def store(place: str, x: Array, words: Array) -> Array:
        if not kept[place].draws:
            return kept[place].store(x)
        rows = x.reshape(len(words), math.prod(x.shape[len(batch) :]))
        return jax.vmap(kept[place].store)(rows, jax.random.wrap_key_data(words)).reshape(x.shape)

    stored = {p: store(p, x, w) for (p, x), w in zip(exact.items(), words[1:], strict=True)}
    return stored, words[0].reshape(noise.shape)


def _noise(cell: Any, rngs: Any, batch: tuple[int, ...]) -> Array:
    if not rngs:
        raise ValueError(
            f"{type(cell).__name__}.initialize_carry: a state is rounded stochastically and found "
            "no rngs to draw its noise from: give rngs=nnx.Rngs(seed)."
        )
    key = rngs.carry() if isinstance(rngs, nnx.Rngs) else rngs()
    return jax.random.key_data(jax.random.split(key, batch))


@functools.cache
def _noisy_type(kind: Any) -> Any:
    """The carry type with `noise` before its last field, the output."""
    fields = (*kind._fields[:-1], "noise", kind._fields[-1])
    return type(f"Noisy{kind.__name__}", (namedtuple("_", fields),), {"quiet": kind})


def _quiet(carry: Any) -> Any:
    """The carry as the cell itself knows it."""
    kind = getattr(carry, "quiet", None)
    return carry if kind is None else kind(*(getattr(carry, name) for name in kind._fields))

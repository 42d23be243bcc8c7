"""Where the kernels of a cell enter, found in what the cell computes, not written down per cell.

A site is a matrix product u @ W of a vector u with a parameter W. The derivative to W is an outer
product with u, so a rule never needs it in the shape of W. A cell is unit-wise if its state stays
within single units but for these products, as that of Flax's LSTM and GRU cells does. No learning
rule here, and no trace.
"""

import math
from collections import ChainMap
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jaxtyping import Array, Int

from .programs import bind, leading_to, program_of, read, variables

Labels = Int[np.ndarray, "..."]
"""To which unit each number of an array belongs, or one of the following."""
_FREE = -1  # to no unit: it depends on no state and no parameter
_MIXED = -2  # to several, or nobody can tell

_ELEMENTWISE = frozenset(
    "abs add add_any and cbrt ceil clamp complex conj convert_element_type copy cos cosh div eq "
    "erf erf_inv erfc exp exp2 expm1 floor ge gt imag integer_pow is_finite le log log1p logistic "
    "lt max min mul ne neg not or pow real rem round rsqrt select_n sign sin sinh sqrt square "
    "stop_gradient sub tan tanh xor".split()
)
_MOVES = frozenset(
    "broadcast_in_dim concatenate expand_dims reshape rev slice split squeeze transpose".split()
)
_CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "custom_jvp_call": "call_jaxpr"}


class Source(NamedTuple):
    """A vector u that kernels are multiplied by; the columns are those of all its products."""

    units: Labels  # (nu,): to which unit a number of u belongs, < 0 for what comes from outside
    columns: Labels  # (columns,): to which unit a sum belongs, < 0 for one that reaches no state
    dtype: Any


class Site(NamedTuple):
    """One product u @ W."""

    source: int
    kernel: int  # W, among the parameters
    columns: slice


Product = Callable[[Array, Array, Array, Labels, Labels], Array]
"""`product(u, held, W, units, columns)` in place of u @ W: held is u with the state held constant,
the labels are those of `Source`."""


class Program(NamedTuple):
    """One step of a cell taken apart."""

    jaxpr: core.Jaxpr
    consts: Sequence[Any]
    out: Any  # the tree of what the step gives
    sources: tuple[Source, ...]
    sites: dict[int, Site]  # by the number of the equation
    others: tuple[int, ...]  # the parameters that are not the kernel of a site
    unitwise: bool  # but for the products

    @property
    def mixes(self) -> bool:
        """Whether a unit finds the state of several in what its own product is taken of."""
        return any((u.units == _MIXED).any() and (u.columns >= 0).any() for u in self.sources)

    @property
    def recurrent(self) -> bool:
        """Whether a product hands the state of one unit to another."""
        return any((u.units != _FREE).any() and (u.columns >= 0).any() for u in self.sources)

    def parameters(self, leaves: list[Array], others: Sequence[Array]) -> list[Array]:
        """All parameters, those that are not the kernel of a site taken from `others`."""
        given = dict(zip(self.others, others, strict=True))
        return [given.get(i, leaf) for i, leaf in enumerate(leaves)]

    def gradients(self, kernels: Sequence[Array], others: Sequence[Array]) -> list[Array]:
        """The gradients of all parameters.

        Args:
            kernels: for each source, of all kernels that it is multiplied by, (nu, columns).
            others: of the other parameters.
        """
        grads = dict(zip(self.others, others, strict=True))
        for site in self.sites.values():
            part = kernels[site.source][:, site.columns]
            grads[site.kernel] = grads[site.kernel] + part if site.kernel in grads else part
        return [grads[i] for i in sorted(grads)]

    def run(
        self,
        parameters: list[Array],
        state: list[Array],
        rest: Any,
        shifts: Sequence[Array],
        product: Product | None = None,
    ) -> tuple[Any, list[Array]]:
        """The step with a shift (columns,) added to the products of each source.

        With a product of one's own, all that depends on the state is computed a second time from
        the state held constant.

        Returns:
            What the step gives, and the sources u (nu,).
        """
        flat = jax.tree.leaves((parameters, state, rest))
        values: dict = dict(zip(self.jaxpr.constvars, self.consts, strict=True))
        values |= zip(self.jaxpr.invars, flat, strict=True)
        constant: dict = {}  # what it is with the state held, where that has another derivative
        if product is not None:
            of_state = self.jaxpr.invars[len(parameters) : len(parameters) + len(state)]
            constant = dict(zip(of_state, map(jax.lax.stop_gradient, state), strict=True))
        held = ChainMap(constant, values)
        found: dict[int, Array] = {}
        for number, eqn in enumerate(self.jaxpr.eqns):
            inputs, site = [read(values, v) for v in eqn.invars], self.sites.get(number)
            depends = any(v in constant for v in variables(eqn.invars))
            still = [read(held, v) for v in eqn.invars] if depends else inputs
            if site is None:
                values |= zip(eqn.outvars, bind(eqn, inputs), strict=True)
                if depends:
                    constant |= zip(eqn.outvars, bind(eqn, still), strict=True)
                continue
            u, w = found.setdefault(site.source, inputs[0].reshape(-1)), inputs[1]
            shift, z = shifts[site.source][site.columns], eqn.outvars[0]
            if not depends or product is None:
                values[z] = bind(eqn, inputs)[0] + shift
                continue
            source = self.sources[site.source]
            product_of_u = product(
                u, still[0].reshape(-1), w, source.units, source.columns[site.columns]
            )
            values[z] = product_of_u.reshape(jnp.shape(inputs[0])[:-1] + product_of_u.shape) + shift
            constant[z] = bind(eqn, still)[0] + shift
        given = [read(values, v) for v in self.jaxpr.outvars]
        return jax.tree.unflatten(self.out, given), [found[i] for i in range(len(found))]


def program(step: Callable[..., Any], parameters: list, state: list, rest: Any) -> Program:
    """Takes apart `step(parameters, state, rest) -> (state, *more)`; traces it and runs nothing.

    Args:
        step: one step of one sample, its arrays with a batch axis of 1 or with none.
        parameters: arrays, or their shapes.
        state: arrays of floats, or their shapes.
        rest: a pytree of what else it takes.
    """
    closed, shape = program_of(step, parameters, state, rest)
    jaxpr, of_parameters = closed.jaxpr, closed.jaxpr.invars[: len(parameters)]
    kernels = {v: i for i, v in enumerate(of_parameters) if _only_in_products(jaxpr, v)}
    products = {i: eqn for i, eqn in enumerate(jaxpr.eqns) if _kernel(eqn) in kernels}
    others = tuple(i for i, v in enumerate(of_parameters) if v not in kernels)
    labels, unitwise = _follow(jaxpr, products, len(parameters), state)

    vectors = list(dict.fromkeys(eqn.invars[0] for eqn in products.values()))
    columns: list[list[Labels]] = [[] for _ in vectors]
    sites = {}
    for number, eqn in products.items():
        source = vectors.index(eqn.invars[0])
        start = sum(map(len, columns[source]))
        columns[source].append(labels[eqn.outvars[0]].reshape(-1))
        place = slice(start, start + len(columns[source][-1]))
        sites[number] = Site(source, kernels[eqn.invars[1]], place)
    sources = tuple(
        Source(labels[u].reshape(-1), np.concatenate(c), u.aval.dtype)
        for u, c in zip(vectors, columns, strict=True)
    )
    tree = jax.tree.structure(shape)
    return Program(jaxpr, closed.consts, tree, sources, sites, others, unitwise)


def _kernel(eqn: Any) -> Any:
    """W if the equation is u @ W of a vector, or of a batch of one, and a matrix."""
    if eqn.primitive.name != "dot_general" or isinstance(eqn.invars[0], core.Literal):
        return None
    u, w, z = (v.aval for v in (*eqn.invars, *eqn.outvars))
    along_u = ((u.ndim - 1,), (0,)), ((), ())
    is_vector = w.ndim == 2 and u.size == u.shape[-1]
    plain = eqn.params["dimension_numbers"] == along_u and u.dtype == w.dtype == z.dtype
    plain = plain and jnp.issubdtype(u.dtype, jnp.floating)
    return eqn.invars[1] if is_vector and plain else None


def _only_in_products(jaxpr: core.Jaxpr, parameter: Any) -> bool:
    uses = [eqn for eqn in jaxpr.eqns if parameter in variables(eqn.invars)]
    alone = all(_kernel(e) is parameter and e.invars[0] is not parameter for e in uses)
    return bool(uses) and alone and parameter not in variables(jaxpr.outvars)


def _follow(
    jaxpr: core.Jaxpr, products: dict[int, Any], parameters: int, state: list
) -> tuple[dict[Any, Labels], bool]:
    """The labels of all arrays of a program, and whether its state is unit-wise."""
    size = state[0].size
    of_parameters, rest = jaxpr.invars[:parameters], jaxpr.invars[parameters:]
    labels = {v: _full(v, _FREE) for v in (*jaxpr.constvars, *rest)}
    labels |= {v: _by_unit(v, size) for v in (*of_parameters, *rest[: len(state)])}
    learnt = set(of_parameters)  # depends on a parameter at this very step
    to_state = leading_to(jaxpr, jaxpr.outvars[: len(state)])
    for number, eqn in enumerate(jaxpr.eqns):
        inputs = variables(eqn.invars)
        if number in products:
            z = eqn.outvars[0]
            # a sum of what was itself learnt at this step belongs to no single unit
            mixed = eqn.invars[0] in learnt or z not in to_state
            labels[z] = _full(z, _MIXED) if mixed else _by_unit(z, size)
        else:
            labels |= zip(eqn.outvars, _labels_after(eqn, labels), strict=True)
        if any(v in learnt for v in inputs):
            learnt |= set(eqn.outvars)
    own = np.arange(size)
    unitwise = all(
        leaf.size == size
        and leaf.dtype == state[0].dtype
        and all(label in (_FREE, i) for i, label in enumerate(_labels_of(labels, v).reshape(-1)))
        for leaf, v in zip(state, jaxpr.outvars, strict=False)
    )
    return labels, unitwise and all(leaf.shape[-1:] == own.shape for leaf in state)


def by_unit(shape: tuple[int, ...], size: int) -> bool:
    """Whether an array holds one number or more for each of `size` units, in their order."""
    return bool(shape) and shape[-1] % size == 0 and math.prod(shape) == shape[-1]


def _full(v: Any, label: int) -> Labels:
    return np.full(v.aval.shape, label)


def _by_unit(v: Any, size: int) -> Labels:
    """One number a unit after the other, once or several times over; mixed in any other shape."""
    if not by_unit(v.aval.shape, size):
        return _full(v, _MIXED)
    return (np.arange(v.aval.size) % size).reshape(v.aval.shape)


def _labels_of(labels: dict[Any, Labels], atom: Any) -> Labels:
    return _full(atom, _FREE) if isinstance(atom, core.Literal) else labels[atom]


def _labels_after(eqn: Any, labels: dict[Any, Labels]) -> list[Labels]:
    parts = [_labels_of(labels, v) for v in eqn.invars]
    name = eqn.primitive.name
    if all((part == _FREE).all() for part in parts):
        return [_full(v, _FREE) for v in eqn.outvars]
    if name in _ELEMENTWISE:
        return [_joined(parts, v.aval.shape) for v in eqn.outvars]
    if name in _MOVES:
        with jax.ensure_compile_time_eval():
            return [np.asarray(moved) for moved in bind(eqn, [jnp.asarray(p) for p in parts])]
    if name in _CALLS:
        inner = eqn.params[_CALLS[name]].jaxpr
        within = {v: _full(v, _FREE) for v in inner.constvars}
        within |= zip(inner.invars, parts, strict=True)
        for step in inner.eqns:
            within |= zip(step.outvars, _labels_after(step, within), strict=True)
        return [_labels_of(within, v) for v in inner.outvars]
    return [_full(v, _MIXED) for v in eqn.outvars]


def _joined(parts: list[Labels], shape: tuple[int, ...]) -> Labels:
    whole = np.full(shape, _FREE)
    for part in (np.broadcast_to(p, shape) for p in parts):
        clash = (whole != _FREE) & (part != _FREE) & (whole != part)
        whole = np.where(clash, _MIXED, np.where(whole == _FREE, part, whole))
    return whole

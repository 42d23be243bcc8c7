"""The eligibility trace of any cell, from the program of its step (`sites.py`).

Kernels that enter through products u @ W have one trace for all products of a vector u, rolled with
matrix products; other parameters have one in their own shape. Where the state of a unit reaches
that unit only, or the rest is cut, a trace has one row for each array of the carry, else one for
each number in it. What a trace is and how a chunk uses it stands in `traces.py`.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from .cut import cut_between_units, cut_products
from .restart import Restart, restarted
from .sites import Labels, Program, by_unit, program
from .stack import Layer
from .traces import LayerTrace, Paths, Store, pull_with_rows, roll_dense, roll_samples
from .unroll import recurrent_gradient


class CellTrace(NamedTuple):
    """d state / d parameters; R rows, or in an element-wise trace m rows."""

    kernels: tuple[Array, ...]  # of each source: (B, m, nu, columns), or dense (B, R, columns, nu)
    others: tuple[Array | None, ...]  # (B, m, n), or dense (B, R, *shape); None: reaches no state


def cell_trace(layer: Layer, *, paths: Paths, spatial: bool) -> LayerTrace:
    """The trace of any cell.

    Arrays of other dtypes in the carry, such as random keys or counts, go along without a
    derivative.

    Args:
        layer: of kind "cell".
        paths: what gradient passes from the state through a matrix product to the next state.
        spatial: the cotangent of xs leaves out every path through the carry.
    """

    def init(params: dict, carry: Any, x: Any) -> CellTrace:
        state, others, _ = _split_carry(carry)
        if not state:
            raise ValueError(
                f"{layer.name} carries no array of floats: an online rule has nothing to trace."
            )
        _check_batch(layer, state, others, x.shape[0])
        return _form(layer, paths, params, carry, x).empty(x.shape[0])

    def chunk(params: dict, carry: Any, trace: CellTrace, xs: Array, restart: Restart | None):
        form = _form(layer, paths, params, carry, xs[0])
        leaves, tree = jax.tree.flatten(params)
        theta = [leaves[i] for i in form.program.others]
        state, others, join = _split_carry(carry)
        of_sample = [0 if leaf.ndim else None for leaf in others]

        def begin(carry, first, flag):
            s, others = carry
            if first is None:
                return s, others
            parts = zip(of_sample, first[1], others, strict=True)
            # what has no batch axis, such as a clock, goes on
            anew = [new if axis is None else restarted(flag, old, new) for axis, old, new in parts]
            return restarted(flag, first[0], s), anew

        def run(theta, s, xs, shifts, others, flags, first):
            def body(carry, inputs):
                x, shifts, flag = inputs
                s, others = begin(carry, first, flag)
                new, y, (new_others, sources) = form.step(s, (theta, x, others, shifts))
                return (new, new_others), (y, (s, others, sources))

            (last, others), (ys, kept) = jax.lax.scan(body, (s, others), (xs, shifts, flags))
            return (last, ys), (others, *kept)

        def forward(s, xs, others, flags, first):
            def of(theta, s, xs, shifts):
                return run(theta, s, xs, shifts, others, flags, first)

            return jax.vjp(of, theta, s, xs, form.no_shifts(len(xs)), has_aux=True)

        flatten = jax.vmap(form.flatten)
        flags: Any = None
        first = axes = flags
        if restart is not None:
            begins = _split_carry(restart.first)
            flags, first, axes = restart.flags, (flatten(begins[0]), begins[1]), (0, of_sample)
        # each sample on its own, batched, so that every row is one sample's
        (last, ys), pull, (last_others, before, others_before, sources) = jax.vmap(
            forward, (0, 1, of_sample, 1, axes), ((0, 1), 0, (of_sample, 0, of_sample, 0))
        )(flatten(state), xs, others, flags, first)

        def back(dys: PyTree, store: Store):
            def sample(pull, dy):
                return pull_with_rows(pull, form.basis, dy)

            axes = ((0, 0, 1, 0), 0)
            (dtheta, ds, dxs, dz), (m, p, _, m_z) = jax.vmap(sample, (0, 1), axes)(pull, dys)
            if spatial:

                def same_step(s, others, x, dy):
                    def output(x):
                        return form.step(s, (theta, x, others, form.no_shifts()))[1]

                    return jax.vjp(output, x)[1](dy)[0]

                over_time = jax.vmap(same_step)
                dxs = jax.vmap(over_time, (0, of_sample, 1, 1), 1)(before, others_before, xs, dys)
            kernels, gradients = [], []
            for i, eps in enumerate(trace.kernels):
                # in the dtype of the trace, which is the wider one of the state's and the kernel's
                u, rows, dz_i = (a.astype(eps.dtype) for a in (sources[i], m_z[i], dz[i]))
                u = jnp.moveaxis(u, 1, 0)
                carried, new = form.roll(i, ds, p, jnp.moveaxis(rows, 0, 2), u, eps)
                kernels.append(new)
                inside = recurrent_gradient(carried, u, jnp.moveaxis(dz_i, 1, 0))
                gradients.append(carried + inside)
            rolled = [form.roll_other(ds, p, *e) for e in zip(m, trace.others, strict=True)]
            of_others = [d.sum(0) + c for d, (c, _) in zip(dtheta, rolled, strict=True)]
            grads = form.program.gradients(gradients, of_others)
            grads = [g.astype(leaf.dtype) for g, leaf in zip(grads, leaves, strict=True)]
            new = CellTrace(tuple(kernels), tuple(new for _, new in rolled))
            return tree.unflatten(grads), dxs, *store(new)

        return join(jax.vmap(form.unflatten)(last), last_others), ys, back

    return LayerTrace(init, chunk)


class _Dense:
    """Every number of the state is a row."""

    def __init__(self, layer: Layer, paths: Paths, found: Program, leaves: list, state: list):
        self.program, self.leaves = found, leaves
        self.dtype = jnp.result_type(*state)
        self.rows = sum(leaf[0].size for leaf in state)
        self.unflatten = ravel_pytree([leaf[0] for leaf in state])[1]
        self.step = self._whole_step
        if paths == "none":
            self.step = cut_products(self._whole_step)
        elif paths == "own":
            self.step = cut_between_units(self._whole_step, _units(layer, state))

    @property
    def basis(self) -> Array:
        """A cotangent of the state for each row."""
        return jnp.eye(self.rows, dtype=self.dtype)

    def flatten(self, state: list[Array]) -> Array:
        """The state of one sample as one array."""
        return ravel_pytree(state)[0]

    def _whole_step(self, s: Array, rest: tuple) -> tuple[Array, PyTree, Any]:
        theta, x, others, shifts = rest
        everything = self.program.parameters(self.leaves, theta)
        (state, y, others), sources = self.program.run(
            everything, self.unflatten(s), (others, x), shifts
        )
        return self.flatten(state), y, (others, sources)

    def no_shifts(self, *steps: int) -> list[Array]:
        """What to add to the products of each source: nothing."""
        return [jnp.zeros((*steps, len(s.columns)), s.dtype) for s in self.program.sources]

    def empty(self, batch: int) -> CellTrace:
        """The trace of a new sequence."""
        others = (self.leaves[i] for i in self.program.others)
        return CellTrace(
            tuple(
                jnp.zeros((batch, self.rows, len(s.columns), len(s.units)), self._with(s.dtype))
                for s in self.program.sources
            ),
            tuple(jnp.zeros((batch, self.rows, *a.shape), self._with(a.dtype)) for a in others),
        )

    def _with(self, dtype: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return jnp.promote_types(self.dtype, dtype)

    def roll(
        self, source: int, ds: Array, p: Array, dz: Array, u: Array, eps: Array
    ) -> tuple[Array, Array]:
        """dE/ds_in . eps (nu, columns), and the new trace, of the kernels of a source.

        Args:
            source: its number.
            ds: dE/ds_in (B, S).
            p: d state out / d state in (B, S, S).
            dz: d state out / d products of each step (S, K, B, columns).
            u: of each step (K, B, nu).
            eps: the trace so far.
        """
        del source
        return roll_dense(ds, jnp.moveaxis(p, 1, 0), dz, u, eps)

    def roll_other(self, ds: Array, p: Array, m: Array, eps: Any) -> tuple[Array, Array | None]:
        """`roll` for a parameter whose d state out / d parameter inside the chunk is m."""
        ds, p, m = (a.astype(eps.dtype) for a in (ds, p, m))
        carried = jnp.einsum("bs,bs...->...", ds, eps)
        return carried, jnp.einsum("brs,bs...->br...", p, eps) + m


class _ElementWise(_Dense):
    """An array of the state is a row: the state s is (m, n), and a row's cotangent 1 everywhere."""

    def __init__(self, layer: Layer, paths: Paths, found: Program, leaves: list, state: list):
        self.program, self.leaves = found, leaves
        self.dtype, self.rows, self.n = state[0].dtype, len(state), state[0].shape[-1]
        self.product = {"all": None, "own": _own_product, "none": _no_product}[paths]
        if not found.recurrent:
            self.product = None

    @property
    def basis(self) -> Array:
        one = jnp.eye(self.rows, dtype=self.dtype)[:, :, None]
        return jnp.broadcast_to(one, (self.rows, self.rows, self.n))

    def flatten(self, state: list[Array]) -> Array:
        return jnp.stack(state)

    def unflatten(self, s: Array) -> list[Array]:
        return list(s)

    def step(self, s: Array, rest: tuple) -> tuple[Array, PyTree, Any]:
        theta, x, others, shifts = rest
        everything = self.program.parameters(self.leaves, theta)
        (state, y, others), sources = self.program.run(
            everything, list(s), (others, x), shifts, self.product
        )
        return jnp.stack(state), y, (others, sources)

    def empty(self, batch: int) -> CellTrace:
        others = (self.leaves[i] for i in self.program.others)
        return CellTrace(
            tuple(
                jnp.zeros((batch, self.rows, len(s.units), len(s.columns)), self._with(s.dtype))
                for s in self.program.sources
            ),
            tuple(
                jnp.zeros((batch, self.rows, a.size), self._with(a.dtype))
                if by_unit(a.shape, self.n)
                else None
                for a in others
            ),
        )

    def roll(self, source, ds, p, dz, u, eps):
        columns = np.maximum(self.program.sources[source].columns, 0)  # else the trace stays 0
        total = jnp.moveaxis(p, 1, 0)[..., columns]
        return roll_samples(ds[..., columns], total, dz, u, eps)

    def roll_other(self, ds, p, m, eps):
        if eps is None:
            return jnp.zeros(m.shape[2:], m.dtype), None
        columns = np.arange(eps.shape[-1]) % self.n
        ds, p = (a[..., columns].astype(eps.dtype) for a in (ds, p))
        new = (p * eps[:, None]).sum(2) + m.reshape(eps.shape).astype(eps.dtype)
        return (ds * eps).sum((0, 1)).reshape(m.shape[2:]), new


def _no_product(u: Array, held: Array, w: Array, units: Labels, columns: Labels) -> Array:
    """The product with the state held constant, where it reaches the state."""
    del units
    return (u if (columns < 0).all() else held) @ w


def _own_product(u: Array, held: Array, w: Array, units: Labels, columns: Labels) -> Array:
    """`_no_product`, but with the derivative to a unit's part of u from the sums of that unit."""
    if (columns < 0).all():
        return u @ w
    same = units[:, None] == columns
    return held @ w + (u - held) @ jnp.where(same, w, 0)  # the second is 0, with a derivative


def _form(layer: Layer, paths: Paths, params: dict, carry: Any, x: Any) -> _Dense:
    """How a cell is traced in a scope: element-wise where that is what the scope means."""
    state, others, join = _split_carry(carry)
    leaves, tree = jax.tree.flatten(params)

    def one_step(parameters: list, state: list, rest: tuple) -> tuple:
        # a batch of one: layers inside may count on a batch axis
        others, x = rest
        batch = jax.tree.map(lambda a: a[None], (join(state, others), x))
        new, y = jax.tree.map(lambda a: a[0], layer.step(tree.unflatten(parameters), *batch))
        state, others, _ = _split_carry(new)
        return state, y, others

    def one(arrays: Any) -> Any:
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), arrays)

    found = program(one_step, leaves, one(state), (one(others), one(x)))
    alone = paths == "none" or (paths == "own" and not found.mixes) or not found.recurrent
    element_wise = found.unitwise and alone
    return (_ElementWise if element_wise else _Dense)(layer, paths, found, leaves, state)


def _units(layer: Layer, state: list[Array]) -> np.ndarray:
    """The unit of each number of a flattened carry: its place in its array."""
    shapes = {leaf.shape[1:] for leaf in state}
    if len(shapes) > 1:
        raise ValueError(
            f"{layer.name} carries arrays of shapes {sorted(shapes)} a sample: scope='unit' needs "
            "one number a unit in each; use scope='full' or 'no_h'."
        )
    return np.tile(np.arange(math.prod(*shapes)), len(state))


def _check_batch(layer: Layer, state: list[Array], others: list[Array], batch: int) -> None:
    for number, leaf in enumerate((*state, *others)):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        if leaf.shape[:1] != (batch,) and (leaf.ndim or number < len(state) or is_key):
            raise ValueError(
                f"{layer.name} carries an array {leaf.dtype}{list(leaf.shape)} for a batch of "
                f"{batch}: a rule treats each sample by itself, so give it a first axis of {batch} "
                "(random keys too)."
            )


def _split_carry(carry: Any) -> tuple[list[Array], list[Array], Any]:
    """The arrays of real numbers in a carry, the other ones, and the way back.

    A complex array is two real ones.
    """
    leaves, tree = jax.tree.flatten(carry)
    state, others, kinds = [], [], []
    for leaf in leaves:
        is_complex = jnp.issubdtype(leaf.dtype, jnp.complexfloating)
        if is_complex:
            state += [leaf.real, leaf.imag]
        else:
            (state if jnp.issubdtype(leaf.dtype, jnp.floating) else others).append(leaf)
        kinds.append("complex" if is_complex else jnp.issubdtype(leaf.dtype, jnp.floating))

    def join(state: list[Array], others: list[Array]) -> Any:
        reals, rest = iter(state), iter(others)
        parts = {
            "complex": lambda: jax.lax.complex(next(reals), next(reals)),
            True: lambda: next(reals),
            False: lambda: next(rest),
        }
        return tree.unflatten([parts[kind]() for kind in kinds])

    return state, others, join

"""A network seen by the rules: a list of pure layers, and how each is run over a chunk of time.

Three kinds of layer: `stateless` (any callable or module of one input), `cell` (any Flax RNN cell)
and `unitwise` (a cell whose state is element-wise over units but for its two kernels; it follows
`UnitwiseCell`). Nothing here knows a learning rule.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import errors, nnx
from jaxtyping import Array, PRNGKeyArray, PyTree

from ..quant.state_formats import rounds_stochastically, trace_storage
from ..quant.storage import Storage
from .programs import leading_to, program_of

BESIDE = "feedback"  # weights of a rule that are parameters, but of no layer


@runtime_checkable
class UnitwiseCell(Protocol):
    """What a cell offers so that rules can treat it without forming dense Jacobians.

    Its parameters are `w` (n_in, n), or None where the input drives the units directly; `h`
    (n, n), or None; and per-unit parameters (n,). Its carry is a NamedTuple of arrays
    (*batch, *features) that ends with the output `y`.
    """

    memory_fields: tuple[str, ...]

    def charge(self, carry: Any, z: Array) -> Any:
        """The memory fields after input z; y unchanged."""
        ...

    def fire(self, carry: Any) -> Array:
        """The output of the memory fields."""
        ...

    def unit_step(self, carry: Any, z: Array) -> Any:
        """Charge, then fire."""
        ...

    def support(self, carry: Any) -> Array | None:
        """Where dy / d memory can be non-zero; None for everywhere."""
        ...


@dataclass(frozen=True)
class Layer:
    """One layer: its structure without its parameters."""

    name: str
    kind: Literal["stateless", "cell", "unitwise"]
    graphdef: Any
    constants: Any  # variables that are not parameters
    kernels: tuple[str, ...] = ()  # of a unit-wise cell: which of w and h it has
    trace: Storage | None = None  # the format of its eligibility trace, if it has one of its own
    draws: bool = False  # whether it rounds its state stochastically

    def module(self, params: PyTree) -> Any:
        """The layer with these parameters."""
        return nnx.merge(self.graphdef, params, self.constants)

    def units(self, unit: dict) -> Any:
        """A unit-wise cell with its per-unit parameters only: for `charge` and `fire`."""
        return self.module({**unit, **dict.fromkeys(self.kernels, jnp.zeros(()))})

    def step(self, params: PyTree, carry: Any, x: Array) -> tuple[Any, PyTree]:
        """One step of a cell: its new carry and what it hands on."""
        return self.module(params)(carry, x)

    def output(self, carry: Any) -> PyTree:
        """What a unit-wise cell hands on at a carry."""
        return carry.y


class Stack(NamedTuple):
    """The layers of a network, lowest first; `single` if the network is one bare cell."""

    layers: tuple[Layer, ...]
    single: bool

    def split(self, params: PyTree) -> tuple[list[dict], Callable[[list[dict]], PyTree]]:
        """The parameters of each layer as plain dictionaries, and the way back.

        Parameters beside the layers, `BESIDE`, come back as zeros: layers have no gradient of them.
        """
        leaves, treedef = jax.tree.flatten(params)
        tree: dict = nnx.to_pure_dict(params) if isinstance(params, nnx.State) else params
        parts = (
            [tree]
            if self.single
            else [tree.get("layers", {}).get(i, {}) for i in range(len(self.layers))]
        )

        beside = {} if self.single else {k: tree[k] for k in (BESIDE,) if k in tree}

        def join(parts: list[dict]) -> PyTree:
            whole = parts[0] if self.single else {i: p for i, p in enumerate(parts) if p}
            if not beside:
                return jax.tree.unflatten(treedef, jax.tree.leaves(whole))
            zeros = jax.tree.map(jnp.zeros_like, beside)
            return jax.tree.unflatten(treedef, jax.tree.leaves({**zeros, "layers": whole}))

        if len(jax.tree.leaves((parts, beside))) != len(leaves):
            raise ValueError(
                f"The parameters hold {len(leaves)} arrays, of which the network's layers know "
                f"{len(jax.tree.leaves(parts))}: pass parameters(network) of the same network."
            )
        return parts, join

    def initialize_carries(
        self, params: PyTree, batch: Any, key: PRNGKeyArray | None = None
    ) -> tuple[Any, ...]:
        """Zero carries for inputs like `batch`, of shape (time, batch, *features); see `begin`."""
        return self.begin(params, batch, key)[0]

    def begin(
        self, params: PyTree, batch: Any, key: PRNGKeyArray | None = None
    ) -> tuple[tuple[Any, ...], tuple[jax.ShapeDtypeStruct, ...]]:
        """The carries of a new sequence, and the shape of each layer's input at one step.

        Raises:
            ValueError: inputs that do not fit, or no key where a state is rounded stochastically.
        """
        if len(batch.shape) < 2 or 0 in batch.shape[:2]:
            raise ValueError(
                "A rule takes inputs of shape (time, batch, *features) with at least one time "
                f"step and one sample; got shape {tuple(batch.shape)}."
            )
        parts, _ = self.split(params)
        x = jax.ShapeDtypeStruct(batch.shape[1:], batch.dtype)
        carries, inputs = [], []
        for i, (layer, part) in enumerate(zip(self.layers, parts, strict=True)):
            if key is None and layer.draws:
                raise ValueError(
                    f"{layer.name} rounds its state stochastically and found no key: call "
                    "rule.init(params, batch, key=jax.random.key(seed)), or "
                    "network.initialize_carry(shape, rngs=nnx.Rngs(seed)) where there is no rule."
                )
            # Flax's own cells ask for a key even where the initial carry is constant
            rngs = nnx.Rngs(0 if key is None else jax.random.fold_in(key, i))
            inputs.append(x)
            carry, x = _carry_and_output(layer, part, x, rngs)
            carries.append(carry)
        return tuple(carries), tuple(inputs)


def _carry_and_output(
    layer: Layer, params: dict, x: jax.ShapeDtypeStruct, rngs: nnx.Rngs
) -> tuple[Any, Any]:
    """The initial carry of a layer and the shape of its output; a misfit names the layer."""
    try:
        if layer.kind == "stateless":
            return (), jax.eval_shape(lambda p, x: layer.module(p)(x), params, x)
        carry = layer.module(params).initialize_carry(x.shape, rngs=rngs)
        _check_carry(layer, carry)
        _check_first(layer, params, x)
        new, y = jax.eval_shape(lambda p, c, x: layer.module(p)(c, x), params, carry, x)
        _check_same(layer, carry, new)
        return carry, y
    except _BadCarry:
        raise
    except errors.TraceContextError as error:
        raise ValueError(
            f"{layer.name} changes variables of its own when it is called, as dropout and batch "
            "normalisation do in training, and rules take layers that do not: call network.eval() "
            "first, or leave it out."
        ) from error
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{layer.name} does not fit its input of shape {x.shape} (batch first): "
            f"{str(error).splitlines()[0]}"
        ) from error


class _BadCarry(ValueError):
    """A carry that no rule can take."""


def _check_carry(layer: Layer, carry: Any) -> None:
    leaves = jax.tree.leaves(carry, is_leaf=lambda leaf: leaf is None)
    wrong = [leaf for leaf in leaves if not hasattr(leaf, "dtype")]
    if wrong or not leaves:
        found = f"a {type(wrong[0]).__name__} in it" if wrong else "nothing in it"
        raise _BadCarry(
            f"{layer.name} begins with a carry that has {found}: initialize_carry must give a "
            "pytree of arrays (batch, ...)."
        )


def _check_first(layer: Layer, params: dict, x: jax.ShapeDtypeStruct) -> None:
    def first(params: dict) -> Any:
        return layer.module(params).initialize_carry(x.shape, rngs=nnx.Rngs(0))

    jaxpr = program_of(first, params)[0].jaxpr
    if leading_to(jaxpr, jaxpr.outvars).intersection(jaxpr.invars):
        raise _BadCarry(
            f"{layer.name} begins with a carry that depends on its parameters, which no rule would "
            "learn: begin with constants, and add what is learnt to the input of the first step."
        )


def _check_same(layer: Layer, carry: Any, new: Any) -> None:
    def kinds(tree: Any) -> list[str]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return [f"{jax.tree_util.keystr(p)}: {a.dtype}{list(a.shape)}" for p, a in leaves]

    before, after = kinds(carry), kinds(new)
    if before != after:
        raise _BadCarry(
            f"{layer.name} begins with the carry ({', '.join(before)}) and its step gives "
            f"({', '.join(after)}): both must be the same."
        )


def as_stack(network: nnx.Module) -> Stack:
    """Takes apart a network with `.layers`, or treats a bare cell as a network of one layer.

    A cell with `.layers` is a bare one unless its `is_stack` is True.
    """
    # a cell may keep modules of its own under that name, unless it says that it is a stack of them
    is_cell = isinstance(network, nnx.RNNCellBase) and not getattr(network, "is_stack", False)
    single = is_cell or not hasattr(network, "layers")
    modules = [network] if single else list(getattr(network, "layers"))  # noqa: B009
    if not modules:
        raise ValueError("The network has no layers: give it at least one cell.")
    learning = [m for m in modules if isinstance(m, nnx.Module) and nnx.state(m, nnx.Param)]
    if len({id(m) for m in learning}) < len(learning):
        raise ValueError(
            "The network holds the same layer twice, and a rule keeps a trace for each: give each "
            "its own parameters."
        )
    return Stack(tuple(_as_layer(i, m) for i, m in enumerate(modules)), single)


def _as_layer(index: int, module: Any) -> Layer:
    name = f"Layer {index} ({getattr(module, '__name__', type(module).__name__)})"
    if isinstance(module, UnitwiseCell) and "product" not in vars(module):
        kind = "unitwise"  # the fast path multiplies by itself, so not with a product of one's own
    elif isinstance(module, nnx.RNNCellBase):
        kind = "cell"
    elif callable(module):
        kind = "stateless"
    else:
        raise ValueError(f"{name} is neither a cell nor callable: a layer maps x to y.")
    graphdef, params, constants = nnx.split(module, nnx.Param, ...)
    kernels = tuple(k for k in ("w", "h") if k in params) if kind == "unitwise" else ()
    trace = trace_storage(module, "eligibility_trace")
    draws = rounds_stochastically(module)
    return Layer(name, kind, graphdef, constants, kernels, trace, draws)

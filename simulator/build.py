"""From the settings of an experiment to the objects of a run, one function for each section.

What a setting means is said here; which settings there are is said in `experiment.py`.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array

from .. import quant
from ..learning_rules import (
    LearningRule,
    bptt,
    broadcast_weights,
    eprop,
    grapes,
    local_grapes,
    losses,
    ostl,
    osttp,
    rtrl,
    sltt,
    with_feedback,
    with_new_noise,
)
from ..learning_rules.rule import Loss
from ..quant.state_formats import state_formats
from ..quant.storage import storage
from ..quant.training import (
    Activation,
    low_precision,
    quantize_products,
)
from . import encoding, surrogate
from .build_memory import aware, make_memory
from .data import Dataset, Split, load
from .experiment import (
    IMAGE_ENCODERS,
    Data,
    Encoder,
    Experiment,
    NetworkSettings,
    Optimizer,
    Rule,
)
from .job import Encode, Exact, Job, Purpose, key_for
from .lif import ALIFCell, LIFCell, SynapticLIFCell
from .network import Network
from .readout import LeakyReadout
from .snu import SNUCell, SoftSNUCell

MakeRule = Callable[[nnx.Module, Loss], LearningRule]


def build(experiment: Experiment) -> Job:
    """All objects of a run.

    Raises:
        ValueError: data that are missing or damaged, or settings that do not fit the data; says
            which.
    """
    dataset = make_dataset(experiment.data)
    encode = make_encoder(experiment.encoder, dataset)
    sample = jnp.asarray(dataset.train.inputs[:1])
    inputs = jax.eval_shape(encode, sample, jax.random.key(0))
    network = _make_network(experiment, experiment.network, inputs.shape[-1], dataset)
    train, rule = experiment.train, experiment.rule
    online = rule.name != "bptt"  # which takes the whole sequence
    every = rule.update_every if online else 0
    updates = train.epochs * (len(dataset.train.inputs) // train.batch)
    updates *= math.ceil(inputs.shape[0] / every) if every else 1
    tx = make_optimizer(experiment.optimizer, max(updates, 1))
    if rule.grapes == "local":
        tx = optax.chain(local_grapes(network), tx)
    return Job(
        dataset=dataset,
        encode=encode,
        network=network,
        loss=make_loss(train.loss, dataset),
        make_rule=_renewing(experiment.network, make_rule(rule, experiment.run.seed)),
        tx=tx,
        memory=make_memory(experiment.memory),
        epochs=train.epochs,
        batch=train.batch,
        chunk=rule.chunk if online else 0,
        update_every=every,
        seed=experiment.run.seed,
        log_every=train.log_every,
        checkpoint_every=train.checkpoint_every,
        exact=make_exact(experiment, inputs.shape[-1], dataset) if train.diagnostics else None,
    )


def _make_network(
    experiment: Experiment, settings: NetworkSettings, inputs: int, dataset: Dataset
) -> Network:
    """The network, with feedback weights if the rule changes them."""
    network = make_network(
        settings,
        inputs,
        len(dataset.classes),
        dt=experiment.encoder.dt,
        rngs=nnx.Rngs(key_for(experiment.run.seed, Purpose.NETWORK)),
    )
    if experiment.rule.name != "eprop" or experiment.rule.feedback != "adaptive":
        return network
    try:
        return with_feedback(network, key_for(experiment.run.seed, Purpose.FEEDBACK))
    except ValueError as error:
        raise ValueError(f'rule.feedback = "adaptive": {error}') from None


def make_dataset(settings: Data) -> Dataset:
    """Loads the data; keeps the first `limit` samples of each split and `steps` of a sequence."""
    if settings.name == "fashion_mnist_sample" and settings.data_dir is not None:
        raise ValueError(
            f"data.data_dir = {settings.data_dir!r} does not apply to data.name = "
            f'"{settings.name}", which comes with the package: leave it out, or choose '
            '"fashion_mnist"'
        )
    dataset = load(settings.name, settings.data_dir, settings.download, **settings.options())
    if settings.steps and dataset.kind == "image":
        raise ValueError(
            f'data.steps = {settings.steps} does not apply to data.name = "{settings.name}", which '
            "has no sequences: leave it out, or set encoder.steps"
        )
    if not (settings.limit or settings.steps):
        return dataset
    n, steps = settings.limit or None, settings.steps or None

    def first(split: Split) -> Split:
        inputs, targets = split.inputs[:n], split.targets[:n]
        if split.lengths is None:
            return Split(inputs, targets)
        if steps is None:
            return Split(inputs, targets, split.lengths[:n])
        targets = targets[:, :steps] if dataset.kind == "prediction" else targets
        return Split(inputs[:, :steps], targets, np.minimum(split.lengths[:n], np.int32(steps)))

    train, test = first(dataset.train), first(dataset.test)
    return Dataset(dataset.name, train, test, dataset.classes, dataset.kind, note=dataset.note)


def make_encoder(settings: Encoder, dataset: Dataset) -> Encode:
    """Samples (batch, *sample) and a key to inputs (time, batch, *features)."""
    name, steps = settings.name, settings.steps
    images = name in IMAGE_ENCODERS
    if images != (dataset.kind == "image"):
        fits = IMAGE_ENCODERS if dataset.kind == "image" else ("none", "delta")
        raise ValueError(
            f'encoder.name = "{name}" does not fit data.name = "{dataset.name}", which has '
            f"{'images' if dataset.kind == 'image' else 'sequences'}: choose "
            f"{' or '.join(fits)}"
        )
    if name == "direct":
        return lambda x, key: encoding.direct(x, steps)
    if name == "latency":
        return lambda x, key: encoding.latency(x, steps)
    if name == "rows":
        return lambda x, key: encoding.rows(x, steps)
    if name == "poisson":
        rate, dt = settings.max_rate, settings.dt
        if rate * dt > 1:
            raise ValueError(
                f"encoder.max_rate = {rate} and encoder.dt = {dt} make more than one spike a step: "
                f"choose a rate of at most {1 / dt:g} Hz"
            )
        return lambda x, key: encoding.poisson(x, steps, key, rate, dt)
    if name == "delta":
        return lambda x, key: encoding.delta(jnp.moveaxis(x, 1, 0), settings.threshold)
    return lambda x, key: jnp.moveaxis(x, 1, 0)


_OURS = {
    "snu": SNUCell,
    "soft_snu": SoftSNUCell,
    "lif": LIFCell,
    "synaptic_lif": SynapticLIFCell,
    "alif": ALIFCell,
}
_FLAX = {"lstm": nnx.LSTMCell, "gru": nnx.GRUCell, "simple": nnx.SimpleCell}


def make_network(
    settings: NetworkSettings, inputs: int, outputs: int, *, dt: float, rngs: nnx.Rngs
) -> Network:
    """Hidden cells and a readout.

    Args:
        settings: the section of the experiment.
        inputs: features of the input.
        outputs: features of the output.
        dt: time step [s].
        rngs: where the weights are drawn from.
    """
    options = settings.cell_settings()
    if settings.surrogate is not None:
        try:
            given = settings.surrogate_settings or {}
            options["surrogate"] = surrogate.by_name(settings.surrogate, **given)
        except ValueError as error:
            raise ValueError(f"network.surrogate: {error}") from None
    layers: list[Any] = []
    width = inputs
    for size in settings.hidden:
        if settings.cell in _FLAX:
            layers.append(_FLAX[settings.cell](width, size, rngs=rngs))
        else:
            cell = _OURS[settings.cell]
            try:
                recurrent = settings.recurrent
                layers.append(cell(width, size, recurrent=recurrent, dt=dt, rngs=rngs, **options))
            except ValueError as error:
                raise ValueError(f"network: {error}") from None
        if settings.activation_format is not None:
            try:
                layers.append(Activation(settings.activation_format))
            except ValueError as error:
                name = settings.activation_format
                raise ValueError(f"network.activation_format = {name!r}: {error}") from None
        width = size
    if settings.readout == "leaky":
        leak: dict[str, Any] = {}
        if settings.readout_tau is not None:
            leak["tau"] = settings.readout_tau
        layers.append(LeakyReadout(width, outputs, dt=dt, rngs=rngs, **leak))
    else:
        layers.append(nnx.Linear(width, outputs, rngs=rngs))
    network = Network(layers)
    if settings.products != "float32":
        try:
            network = quantize_products(network, first_and_last=settings.products == "luq_all")
        except ValueError as error:
            raise ValueError(
                'network.products = "luq": the network has no layer but the first and the last to '
                'quantize; add one to network.hidden, or choose "luq_all", which takes these too'
            ) from error
    if not settings.state_formats:
        return network
    try:
        return state_formats(network, settings.state_formats, rounding=settings.state_rounding)
    except ValueError as error:
        raise ValueError(f"network.state_formats: {error}") from None


def _renewing(settings: NetworkSettings, make_rule: MakeRule) -> MakeRule:
    """The rule, with new noise at each step if products are rounded stochastically."""
    return make_rule if settings.products == "float32" else with_new_noise(make_rule)


def make_exact(experiment: Experiment, inputs: int, dataset: Dataset) -> Exact:
    """The same run without number formats, for diagnostics."""
    network, memory = experiment.network, make_memory(experiment.memory)
    activation = None if network.activation_format is None else "float32"  # keeps the layers
    network = replace(network, state_formats=None, activation_format=activation, products="float32")
    return Exact(
        network=_make_network(experiment, network, inputs, dataset),
        make_rule=make_rule(replace(experiment.rule, trace_format=None), experiment.run.seed),
        read=aware(experiment.memory, quant.float32()).read
        if experiment.memory.master
        else memory.read,
        gradient_format=experiment.optimizer.gradient_format,
        format_rounding=experiment.optimizer.format_rounding,
    )


def make_loss(name: str, dataset: Dataset) -> Loss:
    """The loss of one time step; class numbers become 0/1 vectors where it needs them."""
    frames = np.issubdtype(dataset.train.targets.dtype, np.floating)
    if name == "auto":
        name = "sigmoid_cross_entropy" if frames else "cross_entropy"
    if name == "cross_entropy":
        if frames:
            raise ValueError(
                f'train.loss = "cross_entropy" needs classes, but data.name = "{dataset.name}" '
                "predicts frames: choose sigmoid_cross_entropy or squared_error"
            )
        return losses.cross_entropy
    loss = getattr(losses, name)
    if frames:
        return loss

    def of_classes(outputs: Array, targets: Array) -> Array:
        return loss(outputs, jax.nn.one_hot(targets, outputs.shape[-1], dtype=outputs.dtype))

    return of_classes


def make_rule(settings: Rule, seed: int = 0) -> MakeRule:
    """The learning rule, still to be given a network and a loss.

    The seed is that of a shuffle, and of feedback weights.
    """
    plain = _plain_rule(settings, seed)
    if settings.grapes in (None, "local"):  # which belongs to the optimizer
        return plain
    if settings.name == "rtrl":
        raise ValueError(
            f'rule.grapes = "{settings.grapes}" does not apply to rule.name = "rtrl", which passes '
            'no errors from layer to layer: choose rule.grapes = "local", or another rule'
        )
    factor = "grapes" if settings.grapes == "propagating" else settings.grapes
    return grapes(plain, factor=factor, key=key_for(seed, Purpose.GRAPES))


def _plain_rule(settings: Rule, seed: int) -> MakeRule:
    if settings.name != "ostl" and settings.trace_format not in (None, "float32"):
        raise ValueError(
            f"rule.trace_format = {settings.trace_format!r}: only ostl keeps traces in a format, "
            f'and rule.name = "{settings.name}"; leave it out, or set "float32"'
        )
    if settings.name == "bptt":
        return functools.partial(bptt, remat_every=settings.remat_every or None)
    if settings.name == "rtrl":
        return rtrl
    key = key_for(seed, Purpose.FEEDBACK)
    if settings.name == "osttp":
        return lambda network, loss: osttp(
            network, loss, broadcast_weights(network, key), scope=settings.scope
        )
    if settings.name == "eprop" and settings.feedback == "random":
        return lambda network, loss: eprop(network, loss, feedback=broadcast_weights(network, key))
    if settings.name == "eprop":
        return functools.partial(eprop, feedback=settings.feedback or "symmetric")
    if settings.sltt_steps:
        return functools.partial(sltt, k=settings.sltt_steps)
    if settings.trace_format is not None:
        who = f"rule.trace_format = {settings.trace_format!r}"
        storage(who, settings.trace_format, settings.trace_rounding)
    return functools.partial(
        ostl,
        scope=settings.scope,
        cross_layer=settings.cross_layer,
        trace_format=settings.trace_format,
        trace_rounding=settings.trace_rounding,
    )


def make_optimizer(settings: Optimizer, updates: int) -> optax.GradientTransformation:
    """The optimizer; its schedule ends after so many updates."""
    rate: Any = settings.learning_rate
    if settings.schedule == "cosine":
        rate = optax.cosine_decay_schedule(rate, updates, settings.final_fraction)
    tx = getattr(optax, settings.name)(rate, **settings.options())
    tx = optax.chain(optax.clip_by_global_norm(settings.clip), tx) if settings.clip else tx
    try:
        return low_precision(
            tx,
            gradients=settings.gradient_format,
            state=settings.state_format,
            rounding=settings.format_rounding,
            loss_scale=settings.loss_scale or None,
            growth_interval=settings.loss_scale_growth or None,
        )
    except ValueError as error:
        raise ValueError(f"optimizer: {error}") from None

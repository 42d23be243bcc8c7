"""What an experiment may say: frozen settings, their types, ranges, and which exclude each other.

How they are read from a file stands in `experiment_file.py`, what they build in `build.py`.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
IMAGE_ENCODERS = ("direct", "poisson", "latency", "rows")
Folder = Annotated[str, Field(min_length=1, max_length=1000, pattern=r"^[^\x00]+$")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
Rounding = Literal["nearest_even", "nearest_away", "toward_zero", "up", "down", "stochastic"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Run:
    """Where the run goes and which random numbers it uses."""

    name: Name = "experiment"
    dir: Folder | None = None  # None: runs/<name>-<next number>
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Data:
    """Which data set, and where its files are."""

    name: Literal[
        "fashion_mnist_sample", "fashion_mnist", "mnist", "spoken_digits", "jsb", "characters"
    ] = "fashion_mnist_sample"
    data_dir: str | None = None  # None: the data set's own default place
    download: bool = True
    features: Literal["mel", "delta"] | None = None  # of spoken_digits; None: the loader's default
    n_mels: Count | None = None  # of spoken_digits
    threshold: Positive | None = None  # of spoken_digits: of its delta features
    resolution: Literal["quarter", "16th"] | None = None  # of jsb
    length: Count | None = None  # of characters: time steps of a sequence
    limit: CountOrZero = 0  # use only the first samples of each split; 0: all
    steps: CountOrZero = 0  # use only the first time steps of each sequence; 0: all

    def options(self) -> dict[str, Any]:
        """Those settings of the single data set that are given."""
        every = {name for names in DATA_OPTIONS.values() for name in names}
        given = {name: getattr(self, name) for name in sorted(every)}
        return {name: value for name, value in given.items() if value is not None}


DATA_OPTIONS: dict[str, tuple[str, ...]] = {
    "spoken_digits": ("features", "n_mels", "threshold"),
    "jsb": ("resolution",),
    "characters": ("length",),
}


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Encoder:
    """How samples become inputs in time: images by the first four, sequences by the others."""

    name: Literal["direct", "poisson", "latency", "rows", "none", "delta"] = "direct"
    steps: Count = 20  # time steps an image is shown; of rows: into how many portions it is cut
    dt: Positive = 1e-3  # length of a time step [s], also of the cells
    max_rate: Positive = 200.0  # of poisson: rate of a white pixel [Hz]
    threshold: Positive = 0.1  # of delta: change of the input that makes an event


@dataclass(frozen=True, kw_only=True, config=STRICT)
class NetworkSettings:
    """A stack of hidden layers of one kind of cell, and a readout.

    What is None is the default of the cell; a setting that the cell does not have is refused.
    """

    cell: Literal["snu", "soft_snu", "lif", "synaptic_lif", "alif", "lstm", "gru", "simple"] = "snu"
    hidden: Annotated[tuple[Count, ...], Field(min_length=1, strict=False)] = (256,)
    recurrent: bool = True
    readout: Literal["dense", "leaky"] = "dense"
    readout_tau: Positive | None = None  # of the leaky readout [s]
    surrogate: str | None = None
    surrogate_settings: dict[str, float] | None = None  # as in { width = 0.5 }
    decay: Share | None = None  # share of the potential left after a step
    tau: Positive | None = None  # membrane time constant [s]
    tau_syn: Positive | None = None  # time constant of the synapse [s]
    tau_adapt: Positive | None = None  # time constant of the adaptation [s]
    beta: NotNegative | None = None  # how far a spike raises the threshold
    threshold: Positive | None = None
    reset: Literal["subtract", "zero", "none"] | None = None
    refractory: CountOrZero | None = None  # steps
    detach_reset: bool | None = None
    train_decay: bool | None = None
    activation_format: str | None = None  # of what goes from one layer to the next
    #: 4-bit products forward and backward, in all layers or in all but the first and the last
    products: Literal["float32", "luq", "luq_all"] = "float32"
    state_formats: dict[str, str] | None = None  # by role, as in { membrane = "fixed12.6" }
    state_rounding: Rounding = "nearest_even"

    def cell_settings(self) -> dict[str, Any]:
        """Those settings of the cell that are given."""
        every = {name for names in CELL_SETTINGS.values() for name in names}
        given = {name: getattr(self, name) for name in sorted(every)}
        return {name: value for name, value in given.items() if value is not None}


_LIF = ("tau", "threshold", "reset", "refractory", "detach_reset", "train_decay", "surrogate")
CELL_SETTINGS: dict[str, tuple[str, ...]] = {
    "snu": ("decay", "tau", "train_decay", "surrogate"),
    "soft_snu": ("decay", "tau", "train_decay"),
    "lif": _LIF,
    "synaptic_lif": (*_LIF, "tau_syn"),
    "alif": (*_LIF, "tau_adapt", "beta"),
    "lstm": (),
    "gru": (),
    "simple": (),
}


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Rule:
    """The learning rule. What follows `grapes` is read by online rules only, but for the last.

    An online rule takes `chunk` steps at a time and the weights change every `update_every` steps;
    0 is the whole sequence (for chunk: up to the update). BPTT always takes the whole sequence.
    """

    name: Literal["bptt", "ostl", "rtrl", "eprop", "osttp"] = "ostl"
    #: the error of a hidden unit counts more, the more weight comes in; or a control of that
    grapes: Literal["propagating", "local", "mean", "perm", "two"] | None = None
    scope: Literal["full", "unit", "no_h", "none", "pre"] = "no_h"
    #: of eprop: how the error comes to hidden layers; None: "symmetric"
    feedback: Literal["symmetric", "random", "adaptive"] | None = None
    sltt_steps: CountOrZero = 0  # of scope "none": steps of a chunk that teach, drawn; 0: all
    cross_layer: Literal["spatial", "chunk"] = "spatial"
    chunk: CountOrZero = 0
    update_every: CountOrZero = 0
    trace_format: str | None = None  # of the traces that are kept from chunk to chunk
    trace_rounding: Rounding = "nearest_even"
    remat_every: CountOrZero = 0  # of bptt: keep activations of so many steps only; 0: keep all


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Optimizer:
    """An optimizer of optax."""

    name: Literal["adam", "adamw", "sgd", "rmsprop"] = "adam"
    learning_rate: Positive = 1e-3
    schedule: Literal["constant", "cosine"] = "constant"
    final_fraction: Share = 0.0  # of cosine: last learning rate / first
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None  # of sgd and rmsprop
    weight_decay: NotNegative | None = None  # of adamw
    clip: NotNegative = 0.0  # largest norm of the gradient; 0: not clipped
    gradient_format: str | None = None
    state_format: str | None = None  # of moments and the like, between two changes of the weights
    format_rounding: Rounding = "nearest_even"  # of both
    loss_scale: NotNegative = 0.0  # by what the loss is multiplied, best a power of two; 0: 1
    loss_scale_growth: CountOrZero = 0  # finite updates until it doubles; 0: it stays as it is

    def options(self) -> dict[str, Any]:
        """Those settings of the single optimizer that are given."""
        given = {"momentum": self.momentum, "weight_decay": self.weight_decay}
        return {name: value for name, value in given.items() if value is not None}


OPTIMIZER_OPTIONS: dict[str, tuple[str, ...]] = {
    "sgd": ("momentum",),
    "rmsprop": ("momentum",),
    "adamw": ("weight_decay",),
}


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Memory:
    """Where the weights live: plain float32, the codes of a number format, or devices."""

    format: str = "float32"
    master: bool = False  # keep float32 weights; the format is that in which they are read
    compensation: str | None = None  # format of what rounding left over, for the next update
    rounding: Literal["nearest_even", "stochastic"] = "nearest_even"
    device: str | None = None  # a name of `devices.DEVICES` or a device file, in place of a format
    cells: Literal["single", "pair", "many", "sliced", "reference_column"] | None = None
    pairs: Count | None = None  # that make a weight of "many"; None: 4
    #: of "sliced": whole numbers that fall to 1, each a multiple of the next; None: 8 and 1
    significances: Annotated[tuple[Count, ...], Field(min_length=1)] | None = None
    writing: Literal["program", "pulses", "mixed_precision"] | None = None  # None: as fits
    transfer: Literal["plain", "chopped", "agad"] | None = None  # Tiki-Taka: sums in cells first
    step_seconds: Annotated[float, Field(gt=0)] = 1.0  # from one update to the next, for devices
    #: of matrices, drawn for each update: standard deviation over the largest |weight|
    noise: NotNegative = 0.0
    noise_device: str | None = None  # noise is that of writing this one of `devices.DEVICES`
    clip: Positive | None = None  # largest |weight| of matrices
    clip_stds: Positive | None = None  # the same in standard deviations of each matrix

    def hardware_aware(self) -> dict[str, Any]:
        """What reads are noisy by and weights clipped to, as far as it is given."""
        names = ("noise", "noise_device", "clip", "clip_stds")
        return {name: getattr(self, name) for name in names if getattr(self, name)}


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Train:
    """How long, in which portions, towards what."""

    epochs: Count = 10
    batch: Count = 50
    loss: Literal["auto", "cross_entropy", "sigmoid_cross_entropy", "squared_error"] = "auto"
    log_every: Count = 20  # batches between two lines of metrics
    checkpoint_every: CountOrZero = 0  # batches between two checkpoints; 0: one an epoch
    diagnostics: bool = False  # what number formats do to gradients and weights, in each line


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Experiment:
    """All settings of one run; `experiment_file.load` reads them, `build.build` makes objects."""

    run: Run = Run()
    data: Data = Data()
    encoder: Encoder = Encoder()
    network: NetworkSettings = NetworkSettings()
    rule: Rule = Rule()
    optimizer: Optimizer = Optimizer()
    memory: Memory = Memory()
    train: Train = Train()

    def sections(self) -> dict[str, dict[str, Any]]:
        """Section -> key -> value, as in the file."""
        return dataclasses.asdict(self)

    @model_validator(mode="after")
    def _agree(self) -> "Experiment":
        """Refuses settings that contradict each other."""
        _check_options("data", "name", self.data.name, self.data.options(), DATA_OPTIONS)
        given = self.optimizer.options()
        _check_options("optimizer", "name", self.optimizer.name, given, OPTIMIZER_OPTIONS)
        _check_network(self.network)
        _check_precision(self.memory, self.optimizer)
        if self.rule.name != "bptt":
            _check_scope(self.rule)
            _check_chunks(self.rule, self.encoder)
        return self


def _check_options(
    section: str, key: str, value: str, given: dict[str, Any], options: dict[str, tuple[str, ...]]
) -> None:
    known = options.get(value, ())
    for name in given:
        if name not in known:
            has = f"the settings {', '.join(known)}" if known else "no settings of its own"
            raise ValueError(
                f'{section}.{name} does not apply to {section}.{key} = "{value}", which has {has}'
            )


def _check_network(network: NetworkSettings) -> None:
    given = network.cell_settings()
    _check_options("network", "cell", network.cell, given, CELL_SETTINGS)
    if not CELL_SETTINGS[network.cell] and not network.recurrent:
        raise ValueError(
            f'network.recurrent = false does not apply to network.cell = "{network.cell}", which '
            "is always recurrent"
        )
    if network.readout_tau is not None and network.readout != "leaky":
        raise ValueError('network.readout_tau applies only to network.readout = "leaky"')
    if network.surrogate_settings is not None and network.surrogate is None:
        raise ValueError("network.surrogate_settings needs network.surrogate, the name")


def _check_precision(memory: Memory, optimizer: Optimizer) -> None:
    _check_device(memory)
    if memory.master and memory.compensation is not None:
        raise ValueError(
            "memory.compensation does not apply to memory.master = true, which loses nothing"
        )
    if optimizer.loss_scale_growth and not optimizer.loss_scale:
        raise ValueError(
            f"optimizer.loss_scale_growth = {optimizer.loss_scale_growth} needs "
            "optimizer.loss_scale, such as 32768.0"
        )


def _check_device(memory: Memory) -> None:
    own = (memory.cells, memory.writing, memory.transfer, memory.step_seconds)
    if memory.device is None and own != (None, None, None, 1.0):
        raise ValueError(
            "memory.cells, writing, transfer and step_seconds need memory.device, the name"
        )
    for name, cells in (("pairs", "many"), ("significances", "sliced")):
        if getattr(memory, name) is not None and memory.cells != cells:
            raise ValueError(f'memory.{name} is for memory.cells = "{cells}"; leave it out')
    for one, other in (("noise", "noise_device"), ("clip", "clip_stds")):
        if {one, other} <= set(memory.hardware_aware()):
            raise ValueError(f"memory.{one} and memory.{other} are two ways to say it: give one")


def _check_scope(rule: Rule) -> None:
    scoped = rule.name in ("ostl", "osttp")
    chosen = f'rule.scope = "{rule.scope}"' if scoped else f'rule.name = "{rule.name}"'
    if rule.feedback is not None and rule.name != "eprop":
        raise ValueError(
            f'rule.feedback = "{rule.feedback}" does not apply to rule.name = "{rule.name}": leave '
            'it out, or choose rule.name = "eprop"'
        )
    if rule.name == "osttp" and rule.scope in ("none", "pre"):
        raise ValueError(
            f'{chosen} does not apply to rule.name = "osttp": choose "full", "unit" or "no_h"'
        )
    if rule.sltt_steps and chosen != 'rule.scope = "none"':
        raise ValueError(
            f"rule.sltt_steps = {rule.sltt_steps} does not apply to {chosen}: leave it out, or "
            'choose rule.name = "ostl" and rule.scope = "none"'
        )
    keeps = rule.name == "ostl" and rule.scope not in ("none", "pre")
    if rule.trace_format is not None and not keeps:
        raise ValueError(
            f"rule.trace_format = {rule.trace_format!r} does not apply to {chosen}, which keeps no "
            "trace in a format: leave it out"
        )


def _check_chunks(rule: Rule, encoder: Encoder) -> None:
    if rule.chunk and rule.update_every % rule.chunk:
        raise ValueError(
            f"rule.update_every = {rule.update_every} is not a multiple of rule.chunk = "
            f"{rule.chunk}: weights can change only between chunks"
        )
    if encoder.name not in IMAGE_ENCODERS:
        return
    steps = encoder.steps
    for field in ("chunk", "update_every"):
        value = getattr(rule, field)
        if value and steps % value:
            divisors = ", ".join(str(d) for d in range(1, steps + 1) if steps % d == 0)
            raise ValueError(
                f"rule.{field} = {value} does not divide encoder.steps = {steps}: choose "
                f"{divisors}, or 0 for the whole sequence"
            )


def resolve(experiment: Experiment) -> Experiment:
    """The experiment with relative paths made absolute and settings that are ignored cleared."""
    data, rule = experiment.data, experiment.rule
    if data.data_dir is not None:
        data = dataclasses.replace(data, data_dir=str(Path(data.data_dir).expanduser().absolute()))
    if rule.name == "bptt":
        off = {
            "chunk": 0,
            "update_every": 0,
            "sltt_steps": 0,
            "trace_format": None,
            "feedback": None,
        }
        rule = dataclasses.replace(rule, **off)
    if rule.name == "rtrl":
        rule = dataclasses.replace(rule, scope="full")
    memory = experiment.memory
    if memory.device is not None:
        memory = Memory(
            device=memory.device,
            writing=memory.writing,
            transfer=memory.transfer,
            step_seconds=memory.step_seconds,
            cells=memory.cells,
            pairs=memory.pairs,
            significances=memory.significances,
            **memory.hardware_aware(),
        )
    return dataclasses.replace(experiment, data=data, rule=rule, memory=memory)


def differences(experiments: Sequence[Experiment]) -> dict[str, list[Any]]:
    """Fields "section.key" whose values are not the same in all experiments."""
    flat = [
        {f"{s}.{k}": v for s, inner in e.sections().items() for k, v in inner.items()}
        for e in experiments
    ]
    columns = {field: [f[field] for f in flat] for field in flat[0]}
    return {
        field: values for field, values in columns.items() if any(v != values[0] for v in values)
    }

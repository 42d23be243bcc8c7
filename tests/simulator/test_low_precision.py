"""Low precision as an experiment says it: optimizer, memory, activations, diagnostics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spikebit import quant
from spikebit.quant.training import Activation
from spikebit.simulator import build, plots, report
from spikebit.simulator import experiment_file as f
from spikebit.simulator.run_directory import create
from spikebit.simulator.train import _length, check, read_parameters, train

TINY = {
    "data": {"limit": 40},
    "encoder": {"name": "direct", "steps": 2},
    "network": {"cell": "soft_snu", "hidden": [8]},
    "rule": {"name": "bptt"},
    "optimizer": {"name": "adam", "learning_rate": 1e-2},
    "train": {"epochs": 2, "batch": 10, "log_every": 3},
}  # 4 batches an epoch


@pytest.fixture(autouse=True)
def as_users_have_it():
    """Optax's adam relies on dtype promotion."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def job(**sections):
    table = {name: dict(section) for name, section in TINY.items()}
    for name, section in sections.items():
        table.setdefault(name, {}).update(section)
    experiment = f.check(table)
    return build(experiment)


def run(j, **options):
    lines = []
    state = train(j, on_metrics=lines.append, **options)
    return state, [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


@pytest.fixture(scope="module", autouse=True)
def compile_once(tmp_path_factory):
    """Equal programs of this file are compiled once."""
    names = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.2,
    }
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in names.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def plain(compile_once):
    with jax.numpy_dtype_promotion("standard"):
        return run(job())


def weights(j, state):
    return [np.asarray(w) for w in jax.tree.leaves(read_parameters(j, state.memory))]


def test_float32_everywhere_is_the_plain_run_bit_for_bit(plain):
    j = job(
        optimizer={"gradient_format": "float32", "state_format": "float32"},
        network={"activation_format": "float32"},
        memory={"master": True},
    )
    state, _ = run(j)
    for a, b in zip(weights(j, state), weights(j, plain[0]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_scale_of_the_loss_that_is_a_power_of_two_changes_nothing(plain):
    j = job(optimizer={"loss_scale": 1024.0, "loss_scale_growth": 3})
    state, lines = run(j)
    # 8 updates; equal but for how the compiler fuses
    assert float(state.optimizer.scale) == 1024 * 2**2
    assert int(state.optimizer.skipped) == 0
    for a, b in zip(weights(j, state), weights(j, plain[0]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    for a, b in zip(lines, plain[1], strict=True):
        for name in ("train_loss", "gradient_norm"):
            assert a[name] == pytest.approx(b[name], rel=1e-4)


@pytest.mark.usefixtures("compile_quickly")
def test_a_scale_that_overflows_is_halved_until_it_fits():
    scaled = {"gradient_format": "e5m2", "loss_scale": 2.0**21, "loss_scale_growth": 1000}
    state, lines = run(job(optimizer=scaled))
    skipped = int(state.optimizer.skipped)
    assert 0 < skipped < 8
    assert float(state.optimizer.scale) == 2.0 ** (21 - skipped)
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]
    assert all(np.isfinite(line["train_loss"]) for line in lines)


def test_what_a_smaller_scale_does_not_mend_is_seen():
    grads = {"w": jnp.array([jnp.inf, 1.0])}
    assert _length(grads, jnp.float32(2.0))[0] == 0  # the update is left out, and the scale halved
    assert _length(grads, jnp.float32(1.0))[0] == jnp.inf
    large = {"w": jnp.array([6e20, 8e20])}
    assert _length(large, jnp.float32(1e20))[0] == pytest.approx(10)


def everything():
    """A job with a format wherever one can be, and random rounding in all of them."""
    return job(
        optimizer={
            "gradient_format": "e5m2", "state_format": "bfloat16", "format_rounding": "stochastic",
            "loss_scale": 256.0, "loss_scale_growth": 3,
        },
        network={"activation_format": "fixed6.4"},
        memory={"format": "e4m3fn", "rounding": "stochastic", "compensation": "e4m3fn"},
        train={"diagnostics": True, "checkpoint_every": 1},
    )  # fmt: skip


@pytest.mark.usefixtures("compile_quickly")
def test_a_run_that_stops_goes_on_to_the_same_bits():
    j, saved, lines = everything(), [], []
    whole = train(
        j, on_metrics=lines.append, on_checkpoint=lambda *c: saved.append((len(lines), c))
    )
    count, (step, state, seconds) = saved[1]
    assert step == 2  # between two lines of metrics, which are after 3, 4, 7 and 8
    # shares of a line are those since the line before
    before, after = (quant.losses(saved[i][1][1].memory)["layers.0.w"] for i in (2, 3))
    new = {kind: after[kind] - before[kind] for kind in after}
    share = lines[1]["diagnostics"]["0.w"]["stagnated"]
    assert 0 < share == new["stagnated"] / new["writes"]
    end, rest = run(j, start=(step, state), seconds=seconds)
    for a, b in zip(jax.tree.leaves(end), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(a, b)
    assert rest == [{k: v for k, v in m.items() if k != "seconds"} for m in lines[count:]]
    assert [leaf.fmt.name for leaf in state.memory.remainder] == ["e4m3fn"] * 5
    kept = [leaf for leaf in state.optimizer.inner.leaves if isinstance(leaf, quant.QTensor)]
    assert {leaf.fmt.name for leaf in kept} == {"bfloat16"}
    (layer,) = [m for m in j.network.layers if isinstance(m, Activation)]
    assert layer.fmt.name == "fixed6.4"


def test_diagnostics_of_a_run_without_formats_find_nothing(plain):
    state, lines = run(job(train={"diagnostics": True}))
    for a, b in zip(weights(job(), state), weights(job(), plain[0]), strict=True):
        np.testing.assert_array_equal(a, b)  # looking changes nothing
    assert [line["step"] for line in lines] == [3, 4, 7, 8]
    for line in lines:
        assert set(line["diagnostics"]) == {"0.b", "0.h", "0.w", "1.bias", "1.kernel"}
        for found in line["diagnostics"].values():
            assert found.pop("cosine") == pytest.approx(1, abs=1e-6)
            assert found.pop("stagnated") < 1e-2  # float32 has its own
            assert set(found.values()) == {0.0}
    assert "diagnostics" not in plain[1][0]


@pytest.mark.usefixtures("compile_quickly")
def test_diagnostics_see_weights_that_stand_still_and_gradients_that_vanish():
    small = {"optimizer": {"learning_rate": 1e-6}, "train": {"diagnostics": True, "epochs": 1}}
    _, lines = run(job(**small, memory={"format": "fixed8.4"}))
    for found in lines[-1]["diagnostics"].values():
        assert found["stagnated"] == 1
        assert found["cosine"] == pytest.approx(1, abs=1e-6)  # of the gradient nothing is lost
    small["optimizer"]["gradient_format"] = "fixed8.0"
    _, lines = run(job(**small))
    for found in lines[-1]["diagnostics"].values():
        assert (found["gradient_underflowed"], found["cosine"]) == (1, 0)


@pytest.mark.usefixtures("compile_quickly")
def test_diagnostics_compare_with_the_master_copy_and_without_activations():
    j = job(
        memory={"format": "fixed6.3", "master": True},
        network={"activation_format": "fixed4.2"},
        train={"diagnostics": True, "epochs": 1},
    )
    _, lines = run(j)
    cosines = [found["cosine"] for found in lines[-1]["diagnostics"].values()]
    assert 0.3 < min(cosines) < 1 - 1e-4
    assert type(j.exact.network.layers[1]) is Activation
    assert j.exact.network.layers[1].fmt.name == "float32"


def test_the_report_shows_diagnostics(tmp_path):
    kinds = ("stagnated", "saturated", "underflowed", "cosine", "gradient_underflowed")
    lines = [
        {
            "step": i,
            "diagnostics": {"0.<w>": dict.fromkeys(kinds, 0.1 * i), "1.b": dict.fromkeys(kinds, 1)},
        }
        for i in (3, 4)
    ]
    ax = plots.diagnostics(lines)
    assert [line.get_label() for line in ax.lines] == ["0.<w>", "1.b"]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [0.3, 0.4])
    result = {"activity": {}, "lost": {}, "diagnostics": lines[-1]["diagnostics"]}
    run_directory = create(f.check({"run": {"dir": str(tmp_path / "run")}}))
    parts = report.training_parts(result, {"diagnostics": report.png(ax)})
    page = report.save_page(run_directory, parts).read_text()
    assert "gradient_underflowed" in page
    assert "0.&lt;w&gt;" in page
    assert "What number formats do" in page


def test_activations_are_rounded_between_layers():
    j = job(network={"activation_format": "fixed3.1"})
    check(j)
    carry = j.network.initialize_carry((3, 784))
    _, y = j.network.layers[0](carry[0], jnp.ones((3, 784)))
    rounded = j.network.layers[1](y)
    np.testing.assert_array_equal(rounded, quant.quantize(y, "fixed3.1"))
    assert (rounded != y).any()


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"optimizer": {"gradient_format": "e5m2x"}}, r"optimizer: parse: .*'e5m2x'"),
        ({"optimizer": {"state_format": "e5m2x"}}, r"optimizer: parse: .*'e5m2x'"),
        ({"optimizer": {"loss_scale": 1e39}}, "optimizer: loss_scaling: scale is 1e[+]39"),
        ({"optimizer": {"loss_scale_growth": 3}}, "loss_scale_growth = 3 needs optimizer.loss_sca"),
        ({"memory": {"compensation": "e5m2x"}}, "memory.compensation = 'e5m2x'"),
        ({"memory": {"format": "e5m2x", "master": True}}, "memory.format = 'e5m2x'"),
        ({"memory": {"master": True, "compensation": "e5m2"}}, "loses nothing"),
        ({"network": {"activation_format": "e5m2x"}}, "network.activation_format = 'e5m2x'"),
    ],
)
def test_a_wrong_setting_is_named(section, said):
    with pytest.raises(ValueError, match=said):
        job(**section)

"""What an experiment file may say, and what is said about one that is wrong."""

import dataclasses
import string
import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spikebit.simulator import experiment as e
from spikebit.simulator import experiment_file as f
from spikebit.simulator.cli import main

SECTIONS = {field.name: field for field in dataclasses.fields(e.Experiment)}

BAD = [
    # (what stands in the file, overrides, the field that must be named, what must be said)
    ("[train]\nepoch = 3", [], "train.epoch", "did you mean epochs?"),
    ("[trian]\nepochs = 3", [], "trian", "did you mean train?"),
    ("epochs = 3", [], "epochs", "known are run, data"),
    ("train = 3", [], "train = 3", "a table of settings"),
    ("[[train]]\nepochs = 3", [], "train", "a table of settings"),
    ('[train]\nepochs = "3"', [], 'train.epochs = "3"', "a whole number"),
    ("[train]\nepochs = 3.0", [], "train.epochs = 3.0", "a whole number"),
    ("[train]\nepochs = true", [], "train.epochs = true", "a whole number"),
    ("[train]\nepochs = 0", [], "train.epochs = 0", ">= 1"),
    ("[train]\nepochs = 2000-01-01", [], "train.epochs", "a whole number"),
    ("[train]\nbatch = -1", [], "train.batch = -1", ">= 1"),
    ('[optimizer]\nlearning_rate = "1e-3"', [], "optimizer.learning_rate", "a number"),
    ("[optimizer]\nlearning_rate = nan", [], "optimizer.learning_rate = nan", "a finite number"),
    ("[optimizer]\nlearning_rate = inf", [], "optimizer.learning_rate = inf", "a finite number"),
    ("[optimizer]\nlearning_rate = 0", [], "optimizer.learning_rate = 0", "> 0"),
    ("[optimizer]\nfinal_fraction = 1.5", [], "optimizer.final_fraction = 1.5", "<= 1"),
    ("[optimizer]\nmomentum = 0.5", [], "optimizer.momentum", 'optimizer.name = "adam"'),
    ('[network]\ncell = "snuu"', [], 'network.cell = "snuu"', "did you mean snu?"),
    ("[network]\nhidden = 256", [], "network.hidden = 256", "a list, as in [256]"),
    ("[network]\nhidden = []", [], "network.hidden", "at least one entry"),
    ('[network]\nhidden = [8, "8"]', [], "network.hidden.1", "a whole number"),
    ("[network]\nhidden = [0]", [], "network.hidden.0 = 0", ">= 1"),
    ("[network]\nrecurrent = 1", [], "network.recurrent = 1", "true or false"),
    ('[network]\ncell = "lstm"\nrecurrent = false', [], "network.recurrent", "always recurrent"),
    ('[network]\ncell = "gru"\ntau = 1.0', [], "network.tau", "no settings of its own"),
    ('[network]\ncell = "lif"\ndecay = 0.5', [], "network.decay", "has the settings tau"),
    ("[network]\nreadout_tau = 0.1", [], "network.readout_tau", "leaky"),
    ("[network]\nsurrogate_settings = {width = 1.0}", [], "network.surrogate", "the name"),
    ("[network.state_formats]\nmembrane = 3", [], "network.state_formats.membrane = 3", "a text"),
    ('[network]\nstate_rounding = "odd"', [], "network.state_rounding", "nearest_even"),
    ('[rule]\ntrace_rounding = "odd"', [], "rule.trace_rounding", "nearest_even"),
    ("[data]\nname = 3", [], "data.name = 3", "known values are fashion_mnist_sample"),
    ('[data]\nfeatures = "mel"', [], "data.features", "no settings of its own"),
    ('[run]\nname = "a/b"', [], 'run.name = "a/b"', "letters"),
    ('[run]\ndir = ""', [], "run.dir", "not empty"),
    ("[run]\nseed = -1", [], "run.seed = -1", ">= 0"),
    ("[rule]\nchunk = 3\nupdate_every = 4", [], "rule.update_every = 4", "rule.chunk = 3"),
    ("[rule]\nchunk = 3", [], "rule.chunk = 3", "1, 2, 4, 5, 10, 20"),
    ("[rule]\nupdate_every = 7", [], "rule.update_every = 7", "encoder.steps = 20"),
    ("", ["train.epochs='3'"], "--set train.epochs='3'", "a whole number"),
    ("", ["train.epochs=three"], 'train.epochs = "three"', "a whole number"),
    ("", ["train.epoch=3"], "--set train.epoch=3", "did you mean epochs?"),
    ("", ["trian.epochs=3"], "--set trian.epochs=3", "did you mean train?"),
    ("", ["train=3"], "--set train=3", "section.key=value"),
    ("", ["epochs"], "--set epochs", "section.key=value"),
    ("", ["a.b.c=3"], "--set a.b.c=3", "section.key=value"),
    ("", ["train.epochs=3\nbatch = 4"], "train.epochs", "a whole number"),
    ("train = 3", ["train.epochs=3"], "train = 3", "a table of settings"),
    ("[train", [], "this is not TOML", "table declaration"),
    ("x = '\udcff'", [], "this is not TOML", "utf-8"),
    ("[train]\nepochs = 'x'\nbatch = 'y'", [], "train.epochs", "(and 1 more)"),
]


@pytest.mark.parametrize(("text", "overrides", "field", "said"), BAD)
def test_a_wrong_setting_is_named_in_one_line(tmp_path, capsys, text, overrides, field, said):
    path = tmp_path / "bad.toml"
    path.write_bytes(text.encode(errors="surrogateescape"))
    sets = [part for o in overrides for part in ("--set", o)]
    assert main(["run", str(path), *sets]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("spikebit: ")
    assert field in err.replace("\\n", " ")
    assert said in err
    assert str(path) in err or "--set" in err
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_file_names_the_experiments_there_are(capsys):
    assert main(["run", "nowhere.toml"]) == 2
    err = capsys.readouterr().err
    assert "nowhere.toml" in err
    assert "fashion_snu" in err


@pytest.mark.parametrize("name", f.shipped())
def test_shipped_experiments_are_valid_and_found_by_name(name):
    assert f.load(name).run.name == name


def test_toml_round_trip_keeps_every_setting():
    experiment = f.check(
        {
            "run": {"name": "a-b.c", "dir": 'C:\\x "y"\t\x7fé', "seed": 7},
            "network": {
                "cell": "alif",
                "hidden": [3, 4],
                "recurrent": False,
                "surrogate": "boxcar",
                "surrogate_settings": {"width": 1e-7},
                "reset": "zero",
                "state_formats": {"membrane": "fixed12.6"},
            },
            "optimizer": {"name": "sgd", "learning_rate": 1e-20, "momentum": 0.9},
        }
    )
    text = f.to_toml(experiment)
    assert f.check(tomllib.loads(text)) == experiment
    assert experiment.optimizer.learning_rate == 1e-20


def test_overrides_are_toml_values_or_bare_words(tmp_path):
    path = tmp_path / "x.toml"
    path.write_text("[train]\nepochs = 1\nbatch = 7\n")
    settings = [
        "train.epochs=5",
        "network.hidden=[3, 4]",
        "optimizer.learning_rate=1e-2",
        "rule.name=bptt",
        "memory.format='int4'",
        "run.dir=2024-01-01",  # a date to TOML, a folder to us
        "network.recurrent=false",
    ]
    got = f.load(path, settings)
    assert (got.train.epochs, got.train.batch) == (5, 7)
    assert got.network.hidden == (3, 4)
    assert got.optimizer.learning_rate == 1e-2
    assert (got.rule.name, got.memory.format, got.run.dir) == ("bptt", "int4", "2024-01-01")
    assert got.network.recurrent is False


def test_the_last_override_wins(tmp_path):
    path = tmp_path / "x.toml"
    path.write_text("")
    assert f.load(path, ["train.epochs=5", "train.epochs=6"]).train.epochs == 6


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(sorted(SECTIONS)), st.text(string.ascii_letters, min_size=1))
def test_no_unknown_key_is_accepted(section, key):
    known = [field.name for field in dataclasses.fields(SECTIONS[section].type)]
    if key not in known:
        with pytest.raises(ValueError, match=f"{section}.{key} is not a known key"):
            f.check({section: {key: 1}})


def test_settings_are_frozen_and_checked_in_python_too():
    with pytest.raises(ValueError, match="epochs"):
        e.Train(epochs="3")
    with pytest.raises(dataclasses.FrozenInstanceError):
        e.Experiment().run.seed = 3
    assert e.NetworkSettings(hidden=[3]).hidden == (3,)


def test_bptt_takes_the_whole_sequence():
    rule = e.Rule(name="bptt", chunk=3, update_every=7, trace_format="e5m2", feedback="random")
    resolved = e.resolve(e.Experiment(rule=rule)).rule
    assert (resolved.chunk, resolved.update_every) == (0, 0)  # settings of online rules
    assert resolved.trace_format is resolved.feedback is None


def test_differences_are_the_settings_that_differ():
    a = e.Experiment()
    b = e.Experiment(run=e.Run(seed=1), network=e.NetworkSettings(hidden=(3,)))
    assert e.differences([a, b]) == {"run.seed": [0, 1], "network.hidden": [(256,), (3,)]}
    assert e.differences([a, a]) == {}

"""Pictures show the numbers they are given; the page holds them and escapes what it was told."""

import base64
import re

import numpy as np
import pytest
from matplotlib.figure import Figure

from spikebit.simulator import compare_runs, plots, report
from spikebit.simulator.experiment import Experiment, NetworkSettings, Run
from spikebit.simulator.run_directory import create

LINES = [
    {"epoch": 1, "batch": 5, "step": 5, "train_loss": 2.0, "train_accuracy": 0.25},
    {"epoch": 1, "batch": 10, "step": 10, "train_loss": 1.5, "train_accuracy": 0.5,
     "test_loss": 1.25, "test_accuracy": 0.75, "seconds": 3.5},
]  # fmt: skip
LOST = {
    "0.w": {"writes": 90, "saturated": 7, "underflowed": 0},
    "0.<b>": {"writes": 30, "saturated": 0, "underflowed": 5},
}


def test_learning_curve_is_over_epochs_and_falls_back_to_loss():
    train, test = plots.learning_curve(LINES).lines
    np.testing.assert_array_equal(train.get_xydata(), [[0.5, 0.25], [1.0, 0.5]])
    np.testing.assert_array_equal(test.get_xydata(), [[1.0, 0.75]])
    no_accuracy = [m | {"train_accuracy": None, "test_accuracy": None} for m in LINES]
    train, test = plots.learning_curve(no_accuracy).lines
    np.testing.assert_array_equal(train.get_ydata(), [2.0, 1.5])
    np.testing.assert_array_equal(test.get_ydata(), [1.25])


def test_raster_shades_every_layer_by_its_own_largest_value():
    inputs = np.array([[0.0, 4.0], [1.0, -2.0], [0.0, 0.0]])
    spikes = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    (image,) = plots.raster(inputs, {"0": spikes, "still": np.zeros((3, 1))}).images
    expected = np.concatenate([np.abs(inputs.T) / 4, spikes.T, np.zeros((1, 3))])
    shown = np.asarray(image.get_array())
    np.testing.assert_array_equal(shown[:, ::6], expected)
    np.testing.assert_array_equal(shown[:, 5::6], 0)  # the gap after each step
    assert list(image.get_extent()) == [-0.5, 2.5, 5.5, -0.5]
    (image,) = plots.raster(np.eye(500), {}, most=10).images
    assert image.get_array().shape == (10, 500)


def test_confusion_matrix_counts():
    labels, predictions = np.array([0, 0, 0, 1, 2]), np.array([0, 0, 1, 1, 0])
    ax = plots.confusion_matrix(labels, predictions, ["a", "b", "c"])
    shares = np.array([[2 / 3, 1 / 3, 0], [0, 1, 0], [1, 0, 0]])
    np.testing.assert_allclose(ax.images[0].get_array(), shares)
    counts = {t.get_position(): t.get_text() for t in ax.texts}
    assert counts == {(0, 0): "2", (1, 0): "1", (1, 1): "1", (0, 2): "1"}


def test_losses_are_bars_of_their_share_of_writes():
    ax = plots.losses(LOST)
    heights = {c.get_label(): [bar.get_height() for bar in c] for c in ax.containers}
    assert heights == {"saturated": [700 / 90, 0], "underflowed": [0, 500 / 30]}
    plots.losses({"0.w": {"writes": 0, "saturated": 0}})


def test_histogram_counts_every_value_once():
    values = {"a": np.array([[0.0, 1.0], [1.0, 2.0]]), "b": np.array([-1.0])}
    ax = plots.histogram(values, xlabel="x", bins=3, log=False)
    # three bins from -1 to 2
    tops = [patch.get_xy()[:, 1].max() for patch in ax.patches]
    assert tops == [3, 1]
    plots.histogram({}, xlabel="x")


@pytest.mark.parametrize(
    "draw",
    [
        lambda ax: plots.learning_curve(LINES, ax=ax),
        lambda ax: plots.raster(np.eye(3), {}, ax=ax),
        lambda ax: plots.histogram({"a": np.arange(3.0)}, xlabel="x", ax=ax),
        lambda ax: plots.confusion_matrix(np.arange(2), np.arange(2), ["a", "b"], ax=ax),
        lambda ax: plots.losses(LOST, ax=ax),
    ],
)
def test_plots_draw_where_they_are_told_and_return_the_axes(draw):
    ax = Figure().subplots()
    assert draw(ax) is ax
    assert ax.has_data()
    assert draw(None).get_figure() is not ax.get_figure()


@pytest.fixture
def runs(tmp_path):
    made = []
    for name, hidden in (("a", 8), ("b", 9)):
        run = create(
            Experiment(
                run=Run(name=name, dir=str(tmp_path / f"<{name}>")),
                network=NetworkSettings(hidden=(hidden,)),
            )
        )
        for line in LINES:
            run.append_metrics(line)
        made.append(run)
    return made


def test_the_page_inlines_pictures_and_escapes_text(runs):
    result = {
        "run": "<script>x</script>",
        "test_accuracy": 0.75,
        "activity": {"0": 0.5},
        "lost": LOST,
    }
    picture = report.png(plots.losses(LOST))
    assert picture.startswith(b"\x89PNG\r\n")
    parts = report.training_parts(result, {"lost": picture})
    page = report.save_page(runs[0], parts).read_text()
    (data,) = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert base64.b64decode(data) == picture
    assert "<script>" not in page
    assert "&lt;script&gt;x" in page
    assert "0.&lt;b&gt;" in page
    assert '<td class="number">90</td>' in page
    assert "network.hidden" in page
    assert "jaxlib" in page


def test_compare_shows_what_differs_and_what_came_out(runs):
    a, b = compare_runs.rows(runs)
    assert (a["network.hidden"], b["network.hidden"]) == ((8,), (9,))
    assert "network.cell" not in a
    assert "run.dir" not in a
    assert a["state"] == "running"
    assert (a["test_accuracy"], a["train_loss"], a["seconds"]) == (0.75, 1.5, 3.5)
    assert a["train_accuracy"] == 0.5
    header, first, second = compare_runs.as_text([a, b]).splitlines()
    assert header.split() == [
        "run", "state", "run.name", "network.hidden", "test_accuracy", "test_loss",
        "train_accuracy", "train_loss", "seconds",
    ]  # fmt: skip
    assert "(8,)" in first
    assert "(9,)" in second
    upright = compare_runs.as_text([a, b], upright=True).splitlines()
    assert [line.split()[0] for line in upright] == header.split()
    assert upright[3].split() == ["network.hidden", "(8,)", "(9,)"]
    curves = compare_runs.plot(runs).lines
    assert [line.get_label() for line in curves] == [
        "<a> train",
        "<a> test",
        "<b> train",
        "<b> test",
    ]
    assert curves[0].get_color() != curves[2].get_color()

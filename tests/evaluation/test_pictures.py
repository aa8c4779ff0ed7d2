"""Pictures: real ones, in which things can be told apart, and nothing is drawn over something else."""

import numpy as np
import pyarrow as pa
import pytest
from matplotlib import pyplot
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image
from studies.pictures import plot_study
from studies.study import Study, Variant

from ad_hf.evaluation.curves import Curve
from ad_hf.evaluation.pictures import plot_curves, plot_rooms, rooms_of
from ad_hf.evaluation.returns import evaluation_rows
from ad_hf.evaluation.rollouts import Evaluation
from ad_hf.evaluation.style import AD_COLOUR, COLOURS, GREY, SOURCE_COLOUR, colours, tasks_words, world_name
from ad_hf.evaluation.summary import summarize


def make_curve(num_episodes, steps_per_episode, top, floor=0.0):
    mean = floor + np.linspace(0.1, top, num_episodes)
    return Curve(steps_per_episode * np.arange(1.0, num_episodes + 1), mean, mean - 0.1, mean + 0.1).to_json()


def timed(ad=40, source=4000, level=2.7, ratio=100.0):
    steps = {"env_steps": ad, "source": source, "level": level, "gain_of": "source", "at_start": False, "ratio": ratio}
    return {"50%": {**steps, "level": level and level - 1}, "90%": steps}


def make_evaluation(steps_to=None, floor=0.0, **entries):
    learns = {"verdict": "learns", "of": "episodes"}
    own = {"num_tasks": 3, "learns": learns, "steps_to": steps_to or timed(), "curve": make_curve(20, 4, 3.0, floor)}
    return {
        "env_id": "ad_hf/DarkRoom-v0",
        "of": "return of an episode",
        "optimal_return": 4.0,
        "random_return": 0.1,
        "source": {"algorithm": "A2C"},
        "tasks": 3 * [{"kwargs": {"goal": [0, 1]}}],
        "agents": {"AD": own, "source": {"curve": make_curve(50, 400, 3.5, floor)}, "random": {"curve": None}},
        **entries,
    }


def pixels_of(image, colour):
    distance = np.abs(np.asarray(image.convert("RGB"), dtype=float) / 255 - to_rgb(colour)).max(axis=-1)
    return (distance < 0.02).sum()


@pytest.mark.parametrize(
    "entries",
    [
        {},
        {"optimal_return": None},
        {"steps_to": timed(source=None, ratio=None)},
        {"steps_to": timed(None, None, ratio=None)},
        {"steps_to": timed(None, None, None, None), "random_return": None},
        {"steps_to": timed(None, None, -7.0, None), "floor": -10.0, "optimal_return": None, "random_return": -9.9},
    ],
    ids=["complete", "no optimum", "source never gets there", "neither gets there", "no levels", "negative"],
)
def test_both_curves_are_drawn_whatever_is_known_of_them(tmp_path, entries):
    plot_curves(tmp_path / ".curve.png.1.tmp", make_evaluation(**entries))

    assert not pyplot.get_fignums()
    with Image.open(tmp_path / ".curve.png.1.tmp") as image:
        assert image.format == "PNG"
        assert min(image.size) > 400
        plot = image.crop((0, image.height // 4, image.width, image.height))  # below the legend
        assert pixels_of(plot, AD_COLOUR) > 300
        assert pixels_of(plot, SOURCE_COLOUR) > 300


def test_nothing_is_drawn_over_the_curves_and_nothing_is_cut_off(tmp_path, saved_figures, make_summary):
    plot_curves(tmp_path / "one.png", make_evaluation())
    plot_curves(tmp_path / "two.png", {**make_summary({"AD": 3.0, "ED": 1.0}), "varied": "what is learnt from"})

    for figure in saved_figures:
        (axes,) = figure.axes
        legend = axes.get_legend().get_window_extent()
        assert not legend.overlaps(axes.get_window_extent())
        assert not legend.overlaps(axes.title.get_window_extent())
        for box in (legend, *(text.get_window_extent() for text in (*axes.texts, *figure.texts, axes.title))):
            assert figure.bbox.x0 <= box.x0
            assert box.x1 <= figure.bbox.x1 + 1
            assert box.y1 <= figure.bbox.y1 + 1
    one, two = (figure.axes[0] for figure in saved_figures)
    assert one.get_title(loc="left") == "Dark Room: 3 goals never seen in training"
    assert two.get_legend().get_title().get_text() == "what is learnt from"
    assert "4,000" in " ".join(text.get_text() for text in one.texts)
    curves = {line.get_color(): line for line in one.lines if len(line.get_xdata()) > 2}
    dots = [line for line in one.lines if line.get_marker() == "o"]
    assert len(dots) == 4
    for dot, colour in zip(dots, 2 * [AD_COLOUR, SOURCE_COLOUR]):
        (x,), (y,) = dot.get_data()
        assert y == pytest.approx(np.interp(x, *curves[colour].get_data()))


def test_titles_are_words():
    ids = ("ad_hf/DarkKeyToDoor-v0", "FrozenLake-v1", "walled_room:WalledRoom-v0", "MiniGrid-Fetch-5x5-N2-v0")
    words = ["Dark Key-to-Door", "Frozen Lake", "Walled Room", "Mini Grid-Fetch-5x5-N2"]
    assert list(map(world_name, ids)) == words
    assert tasks_words(1, [{"goal": [0, 1]}]) == "1 goal"
    assert tasks_words(1200, [{"key": [0, 1], "door": [1, 1]}]) == "1,200 tasks"
    assert tasks_words(2, [{"desc": ["SG"]}]) == "2 maps"


def test_a_model_is_drawn_alone_where_nothing_is_known_of_its_source(tmp_path):
    evaluation = make_evaluation(steps_to=timed(source=None, ratio=None), source=None)
    del evaluation["agents"]["source"]
    plot_curves(tmp_path / "curve.png", evaluation)

    with Image.open(tmp_path / "curve.png") as image:
        assert pixels_of(image, AD_COLOUR) > 300
        assert pixels_of(image, SOURCE_COLOUR) == 0
        assert pixels_of(image, GREY) > 100


@pytest.fixture
def make_summary(dark_room_family):
    """An evaluation of agents of given names and final returns, on three tasks."""

    def make(ends):
        tasks = dark_room_family.tasks("test")[:3]
        tables = []
        for name, end in ends.items():
            returns = np.linspace(0, end, 12) + np.zeros((2, len(tasks), 12))
            evaluation = Evaluation(tasks, returns, np.full(returns.shape, 4), seed=0)
            tables.append(evaluation_rows(evaluation, dark_room_family, name, training_seed=0))
        return {"env_id": "ad_hf/DarkRoom-v0", **summarize(pa.concat_tables(tables))}

    return make


@pytest.fixture
def saved_figures(monkeypatch):
    """Figures that were saved, newest last."""
    figures, savefig = [], Figure.savefig

    def save(figure, *args, **kwargs):
        figures.append(figure)
        savefig(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", save)
    return figures


@pytest.mark.parametrize("count", [2, 5, 12])
def test_as_many_colours_as_names(count):
    names = [*COLOURS, *(f"variant {index}" for index in range(count))]
    shades = colours(names)
    assert len({shades[name] for name in names}) == len(names)
    assert shades["AD"] == COLOURS["AD"]


def test_bands_are_left_out_where_they_would_hide_each_other(make_summary, tmp_path, saved_figures):
    plot_curves(tmp_path / "few.png", make_summary({"AD": 3.0, "ED": 1.0}))
    plot_curves(tmp_path / "many.png", make_summary({f"variant {index}": 1.0 + index for index in range(9)}))

    few, many = (figure.axes[0] for figure in saved_figures)
    assert (len(few.collections), len(many.collections)) == (2, 0)
    assert "95%" in saved_figures[0].texts[0].get_text()
    assert "95%" not in saved_figures[1].texts[0].get_text()


def test_rooms_of_many_agents_stand_in_rows(make_summary, tmp_path, saved_figures):
    two, six = (make_summary({f"variant {index}": 1.0 + index for index in range(count)}) for count in (2, 6))

    plot_rooms(tmp_path / "two.png", two)
    plot_rooms(tmp_path / "six.png", six)

    with Image.open(tmp_path / "two.png") as small, Image.open(tmp_path / "six.png") as large:
        assert large.width < 2.2 * small.width
        assert large.height > 1.7 * small.height
    (x, y), share = rooms_of(two)["variant 1"][0]
    assert saved_figures[0].axes[1].images[0].get_array()[y, x] == pytest.approx(share)
    two["tasks"][0]["kwargs"] = {"seed": 3}
    assert not rooms_of(two)


def test_each_thing_that_a_study_varies_is_a_line_of_its_own(make_summary, tmp_path, saved_figures):
    ends = {"width 16": 1.0, "width 32": 2.0, "2 layers": 1.5, "6 layers": 2.5}
    variants = {name: Variant(series=name.strip("0123456789 "), paper=2.0) for name in ends}
    study = Study("size", "A long title, of more letters than fit above a picture of this width", "", variants)

    plot_study(tmp_path / "study.png", study, make_summary(ends))

    (figure,) = saved_figures
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["16", "32", "2", "6"]
    assert [text.get_text() for text in axes.texts] == ["width", "layers"]
    assert all(container.lines[0].get_linestyle() == "None" for container in axes.containers)  # variants are no scale
    ours = [container.lines[0].get_ydata().tolist() for container in axes.containers]
    assert ours == [[pytest.approx(end * 13 / 22) for end in pair] for pair in ((1.0, 2.0), (1.5, 2.5))]
    assert axes.title.get_window_extent().x1 <= figure.bbox.x1


def test_series_over_the_same_numbers_are_lines(make_summary, tmp_path, saved_figures):
    ends = {"full 100": 1.0, "full 400": 2.0, "mixed 100": 1.5, "mixed 400": 2.5}
    variants = {name: Variant(series=name.split()[0], place=float(name.split()[1])) for name in ends}

    plot_study(tmp_path / "study.png", Study("memory", "Layers", "", variants, varied="steps"), make_summary(ends))

    (axes,) = saved_figures[0].axes
    assert (axes.get_xscale(), axes.get_xlabel()) == ("log", "steps")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["100", "400"]
    lines = {container.get_label(): container.lines[0] for container in axes.containers}
    assert {name: line.get_ydata().tolist() for name, line in lines.items()} == {
        name: [pytest.approx(ends[f"{name} {steps}"] * 13 / 22) for steps in (100, 400)] for name in ("full", "mixed")
    }
    for line in lines.values():
        assert line.get_xdata().tolist() == pytest.approx([100, 400], rel=0.02)

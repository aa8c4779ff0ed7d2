"""Pictures: real ones, with both curves in them."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from ad_hf.evaluation.curves import Curve
from ad_hf.evaluation.plots import AD_COLOUR, OPTIMUM_COLOUR, SOURCE_COLOUR, plot_learning_curves


def make_curve(num_episodes, steps_per_episode, top):
    mean = np.linspace(0.1, top, num_episodes)
    return Curve(steps_per_episode * np.arange(1.0, num_episodes + 1), mean, mean - 0.1, mean + 0.1)


def timed(ad=40, source=4000, level=2.7, ratio=100.0):
    steps = {"ad": ad, "source": source, "level": level, "gain_of": "source", "at_start": False, "ratio": ratio}
    return {"50%": {**steps, "level": level and level - 1}, "90%": steps}


def make_report(**entries):
    return {
        "optimal_return": 4.0,
        "random_return": 0.1,
        "learns": {"verdict": "learns", "of": "episodes"},
        "env_steps_to": timed(),
        "num_test_tasks": 3,
        "num_rollout_seeds": 2,
        "env_id": "ad_hf/DarkRoom-v0",
        "source": {"algorithm": "A2C"},
        "curves": {"of": "return of an episode"},
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
        {"env_steps_to": timed(source=None, ratio=None)},
        {"env_steps_to": timed(None, None, ratio=None)},
        {"env_steps_to": timed(None, None, None, None), "random_return": None},
    ],
    ids=["complete", "no optimum", "source never gets there", "neither gets there", "no levels"],
)
@pytest.mark.parametrize("name", ["curve.png", ".curve.png.1.tmp"])
def test_draws_both_curves_whatever_is_known_of_them(tmp_path, entries, name):
    plot_learning_curves(tmp_path / name, make_curve(20, 4, 3.0), make_curve(50, 400, 3.5), make_report(**entries))

    with Image.open(tmp_path / name) as image:
        assert image.format == "PNG"
        assert min(image.size) > 400
        assert pixels_of(image, AD_COLOUR) > 300
        assert pixels_of(image, SOURCE_COLOUR) > 300


def test_draws_a_models_curve_alone_where_nothing_is_known_of_its_source(tmp_path):
    report = make_report(env_steps_to=timed(source=None, ratio=None), source=None)
    plot_learning_curves(tmp_path / "curve.png", make_curve(20, 4, 3.0), None, report)

    with Image.open(tmp_path / "curve.png") as image:
        assert pixels_of(image, AD_COLOUR) > 300
        assert pixels_of(image, SOURCE_COLOUR) == 0
        assert pixels_of(image, OPTIMUM_COLOUR) > 100


def test_negative_returns_are_in_the_picture(tmp_path):
    ad, source = make_curve(20, 4, 3.0), make_curve(50, 400, 3.5)
    for curve in (ad, source):
        curve.mean, curve.low, curve.high = curve.mean - 10, curve.low - 10, curve.high - 10
    report = make_report(optimal_return=None, random_return=-9.9, env_steps_to=timed(None, None, -7.0, None))
    plot_learning_curves(tmp_path / "curve.png", ad, source, report)

    with Image.open(tmp_path / "curve.png") as image:
        plot = image.crop((0, image.height // 3, image.width, image.height))  # below the legend
        assert pixels_of(plot, AD_COLOUR) > 300
        assert pixels_of(plot, SOURCE_COLOUR) > 300


def test_leaves_no_figure_open_in_pyplot(tmp_path):
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    plot_learning_curves(tmp_path / "curve.png", make_curve(20, 4, 3.0), make_curve(50, 400, 3.5), make_report())
    assert pyplot.get_fignums() == before

"""Pictures of several agents: what can be told apart in them, and that nothing is drawn over something else."""

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from studies.study import Study, Variant

from ad_hf.evaluation.agent_plots import COLOURS, colours, plot_agents, plot_rooms, plot_study, rooms_of
from ad_hf.evaluation.evaluate import Evaluation
from ad_hf.evaluation.protocol import agents_of, evaluation_rows


@pytest.fixture
def make_agents(dark_room_family):
    """Agents of given names and final returns, on three tasks."""

    def make(ends):
        tasks = dark_room_family.tasks("test")[:3]
        tables = []
        for name, end in ends.items():
            returns = np.linspace(0, end, 12) + np.zeros((2, len(tasks), 12))
            evaluation = Evaluation(tasks, returns, np.full(returns.shape, 4), seed=0)
            tables.append(evaluation_rows(evaluation, dark_room_family, name, training_seed=0))
        return agents_of(pa.concat_tables(tables))

    return make


@pytest.fixture
def saved_figures(monkeypatch):
    """Figures that were saved, newest last."""
    from matplotlib.figure import Figure

    found, savefig = [], Figure.savefig

    def save(figure, *args, **kwargs):
        found.append(figure)
        savefig(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", save)
    return found


@pytest.mark.parametrize("count", [2, 5, 12])
def test_as_many_colours_as_names(count):
    names = [*COLOURS, *(f"variant {index}" for index in range(count))]

    found = colours(names)

    assert len({found[name] for name in names}) == len(names)
    assert found["AD"] == COLOURS["AD"]


def test_bands_are_left_out_where_they_would_hide_each_other(make_agents, tmp_path, saved_figures):
    plot_agents(tmp_path / "few.png", make_agents({"AD": 3.0, "ED": 1.0}), "few")
    plot_agents(tmp_path / "many.png", make_agents({f"variant {index}": 1.0 + index for index in range(9)}), "many")

    few, many = (figure.axes[0] for figure in saved_figures)
    assert (len(few.collections), len(many.collections)) == (2, 0)
    assert "95%" in saved_figures[0].texts[0].get_text()
    assert "95%" not in saved_figures[1].texts[0].get_text()


def test_rooms_of_many_agents_stand_in_rows(make_agents, tmp_path):
    agents = make_agents({f"variant {index}": 1.0 + index for index in range(6)})
    shown = rooms_of(agents)

    plot_rooms(tmp_path / "two.png", shown[:2])
    plot_rooms(tmp_path / "six.png", shown)

    with Image.open(tmp_path / "two.png") as two, Image.open(tmp_path / "six.png") as six:
        assert six.width < 2.2 * two.width
        assert six.height > 1.8 * two.height


def test_each_thing_that_a_study_varies_is_a_line_of_its_own(make_agents, tmp_path, saved_figures):
    ends = {"width 16": 1.0, "width 32": 2.0, "2 layers": 1.5, "6 layers": 2.5}
    variants = {name: Variant(series=name.strip("0123456789 "), paper=2.0) for name in ends}
    study = Study("size", "A long title, of more letters than fit above a picture of this width", "", variants)

    plot_study(tmp_path / "study.png", study, make_agents(ends))

    (axes,) = saved_figures[0].axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["16", "32", "2", "6"]
    assert [text.get_text() for text in axes.texts] == ["width", "layers"]
    ours = [container.lines[0].get_ydata().tolist() for container in axes.containers]
    assert ours == [[pytest.approx(end * 13 / 22) for end in pair] for pair in ((1.0, 2.0), (1.5, 2.5))]
    figure = saved_figures[0]
    assert axes.title.get_window_extent().x1 <= figure.bbox.x1

"""Tasks at random: what is drawn, and what cannot be."""

import json

import numpy as np
import pytest

from ad_hf.envs.task_family import TaskFamily
from ad_hf.envs.tasks import draw_tasks

MAP = "gymnasium.envs.toy_text.frozen_lake.generate_random_map"
VALUES = {
    "gravity": {"low": 2.0, "high": 18.0},
    "sign": {"choices": [-10, "ten", [1, 2]]},
    "count": {"low": 1, "high": 3, "integer": True},
    "rate": {"low": 1e-3, "high": 1, "log": True},
    "means": {"low": -1, "high": 1, "shape": [2, 3]},
    "desc": {"function": MAP, "kwargs": {"size": 3, "p": 0.7}},
}


def values_of(name, num_tasks=2000, **random):
    return [task[name] for task in draw_tasks({"num_tasks": num_tasks, "values": VALUES, **random})]


def test_values_are_what_was_asked_for():
    numbers = {name: value for name, value in VALUES.items() if name != "desc"}
    tasks = draw_tasks({"num_tasks": 2000, "values": numbers})
    gravities, rates = np.array([[task["gravity"], task["rate"]] for task in tasks]).T
    assert (gravities.min() >= 2, gravities.max() < 18) == (True, True)
    assert np.histogram(gravities, 8, (2, 18))[0].min() > 180
    assert np.histogram(np.log10(rates), 3, (-3, 0))[0].min() > 550
    assert {json.dumps(task["sign"]) for task in tasks} == {"-10", '"ten"', "[1, 2]"}
    counts = [task["count"] for task in tasks]
    assert {type(count) for count in counts} == {int}
    assert min(counts.count(number) for number in (1, 2, 3)) > 550
    assert np.shape([task["means"] for task in tasks]) == (2000, 2, 3)
    for rows in values_of("desc", 50):
        assert ([len(row) for row in rows], rows[0][0], rows[2][2]) == ([3, 3, 3], "S", "G")


def test_tasks_are_json_and_a_function_of_their_seed_and_own_values():
    tasks = draw_tasks({"num_tasks": 9, "values": VALUES})
    assert json.loads(json.dumps(tasks)) == tasks == draw_tasks({"num_tasks": 9, "seed": 0, "values": VALUES})
    assert values_of("gravity", seed=1) != values_of("gravity")
    alone = draw_tasks({"num_tasks": 9, "values": {"gravity": VALUES["gravity"]}})
    turned = draw_tasks({"num_tasks": 9, "values": dict(reversed(VALUES.items()))})
    assert [task["gravity"] for task in alone] == [task["gravity"] for task in turned] == values_of("gravity", 9)
    for values in (VALUES, {"a": {"choices": list(range(12))}}):  # more tasks begin with the same ones
        longer = draw_tasks({"num_tasks": 12, "values": values})
        assert [draw_tasks({"num_tasks": number, "values": values}) for number in (1, 7)] == [longer[:1], longer[:7]]


def test_no_two_tasks_are_equal():
    grid = {"a": {"low": 0, "high": 4, "integer": True}, "b": {"choices": [1, 2]}}
    tasks = draw_tasks({"num_tasks": 10, "values": grid})
    assert sorted((task["a"], task["b"]) for task in tasks) == [(a, b) for a in range(5) for b in (1, 2)]
    with pytest.raises(ValueError, match=r"family\.random\.num_tasks.* 10 different tasks, fewer than 11"):
        draw_tasks({"num_tasks": 11, "values": grid})


@pytest.mark.parametrize(
    ("random", "named"),
    [
        ({"values": VALUES}, r"random: expected the settings num_tasks, values"),
        ({"num_tasks": 3}, "random: expected"),
        (3, "random: expected"),
        ({"num_tasks": 3, "values": VALUES, "sed": 1}, r"unknown setting family\.random\.sed"),
        ({"num_tasks": 0, "values": VALUES}, r"random\.num_tasks .*at least 1.*, got 0"),
        ({"num_tasks": 10**8, "values": VALUES}, r"random\.num_tasks .*at most 10000000, got 1000"),
        ({"num_tasks": "3", "values": VALUES}, r"random\.num_tasks"),
        ({"num_tasks": 3, "seed": -1, "values": VALUES}, r"random\.seed .*-1"),
        ({"num_tasks": 3, "values": {}}, r"random\.values"),
        ({"num_tasks": 3, "values": [1]}, r"random\.values"),
    ],
)
def test_wrong_settings_of_random_tasks_are_named(random, named):
    with pytest.raises(ValueError, match=named):
        draw_tasks(random)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (3, "expected {low"),
        ({"lo": 1, "high": 2}, "expected {low"),
        ({"low": 1}, "expected the settings high, low"),
        ({"low": 1, "high": 2, "step": 1}, r"step: expected one of low, high, integer, log, shape"),
        ({"low": 2, "high": 1}, r"low must not be above high, got low 2 and high 1"),
        ({"low": "a", "high": 1}, r"low must be a whole number or a finite number, got 'a'"),
        ({"low": 0, "high": float("inf")}, r"high must be a whole number or a finite number"),
        ({"low": 0.5, "high": 2, "integer": True}, r"must be whole numbers .*got 0.5"),
        ({"low": 0, "high": 1, "log": True}, r"log needs a low above 0"),
        ({"low": 1, "high": 4, "log": True, "integer": True}, r"log needs"),
        ({"low": 1, "high": 4, "log": "yes"}, r"log must be true or false"),
        ({"low": 0, "high": 1, "shape": 3}, r"shape must be a list"),
        ({"low": 0, "high": 1, "shape": [0]}, r"shape must hold whole numbers above 0"),
        ({"choices": []}, r"choices must be a non-empty list"),
        ({"choices": 3}, r"choices must be a list"),
        ({"choices": [float("nan")]}, "must be JSON"),
        ({"choices": [1], "kwargs": {}}, r"kwargs: expected one of choices"),
        ({"function": "gymnasium.no_such_function"}, r"function must be the import path.*no_such_function"),
        ({"function": 3}, r"function must be text"),
        ({"function": MAP, "kwargs": {"sise": 3}}, r"function failed.*sise"),
        ({"function": MAP, "kwargs": {"seed": 3}}, r"kwargs must hold keyword arguments other than seed"),
        ({"function": "gymnasium.spaces.Discrete", "kwargs": {"n": 3}}, "must be JSON"),
    ],
)
def test_wrong_values_are_named(value, named):
    with pytest.raises(ValueError, match=rf"family\.random\.values\.g.*{named}"):
        draw_tasks({"num_tasks": 3, "values": {"g": value}})


def test_a_family_may_be_drawn_whole_or_by_split():
    random = {"num_tasks": 10, "values": {"g": VALUES["gravity"]}}
    family = TaskFamily("Pendulum-v1", random=random, num_validation_tasks=1, num_test_tasks=2)
    assert [len(family.tasks(split)) for split in ("train", "validation", "test")] == [7, 1, 2]
    drawn = [task["g"] for task in draw_tasks(random)]
    assert [task.kwargs["g"] for task in family.tasks()] == drawn
    assert [env.unwrapped.g for env in family.make_vec(family.tasks()[:2]).envs] == drawn[:2]
    low, high = ({"num_tasks": 4, "values": {"g": {"low": g, "high": g + 1}}} for g in (2, 9))
    splits = {"train": {"random": low}, "test": {"random": high}}
    tasks = TaskFamily("Pendulum-v1", splits=splits).tasks()
    assert [round(np.floor(task.kwargs["g"])) for task in tasks] == [2] * 4 + [9] * 4
    high["num_tasks"] = 0
    with pytest.raises(ValueError, match=r"family\.splits\.test\.random\.num_tasks"):
        TaskFamily("Pendulum-v1", splits=splits)

"""Task families: tasks, their split, and the vector environments over them."""

import math
from collections import Counter
from dataclasses import fields, replace
from inspect import signature

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

from ad_hf.envs.dark_room import DarkRoomVectorEnv, goal_distance, optimal_return
from ad_hf.envs.task_family import SPLITS, FamilyConfig, TaskFamily

ROOM = "ad_hf/DarkRoom-v0"
GOALS = [{"goal": [x, y]} for x in range(9) for y in range(9)]
SPLIT_GOALS = {"train": [{"goal": [0, 0]}, {"goal": [1, 0]}], "test": [{"goal": [2, 2]}]}


def split_ids(family):
    return {split: [task.task_id for task in family.tasks(split)] for split in SPLITS}


@given(data=st.data(), stratify_by=st.sampled_from([None, goal_distance]), split_seed=st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_splits_are_disjoint_of_the_sizes_asked_for_and_a_function_of_their_seed(data, stratify_by, split_seed):
    number = data.draw(st.integers(1, 81))
    num_test_tasks = data.draw(st.integers(0, number - 1))
    num_validation_tasks = data.draw(st.integers(0, number - 1 - num_test_tasks))
    held_out = {"num_validation_tasks": num_validation_tasks, "num_test_tasks": num_test_tasks}
    config = FamilyConfig(ROOM, GOALS[:number], stratify_by=stratify_by, split_seed=split_seed, **held_out)
    family = TaskFamily(config)
    left = number - num_test_tasks - num_validation_tasks
    sizes = {"train": left, "validation": num_validation_tasks, "test": num_test_tasks}
    assert {split: len(ids) for split, ids in split_ids(family).items()} == sizes
    assert [(task.task_id, task.kwargs) for task in family.tasks()] == list(enumerate(GOALS[:number]))
    fewer = TaskFamily(config, num_train_tasks=data.draw(st.integers(1, left)))
    for split in ("validation", "test"):
        assert fewer.tasks(split) == family.tasks(split)
    assert set(split_ids(fewer)["train"]) <= set(split_ids(family)["train"])


def largest_gap(distances, all_distances):
    """Kolmogorov-Smirnov distance between two distributions of distances."""
    thresholds = np.unique(all_distances)
    return max(abs(np.mean(distances <= value) - np.mean(all_distances <= value)) for value in thresholds)


def test_stratified_splits_have_the_distances_of_the_whole_and_are_drawn():
    everything = np.array([goal_distance(**kwargs) for kwargs in GOALS])
    gaps, held_out = {True: [], False: []}, Counter()
    for split_seed in range(60):
        for stratified in (True, False):
            sizes = {"num_validation_tasks": 9, "num_test_tasks": 16, "split_seed": split_seed}
            family = TaskFamily(ROOM, GOALS, stratify_by=goal_distance if stratified else None, **sizes)
            held_out.update(split_ids(family)["test"] if stratified else [])
            for split, bound in (("train", 0.08), ("validation", 2 / 9), ("test", 2 / 16)):
                gap = largest_gap(np.array([goal_distance(**task.kwargs) for task in family.tasks(split)]), everything)
                gaps[stratified].append(gap)
                assert gap <= bound or not stratified, (split_seed, split)
    assert np.mean(gaps[True]) < 0.5 * np.mean(gaps[False])
    assert set(held_out) == set(range(81))


def test_the_config_is_the_argument_and_its_settings_may_be_given_instead():
    config = FamilyConfig(
        env_id=ROOM,
        env_kwargs={"size": 9, "max_episode_steps": 10},
        tasks=GOALS,
        num_test_tasks=16,
        stratify_by="ad_hf.envs.dark_room.goal_distance",
        optimal_return="ad_hf.envs.dark_room.optimal_return",
    )
    family = TaskFamily(config)
    same = TaskFamily(ROOM, GOALS, config.env_kwargs, num_test_tasks=16, stratify_by=goal_distance)
    assert split_ids(family) == split_ids(same)
    assert split_ids(TaskFamily(config, split_seed=1)) == split_ids(TaskFamily(replace(config, split_seed=1)))
    assert split_ids(TaskFamily(config, split_seed=1)) != split_ids(family)
    chosen = family.tasks("test")
    expected = [optimal_return(size=9, max_episode_steps=10, **task.kwargs) for task in chosen]
    assert family.optimal_returns(chosen).tolist() == expected
    assert same.optimal_returns(chosen) is None
    assert list(signature(TaskFamily).parameters) == [each.name for each in fields(FamilyConfig)]


def test_the_family_of_a_recipe_is_read_without_its_other_sections(tmp_path):
    family = TaskFamily.from_recipe("dark_room")
    tasks = family.tasks()
    assert sorted(tuple(task.kwargs["goal"]) for task in tasks) == [(x, y) for x in range(9) for y in range(9)]
    assert {split: len(ids) for split, ids in split_ids(family).items()} == {"train": 57, "validation": 8, "test": 16}
    assert family.optimal_returns(tasks).mean() == pytest.approx(16.54, abs=0.01)
    assert isinstance(family.make_vec(tasks[:3], seed=0).unwrapped, DarkRoomVectorEnv)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("family: {env_id: CartPole-v1, tasks: [{}]}\ntraining: {no_such_setting: 3}")
    assert TaskFamily.from_recipe(recipe).env_id == "CartPole-v1"
    for text, message in {
        "training: {max_steps: 3}": "a family needs env_id",
        "family: {env_od: 3}": r"unknown setting family\.env_od",
        "family: 3": "section family must hold settings, got 3",
    }.items():
        recipe.write_text(text)
        with pytest.raises(ValueError, match=f"^recipe {recipe}: {message}"):
            TaskFamily.from_recipe(recipe)
    with pytest.raises(FileNotFoundError, match=r"'dark_rom' .did you mean dark_room.*expected one of bandit"):
        TaskFamily.from_recipe("dark_rom")


def test_grids_are_products_and_splits_may_be_lists_or_grids():
    grid = {"goal": {"shape": [2, 2]}, "sparse_reward": [True, False]}
    kwargs = [task.kwargs for task in TaskFamily(ROOM, grid=grid).tasks()]
    assert kwargs == [
        {"goal": [x, y], "sparse_reward": sparse} for x in (0, 1) for y in (0, 1) for sparse in (True, False)
    ]
    bandits = {"rewarding": ["odd"], "task_seed": {"range": [5, 8]}}
    splits = {"test": {"tasks": [{"rewarding": "even", "task_seed": 1}]}, "train": {"grid": bandits}}
    family = TaskFamily("ad_hf/AdversarialBandit-v0", splits=splits)
    assert [(task.task_id, task.split, task.kwargs["task_seed"]) for task in family.all_tasks] == [
        *((index, "train", seed) for index, seed in enumerate((5, 6, 7))),
        (3, "test", 1),
    ]
    assert family.tasks("validation") == []
    assert split_ids(TaskFamily(ROOM, splits=SPLIT_GOALS)) == {"train": [0, 1], "validation": [], "test": [2]}
    assert len(TaskFamily("Foo-v0", [{}, {}]).tasks()) == 2  # nothing says that they are the same


def given_number(number):
    return lambda **task: number


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"env_id": ""}, "env_id and one of tasks, grid, random, splits"),
        ({"tasks": None}, "env_id and one of tasks, grid, random, splits, .* none of them"),
        ({"grid": {"goal": {"shape": [9, 9]}}}, "got .*tasks and grid"),
        ({"random": {"num_tasks": 3, "values": {"goal": {"choices": [[0, 0]]}}}}, "got .*tasks and random"),
        *(
            ({"tasks": None, "grid": {"goal": values}}, r"family\.grid\.goal")
            for values in ([], 3, {"shape": [0]}, {"shape": []} | {"size": 2}, {"range": [2]}, {"range": [2, 2]})
        ),
        ({"tasks": None, "grid": {"goal": {"shape": [10**4, 10**4]}}}, "stands for 100,000,000 tasks"),
        *(
            ({name: path}, f"family.{name}.*{path}")
            for name in ("stratify_by", "optimal_return")
            for path in ("ad_hf.envs.dark_room.no_such_function", "no_such_module.f", "ad_hf.envs.dark_room")
        ),
        ({"optimal_return": 3}, r"family\.optimal_return must be text or a function"),
        ({"num_validation_tasks": 40, "num_test_tasks": 41}, "leave none of 81 tasks to train on"),
        ({"num_test_tasks": -1}, r"family\.num_test_tasks must be at least 0"),
        ({"num_test_tasks": 15, "num_train_tasks": 67}, "num_train_tasks must be from 1 to 66"),
        ({"task_ids": {"train": [0]}}, "task_ids are the numbers of the tasks of family.splits"),
        ({"num_train_tasks": 0}, r"family\.num_train_tasks must be at least 1"),
        ({"report_by": "door"}, r"family\.report_by: no task has the keyword argument 'door'"),
        ({"attributes": ["tau"]}, r"family\.attributes.* for tau"),
        ({"native_vector": True, "attributes": ["goal"]}, "native_vector makes none"),
        ({"native_vector": True, "wrappers": ["gymnasium.wrappers.FlattenObservation"]}, "native_vector makes none"),
        *(
            ({"tasks": None, "splits": splits, **more}, message)
            for splits, more, message in (
                ({"training": {"tasks": GOALS}}, {}, "splits must be of train, validation, test"),
                ({"test": {"tasks": GOALS}}, {}, "with tasks to train on"),
                ({"train": {}}, {}, r"splits\.train needs one of tasks"),
                ({"train": [3]}, {}, r"splits\.train\.tasks: \[0\] must be a mapping"),
                ({"train": {"tasks": GOALS, "grid": {"goal": [[0, 0]]}}}, {}, r"splits\.train needs one of tasks"),
                (SPLIT_GOALS, {"num_test_tasks": 1}, "says which tasks each split has"),
                ({"train": GOALS[:2]}, {"task_ids": {"train": [3, 3]}}, "task_ids must hold a different whole number"),
                ({"train": GOALS[:2]}, {"task_ids": {"train": [3]}}, r"task_ids.*which have {'train': 2} tasks"),
                ({"train": GOALS[:2], "test": GOALS[1:2]}, {}, r"train\[1\] and test\[0\] are the same task"),
            )
        ),
        ({"tasks": [{"goal": [0, 1]}, {"goal": [0, 0]}, {"goal": (0, 1)}]}, r"tasks\[0\] and tasks\[2\] are the same"),
        ({"tasks": [{"goal": [0, 1]}, {"goal": np.array([0.0, 1.0])}]}, r"tasks\[0\] and tasks\[1\] are the same"),
    ],
)
def test_families_that_are_none_are_refused_by_setting(settings, message):
    with pytest.raises(ValueError, match=message):
        TaskFamily(**{"env_id": ROOM, "tasks": GOALS, **settings})


@pytest.mark.parametrize("setting", ["stratify_by", "optimal_return", "random_return"])
@pytest.mark.parametrize(
    ("function", "message"),
    [
        (math.sqrt, "failed for the keyword arguments .*'goal'.* TypeError"),
        (lambda **task: task, "returned {.* expected a finite number"),
        (given_number("3"), "returned '3'"),
        (given_number([[1], [2, 3]]), "returned .* expected a finite number"),
        (given_number(np.nan), "returned nan"),
        *((given_number(number), None) for number in (2, np.int64(2), np.float32(2.0), np.array(2.0))),
    ],
)
def test_functions_of_tasks_have_to_return_numbers(setting, function, message):
    def call():
        family = TaskFamily(ROOM, GOALS, num_test_tasks=1, **{setting: function})
        return family.optimal_returns(family.tasks()), family.random_returns(family.tasks())

    if message is None:
        call()
    else:
        with pytest.raises(ValueError, match=rf"^family\.{setting} {message}"):
            call()


@pytest.mark.parametrize("autoreset_mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_native_and_one_by_one_environments_agree(autoreset_mode):
    tasks = [{"goal": [x, y]} for x in range(5) for y in range(2)]
    rollouts, pictures = [], []
    for native, kind in ((True, DarkRoomVectorEnv), (False, SyncVectorEnv)):
        family = TaskFamily(ROOM, tasks, {"size": 5, "max_episode_steps": 6}, native_vector=native)
        envs = family.make_vec(family.tasks(), num_envs=20, seed=5, autoreset_mode=autoreset_mode)
        assert isinstance(envs.unwrapped, kind)
        rollouts.append([envs.reset()[0], *(envs.step(envs.action_space.sample())[:-1] for _ in range(30))])
        pictures.append(family.make_vec(family.tasks()[:2], render_mode="rgb_array", seed=0).render())
    assert str(rollouts[0]) == str(rollouts[1])
    assert sum(rewards.sum() for _, rewards, *_ in rollouts[0][1:]) > 0
    assert [[frame.shape for frame in each] for each in pictures] == [[(80, 80, 3)] * 2] * 2


def test_tasks_of_a_gymnasium_classic_are_its_arguments():
    tasks = [{"is_slippery": slippery, "desc": desc} for slippery in (False, True) for desc in (["SFG"], ["SHG"])]
    family = TaskFamily("FrozenLake-v1", tasks, {"max_episode_steps": 5})
    envs = family.make_vec(family.tasks(), num_envs=8)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert [env.unwrapped.desc.tobytes().decode() for env in envs.envs] == ["SFG", "SHG"] * 4
    assert [env.spec.kwargs["is_slippery"] for env in envs.envs] == [False, False, True, True] * 2
    assert {env.spec.max_episode_steps for env in envs.envs} == {5}
    envs.reset(seed=0)
    terminations = envs.step(np.full(8, 2))[2]  # to the right: into the hole, or onto firm ice
    assert terminations[[0, 1, 4, 5]].tolist() == [False, True, False, True]


def test_seed_decides_the_course_of_random_environments():
    family = TaskFamily("FrozenLake-v1", [{"is_slippery": True, "map_name": "4x4"}])

    def trajectory(seed):
        envs = family.make_vec(family.tasks(), num_envs=4, seed=seed)
        first = envs.reset()[0]
        return str((first, [envs.step(envs.action_space.sample())[0] for _ in range(20)]))

    assert trajectory(1) == trajectory(1)
    assert trajectory(1) != trajectory(2)


def test_environments_that_cannot_be_made_are_refused():
    family = TaskFamily(ROOM, GOALS)
    for num_envs in (0, 1, 3, -2):
        with pytest.raises(ValueError, match=f"multiple of the 2 tasks, got {num_envs}"):
            family.make_vec(family.tasks()[:2], num_envs=num_envs)
    with pytest.raises(ValueError, match="multiple"):
        family.make_vec([])
    with pytest.raises(ValueError, match=r"'eval'.*train, validation, test"):
        family.tasks("eval")
    family = TaskFamily(ROOM, [{"goal": [0, 1]}, {"size": 3}], native_vector=True)
    with pytest.raises(ValueError, match=r"family\.native_vector needs tasks of the same keyword arguments.*'goal'"):
        family.make_vec(family.tasks())


def test_changing_the_callers_dicts_later_changes_no_task():
    tasks, env_kwargs = [{"goal": [0, 0]}, {"goal": [1, 1]}], {"size": 5}
    family = TaskFamily(ROOM, tasks, env_kwargs)
    tasks[0]["goal"] = [4, 4]
    env_kwargs["size"] = 2
    assert family.tasks()[0].kwargs == {"goal": [0, 0]}
    assert gym.make(ROOM, **family.env_kwargs).unwrapped.vector.size == 5

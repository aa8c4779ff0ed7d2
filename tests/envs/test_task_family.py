"""Task families: tasks, their split, and the vector environments over them."""

import math
from collections import Counter

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from ad_hf.envs.dark_room import DarkRoomVectorEnv, goal_distance, optimal_return
from ad_hf.envs.task_family import SPLITS, FamilyConfig, TaskFamily

ROOM = "ad_hf/DarkRoom-v0"
GOALS = [{"goal": [x, y]} for x in range(9) for y in range(9)]


def split_ids(family):
    return {split: [task.task_id for task in family.tasks(split)] for split in SPLITS}


@pytest.mark.parametrize("stratify_by", [None, goal_distance])
def test_splits_are_disjoint_complete_and_of_the_sizes_asked_for(stratify_by):
    for split_seed in range(200):
        family = TaskFamily(
            ROOM,
            GOALS,
            num_validation_tasks=8,
            num_test_tasks=16,
            split_seed=split_seed,
            stratify_by=stratify_by,
        )
        ids = split_ids(family)
        sizes = {split: len(of_split) for split, of_split in ids.items()}
        assert sizes == {"train": 57, "validation": 8, "test": 16}, f"split_seed={split_seed}"
        assert sorted(ids["train"] + ids["validation"] + ids["test"]) == list(range(81))
        assert [task.task_id for task in family.tasks()] == list(range(81))


@pytest.mark.parametrize(("num_tasks", "num_test_tasks"), [(3, 2), (5, 4), (10, 7)])
def test_most_of_a_small_family_can_be_held_out(num_tasks, num_test_tasks):
    for split_seed in range(20):
        family = TaskFamily(ROOM, GOALS[:num_tasks], num_test_tasks=num_test_tasks, split_seed=split_seed)
        assert len(family.tasks("test")) == num_test_tasks, f"split_seed={split_seed}"


def test_split_is_a_function_of_its_seed():
    def split(seed):
        return split_ids(TaskFamily(ROOM, GOALS, num_validation_tasks=8, num_test_tasks=16, split_seed=seed))

    assert split(3) == split(3)
    assert len({str(split(seed)) for seed in range(10)}) == 10


def largest_gap(distances, all_distances):
    """Kolmogorov-Smirnov distance between two distributions of distances."""
    thresholds = np.unique(all_distances)
    return max(abs(np.mean(distances <= value) - np.mean(all_distances <= value)) for value in thresholds)


def test_stratified_splits_have_the_distances_of_the_whole():
    everything = np.array([goal_distance(**kwargs) for kwargs in GOALS])
    gaps = {True: [], False: []}
    for split_seed in range(30):
        for stratified in (True, False):
            family = TaskFamily(
                ROOM,
                GOALS,
                num_validation_tasks=9,
                num_test_tasks=16,
                split_seed=split_seed,
                stratify_by=goal_distance if stratified else None,
            )
            for split, bound in (("train", 0.08), ("validation", 2 / 9), ("test", 2 / 16)):
                distances = np.array([goal_distance(**task.kwargs) for task in family.tasks(split)])
                gap = largest_gap(distances, everything)
                gaps[stratified].append(gap)
                if stratified:
                    assert gap <= bound, (split_seed, split)
    assert np.mean(gaps[True]) < 0.5 * np.mean(gaps[False])


def test_which_of_the_tasks_at_one_distance_are_held_out_is_drawn():
    held_out = Counter()
    for split_seed in range(200):
        family = TaskFamily(ROOM, GOALS, num_test_tasks=16, split_seed=split_seed, stratify_by=goal_distance)
        held_out.update(task.task_id for task in family.tasks("test"))
    assert set(held_out) == set(range(81))


@pytest.mark.parametrize(("num_validation_tasks", "num_test_tasks"), [(2, 2), (0, 4), (5, 0)])
def test_holding_out_too_many_tasks_is_refused(num_validation_tasks, num_test_tasks):
    with pytest.raises(ValueError, match="4 tasks to train on"):
        TaskFamily(ROOM, GOALS[:4], num_validation_tasks=num_validation_tasks, num_test_tasks=num_test_tasks)


def test_grid_is_the_product_of_its_values():
    config = FamilyConfig(env_id=ROOM, grid={"goal": {"shape": [2, 3]}, "sparse_reward": [True, False]})
    kwargs = [task.kwargs for task in TaskFamily(config).tasks()]
    assert kwargs[:4] == [
        {"goal": [0, 0], "sparse_reward": True},
        {"goal": [0, 0], "sparse_reward": False},
        {"goal": [0, 1], "sparse_reward": True},
        {"goal": [0, 1], "sparse_reward": False},
    ]
    assert len(kwargs) == 12
    assert kwargs[-1] == {"goal": [1, 2], "sparse_reward": False}


@pytest.mark.parametrize("values", [[], 3, {"shape": []} | {"size": 2}, {"range": [2]}])
def test_grid_without_values_is_refused_by_name(values):
    with pytest.raises(ValueError, match=r"grid\.goal"):
        TaskFamily(FamilyConfig(env_id=ROOM, grid={"goal": values}))


@pytest.mark.parametrize(
    "config",
    [
        FamilyConfig(tasks=GOALS),
        FamilyConfig(env_id=ROOM),
        FamilyConfig(env_id=ROOM, tasks=GOALS, grid={"goal": {"shape": [9, 9]}}),
        FamilyConfig(env_id=ROOM, tasks=GOALS, random={"num_tasks": 3, "values": {"goal": {"choices": [[0, 0]]}}}),
    ],
)
def test_family_without_an_id_or_with_two_lists_of_tasks_is_refused(config):
    with pytest.raises(ValueError, match="env_id and one of tasks, grid, random, splits"):
        TaskFamily(config)


@pytest.mark.parametrize("setting", ["stratify_by", "optimal_return"])
@pytest.mark.parametrize("path", ["ad_hf.envs.dark_room.no_such_function", "no_such_module.f", "ad_hf.envs.dark_room"])
def test_bad_import_path_is_refused_by_setting(setting, path):
    with pytest.raises(ValueError, match=f"family.{setting}.*{path}"):
        TaskFamily(FamilyConfig(env_id=ROOM, tasks=GOALS, **{setting: path}))


@pytest.mark.parametrize("setting", ["stratify_by", "optimal_return", "random_return"])
@pytest.mark.parametrize(
    ("function", "message"),
    [
        (math.sqrt, "failed for the keyword arguments .*'goal'.* TypeError"),
        (lambda **task: task, "returned {.* expected a finite number"),
        (lambda **task: "3", "returned '3'"),
        (lambda **task: [[1], [2, 3]], "returned .* expected a finite number"),
        (lambda **task: np.nan, "returned nan"),
    ],
)
def test_functions_of_tasks_that_give_no_number_are_refused_by_setting(setting, function, message):
    def call():
        family = TaskFamily(ROOM, GOALS, num_test_tasks=1, **{setting: function})
        return family.optimal_returns(family.tasks()), family.random_returns(family.tasks())

    with pytest.raises(ValueError, match=rf"^family\.{setting} {message}"):
        call()


@pytest.mark.parametrize("number", [2, np.int64(2), np.float32(2.0), np.array(2.0)], ids=repr)
def test_numbers_of_numpy_are_numbers(number):
    family = TaskFamily(ROOM, GOALS, num_test_tasks=1, stratify_by=lambda **task: number)
    assert len(family.tasks("test")) == 1


def test_native_vectors_of_tasks_with_different_arguments_are_refused():
    family = TaskFamily(ROOM, [{"goal": [0, 1]}, {"size": 3}], native_vector=True)
    with pytest.raises(ValueError, match=r"family\.native_vector needs tasks of the same keyword arguments.*'goal'"):
        family.make_vec(family.tasks())


def test_import_paths_are_resolved():
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
    chosen = family.tasks("test")
    expected = [optimal_return(size=9, max_episode_steps=10, **task.kwargs) for task in chosen]
    assert family.optimal_returns(chosen).tolist() == expected
    assert same.optimal_returns(chosen) is None


def test_unknown_split_is_refused_with_the_splits_that_exist():
    with pytest.raises(ValueError, match=r"'eval'.*train, validation, test"):
        TaskFamily(ROOM, GOALS).tasks("eval")


def test_dark_room_recipe_has_81_tasks():
    family = TaskFamily.from_recipe("dark_room")
    tasks = family.tasks()
    assert sorted(tuple(task.kwargs["goal"]) for task in tasks) == [(x, y) for x in range(9) for y in range(9)]
    assert len(family.tasks("test")) == 16
    assert len(family.tasks("validation")) == 8
    assert family.optimal_returns(tasks).mean() == pytest.approx(16.54, abs=0.01)
    envs = family.make_vec(tasks[:3], seed=0)
    assert isinstance(envs.unwrapped, DarkRoomVectorEnv)
    assert envs.reset()[0].tolist() == [[4, 4]] * 3


@pytest.mark.parametrize("autoreset_mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_native_and_one_by_one_environments_agree(autoreset_mode):
    env_kwargs = {"size": 5, "max_episode_steps": 6}
    tasks = [{"goal": [x, y]} for x in range(5) for y in range(2)]
    native, single = (
        TaskFamily(ROOM, tasks, env_kwargs, native_vector=native_vector).make_vec(
            TaskFamily(ROOM, tasks).tasks(), num_envs=20, seed=5, autoreset_mode=autoreset_mode
        )
        for native_vector in (True, False)
    )
    assert isinstance(native.unwrapped, DarkRoomVectorEnv)
    assert isinstance(single, SyncVectorEnv)
    assert native.num_envs == single.num_envs == 20
    np.testing.assert_array_equal(native.reset()[0], single.reset()[0])
    total = 0.0
    for _ in range(30):
        actions = native.action_space.sample()
        np.testing.assert_array_equal(actions, single.action_space.sample())
        *returned, _ = native.step(actions)
        *expected, _ = single.step(actions)
        for value, expected_value in zip(returned, expected, strict=True):
            np.testing.assert_array_equal(value, expected_value)
        total += returned[1].sum()
    assert total > 0


def frozen_lake(**settings):
    tasks = [{"is_slippery": slippery, "desc": desc} for slippery in (False, True) for desc in (["SFG"], ["SHG"])]
    return TaskFamily("FrozenLake-v1", tasks, {"max_episode_steps": 5}, **settings)


def test_tasks_of_a_gymnasium_classic_are_its_arguments():
    family = frozen_lake()
    envs = family.make_vec(family.tasks(), num_envs=8)
    assert isinstance(envs, SyncVectorEnv)
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
        steps = []
        for _ in range(20):
            actions = envs.action_space.sample()
            steps.append((actions, envs.step(actions)[0]))
        return str((first, steps))

    assert trajectory(1) == trajectory(1)
    assert trajectory(1) != trajectory(2)


@pytest.mark.parametrize("native_vector", [True, False])
def test_render_mode_reaches_the_environments(native_vector):
    family = TaskFamily(ROOM, GOALS[:2], {"size": 9}, native_vector=native_vector)
    envs = family.make_vec(family.tasks(), render_mode="rgb_array", seed=0)
    assert [frame.shape for frame in envs.render()] == [(144, 144, 3)] * 2


@pytest.mark.parametrize("num_envs", [0, 1, 3, -2])
def test_number_of_environments_that_is_no_multiple_is_refused(num_envs):
    family = TaskFamily(ROOM, GOALS)
    with pytest.raises(ValueError, match=f"multiple of the 2 tasks, got {num_envs}"):
        family.make_vec(family.tasks()[:2], num_envs=num_envs)
    with pytest.raises(ValueError, match="multiple"):
        family.make_vec([])


def test_changing_the_callers_dicts_later_changes_no_task():
    tasks, env_kwargs = [{"goal": [0, 0]}, {"goal": [1, 1]}], {"size": 5}
    family = TaskFamily(ROOM, tasks, env_kwargs)
    tasks[0]["goal"] = [4, 4]
    env_kwargs["size"] = 2
    assert family.tasks()[0].kwargs == {"goal": [0, 0]}
    assert gym.make(ROOM, **family.env_kwargs).unwrapped.vector.size == 5


SPLIT_GOALS = {"train": [{"goal": [0, 0]}, {"goal": [1, 0]}], "test": [{"goal": [2, 2]}]}


def test_splits_may_be_given():
    family = TaskFamily(ROOM, splits=SPLIT_GOALS, native_vector=True)
    assert [(task.task_id, task.split, task.kwargs["goal"]) for task in family.all_tasks] == [
        (0, "train", [0, 0]),
        (1, "train", [1, 0]),
        (2, "test", [2, 2]),
    ]
    assert family.tasks("validation") == []


def test_splits_of_a_recipe_are_given_by_grids_and_lists():
    splits = {
        "train": {"grid": {"rewarding": ["odd"], "task_seed": {"range": [5, 8]}}},
        "test": {"tasks": [{"rewarding": "even", "task_seed": 1}]},
    }
    family = TaskFamily(FamilyConfig(env_id="ad_hf/AdversarialBandit-v0", splits=splits))
    assert [task.kwargs for task in family.tasks("train")] == [
        {"rewarding": "odd", "task_seed": seed} for seed in (5, 6, 7)
    ]
    assert [task.kwargs for task in family.tasks("test")] == [{"rewarding": "even", "task_seed": 1}]


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"training": {"tasks": GOALS}}, "splits must be of train, validation, test"),
        ({"test": {"tasks": GOALS}}, "with tasks to train on"),
        ({"train": {}}, r"splits\.train needs one of tasks"),
        ({"train": {"tasks": GOALS, "grid": {"goal": [[0, 0]]}}}, r"splits\.train needs one of tasks"),
    ],
)
def test_splits_that_are_none_are_refused(splits, message):
    with pytest.raises(ValueError, match=message):
        TaskFamily(FamilyConfig(env_id=ROOM, splits=splits))


def test_given_splits_are_not_split_again():
    with pytest.raises(ValueError, match="says which tasks each split has"):
        TaskFamily(ROOM, splits=SPLIT_GOALS, num_test_tasks=1)


def test_some_tasks_may_be_left_alone():
    whole = TaskFamily(ROOM, GOALS, num_validation_tasks=5, num_test_tasks=10)
    some = TaskFamily(ROOM, GOALS, num_validation_tasks=5, num_test_tasks=10, num_train_tasks=20)
    for split in ("validation", "test"):
        assert some.tasks(split) == whole.tasks(split)
    chosen = some.tasks("train")
    assert len(chosen) == 20
    assert {task.task_id for task in chosen} < {task.task_id for task in whole.tasks("train")}
    assert len(some.all_tasks) == 35


@pytest.mark.parametrize("number", [67])
def test_more_training_tasks_than_there_are_or_none_are_refused(number):
    with pytest.raises(ValueError, match="num_train_tasks must be from 1 to 66"):
        TaskFamily(ROOM, GOALS, num_validation_tasks=5, num_test_tasks=10, num_train_tasks=number)


@pytest.mark.parametrize(
    ("tasks", "told"),
    [
        (
            [{"goal": [0, 1]}, {"goal": [0, 0]}, {"goal": (0, 1)}],
            r"family: tasks\[0\] and tasks\[2\] are the same task",
        ),
        ([{"goal": [0, 1]}, {"goal": np.array([0.0, 1.0])}], r"tasks\[0\] and tasks\[1\]"),
        ({"train": [{"goal": [0, 1]}], "test": [{"goal": [0, 0]}, {"goal": [0, 1]}]}, r"train\[0\] and test\[1\] are"),
        ({"train": [{"goal": [0, 1]}, {"goal": [0, 1]}]}, r"train\[0\] and train\[1\] are the same task"),
    ],
)
def test_equal_tasks_are_refused_by_their_places(tasks, told):
    with pytest.raises(ValueError, match=told):
        TaskFamily(ROOM, **{"splits" if isinstance(tasks, dict) else "tasks": tasks})


def test_tasks_of_which_nothing_is_known_may_be_several():
    assert len(TaskFamily("Foo-v0", [{}, {}]).tasks()) == 2

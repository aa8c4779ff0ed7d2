"""Made-up datasets of a source that learns, or of one with a fault."""

import numpy as np
from gymnasium import spaces

from ad_hf.envs.spaces import space_to_json
from ad_hf.envs.task_family import Task
from ad_hf.histories.schema import HistoryMetadata
from ad_hf.histories.steps import Steps
from ad_hf.histories.writer import describe, histories_of_tasks, new_dataset, to_storage, write_shards

ARROWS = spaces.Discrete(5)
TORQUES = spaces.Box(-1, 1, (2,), np.float32)
NUMBERS = spaces.Box(-np.inf, np.inf, (1,), np.float32)


def climb(episodes):
    """How often a source takes the right action, by episode: it learns, and has learnt at the end."""
    return np.clip(np.linspace(0.0, 1.2, episodes), 0.05, 0.95)


def skewed(right, rng, space, actions):
    """Actions (num_steps,): the right one where a mask says so, others at random."""
    if isinstance(space, spaces.Box):
        chosen = rng.uniform(-0.8, 0.8, (len(right), 2))
        chosen[right] = 0.5 + 0.1 * rng.uniform(-1, 1, (int(right.sum()), 2))
        return chosen
    return np.where(right, 2, rng.choice(actions, len(right)))


def make_steps(skill, steps_of_episode, rng, space, actions, reward, ended):
    """A history in which the skill (num_episodes,) is how likely the right action, which is rewarded, is."""
    num_steps = len(skill) * steps_of_episode
    right = rng.random(num_steps) < np.repeat(skill, steps_of_episode)
    ends = np.arange(1, num_steps + 1) % steps_of_episode == 0
    ends &= ended
    shape = (num_steps, *NUMBERS.shape)
    return Steps(
        observations=rng.normal(size=shape).astype(np.float32),
        actions=skewed(right, rng, space, actions),
        rewards=reward(right.astype(np.float64)),
        terminations=np.zeros(num_steps, dtype=bool),
        truncations=ends,
        final_observations=np.zeros((int(ends.sum()) + int(not ends[-1]), *NUMBERS.shape), dtype=np.float32),
    )


def make_dataset(
    folder,
    tasks=None,
    skill=climb,
    episodes=60,
    steps_of_episode=10,
    streams=3,
    space=ARROWS,
    actions=(0, 1, 2, 3, 4),
    reward=lambda right: right,
    ended=True,
    seed=0,
):
    """
    Histories of a source whose skill, a function of the number of episodes, rises or does not; returns their folder.

    `tasks` are the keyword arguments of each split; by default 20 training tasks, and 4 and 6 others.
    """
    rng = np.random.default_rng(seed)
    if tasks is None:
        goals = rng.uniform(size=(30, 2)).round(4).tolist()
        tasks = {"train": goals[:20], "validation": goals[20:24], "test": goals[24:]}
        tasks = {split: [{"goal": goal} for goal in of_split] for split, of_split in tasks.items()}
    pairs = [(kwargs, split) for split, of_split in tasks.items() for kwargs in of_split]
    numbered = [Task(number, *pair) for number, pair in enumerate(pairs)]
    histories = (
        (task, to_storage(steps, NUMBERS, space, "made-up"))
        for task in numbered
        for _ in range(streams)
        for steps in [make_steps(skill(episodes), steps_of_episode, rng, space, actions, reward, ended)]
    )
    metadata = HistoryMetadata(
        env_id="test/MadeUp-v0",
        env_kwargs={},
        tasks=[vars(task) for task in numbered],
        observation_space=space_to_json(NUMBERS),
        action_space=space_to_json(space),
        source={"algorithm": "A2C", "independent_streams": False},
        seeds=[0],
    )
    with new_dataset(folder, "default") as new:
        metadata.source |= write_shards(new / "default", histories_of_tasks(histories, (NUMBERS, space), None))
        describe(new, folder.name, "default", metadata)
    return folder

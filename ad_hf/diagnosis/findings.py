"""What in the numbers of a dataset speaks against a training, and what to do about it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from ad_hf.diagnosis.measures import (
    ActionNumbers,
    HistoryNumbers,
    ReturnNumbers,
    RewardNumbers,
    TaskNumbers,
    WindowNumbers,
)
from ad_hf.histories.selection import DataConfig
from ad_hf.histories.windows import FEWEST_WINDOWS

# The smallest recipe of the package that learns in its context has 12 tasks, of one number.
FEWEST_TASKS = 10
# Of a family of one number, a test task drawn at random is near to a training task one time in ten at most.
FEWEST_NEAR, MOST_NEAR = 2, 0.2
# Some tasks have nothing to learn, as a goal beside the start. Beyond a quarter of them, a model sees too often that
# returns stay as they are.
LEAST_IMPROVING = 0.75
MOST_BY_CHANCE = 0.25  # of tasks, which a source that learns nothing improves on: the test expects 1 in 40
# Learning shows between two whole episodes, which a window that begins anywhere holds if three end in it.
FEWEST_EPISODES = 3.0
# A rollout of the recipes is 10 to 20 windows long, and a model that improves as its windows do needs 1 / 0.05 = 20.
LEAST_SHARE = 0.05
GOOD_SHARE = 0.2  # of the rise in a window: what advice aims at, and the recipes of the package have
GOOD_EPISODES = 4  # of a window: that of advice, too (paper, section 5: two to four episodes)
# Part of the share of an action that is taken at random: a source that explores takes each more often.
HARDLY = 0.01
# Share of steps at a bound of the space, above which a continuous action is a switch, which a density imitates badly.
MOST_AT_BOUNDS = 0.95
# Share of episodes without a reward, above which that is the reason why nothing improves.
MOST_EMPTY = 0.9
MOST_ALIKE = 0.5  # of histories: two of different tasks may be alike by chance, as short ones of a bandit
CHECK_ARGUMENTS = (
    "check that the environment uses the task's arguments, and that their types are those it expects (a list is not "
    "equal to a tuple)"
)
SHOWN = 5  # of a list


@dataclass
class Finding:
    """
    Something that speaks against a training.

    Attributes:
        of (`str`):
            The numbers that it is about: `"tasks"`, `"returns"`, `"windows"` or `"actions"`.
        fault, advice (`str`):
            What is wrong, and what to do.
    """

    of: str
    fault: str
    advice: str


def _shown(items: list[str]) -> str:
    return ", ".join(items[:SHOWN]) + ("" if len(items) <= SHOWN else f" and {len(items) - SHOWN} more")


def of_tasks(tasks: TaskNumbers, alike: float) -> Iterator[Finding]:
    """
    Findings about tasks: with few tasks, or test tasks that are training tasks, memory is enough. `alike` is the share
    of histories that are those of another task.
    """
    if alike > MOST_ALIKE:
        yield Finding(
            "tasks",
            f"{alike:.0%} of histories are, step by step, those of another task: the tasks do not differ",
            CHECK_ARGUMENTS,
        )
    held_out = tasks.splits["validation"] + tasks.splits["test"]
    if tasks.distinct < FEWEST_TASKS:
        same = f" different ones among {tasks.splits['train']}" if tasks.distinct < tasks.splits["train"] else ""
        yield Finding(
            "tasks",
            f"{tasks.distinct} training task{'s' * (tasks.distinct != 1)}{same}: a model can learn them by heart "
            "instead of learning to learn",
            f"collect histories of more tasks, {FEWEST_TASKS} at the very least and better a hundred (family.random, "
            "family.grid, family.num_train_tasks)",
        )
    if not held_out:
        yield Finding(
            "tasks",
            "no validation and no test tasks: nothing will tell learning in context from memory",
            "hold tasks out (family.num_validation_tasks and family.num_test_tasks, also of `ad-hf convert`)",
        )
    elif tasks.equal or len(tasks.near) >= max(FEWEST_NEAR, MOST_NEAR * held_out):
        pairs = [f"{held} is {own}" for held, own in tasks.near]
        yield Finding(
            "tasks",
            f"{len(tasks.near)} of {held_out} held-out tasks are training tasks, or nearly (by task_id: "
            f"{_shown(pairs)}), so that a model that remembers does well on them",
            "leave these training tasks out, or hold other tasks out",
        )


def of_returns(returns: ReturnNumbers, rewards: RewardNumbers, of_steps: bool) -> Iterator[Finding]:
    """Findings about the source: what does not improve teaches no improvement."""
    if returns.curves and returns.lowest == returns.highest:
        what = "step has the reward" if of_steps else "episode returns"
        yield Finding(
            "returns",
            f"every {what} {returns.lowest:.3g}: the source never finds a reward, or the tasks do not differ",
            f"{CHECK_ARGUMENTS}; if they do, let the source explore more or longer, or make the task easier to find",
        )
        return
    improving = returns.improving / returns.tasks if returns.tasks else float(returns.rises)
    if returns.rises and improving >= LEAST_IMPROVING:
        return
    advice = (
        "collect longer histories (source.total_timesteps), or from another source (source.algorithm, "
        "source.hyperparameters), from before it has learnt anything until it has learnt the task"
    )
    empty = rewards.empty_episodes if rewards.empty_episodes is not None else float(not rewards.steps)
    if empty > MOST_EMPTY:
        advice = (
            f"{empty:.0%} of episodes have no reward: let the source explore more, make the task easier to find, or "
            + advice
        )
    elif improving > MOST_BY_CHANCE:
        advice += "; data.min_improvement leaves out the histories that do not improve"
    if returns.rises and improving > MOST_BY_CHANCE:
        fault = f"the source improves on {returns.improving} of {returns.tasks} tasks alone"
    else:
        fault = "the source does not improve"
    yield Finding("returns", f"{fault}: a model that imitates it does not improve either", advice)


def of_windows(
    windows: WindowNumbers, histories: HistoryNumbers, context_length: int, data: DataConfig, improves: bool
) -> Iterator[Finding]:
    """Findings about windows: what they do not show, a model cannot learn."""
    length, kept = windows.episode_length, histories.kept_steps
    if data.last_episodes is not None:
        yield Finding(
            "windows",
            f"data.last_episodes keeps the last {data.last_episodes} episodes of each history alone, which is expert "
            "distillation: windows do not show how the source got there",
            "leave data.last_episodes out",
        )
        return
    while_it_learns = " while the source learns" if windows.share is not None else ""
    if not histories.of_steps and windows.episodes < FEWEST_EPISODES and length is not None:
        yield Finding(
            "windows",
            f"{windows.episodes:.1f} episodes end in a window of {context_length} steps{while_it_learns}: it has to "
            "hold two whole ones to show that the later one is better",
            _longer_windows(length, windows, data, histories),
        )
    elif context_length < kept < FEWEST_WINDOWS * context_length:
        yield Finding(
            "windows",
            f"histories of {kept:.0f} steps are shorter than {FEWEST_WINDOWS} windows of {context_length}: most of "
            "these begin with a source that has not learnt yet, unlike a rollout's later contexts",
            _shorter_windows(length, context_length, data, histories),
        )
    elif improves and windows.share is not None and windows.share < LEAST_SHARE:
        yield Finding(
            "windows",
            f"within a window the return rises by {max(0.0, windows.share):.1%} of the source's rise, even where the "
            "source learns: too little to see",
            _steeper_windows(windows.share, context_length, data, histories),
        )


def _rounded(steps: float) -> int:
    """Steps rounded up to two digits."""
    unit = 10 ** max(0, int(math.log10(steps)) - 1)
    return math.ceil(steps / unit) * unit


def _longer_windows(length: float, windows: WindowNumbers, data: DataConfig, histories: HistoryNumbers) -> str:
    """Advice for windows that hold few episodes, of this length."""
    longer = _rounded(GOOD_EPISODES * length)
    # Two episodes lie between the first whole one of four and the last.
    share = 2 * 0.8 / (histories.kept_episodes * (windows.learning[1] - windows.learning[0]))
    factor = int(min(GOOD_SHARE / share, histories.kept_steps / (2 * longer)))
    every = f" with --data.keep_every_episode {data.keep_every_episode * factor}" if factor > 1 else ""
    if histories.kept_steps < 2 * longer:
        every = " and longer histories (source.total_timesteps)"
    shorter = "shorter episodes (max_episode_steps in family.env_kwargs)"
    return f"--model.context_length {longer}{every}, for {GOOD_EPISODES} episodes of {length:.0f} steps; or {shorter}"


def _shorter_windows(length: float | None, context_length: int, data: DataConfig, histories: HistoryNumbers) -> str:
    """Advice for histories that are hardly longer than a window."""
    shorter = int(histories.kept_steps / 2.5) // 10 * 10
    holds = length is None or shorter >= FEWEST_EPISODES * length
    options = [f"--model.context_length {shorter}"] if shorter and holds else []
    if data.keep_every_episode > 1:
        every = int(data.keep_every_episode * histories.kept_steps / (2.5 * context_length))
        options.append(f"--data.keep_every_episode {max(1, every)}")
    return ", or ".join([*options, "longer histories (source.total_timesteps)"])


def _steeper_windows(share: float, context_length: int, data: DataConfig, histories: HistoryNumbers) -> str:
    """Advice for windows in which nothing seems to happen."""
    wanted = math.ceil(GOOD_SHARE / share) if share > 0 else math.inf
    most = histories.kept_steps / (2 * context_length)  # at least two windows of a history have to be left
    factor = int(min(wanted, most))
    other = "a source with more streams that share a learner, each of which gets better in fewer episodes"
    if factor < 2:
        return other
    options = [f"--model.context_length {_rounded(context_length * factor)}"]
    if not histories.of_steps:
        options.insert(0, f"--data.keep_every_episode {data.keep_every_episode * factor}")
    return f"{' or '.join(options)}; or {other}"


def of_actions(actions: ActionNumbers) -> Iterator[Finding]:
    """Findings about actions: what the source does not do, a model never will."""
    several = max(len(actions.shares), len(actions.at_bounds)) > 1
    rare = [
        f"{action}{f' of dimension {dimension}' * several} ({share:.2%} of steps)"
        for dimension, shares in enumerate(actions.shares)
        for action, share in enumerate(shares)
        if share < HARDLY / len(shares)
    ]
    if rare:
        yield Finding(
            "actions",
            f"the source never, or hardly, takes action {_shown(rare)}: a model will not either",
            "let the source explore (ent_coef, exploration_fraction, epsilon in source.hyperparameters), and collect "
            "from the start of its training; or leave actions that do nothing out of the environment",
        )
    constant = [str(dimension) for dimension in actions.constant]
    if constant:
        yield Finding(
            "actions",
            f"the action never varies in dimension {_shown(constant)}: a model cannot learn what it does",
            "let the source explore, or leave the dimension out of the environment",
        )
    switches = [
        f"{dimension} ({share:.0%})"
        for dimension, share in enumerate(actions.at_bounds)
        if share > MOST_AT_BOUNDS and dimension not in actions.constant
    ]
    if switches:
        yield Finding(
            "actions",
            f"the action is at a bound of its space on nearly all steps in dimension {_shown(switches)}",
            "give the environment discrete actions (gymnasium.wrappers.DiscretizeAction), which a model imitates "
            "better than a switch, or a source that explores less far",
        )

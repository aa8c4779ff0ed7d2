"""Random worlds of a few states: a seed draws what actions do, what pays, and which states end an episode."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from ad_hf.envs.vector import NativeVectorEnv, SingleEnv

MOVES = ("grid", "chain", "graph")
PAYS = ("goal", "pairs", "cost")
OUTCOMES = 3  # of an action in a state: what it is meant to do, and two ways to slip
DIRECTIONS = np.array([[-1, 0], [0, -1], [1, 0], [0, 1]])  # neighbours in this list are at right angles
STEP_COST, FALL_COST = 0.05, 1.0  # CliffWalking's costs, divided by 20, and by 100
ATTEMPTS = 1000
BLOCK = 64  # steps of one draw of luck


class World(NamedTuple):
    """A finite world: of each state and action, what may follow."""

    successors: np.ndarray  # (num_states, num_actions, OUTCOMES)
    rewards: np.ndarray  # (num_states, num_actions, OUTCOMES)
    ends: np.ndarray  # (num_states, num_actions, OUTCOMES), whether the episode terminates
    start: int
    slip: float  # probability of an outcome other than the first

    @property
    def probabilities(self) -> np.ndarray:
        """Of the outcomes (OUTCOMES,) of any action in any state."""
        return np.array([1 - self.slip, *[self.slip / (OUTCOMES - 1)] * (OUTCOMES - 1)])


def episode_returns(world: World, num_steps: int) -> tuple[float, float]:
    """Expected returns of an episode of so many steps by optimal and by random play: dynamic programming, exact."""
    expected, goes_on = world.rewards @ world.probabilities, ~world.ends * world.probabilities
    best = mean = np.zeros(len(expected))
    for _ in range(num_steps):
        best = (expected + (goes_on * best[world.successors]).sum(axis=2)).max(axis=1)
        mean = (expected + (goes_on * mean[world.successors]).sum(axis=2)).mean(axis=1)
    return float(best[world.start]), float(mean[world.start])


def _draw_grid(num_cells: int, num_actions: int, rng: np.random.Generator) -> np.ndarray:
    """Successors (cells, num_actions) in a room of at most so many cells, at least half: a line for few actions."""
    in_plane = num_actions >= len(DIRECTIONS) and num_cells >= 4
    shapes = [
        (width, height)
        for width in range(1 + in_plane, num_cells + 1)
        for height in range(1 + in_plane, (num_cells // width if in_plane else 1) + 1)
        if 2 * width * height >= num_cells
    ]
    width, height = shapes[rng.integers(len(shapes))]
    cells = np.stack([np.arange(width * height) % width, np.arange(width * height) // width], axis=1)
    steps = np.zeros((num_actions, 2), dtype=np.int64)  # actions beyond those that have a direction stay
    directions = DIRECTIONS if in_plane else DIRECTIONS[::2]
    steps[: len(directions)] = directions[:num_actions]
    after = (cells[:, None] + steps).clip(0, [width - 1, height - 1])
    moves = after[..., 0] + width * after[..., 1]
    walls = rng.random(len(moves)) < rng.choice([0.0, 0.0, 0.15])
    return np.where(walls[moves], np.arange(len(moves))[:, None], moves)


def _draw_moves(kind: str, num_states: int, num_actions: int, rng: np.random.Generator) -> np.ndarray:
    """Successors (states, num_actions, OUTCOMES), of at most `num_states` states, and of at least half as many."""
    if kind == "grid":
        moves = _draw_grid(num_states, num_actions, rng)
        return np.stack([moves, np.roll(moves, 1, axis=1), np.roll(moves, -1, axis=1)], axis=2)
    count = int(rng.integers(-(-num_states // 2), num_states, endpoint=True))
    shape = (count, num_actions, OUTCOMES)
    if kind == "graph":
        return rng.integers(count, size=shape)
    return (np.arange(count)[:, None, None] + rng.integers(-2, 2, size=shape, endpoint=True)).clip(0, count - 1)


def _draw_rewards(pay: str, moves: np.ndarray, start: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Successors, rewards and ends (states, num_actions, OUTCOMES), with goals, pits and costs."""
    others = rng.permutation(np.delete(np.arange(len(moves)), start))
    goals = others[: 1 if pay == "cost" else rng.integers(1, 3, endpoint=True)]
    after_goal = "ends" if pay == "cost" else rng.choice(["ends", "ends", "starts over", "goes on"])
    pits = others[len(goals) :][rng.random(len(others) - len(goals)) < rng.choice([0.0, 0.1, 0.2, 0.3])]
    after_pit = rng.choice(["ends", "starts over"], p=[0.25, 0.75] if pay == "cost" else [0.75, 0.25])
    into_pit, into_goal = np.isin(moves, pits), np.isin(moves, goals)
    pays = [1.0, *rng.uniform(0.2, 0.8, size=len(goals) - 1)]
    if pay == "pairs":
        of_pairs = np.zeros(moves[..., 0].size)
        of_pairs[rng.choice(len(of_pairs), size=len(goals), replace=False)] = pays
        rewards = np.broadcast_to(of_pairs.reshape(*moves.shape[:2], 1), moves.shape)
        into_goal = rewards > 0
    elif pay == "goal":
        of_states = np.zeros(len(moves))
        of_states[goals] = pays
        rewards = of_states[moves]
    else:
        rewards = np.where(into_pit, -FALL_COST, -STEP_COST)
    starts_over = (into_pit & (after_pit == "starts over")) | (into_goal & (after_goal == "starts over"))
    ends = (into_pit & (after_pit == "ends")) | (into_goal & (after_goal == "ends"))
    return np.where(starts_over, start, moves), rewards, ends & ~starts_over


@lru_cache(maxsize=4096)
def draw_world(
    task_seed: int,
    num_states: int = 16,
    num_actions: int = 4,
    moves: tuple[str, ...] = MOVES,
    pays: tuple[str, ...] = PAYS,
    noise: float = 0.3,
    horizon: int = 20,
) -> World:
    r"""
    The world of a seed: see [`TabularMDPVectorEnv`], whose arguments these are.

    Worlds are drawn until one has `best - random >= max(0.5, best / 2)`, where these are the expected returns of
    `horizon` steps by optimal and by random play. In worlds where something pays, rewards are then divided by `best`:
    optimal play earns 1, and random play at most 0.5.
    """
    if num_states < 2 or num_actions < 2 or task_seed < 0 or horizon < 1 or not 0 <= noise <= 1:
        raise ValueError(
            "expected num_states and num_actions of at least 2, task_seed of at least 0, horizon of at least 1 and "
            f"noise from 0 to 1, got {num_states}, {num_actions}, {task_seed}, {horizon} and {noise}"
        )
    for name, kinds, known in (("moves", moves, MOVES), ("pays", pays, PAYS)):
        if not kinds or not set(kinds) <= set(known):
            raise ValueError(f"{name} must hold some of {', '.join(known)}, got {kinds!r}")
    rng = np.random.Generator(np.random.PCG64([task_seed, num_states, num_actions]))
    move, pay = moves[rng.integers(len(moves))], pays[rng.integers(len(pays))]
    for _ in range(ATTEMPTS):
        outcomes = _draw_moves(move, num_states, num_actions, rng)
        start = int(rng.integers(len(outcomes)))
        successors, rewards, ends = _draw_rewards(pay, outcomes, start, rng)
        world = World(successors, rewards, ends, start, float(rng.choice([0.0, rng.uniform(0, noise)])))
        best, mean = episode_returns(world, horizon)
        if best - mean >= max(0.5, best / 2):
            return _renamed(world._replace(rewards=rewards / best if best > 0 else rewards), num_states, rng)
    raise ValueError(
        f"{ATTEMPTS} draws of the world {task_seed} gave no {move} of {num_states} states and {num_actions} actions "
        f"in which optimal play earns clearly more in {horizon} steps than random play, with the pay {pay}: give it "
        "more states or steps, or other moves or pays"
    )


def _renamed(world: World, num_states: int, rng: np.random.Generator) -> World:
    """The world with its states under some of `num_states` numbers, and its actions, in another order."""
    names, actions = rng.permutation(num_states), rng.permutation(world.ends.shape[1])
    here = names[: len(world.ends)]

    def table(values: np.ndarray) -> np.ndarray:
        renamed = np.zeros((num_states, *values.shape[1:]), dtype=values.dtype)
        renamed[here] = values[:, actions]
        return renamed

    successors, rewards, ends = map(table, (names[world.successors], world.rewards, world.ends))
    return World(successors, rewards, ends, int(here[world.start]), world.slip)


def _returns(max_episode_steps: int = 20, task_seed: int = 0, **world: Any) -> tuple[float, float]:
    kinds = {name: tuple(value) for name, value in world.items() if name in ("moves", "pays")}
    return episode_returns(draw_world(task_seed, **{**world, **kinds}), max_episode_steps)


def optimal_return(**task: Any) -> float:
    """Expected return of an episode of optimal play, which knows the world and how many steps are left."""
    return _returns(**task)[0]


def random_return(**task: Any) -> float:
    """Expected return of an episode of actions that are all equally likely."""
    return _returns(**task)[1]


class TabularMDPVectorEnv(NativeVectorEnv):
    r"""
    Random worlds of a few states, each drawn from its `task_seed` alone. What the numbers of states and actions mean,
    nothing but experience tells. An episode starts in the one start state of its world, and its seed decides the luck.

    A world has from half of `num_states` to all of them. A seed draws, with even chances,

    - the `moves`: a `"grid"`, a room with or without walls in which four actions lead to the neighbouring cells, and
      others stay (a line, for fewer than four); a `"chain"`, in which an action leads by at most two states on or
      back; or a `"graph"`, in which it leads to any state;
    - what `pays`: a `"goal"`, one to three states whose arrival is rewarded; `"pairs"`, one to three pairs of a state
      and an action; or nothing, but each step has a `"cost"` of 0.05 until the goal. After a reward, the episode ends,
      starts over, or goes on; in worlds with a cost, it ends at the goal;
    - a share of states, from none to 30%, that are pits: there, the episode ends or starts over, and a world with a
      cost takes 1;
    - whether actions slip: if so, with a probability up to `noise`, to one of two other outcomes, which in a grid are
      those of the directions at right angles.

    Args:
        num_envs (`int`, *optional*, defaults to 1):
            Number of worlds.
        task_seed (`int` or array of shape `(num_envs,)`, *optional*, defaults to 0):
            The seed of each world, or of all: the task.
        num_states, num_actions (`int`, *optional*, defaults to 16 and 4):
            Size of the spaces, shared by all worlds.
        moves, pays (`Sequence[str]`, *optional*, defaults to all kinds):
            Kinds from which a seed draws.
        noise (`float`, *optional*, defaults to 0.3):
            Highest probability of a slip; 0 for worlds without chance.
        horizon (`int`, *optional*, defaults to 20):
            Steps in which optimal play earns clearly more than random play: see [`draw_world`].
        max_episode_steps (`int`, *optional*, defaults to 20):
            Steps after which an episode is truncated.
        autoreset_mode:
            As in [`~ad_hf.envs.vector.NativeVectorEnv`].

    Raises:
        ValueError: for settings out of their range, and for those of which hardly any world suits [`draw_world`].
    """

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(
        self,
        num_envs: int = 1,
        task_seed: Any = 0,
        num_states: int = 16,
        num_actions: int = 4,
        moves: Sequence[str] = MOVES,
        pays: Sequence[str] = PAYS,
        noise: float = 0.3,
        horizon: int = 20,
        max_episode_steps: int = 20,
        **vector: Any,
    ) -> None:
        settings = num_states, num_actions, tuple(moves), tuple(pays), noise, horizon
        worlds = [draw_world(int(seed), *settings) for seed in np.broadcast_to(task_seed, num_envs)]
        spaces = gym.spaces.Discrete(num_states), gym.spaces.Discrete(num_actions)
        super().__init__(num_envs, *spaces, max_episode_steps, **vector)
        self._starts = np.array([world.start for world in worlds])
        tables = (np.stack(table).reshape(-1, OUTCOMES) for table in list(zip(*worlds))[:3])
        self._successors, self._rewards, self._ends = tables
        self._thresholds = np.stack([world.probabilities[:-1].cumsum() for world in worlds])
        self._slips = self._thresholds[:, 0] < 1
        self._rows, self._num_states, self._num_actions = np.arange(num_envs), num_states, num_actions
        self._states = self._starts.copy()
        self._luck = np.zeros((num_envs, BLOCK))

    def _start(self, indices: np.ndarray) -> None:
        self._states[indices] = self._starts[indices]
        self._draw(indices)

    def _draw(self, indices: np.ndarray) -> None:
        """Draw the luck of the next steps, where there is any."""
        for index in indices[self._slips[indices]]:
            self._generator(index).random(out=self._luck[index])

    def _move(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        steps = self._elapsed % BLOCK
        if not steps.all():
            self._draw(np.flatnonzero((steps == 0) & (self._elapsed > 0)))
        pairs = (self._rows * self._num_states + self._states) * self._num_actions + actions
        outcomes = (self._luck[self._rows, steps, None] >= self._thresholds).sum(axis=1)
        self._states = self._successors[pairs, outcomes]
        return self._rewards[pairs, outcomes], self._ends[pairs, outcomes]

    def _observe(self) -> np.ndarray:
        return self._states.copy()


class TabularMDPEnv(SingleEnv):
    """One random world, with the arguments of [`TabularMDPVectorEnv`] for one."""

    vector_class = TabularMDPVectorEnv
    metadata = TabularMDPVectorEnv.metadata

"""Worlds with the spaces of Dark Room and Dark Key-to-Door that no model was trained on, to try a generalist in."""

from __future__ import annotations

from typing import Any

import numpy as np

from ad_hf.envs.dark_key_to_door import DarkKeyToDoorVectorEnv
from ad_hf.envs.dark_room import MOVES, DarkRoomVectorEnv

SLIP = 0.2  # of moves that go elsewhere
MOVED_AFTER = 50  # episodes
# Two walls with a gap each, in a room of 9 x 9 cells.
WALLS = {(3, y) for y in range(9) if y != 7} | {(6, y) for y in range(9) if y != 1}


class ShuffledActions(DarkRoomVectorEnv):
    """Dark Room in which each room has its own permutation of the five actions."""

    def __init__(self, num_envs: int, seed: int = 0, **settings: Any) -> None:
        super().__init__(num_envs, **settings)
        generators = (np.random.default_rng([seed, index]) for index in range(num_envs))
        self._names = np.stack([generator.permutation(len(MOVES)) for generator in generators])

    def _move(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return super()._move(self._names[np.arange(self.num_envs), actions])


class Slipping(DarkRoomVectorEnv):
    """Dark Room in which a move goes in a random direction one time in five."""

    def _move(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        drawn = np.array([self._generator(index).random(2) for index in range(self.num_envs)])
        elsewhere = (drawn[:, 1] * len(MOVES)).astype(np.int64)
        return super()._move(np.where(drawn[:, 0] < SLIP, elsewhere, actions))


class Walled(DarkRoomVectorEnv):
    """Dark Room with two walls, which the agent has to walk around; it starts between them."""

    def _walk(self, actions: np.ndarray) -> None:
        before = self._positions.copy()
        super()._walk(actions)
        inside = np.array([tuple(cell) in WALLS for cell in self._positions.tolist()])
        self._positions[inside] = before[inside]


class TwoGoals(DarkRoomVectorEnv):
    """Dark Room with a second goal, opposite the first, that pays half as much."""

    def _move(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rewards, terminations = super()._move(actions)
        opposite = (self._positions == self.size - 1 - self.goals).all(axis=1)
        return np.maximum(rewards, 0.5 * opposite), terminations


class MovingGoal(DarkRoomVectorEnv):
    """Dark Room whose goal moves to the opposite cell after 50 episodes."""

    def __init__(self, num_envs: int, **settings: Any) -> None:
        super().__init__(num_envs, **settings)
        self.goals = self.goals.copy()
        self._episodes = np.zeros(num_envs, dtype=np.int64)

    def _start(self, indices: np.ndarray) -> None:
        super()._start(indices)
        moved = indices[self._episodes[indices] == MOVED_AFTER]
        self.goals[moved] = self.size - 1 - self.goals[moved]
        self._episodes[indices] += 1


class TwoKeys(DarkKeyToDoorVectorEnv):
    """Dark Key-to-Door with a second key, opposite the first: the door takes both, and each of the three pays."""

    def __init__(self, num_envs: int, **settings: Any) -> None:
        super().__init__(num_envs, **settings)
        self._has = np.zeros((2, num_envs), dtype=bool)

    def _start(self, indices: np.ndarray) -> None:
        super()._start(indices)
        self._has[:, indices] = False

    def _move(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self._walk(actions)
        cells = np.stack([self.keys, self.size - 1 - self.keys])
        takes = (self._positions == cells).all(axis=2) & ~self._has
        opens = self._has.all(axis=0) & ~self._door_open & (self._positions == self.doors).all(axis=1)
        self._has |= takes
        self._has_key[:] = self._has.all(axis=0)
        self._door_open |= opens
        return takes.any(axis=0).astype(np.float64) + opens, np.zeros(self.num_envs, dtype=bool)


ROOMS = {"shuffled actions": ShuffledActions, "slipping": Slipping, "walls": Walled, "two goals": TwoGoals}
ROOMS |= {"a goal that moves": MovingGoal}

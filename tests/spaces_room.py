"""Rooms with spaces of all kinds; worker processes import this by the name of an environment's id."""

import gymnasium as gym
import numpy as np
from gymnasium import spaces

SIZE = 3


class SpacesRoom(gym.Env):
    """
    The agent walks along a line of three cells, away from or towards a goal in which it is paid.

    It moves to the right by action 1 and to the left by action 0, or by action [1, 0] and [0, 1].
    """

    def __init__(self, observe="dict", act="discrete", goal=2):
        self.goal, self.pay, self._observe, self._act = goal, 1.0, observe, act
        line = spaces.Discrete(SIZE)
        self.observation_space = {
            "dict": spaces.Dict({"cell": line, "time": spaces.Box(0, 1, (2,), np.float32)}),
            "tuple": spaces.Tuple((line, line)),
            "binary": spaces.MultiBinary(SIZE),
        }[observe]
        self.action_space = {
            "discrete": spaces.Discrete(2),
            "multi": spaces.MultiDiscrete([2, 2]),
            "dict": spaces.Dict({"move": spaces.Discrete(2)}),
        }[act]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.cell, self.steps = 1, 0
        return self._observation(), {}

    def step(self, action):
        move = 2 * int(action) - 1 if self._act == "discrete" else int(action[0]) - int(action[1])
        self.cell = min(max(self.cell + move, 0), SIZE - 1)
        self.steps += 1
        return self._observation(), self.pay * (self.cell == self.goal), False, False, {}

    def _observation(self):
        if self._observe == "binary":
            return np.eye(SIZE, dtype=np.int8)[self.cell]
        if self._observe == "tuple":
            return self.cell, SIZE - 1 - self.cell
        return {"cell": self.cell, "time": np.full(2, min(1.0, self.steps / 10), np.float32)}


gym.register("SpacesRoom-v0", "spaces_room:SpacesRoom", max_episode_steps=5)

"""Four chambers around a hall; in one of the cells is a goal that cannot be seen."""

import gymnasium as gym
import numpy as np

ROOM = [
    "....#....",
    "....#....",
    "....#....",
    ".........",
    "###...###",
    ".........",
    "....#....",
    "....#....",
    "....#....",
]
FREE = [(row, column) for row, line in enumerate(ROOM) for column, cell in enumerate(line) if cell == "."]
MOVES = [(-1, 0), (1, 0), (0, -1), (0, 1), (0, 0)]  # up, down, left, right, stay


class WalledRoom(gym.Env):
    """The agent sees its row and column, and earns 1 at each step that it ends on the goal, a free cell's number."""

    def __init__(self, goal: int = 0):
        self.goal = FREE[goal]
        self.observation_space = gym.spaces.MultiDiscrete([len(ROOM), len(ROOM[0])])
        self.action_space = gym.spaces.Discrete(len(MOVES))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.cell = (4, 4)  # in the hall
        return np.array(self.cell), {}

    def step(self, action):
        row, column = np.add(self.cell, MOVES[action])
        if (row, column) in FREE:
            self.cell = int(row), int(column)
        return np.array(self.cell), float(self.cell == self.goal), False, False, {}


gym.register("WalledRoom-v0", WalledRoom, max_episode_steps=20)

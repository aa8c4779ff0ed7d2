"""A room of 3 x 4 cells that is seen as an image; worker processes import it by the name of its environment id."""

import gymnasium as gym
import numpy as np

SHAPE = (12, 16, 3)
MOVES = ((0, 1), (1, 0), (0, -1), (-1, 0))


class ImageRoom(gym.Env):
    """The agent starts in a corner and is paid in the goal's cell."""

    observation_space = gym.spaces.Box(0, 255, SHAPE, np.uint8)
    action_space = gym.spaces.Discrete(len(MOVES))

    def __init__(self, goal=(0, 0)):
        self.goal = tuple(goal)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.cell, self.steps = (0, 0), 0
        return self._frame(), {}

    def step(self, action):
        row, column = self.cell[0] + MOVES[action][0], self.cell[1] + MOVES[action][1]
        self.cell = (min(max(row, 0), 2), min(max(column, 0), 3))
        self.steps += 1
        return self._frame(), float(self.cell == self.goal), False, False, {}

    def _frame(self):
        frame = np.full(SHAPE, 10 * self.steps, dtype=np.uint8)
        frame[4 * self.cell[0] : 4 * self.cell[0] + 4, 4 * self.cell[1] : 4 * self.cell[1] + 4] = (255, 128, 0)
        return frame


gym.register("ImageRoom-v0", "image_room:ImageRoom", max_episode_steps=7)

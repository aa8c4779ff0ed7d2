"""Environments of somebody's own, for drafts of recipes: a room with walls, and a lock with Tuple observations."""

import gymnasium as gym
from gymnasium import spaces

WALLS = {(2, 1), (2, 2), (2, 3)}
MAZE = [
    "...........",
    ".###.#####.",
    ".#...#...#.",
    ".#.###.#.#.",
    ".#.#.#...#.",
    ".#.#.#####.",
    "...........",
]
MOVES = ((0, 1), (0, -1), (1, 0), (-1, 0))


class Room(gym.Env):
    """A hidden goal, which may not be in a wall."""

    def __init__(self, goal=(4, 4), size=5):
        if tuple(goal) in WALLS:
            raise ValueError("the goal is in a wall")
        self.goal, self.size = tuple(goal), size
        self.observation_space, self.action_space = spaces.Discrete(size**2), spaces.Discrete(len(MOVES))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.cell = (0, 0)
        return 0, {}

    def step(self, action):
        cell = tuple(min(max(at + move, 0), self.size - 1) for at, move in zip(self.cell, MOVES[action]))
        self.cell = self.cell if cell in WALLS else cell
        return self.cell[0] * self.size + self.cell[1], float(self.cell == self.goal), False, False, {}


class Maze(gym.Env):
    """A hidden treasure at a row and a column, of which a strict maze refuses those in walls and outside."""

    def __init__(self, treasure=(0, 1), strict=True):
        self.treasure = tuple(treasure or (0, 1))
        if strict and not self.is_free(self.treasure):
            raise ValueError("the treasure is not in a free cell")
        self.observation_space, self.action_space = spaces.Discrete(77), spaces.Discrete(len(MOVES))

    @staticmethod
    def is_free(cell):
        return 0 <= cell[0] < len(MAZE) and 0 <= cell[1] < len(MAZE[0]) and MAZE[cell[0]][cell[1]] == "."

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.cell = (4, 4)
        return 48, {}

    def step(self, action):
        cell = tuple(at + move for at, move in zip(self.cell, MOVES[action]))
        self.cell = cell if self.is_free(cell) else self.cell
        found = self.cell == self.treasure
        return self.cell[0] * 11 + self.cell[1], float(found), found, False, {}


class Lock(gym.Env):
    """A code, the digits of which have to be the next three actions."""

    def __init__(self, code):
        self.code = list(code)
        self.observation_space = spaces.Tuple((spaces.Discrete(4), spaces.Discrete(2)))
        self.action_space = spaces.Discrete(4)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = 0
        return (0, 0), {}

    def step(self, action):
        is_right = int(action == self.code[self.place])
        self.place = (self.place + 1) * is_right
        return (self.place, is_right), float(self.place == 3), self.place == 3, False, {}


class Menu(gym.Env):
    """Actions that no model takes."""

    observation_space, action_space = spaces.Discrete(3), spaces.Dict({"move": spaces.Discrete(2)})


gym.register("DraftedRoom-v0", entry_point=Room, max_episode_steps=20)
gym.register("DraftedMaze-v0", entry_point=Maze, max_episode_steps=40)
gym.register("DraftedField-v0", entry_point=Maze, max_episode_steps=40, kwargs={"strict": False})
gym.register("DraftedLock-v0", entry_point=Lock)
gym.register("DraftedMenu-v0", entry_point=Menu)

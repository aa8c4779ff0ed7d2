"""A corridor with keys to the left and locks to the right: which key is right, and which lock, cannot be seen."""

import gymnasium as gym

KEYS = LOCKS = 5
START, LENGTH = KEYS, KEYS + 1 + LOCKS  # keys hang in cells 0 to 4, locks are in cells 6 to 10
LEFT, RIGHT, USE = range(3)


class KeyLock(gym.Env):
    """
    The agent sees its cell and the key that it holds, 0 for none. It earns 1 the first time that it takes the right
    key, and 1 for using that on the right lock, which ends the episode.
    """

    def __init__(self, key: int = 0, lock: int = 0):
        self.key, self.lock = key + 1, START + 1 + lock
        self.observation_space = gym.spaces.Tuple((gym.spaces.Discrete(LENGTH), gym.spaces.Discrete(KEYS + 1)))
        self.action_space = gym.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.cell, self.held, self.taken = START, 0, False
        return (self.cell, self.held), {}

    def step(self, action):
        reward, opened = 0.0, False
        if action == LEFT:
            self.cell = max(self.cell - 1, 0)
        elif action == RIGHT:
            self.cell = min(self.cell + 1, LENGTH - 1)
        elif self.cell < START:
            self.held = self.cell + 1
            reward = float(self.held == self.key and not self.taken)
            self.taken |= self.held == self.key
        else:
            opened = (self.held, self.cell) == (self.key, self.lock)
            reward = float(opened)
        return (self.cell, self.held), reward, opened, False, {}


gym.register("KeyLock-v0", KeyLock, max_episode_steps=40)

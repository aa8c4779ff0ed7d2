"""
Environments with faults of many kinds, families of them, and the files that their collections leave.

Worker processes import the environments by the names of their ids.
"""

import os
import signal
from pathlib import Path

import gymnasium as gym
import numpy as np

from ad_hf.envs.task_family import TaskFamily

SMALL = {"algorithm": "TabularQ", "n_envs": 2, "total_timesteps": 60}


class Faulty(gym.Env):
    """
    Walks from 0 to 3 and is paid there; the fault, if any, happens in the second episode.

    Where `cured` names a file that exists, there is no fault.
    """

    action_space = gym.spaces.Discrete(2)

    def __init__(self, goal=3, fault=None, cured=""):
        self.fault = None if cured and Path(cured).exists() else fault
        if self.fault == "construction":
            raise RuntimeError("no such room")
        self.goal, self.episodes = goal, 0
        if self.fault == "space":
            self.observation_space = gym.spaces.Discrete(5)
        elif self.fault == "float nan":
            self.observation_space = gym.spaces.Box(0.0, 3.0, (1,), np.float32)
        else:
            self.observation_space = gym.spaces.Discrete(4)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.episodes = 0, self.episodes + 1
        if self.fault == "reset" and self.episodes == 2:
            raise KeyError("lost")
        return 0, {}

    def step(self, action):
        self.place = min(max(self.place + (1 if action else -1), 0), 3)
        reward, seen = float(self.place == self.goal), self.place
        if self.fault is not None and self.episodes == 2:
            if self.fault == "step":
                raise ZeroDivisionError("a\nlong story")
            if self.fault == "exit":
                raise SystemExit("bye")
            if self.fault == "interrupt":
                raise KeyboardInterrupt
            if self.fault == "death":
                os.kill(os.getpid(), signal.SIGKILL)
            reward = float("nan") if self.fault == "reward" else reward
            seen = 7 if self.fault == "outside" else 256 + seen if self.fault == "wraps" else seen
        return seen, reward, False, False, {}


gym.register("Faulty-v0", "faulty:Faulty", max_episode_steps=5)
gym.register("Endless-v0", "faulty:Faulty")


def make_tasks(faults, **kwargs):
    """Tasks with goals from 1 on, each with a fault or none."""
    return [{"goal": 1 + index, **({"fault": fault, **kwargs} if fault else {})} for index, fault in enumerate(faults)]


def make_family(faults, num_test_tasks=0, **kwargs):
    """A family of such tasks."""
    return TaskFamily("faulty:Faulty-v0", make_tasks(faults, **kwargs), num_test_tasks=num_test_tasks)


def contents(folder, pattern="*"):
    """Bytes of every file, hidden ones included, but for the card, which names the folder."""
    files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob(pattern)) if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name != "README.md"}

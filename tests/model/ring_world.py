"""A ring of cells, of which one pays, and histories of random actions: a world in which planning must win."""

import numpy as np
import torch

CELLS, ACTIONS, PAYS = 7, 5, 3


def step(cells, actions):
    """Cells (rows,) after actions (rows,), rewards, and ends of episodes, after which cell 0 follows."""
    reached = (cells + actions) % CELLS
    ends = reached == 5
    return reached * ~ends, reached == PAYS, ends


def histories(rows, time):
    """The four inputs of a model, and the random actions (rows, time) that were taken."""
    actions = torch.randint(0, ACTIONS, (rows, time))
    cells, rewards, starts = [torch.randint(0, CELLS, (rows,))], [torch.zeros(rows)], [torch.ones(rows).bool()]
    for action in actions[:, :-1].unbind(1):
        cell, reward, end = step(cells[-1], action)
        cells.append(cell)
        rewards.append(reward.float())
        starts.append(end)
    previous = torch.cat([torch.full((rows, 1), ACTIONS), actions[:, :-1]], 1)
    return (torch.stack(cells, 1), previous, torch.stack(rewards, 1), torch.stack(starts, 1)), actions


def train(make_model, updates=150):
    """A model of the ring, and its losses at the end."""
    model = make_model(sliding_window=4, dynamics_weight=1.0, dynamics_discount=0.5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(updates):
        inputs, actions = histories(16, 12)
        output = model(*inputs, labels=actions)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    return model, output.losses


def mean_reward(model, **settings):
    """Of 16 steps in 16 rings."""
    context, total = model.init_context(16, seed=0, **settings), 0.0
    cells, paid, starts = np.arange(16) % CELLS, np.zeros(16), np.ones(16, dtype=bool)
    for _ in range(16):
        cells, paid, starts = step(cells, context.act(cells, paid, starts))
        total += paid.mean()
    return total / 16

"""The study of the generalist: worlds that it adds to those of the training, and shares of what specialists gain."""

import json

import numpy as np
import pytest
from generalist import RESULTS, specialists, worlds
from studies.unseen_worlds import MOVED_AFTER, WALLS, MovingGoal, ShuffledActions, Slipping, TwoGoals, TwoKeys, Walled

LEFT, RIGHT, UP, DOWN, STAY = range(5)


def play(envs, actions):
    """Positions and rewards at each step, the same action in all rooms."""
    steps = [envs.step(np.full(envs.num_envs, action))[:2] for action in actions]
    return np.stack([cells for cells, _ in steps]), np.stack([rewards for _, rewards in steps])


def test_actions_are_a_permutation_of_each_room():
    envs = ShuffledActions(50, goal=(0, 0))
    moves = set()
    for action in range(5):
        envs.reset(seed=0)
        moves |= {(room, tuple(cell - 4)) for room, cell in enumerate(play(envs, [action])[0][0])}
    assert len(moves) == 50 * 5
    assert not np.array_equal(envs._names[0], envs._names[1])


def test_a_fifth_of_the_moves_slip():
    envs = Slipping(2000, goal=(0, 0))
    envs.reset(seed=0)
    cells, _ = play(envs, [UP])
    assert np.mean((cells[0] == [4, 5]).all(axis=1)) == pytest.approx(0.8 + 0.2 / 5, abs=0.03)


def test_walls_stop_the_agent_and_their_gaps_do_not():
    envs = Walled(1, goal=(0, 0))
    envs.reset(seed=0)
    assert play(envs, [LEFT, LEFT])[0][-1].tolist() == [[4, 4]]
    assert play(envs, [UP, UP, UP, LEFT, LEFT])[0][-1].tolist() == [[2, 7]]
    assert (4, 4) not in WALLS


def test_the_second_goal_pays_half():
    envs = TwoGoals(1, goal=(4, 5))
    envs.reset(seed=0)
    assert play(envs, [UP, DOWN, DOWN, STAY])[1].ravel().tolist() == [1, 0, 0.5, 0.5]


def test_the_goal_moves_once_to_the_opposite_cell():
    envs = MovingGoal(2, goal=[(4, 5), (4, 5)])
    envs.reset(seed=0)
    goals = []
    for _ in range(MOVED_AFTER + 3):
        goals.append(envs.goals[0].tolist())
        play(envs, [STAY] * envs.max_episode_steps)
    assert goals == [[4, 5]] * MOVED_AFTER + [[4, 3]] * 3


def test_the_door_takes_both_keys():
    envs = TwoKeys(1, key=(4, 5), door=(4, 4))
    envs.reset(seed=0)
    envs._positions[:] = (4, 4)
    assert play(envs, [UP, DOWN, DOWN, UP, UP])[1].ravel().tolist() == [1, 0, 1, 1, 0]
    assert envs._information()["has_key"] == [1]


def test_each_world_has_the_spaces_of_its_group():
    made = worlds()
    assert len(made) == 6
    for group, envs in made.values():
        assert envs.single_action_space.n == 5, group
        assert envs.num_envs >= 30


@pytest.mark.parametrize(("end", "share"), [("specialist", 1.0), ("random", 0.0)])
def test_a_generalist_is_at_one_where_the_specialist_is_and_at_zero_where_random_play_is(tmp_path, end, share):
    evaluation = json.loads((RESULTS / "dark_room.json").read_text())
    last = evaluation["agents"]["AD"]["at"]["100"]
    if end == "random":
        last["return"] = evaluation["random_return"]
    (tmp_path / "dark_room").mkdir()
    (tmp_path / "dark_room" / "evaluation.json").write_text(json.dumps(evaluation))
    found = specialists([tmp_path / "dark_room"])
    assert found["families"]["dark_room"]["share"] == pytest.approx(share)
    assert found["mean_share"] == pytest.approx(share)

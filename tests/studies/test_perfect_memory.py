"""What a memory of some steps allows in Dark Key-to-Door."""

import pytest
from studies.perfect_memory import returns_with_memory


@pytest.mark.parametrize("crosses", [False, True])
def test_a_memory_of_an_episode_is_lost_and_a_longer_one_is_not(crosses):
    shorter, longer = (returns_with_memory(steps, crosses, num_envs=200, num_episodes=40) for steps in (50, 100))

    assert longer[-10:].mean() > 1.8  # of 2
    assert shorter[-10:].mean() < 1.2
    assert abs(longer[0] - shorter[0]) < 0.1  # nothing to remember yet


def test_who_crosses_the_room_needs_no_memory_to_find_more():
    crossing, random = (returns_with_memory(20, crosses, num_envs=200).mean() for crosses in (True, False))

    assert crossing > 1.5 * random

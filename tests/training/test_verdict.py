"""The line at the end of a training: what trainings of each kind come to, for real."""

import json
import os
import re
import signal
from dataclasses import replace

import pytest
import yaml
from training_runs import assert_ended_alike

import ad_hf
from ad_hf.pipeline import collect_recipe
from ad_hf.training import verdict
from ad_hf.training.verdict import LEARNS, MEMORISES, NO_IMITATION, NO_IMPROVEMENT, UNKNOWN, judge

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
UPDATES = {"max_steps": 300, "eval_steps": 300, "batch_size": 32, "learning_rate": 1e-2, "mixed_precision": "no"}
RECIPE = {
    "family": {
        "env_id": "ad_hf/DarkRoom-v0",
        "env_kwargs": {"size": 5, "max_episode_steps": 8},
        "grid": {"goal": {"shape": [5, 5]}},
        "num_validation_tasks": 6,
        "num_test_tasks": 1,
        "native_vector": True,
    },
    "source": {
        "algorithm": "NoisedPolicy",
        "n_envs": 20,
        "total_timesteps": 20 * 8 * 24,
        "tasks_per_job": 25,
        "hyperparameters": {"expert": "ad_hf.envs.dark_room.expert"},
    },
    "model": {**SIZES, "context_length": 64},
    "training": {**UPDATES, "eval_episodes": 16, "eval_repeats": 4},
    "rollout": {"num_episodes": 16},
}


def wander(observations, envs):
    """A policy that knows its room and not the goal."""
    return observations.sum(axis=1) % 5


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Collect the histories of a recipe with other settings, if they are not there, and train on them."""
    folder = tmp_path_factory.mktemp("verdicts")
    (file := folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))

    def run(name, settings, **arguments):
        recipe = ad_hf.load_recipe(
            file, [text for each in settings.items() for text in (f"--{each[0]}", str(each[1]))]
        )
        key = "".join(f"-{value}" for each, value in settings.items() if each.startswith(("family", "source")))
        histories = folder / f"histories{key}"
        if not histories.is_dir():
            collect_recipe(recipe, histories, num_workers=0)
        ad_hf.train(recipe, histories, folder / name, **arguments)
        return folder / name

    return run


FEW = {"training.max_steps": 100}
RANDOM = {f"source.hyperparameters.{name}_epsilon": 1.0 for name in ("start", "end")}
FLAT = {f"source.hyperparameters.{name}_epsilon": 0.2 for name in ("start", "end")}
FLAT |= {"source.hyperparameters.expert": f"{__name__}.wander"}


@pytest.mark.parametrize(
    ("expected", "settings", "reason"),
    [
        (LEARNS, {}, "on 6 training tasks, a return of "),
        (NO_IMITATION, {**FEW, "training.learning_rate": 1e-8}, "where the best guess that is always the same"),
        (NO_IMITATION, {**FEW, **RANDOM}, "where the best guess that is always the same has 1.6"),
        (NO_IMPROVEMENT, {**FEW, **FLAT}, "`ad-hf inspect` finds the source does not improve"),
        pytest.param(
            NO_IMPROVEMENT,
            {"data.last_episodes": 4},
            "`ad-hf inspect` finds data.last_episodes keeps the last",
            marks=pytest.mark.slow,
        ),
        (
            MEMORISES,
            {"training.max_steps": 150, "family.num_train_tasks": 2},
            "`ad-hf inspect` finds 2 training tasks",
        ),
    ],
    ids=["learns", "untrained", "random actions", "flat histories", "expert distillation", "two tasks"],
)
def test_a_training_says_what_it_came_to(train, caplog, expected, settings, reason, request):
    with caplog.at_level("INFO", "ad_hf"):
        run = train(request.node.callspec.id.replace(" ", "_"), settings)
    kept = json.loads((run / "verdict.json").read_text())
    assert kept["verdict"] == expected
    played = r"on 6 validation tasks, a return of \S+ at first and of \S+ at last, episodes 7 to 16 minus the first: "
    assert re.match(f"{expected}: {played}", kept["line"])
    assert reason in kept["line"]
    assert ("docs/guides/troubleshooting.md" in kept["line"]) == (expected != LEARNS)
    assert caplog.text.count(kept["line"]) == 1


def learnt(verdict_, lead=0.0):
    """A test of learning, and how far a model ends above the validation tasks at least."""
    return {"verdict": verdict_, "lead": [lead, lead + 1]}


def losses(train_, validation=None):
    """Losses, where a constant guess has 1."""
    each = {"train": train_} if validation is None else {"train": train_, "validation": validation}
    return {split: {"loss": loss, "constant": 1.0} for split, loss in each.items()}


NOT, GOOD, SAME = "does not learn", losses(0.3, 0.4), losses(1.0, 1.1)


@pytest.mark.parametrize(
    ("expected", "held_out", "seen", "measured"),
    [
        (LEARNS, learnt(LEARNS), learnt(NOT), GOOD),
        (NO_IMITATION, learnt(LEARNS), learnt(LEARNS), SAME),  # by chance
        (NO_IMITATION, learnt(NOT), learnt(NOT), SAME),
        (NO_IMITATION, None, None, losses(0.99)),
        (UNKNOWN, None, None, GOOD),
        (UNKNOWN, learnt(None), learnt(None), GOOD),
        (MEMORISES, learnt(NOT), learnt(LEARNS, 0.1), GOOD),
        (UNKNOWN, learnt(NOT), learnt(LEARNS, -0.1), GOOD),  # as good in the end: its first episodes were by chance
        (MEMORISES, learnt(NOT), learnt(NOT), losses(0.3, 1.4)),
        (NO_IMPROVEMENT, learnt(NOT), learnt(NOT), GOOD),
        (NO_IMPROVEMENT, learnt("gets worse"), learnt(NOT), losses(0.3)),
    ],
)
def test_a_verdict_follows_from_returns_and_losses(expected, held_out, seen, measured):
    learning = {} if held_out is None else {"validation": held_out, "train": seen}
    assert judge(learning, measured) == expected


def test_a_run_that_is_asked_to_end_meanwhile_says_the_same_when_it_goes_on(train, monkeypatch):
    settings = {"training.max_steps": 20, "training.learning_rate": 1e-8}
    whole, play = train("whole", settings), verdict.evaluate

    def stopping(*arguments, **others):
        os.kill(os.getpid(), signal.SIGTERM)
        return play(*arguments, **others)

    with monkeypatch.context() as patch:
        patch.setattr(verdict, "evaluate", stopping)
        with pytest.raises(ad_hf.TrainingInterrupted, match="SIGTERM after 20 updates"):
            train("stopped", settings)
    assert_ended_alike(train("stopped", settings, resume="latest"), whole)


def test_without_enough_validation_tasks_it_cannot_tell(tiny_recipe, tiny_histories, tmp_path):
    tiny_recipe.training = replace(tiny_recipe.training, max_steps=60, learning_rate=1e-2, eval_steps=60)
    ad_hf.train(tiny_recipe, tiny_histories, tmp_path)
    kept = json.loads((tmp_path / "verdict.json").read_text())
    assert kept["line"].startswith("cannot tell: 1 validation task, and a test of learning takes 3; loss ")
    assert kept["learning"] == {}

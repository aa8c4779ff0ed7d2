"""The rollout API: settings, environments that return what they must not, contexts, prompts, batches."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from gymnasium import Env, spaces
from gymnasium.vector import AutoresetMode, VectorEnv

from malformed_inputs.common import Input, Place, accepted, refused

AREA = "rollouts"
NAN, INF = float("nan"), float("inf")
N = 2


class Room(VectorEnv):
    """Two environments of three steps an episode, of what they return something is changed."""

    def __init__(self, mode: Any = AutoresetMode.DISABLED, **changes: Any) -> None:
        self.num_envs, self.metadata = N, {"autoreset_mode": mode}
        self.single_observation_space = changes.pop("observation_space", spaces.MultiDiscrete([3, 3]))
        self.single_action_space = changes.pop("action_space", spaces.Discrete(5))
        self.changes, self.time = changes, 0

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        """Begin."""
        return self.changes.get("reset", (np.zeros((N, 2), np.int64), {}))

    def step(self, actions: Any) -> Any:
        """What a step returns, with the changes."""
        self.time += 1
        ended = np.full(N, self.time % 3 == 0)
        infos: dict[str, Any] = {"final_obs": np.zeros((N, 2), np.int64)} if ended.any() else {}
        step: dict[str, Any] = {
            "observations": np.zeros((N, 2), np.int64),
            "rewards": np.ones(N),
            "terminations": ended,
            "truncations": np.zeros(N, bool),
            "infos": infos,
        }
        step |= {
            name: change(step[name]) if callable(change) else change
            for name, change in self.changes.items()
            if name in step
        }
        return tuple(step.values())


class Alone(Env):
    """One environment of three steps an episode, whose step is changed."""

    observation_space, action_space = spaces.MultiDiscrete([3, 3]), spaces.Discrete(5)

    def __init__(self, step: Any = None) -> None:
        self.given, self.time = step, 0

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        """Begin."""
        return np.zeros(2, np.int64), {}

    def step(self, action: Any) -> Any:
        """What a step returns."""
        self.time += 1
        return self.given or (np.zeros(2, np.int64), 1.0, self.time % 3 == 0, False, {})


Use = Callable[[Any], Any]  # of a model


def _used(use: Use, change: Callable[[Any], Any] | None = None) -> Callable[[Place], Callable[[], Any]]:
    """A use of the honest model, or of a changed one."""

    def make(place: Place) -> Callable[[], Any]:
        from ad_hf import ADModel

        model = ADModel.from_pretrained(place.base / "run" / "model")
        if change is not None:
            with torch.no_grad():
                change(model)
        return lambda: use(model)

    return make


def _in(envs: Callable[[], Any], **settings: Any) -> Use:
    """A rollout of two episodes in environments."""
    return lambda model: model.rollout(envs(), **{"num_episodes": 2, **settings})


def _step(**changes: Any) -> Use:
    return _in(lambda: Room(**changes))


def _config(**settings: Any) -> Use:
    return lambda model: model.rollout(Room(), **{"num_episodes": 1, **settings})


def _act(*arguments: Any, **named: Any) -> Use:
    return lambda model: model.init_context(N).act(*arguments, **named)


SEEN = np.zeros((N, 2), np.int64)
LONG = np.array([0, 1, 2, 0])
PROMPT = {
    "observations": np.zeros((4, 2), np.int64),
    "actions": LONG,
    "rewards": np.ones(4),
    "terminations": np.zeros(4, bool),
    "truncations": np.zeros(4, bool),
}


def _prompted(**changes: Any) -> Use:
    prompt = {name: value for name, value in {**PROMPT, **changes}.items() if value is not None}
    return lambda model: model.init_context(N, prompt=prompt).act(SEEN)


def _state(change: Callable[[dict[str, Any]], Any]) -> Use:
    """A context whose state is changed, and set."""

    def use(model: Any) -> Any:
        context = model.init_context(N)
        context.act(SEEN)
        state = context.state_dict()
        fresh = model.init_context(N)
        changed = change(state)
        fresh.load_state_dict(changed if isinstance(changed, dict) else state)
        return fresh.act(SEEN)

    return use


def _forward(**changes: Any) -> Use:
    zeros = torch.zeros(2, 6, dtype=torch.long)
    batch = {
        "observations": torch.zeros(2, 6, 2, dtype=torch.long),
        "previous_actions": zeros,
        "previous_rewards": zeros.float(),
        "episode_starts": zeros.bool(),
        "labels": zeros,
    }
    return lambda model: model(**{**batch, **changes}).loss.item()


def _evaluated(**settings: Any) -> Use:
    def use(model: Any) -> Any:
        import ad_hf

        family = ad_hf.TaskFamily(
            "ad_hf/DarkRoom-v0",
            [{"goal": [0, each]} for each in range(3)],
            {"size": 3, "max_episode_steps": 6},
            num_test_tasks=1,
            native_vector=True,
        )
        return ad_hf.evaluate(model, family, **{"num_seeds": 1, **settings})

    return use


def _moved(model: Any) -> Any:
    """A context is used after the weights were given another type."""
    context = model.init_context(N)
    context.act(SEEN)
    model.to(torch.float64)
    return context.act(SEEN)


WRONG: list[tuple[str, Use, str]] = [
    ("rollout: an id of another spelling", _in(lambda: "ad_hf/DarkRom-v0"), "DarkRom"),
    ("rollout: an id of a namespace that there is not", _in(lambda: "nosuch/Room-v0"), "nosuch"),
    ("rollout: a number for environments", _in(lambda: 3), "envs"),
    ("rollout: a class for an environment", _in(lambda: Alone), "envs|Alone"),
    (
        "rollout: environments of other observations",
        _in(lambda: Room(observation_space=spaces.Discrete(9))),
        "observation_space",
    ),
    ("rollout: environments of other actions", _in(lambda: Room(action_space=spaces.Discrete(4))), "action_space"),
    ("rollout: actions that begin at 1", _in(lambda: Room(action_space=spaces.Discrete(5, start=1))), "action_space"),
    ("rollout: an autoreset mode in words", _in(lambda: Room(mode="sometimes")), "autoreset_mode"),
    (
        "env_kwargs: an argument that there is not",
        _in(lambda: "ad_hf/DarkRoom-v0", env_kwargs={"size": 3, "goal": [0, 0], "colour": "red"}),
        "colour",
    ),
    ("env_kwargs: text", _in(lambda: "ad_hf/DarkRoom-v0", env_kwargs="size=3"), "env_kwargs"),
    ("env_kwargs: numbers", _in(lambda: "ad_hf/DarkRoom-v0", env_kwargs=[3, 3]), "env_kwargs"),
    ("env_kwargs: none at all", _in(lambda: "ad_hf/DarkRoom-v0", env_kwargs=[]), "env_kwargs"),
    ("step: an observation beyond the room", _step(observations=np.array([[0, 0], [3, 0]])), "step 1.*environment 1"),
    ("step: an observation below the room", _step(observations=np.array([[-1, 0], [0, 0]])), "step 1.*environment 0"),
    ("step: half an observation", _step(observations=np.zeros((N, 1), np.int64)), "step 1.*observations"),
    ("step: observations as text", _step(observations=np.full((N, 2), "a")), "step 1.*observations"),
    ("step: observations that are NaN", _step(observations=np.full((N, 2), NAN)), "step 1.*environment 0"),
    ("step: nothing for observations", _step(observations=None), "step 1.*observations"),
    ("step: an infinite reward", _step(rewards=np.array([1.0, INF])), "step 1.*reward.*environment 1"),
    (
        "step: a reward beyond float32",
        _step(rewards=np.array([1e39, 0.0])),
        "step 1.*reward.*environment 0|reward.*environment 0",
    ),
    ("step: rewards as text", _step(rewards=np.array(["1", "2"])), "step 1.*rewards"),
    ("step: one reward for all", _step(rewards=1.0), "step 1.*rewards"),
    ("step: a column of rewards", _step(rewards=np.ones((N, 1))), "step 1.*rewards"),
    ("step: terminations as text", _step(terminations=np.array(["no", "no"])), "terminations"),
    ("step: one termination for all", _step(terminations=False), "terminations"),
    ("step: truncations of another length", _step(truncations=np.zeros(3, bool)), "truncations"),
    ("step: terminations that are NaN", _step(terminations=np.full(N, NAN)), "terminations"),
    (
        "step: four values",
        lambda model: model.rollout(Alone((np.zeros(2, np.int64), 1.0, False, {})), num_episodes=1),
        "step",
    ),
    (
        "step: last observations that are too short",
        _in(lambda: Room(AutoresetMode.SAME_STEP, infos={"final_obs": np.zeros((N, 1), np.int64)}), output_steps=True),
        "final_obs|observation",
    ),
    (
        "step: last observations beyond the room",
        _in(lambda: Room(AutoresetMode.SAME_STEP, infos={"final_obs": np.full((N, 2), 9)}), output_steps=True),
        "final_obs|observation",
    ),
    ("reset: nothing", _in(lambda: Room(reset=None)), "reset"),
    ("reset: observations alone", _in(lambda: Room(reset=SEEN)), "reset|step 0"),
    (
        "reset: observations of three environments",
        _in(lambda: Room(reset=(np.zeros((3, 2), np.int64), {}))),
        "observations",
    ),
    ("rollout: no episodes", _config(num_episodes=0), "num_episodes"),
    ("rollout: half an episode", _config(num_episodes=0.5), "num_episodes"),
    ("rollout: no limit that ends it", _config(num_episodes=None, max_steps=0), "max_steps"),
    ("rollout: a temperature of NaN", _config(temperature=NAN), "temperature"),
    ("rollout: a temperature as text", _config(temperature="hot"), "temperature"),
    ("rollout: a nucleus of everything and more", _config(top_p=1.1), "top_p"),
    ("rollout: a seed below 0", _config(seed=-1), "seed"),
    ("rollout: a seed of 2**70", _config(seed=2**70), "seed"),
    ("rollout: a seed that is half", _config(seed=0.5), "seed"),
    ("rollout: sampling as text", _config(do_sample="no"), "do_sample"),
    ("rollout: a setting of generate", _config(max_new_tokens=3), "max_new_tokens"),
    ("rollout: a context longer than the model's", _config(context_length=100), "context_length"),
    ("rollout: dropping more than there is", _config(context_length=8, context_drop=9), "context_drop"),
    ("rollout: settings as a dict", _config(rollout_config={"num_episodes": 1}), "rollout_config"),
    ("rollout: a callback that is a number", _config(callback=3), "callback"),
    ("rollout: pictures of what cannot be seen", _config(output_frames=True), "output_frames|render"),
    ("init_context: no environments", lambda model: model.init_context(0), "num_envs"),
    ("init_context: half an environment", lambda model: model.init_context(2.5), "num_envs"),
    ("init_context: true", lambda model: model.init_context(True), "num_envs"),
    ("act: one observation for two environments", _act(np.zeros(2, np.int64)), "observations"),
    ("act: ragged observations", _act([[0, 0], [0]]), "observations"),
    ("act: observations that are halves", _act(np.full((N, 2), 0.5)), "observations"),
    ("act: three rewards", _act(SEEN, np.ones(3)), "rewards"),
    ("act: rewards of nothing", _act(SEEN, np.array([None, 1.0])), "rewards"),
    ("act: a reward of NaN", _act(SEEN, np.array([1.0, NAN])), "reward.*environment 1"),
    ("act: starts that are text", _act(SEEN, np.ones(N), ["yes", "no"]), "episode_starts"),
    ("act: starts of three", _act(SEEN, np.ones(N), np.zeros(3, bool)), "episode_starts"),
    ("act: numbers of environments for which are active", _act(SEEN, active=np.array([0, 7])), "active"),
    ("act: sampling as a number", _act(SEEN, do_sample=2), "do_sample"),
    ("reset: numbers of environments", lambda model: model.init_context(N).reset([1, 2]), "mask|reset"),
    ("reset: a mask of three", lambda model: model.init_context(N).reset(np.ones(3, bool)), "mask|shape"),
    ("prompt: no actions", _prompted(actions=None), "actions"),
    ("prompt: an action that there is not", _prompted(actions=np.array([0, 1, 5, 0])), "actions"),
    ("prompt: a reward that is missing", _prompted(rewards=[1.0, None, 1.0, 1.0]), "rewards"),
    ("prompt: rewards of another length", _prompted(rewards=np.ones(5)), "observations|rewards"),
    ("prompt: ends that are text", _prompted(terminations=["no"] * 4), "terminations"),
    ("prompt: text", lambda model: model.init_context(N, prompt="history"), "prompt"),
    ("prompt: three for two environments", lambda model: model.init_context(N, prompt=[PROMPT] * 3), "prompt"),
    ("load_state_dict: an entry is missing", _state(lambda state: state.pop("seeds")), "seeds"),
    (
        "load_state_dict: of three environments",
        lambda model: model.init_context(N).load_state_dict(model.init_context(3).state_dict()),
        "num_envs|environments",
    ),
    ("load_state_dict: a number", lambda model: model.init_context(N).load_state_dict(3), "state"),
    ("load_state_dict: an entry as a list", _state(lambda state: state.update(seeds=[0, 1])), "seeds"),
    (
        "load_state_dict: lengths below 0",
        _state(lambda state: [each.fill_(-5) for name, each in state.items() if "lengths" in name]),
        "lengths",
    ),
    (
        "load_state_dict: keys that are NaN",
        _state(lambda state: [each.fill_(NAN) for name, each in state.items() if each.is_floating_point()]),
        "finite|nan",
    ),
    ("act: after the weights were given another type", _moved, "float64|dtype|moved|type"),
    ("forward: an observation beyond the room", _forward(observations=torch.full((2, 6, 2), 3)), "observations"),
    ("forward: an action below none", _forward(previous_actions=torch.full((2, 6), -1)), "previous_actions"),
    ("forward: starts of another length", _forward(episode_starts=torch.zeros(2, 5).bool()), "episode_starts"),
    ("forward: a label that there is not", _forward(labels=torch.full((2, 6), 5)), "labels"),
    ("forward: a batch of three labels for two", _forward(labels=torch.zeros(3, 6, dtype=torch.long)), "labels"),
    ("evaluate: half a seed", _evaluated(num_seeds=0.5), "num_seeds"),
    ("evaluate: a split of another name", _evaluated(split="dev"), "dev"),
    ("evaluate: a split without tasks", _evaluated(split="validation"), "validation"),
]

RIGHT: list[tuple[str, Use]] = [
    ("rollout: numbers of numpy", _config(num_episodes=np.int64(1), seed=np.uint32(3), temperature=np.float32(0.5))),
    ("rollout: a truth value of numpy", _config(do_sample=np.bool_(False))),
    ("rollout: a whole number as a temperature", _config(temperature=1)),
    ("step: rewards as whole numbers", _step(rewards=np.ones(N, np.int32))),
    ("step: rewards as truth values", _step(rewards=np.ones(N, bool))),
    ("step: rewards in half precision", _step(rewards=np.ones(N, np.float16))),
    ("step: rewards as a list", _step(rewards=[1.0, 0.0])),
    ("step: observations as bytes", _step(observations=np.zeros((N, 2), np.uint8))),
    ("step: observations of the other byte order", _step(observations=np.zeros((N, 2), ">i4"))),
    ("step: observations as columns of an array", _step(observations=np.zeros((2, N), np.int64).T)),
    ("step: observations as floats that are whole", _step(observations=np.zeros((N, 2)))),
    ("step: infos with keys that are numbers", _step(infos={0: 1.0})),
    ("step: no last observations, which nobody asked for", _in(lambda: Room(AutoresetMode.SAME_STEP, infos={}))),
    ("step: resets in the next step", _in(lambda: Room(AutoresetMode.NEXT_STEP))),
    ("rollout: one environment", _in(Alone)),
    (
        "rollout: an id",
        _in(lambda: "ad_hf/DarkRoom-v0", env_kwargs=[{"size": 3, "max_episode_steps": 6, "goal": (0, 1)}]),
    ),
    ("act: lists", _act([[0, 0], [1, 1]], [0.0, 1.0], [True, False])),
    ("act: tensors", _act(torch.zeros(N, 2, dtype=torch.long), torch.zeros(N), torch.zeros(N, dtype=torch.bool))),
    ("act: starts as whole numbers", _act(SEEN, np.zeros(N), np.array([1, 0]))),
    ("init_context: a number of numpy", lambda model: model.init_context(np.int64(N), seed=np.int64(1)).act(SEEN)),
    ("prompt: an empty history", _prompted(**{name: value[:0] for name, value in PROMPT.items()})),
    (
        "prompt: longer than the context",
        _prompted(**{name: np.concatenate([value] * 20) for name, value in PROMPT.items()}),
    ),
    ("load_state_dict: as it was", _state(lambda state: None)),
    ("evaluate: a number of numpy", _evaluated(num_seeds=np.int64(1))),
]

SPOILT: list[tuple[str, Callable[[Any], Any]]] = [
    ("a weight of the last norm is NaN", lambda model: model.norm.weight[0:1].fill_(NAN)),
    ("the head's biases are infinite", lambda model: model.head.linear.bias.fill_(INF)),
]


class Endless(Room):
    """No episode ever ends."""

    def step(self, actions: Any) -> Any:
        """A step as of others, without an end."""
        found = list(super().step(actions))
        found[2], found[4] = np.zeros(N, bool), {}
        return tuple(found)


def inputs() -> Iterator[Input]:
    """Uses of a model, refused and accepted."""
    for what, use, names in WRONG:
        yield refused(AREA, what, _used(use), names)
    for what, change in SPOILT:
        yield refused(AREA, f"rollout: {what}", _used(_in(Room), change), "finite|nan")
        yield refused(AREA, f"act: {what}", _used(_act(SEEN), change), "finite|nan")
    yield refused(AREA, "a context's state is of a model of other weights", _other_weights, "weights|model")
    ends = _step(terminations=lambda ended: ended.astype(np.int8))
    yield refused(AREA, "step: ends as zeros and ones", _used(ends), "terminations", either=True)
    for what, use in RIGHT:
        yield accepted(AREA, what, _used(use))
    yield accepted(
        AREA,
        "rollout: no episode ends, and a limit of steps",
        _used(lambda model: model.rollout(Endless(), num_episodes=None, max_steps=20)),
    )


def _other_weights(place: Place) -> Callable[[], Any]:
    from ad_hf import ADModel

    model = ADModel.from_pretrained(place.base / "run" / "model")
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.head.linear.weight.add_(1.0)
        other.embedding.episode_start.weight.add_(1.0)
    context = model.init_context(N)
    context.act(SEEN)
    return lambda: other.init_context(N).load_state_dict(context.state_dict())

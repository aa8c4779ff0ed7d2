"""Recipes: YAML that is odd, settings out of their range, free fields that hold what they must not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import yaml

from malformed_inputs.common import DROP, TINY, Input, Place, accepted, refused

AREA = "recipes"
TEXT = yaml.safe_dump(TINY, sort_keys=False)

# A recipe's text, and what a refusal has to name beside the file.
TEXTS: list[tuple[str, str | bytes, str]] = [
    ("a tab that indents", TEXT + "data:\n\tnum_workers: 0\n", r"recipe\.yaml.*(\\t|tab|line)"),
    ("two documents", TEXT + "---\n" + TEXT, r"recipe\.yaml.*document"),
    ("UTF-16", TEXT.encode("utf-16"), r"recipe\.yaml.*UTF-8"),
    ("a NUL byte", TEXT + "# \0\n", r"recipe\.yaml"),
    ("a set", TEXT + "data: !!set {num_workers}\n", r"recipe\.yaml.*set"),
    ("bytes", TEXT + "data: {labels: !!binary aGk=}\n", r"recipe\.yaml.*binary"),
    ("an object of Python", TEXT + "data: !!python/object:collections.OrderedDict {}\n", r"recipe\.yaml.*python"),
    ("a tag of somebody's", TEXT + "data: !include other.yaml\n", r"recipe\.yaml.*include"),
    (
        "a key twice, two levels down",
        TEXT.replace("      n_steps", "      n_steps", 1).replace("    gamma: 0.9", "    gamma: 0.9\n    gamma: 0.99"),
        r"recipe\.yaml.*gamma",
    ),
    ("a key twice in a list", TEXT + "data: {}\n" + "source2:\n- {a: 1, a: 2}\n", r"recipe\.yaml.*'?a'?.*twice"),
    ("a section twice", TEXT + "rollout: {}\n", r"recipe\.yaml.*rollout"),
    ("a list that holds itself", TEXT + "data: &a {labels: [*a]}\n", r"recipe\.yaml.*(alias|anchor)"),
    ("an anchor that is not there", TEXT + "data: *nowhere\n", r"recipe\.yaml.*nowhere"),
    (
        "aliases that multiply in a list",
        TEXT
        + "data:\n  labels:\n  - &x0 [z, z, z, z, z, z, z, z, z, z]\n"
        + "".join(f"  - &x{level} [{', '.join([f'*x{level - 1}'] * 10)}]\n" for level in range(1, 12)),
        r"recipe\.yaml.*alias",
    ),
    (
        "flow mappings nested 4,000 deep",
        TEXT + "data: " + "{a: " * 4000 + "1" + "}" * 4000 + "\n",
        r"recipe\.yaml.*deep",
    ),
    ("a key that is a number", TEXT.replace("env_kwargs:", "env_kwargs:\n    3: 4", 1), r"recipe\.yaml.*3.*text"),
    ("a key that is a list", TEXT + "? [a, b]\n: 1\n", r"recipe\.yaml"),
    ("text alone", "dark_room\n", r"recipe\.yaml.*mapping"),
    ("comments alone", "# nothing here\n", r"recipe\.yaml.*mapping"),
    ("a section that is text", TEXT + "data: all\n", r"section data"),
    ("a section of another spelling", TEXT + "Training: {max_steps: 3}\n", r"Training"),
    ("a setting of another section", TEXT + "data: {batch_size: 8}\n", r"data\.batch_size"),
    ("an unclosed quote", TEXT + 'data: {labels: "abc}\n', r"recipe\.yaml"),
]

# Settings that train refuses: what they are set to. The message has to say their names.
OF_TRAINING: list[tuple[str, Any]] = [
    ("training.max_steps", 6.5),
    ("training.max_steps", -2),
    ("training.max_steps", "6"),
    ("training.max_steps", True),
    ("training.batch_size", None),
    ("training.batch_size", 100_000_000),
    ("training.learning_rate", "3e-3 "),
    ("training.learning_rate", 0),
    ("training.learning_rate", [0.003, 0.001]),
    ("training.warmup_ratio", 1.01),
    ("training.weight_decay", float("inf")),
    ("training.adam_beta1", -0.1),
    ("training.adam_beta2", float("nan")),
    ("training.min_learning_rate_ratio", -0.01),
    ("training.optimizer", "sgd"),
    ("training.optimizer", None),
    ("training.mixed_precision", "fp8"),
    ("training.mixed_precision", False),
    ("training.gradient_accumulation_steps", 3),
    ("training.gradient_checkpointing", "yes please"),
    ("training.eval_steps", 0),
    ("training.eval_episodes", -1),
    ("training.save_total_limit", 0),
    ("training.logging_steps", 0.5),
    ("training.log_with", ["tensorboard"]),
    ("training.log_with", "mlflaw"),
    ("training.seed", -7),
    ("training.seed", 2**33),
    ("data.keep_every_episode", -1),
    ("data.max_episodes", 2.5),
    ("data.last_episodes", "all"),
    ("data.min_improvement", float("nan")),
    ("data.min_improvement", 1e6),
    ("data.labels", 5),
    ("data.labels", "ad_hf.envs.dark_room.no_such_function"),
    ("data.labels", "ad_hf.envs.dark_room.goal_distance"),
    ("data.buffer_megabytes", 0),
    ("data.num_workers", -1),
    ("data.keep_in_memory", "auto"),
    ("model.hidden_size", 17),
    ("model.hidden_size", "sixteen"),
    ("model.num_attention_heads", 3),
    ("model.num_hidden_layers", 0),
    ("model.context_length", 24.5),
    ("model.sliding_window", 25),
    ("model.initializer_range", 0),
    ("model.dropout", 1),
    ("model.label_smoothing", -0.1),
    ("model.reward_scale", -2.0),
    ("model.action_distribution", "gaussian"),
    ("model.image_channels", "32"),
    ("model.backbone_config", {"model_type": "no-such-model"}),
    ("model.backbone_config", {"hidden_size": 16}),
    ("model.attn_implementation", "no_such_attention"),
    ("rollout.num_episodes", 0),
    ("rollout.temperature", -1.0),
    ("rollout.temperature", float("nan")),
    ("rollout.top_p", 0),
    ("rollout.top_k", 2.5),
    ("rollout.epsilon", 1.01),
    ("rollout.seed", -1),
    ("rollout.do_sample", "greedy"),
    ("rollout.context_length", 25),
    ("family.num_test_tasks", 9),
    ("family.num_validation_tasks", -1),
    ("family.num_train_tasks", 7),
    ("family.split_seed", 1.5),
    ("family.grid", {}),
    ("family.grid", {"goal": []}),
    ("family.grid", {"goal": {"shape": [3, 0]}}),
    ("family.grid", {"goal": {"shape": 3}}),
    ("family.grid", {"goal": {"range": [3, 3]}}),
    ("family.grid", {"goal": {"shape": [40_000, 40_000, 40_000]}}),
    ("family.grid", "goal"),
    ("family.native_vector", "no"),
    ("family.stratify_by", "no_such_module.distance"),
    ("family.stratify_by", "math.floor"),
    ("family.optimal_return", "ad_hf"),
    ("family.wrappers", "gymnasium.wrappers.TimeLimit"),
    ("family.wrappers", [7]),
    ("family.wrappers", ["gymnasium.wrappers.NoSuchWrapper"]),
    ("family.attributes", ["gravity"]),
    ("family.report_by", "colour"),
]

# Further changes of a recipe's family, and what has to be named.
OF_FAMILY: list[tuple[str, dict[str, Any], str]] = [
    ("two ways to say the tasks", {"family.tasks": [{"goal": [0, 0]}]}, r"tasks.*grid|grid.*tasks"),
    ("no way to say the tasks", {"family.grid": DROP}, r"family.*(tasks|grid)"),
    ("no environment", {"family.env_id": DROP}, r"env_id"),
    ("tasks that are lists", {"family.grid": DROP, "family.tasks": [[0, 0]] * 5}, r"family\.tasks"),
    (
        "a split of another name",
        {
            "family.grid": DROP,
            "family.splits": {"train": {"grid": {"goal": [[0, 0]]}}, "dev": {"grid": {"goal": [[1, 1]]}}},
        },
        r"dev",
    ),
    (
        "splits without tasks to train on",
        {"family.grid": DROP, "family.splits": {"test": {"tasks": [{"goal": [1, 1]}]}}},
        r"splits",
    ),
    (
        "a draw from high to low",
        {
            "family.grid": DROP,
            "family.random": {
                "num_tasks": 9,
                "values": {"goal": {"low": 3, "high": 0, "integer": True, "shape": [2]}},
            },
        },
        r"random.*goal",
    ),
    (
        "no tasks to draw",
        {"family.grid": DROP, "family.random": {"num_tasks": 0, "values": {"goal": {"choices": [1]}}}},
        r"num_tasks",
    ),
    (
        "more tasks to draw than there are",
        {"family.grid": DROP, "family.random": {"num_tasks": 9, "values": {"goal": {"choices": [[0, 0], [0, 1]]}}}},
        r"num_tasks",
    ),
    (
        "a way to draw that is none",
        {"family.grid": DROP, "family.random": {"num_tasks": 9, "values": {"goal": {"normal": [0, 1]}}}},
        r"random.*goal",
    ),
]

# What is wrong with how tasks are learnt, which collect has to say before it starts to.
OF_COLLECTION: list[tuple[str, dict[str, Any], str]] = [
    (
        "equal tasks, in another order of their entries",
        {
            "family.grid": DROP,
            "family.native_vector": False,
            "family.stratify_by": None,
            "family.tasks": [
                {"goal": [0, 0], "size": 3},
                {"size": 3, "goal": [0, 0]},
                {"goal": [0, 1], "size": 3},
                {"goal": [0, 2], "size": 3},
                {"goal": [1, 2], "size": 3},
            ],
            "family.env_kwargs": {},
        },
        r"family\.tasks|same task|twice|equal",
    ),
    ("an algorithm of another spelling", {"source.algorithm": "a2c"}, r"algorithm.*a2c"),
    ("an algorithm that is none", {"source.algorithm": "json.dumps"}, r"algorithm.*json\.dumps"),
    ("no algorithm", {"source.algorithm": None}, r"source\.algorithm"),
    ("no environments of the learner", {"source.n_envs": 0}, r"source\.n_envs"),
    ("a fraction of a transition", {"source.total_timesteps": 720.5}, r"source\.total_timesteps"),
    ("no seeds", {"source.seeds": []}, r"source\.seeds"),
    ("one seed twice", {"source.seeds": [3, 3]}, r"seeds"),
    ("seeds that are truth values", {"source.seeds": [True]}, r"source\.seeds"),
    ("a seed that is too large", {"source.seeds": [2**32]}, r"source\.seeds"),
    ("a number for the list of seeds", {"source.seeds": 3}, r"source\.seeds"),
    ("hyper-parameters as a list", {"source.hyperparameters": [["n_steps", 6]]}, r"source\.hyperparameters"),
    ("a hyper-parameter of another algorithm", {"source.hyperparameters.buffer_size": 100}, r"buffer_size"),
    ("text as a learning rate", {"source.hyperparameters.learning_rate": "fast"}, r"learning_rate"),
    ("no steps", {"source.hyperparameters.n_steps": 0}, r"n_steps"),
    (
        "settings of a policy that it does not take",
        {"source.hyperparameters.policy_kwargs": {"depth": 3}},
        r"policy_kwargs|depth",
    ),
    (
        "an activation that is none",
        {"source.hyperparameters.policy_kwargs": {"activation_fn": "torch.nn.Relu7"}},
        r"activation_fn",
    ),
    ("a policy that is none", {"source.hyperparameters.policy": "LstmPolicy"}, r"policy"),
    ("a callback that is none", {"source.callbacks": ["stable_baselines3.PPO"]}, r"callback"),
    ("a number as a callback", {"source.callbacks": [5]}, r"callbacks"),
    (
        "an argument that a callback does not take",
        {
            "source.callbacks": [
                {"name": "stable_baselines3.common.callbacks.StopTrainingOnMaxEpisodes", "kwargs": {"max": 3}}
            ]
        },
        r"callback.*max",
    ),
    ("a window of convergence below 1", {"source.until_converged": {"window": -5}}, r"window"),
    ("a setting of convergence that there is not", {"source.until_converged": {"windows": 5}}, r"windows"),
    ("a tolerance that is no number", {"source.until_converged": {"tolerance": float("nan")}}, r"tolerance"),
    ("an environment of another spelling", {"family.env_id": "ad_hf/DarkRom-v0"}, r"env_id|DarkRom"),
    ("an environment of a version that there is not", {"family.env_id": "ad_hf/DarkRoom-v99"}, r"env_id|DarkRoom-v99"),
    ("an argument that the environment does not take", {"family.env_kwargs.colour": "red"}, r"colour"),
    ("a room without cells", {"family.env_kwargs.size": 0}, r"size"),
    ("a date for a room's size", {"family.env_kwargs.size": "2024-01-01"}, r"size"),
    ("goals outside of the room", {"family.grid": {"goal": {"shape": [3, 4]}}}, r"goal"),
    ("goals of three numbers", {"family.grid": {"goal": {"shape": [3, 3, 1]}}}, r"goal"),
    (
        "an observation of the source that is no space",
        {"family.source_observation": {"key": {"type": "Discrete"}}},
        r"source_observation",
    ),
    (
        "a wrapper's argument that it does not take",
        {
            "family.native_vector": False,
            "family.wrappers": [{"name": "gymnasium.wrappers.TimeLimit", "kwargs": {"steps": 4}}],
        },
        r"wrappers|TimeLimit",
    ),
    (
        "a class in an environment's arguments",
        {"family.env_kwargs": {"size": 3, "class_path": "os.getcwd", "init_args": {}}},
        r"class_path",
    ),
    (
        "a class in a policy's settings",
        {
            "source.hyperparameters.policy_kwargs": {
                "class_path": "subprocess.Popen",
                "init_args": {"args": ["touch", "MARKER"]},
            }
        },
        r"class_path|policy_kwargs",
    ),
]


def _texts(text: str | bytes) -> Callable[[Place], list[Any]]:
    return lambda place: place.train(recipe=place.text(text))


def _trained(changes: dict[str, Any]) -> Callable[[Place], list[Any]]:
    return lambda place: place.train(recipe=place.recipe(changes))


def _collected(changes: dict[str, Any]) -> Callable[[Place], list[Any]]:
    return lambda place: place.collect(place.recipe(changes))


def _loaded(text: str | bytes) -> Callable[[Place], Callable[[], Any]]:
    """What a recipe is read as, with its tasks."""

    def make(place: Place) -> Callable[[], Any]:
        def call() -> Any:
            import ad_hf

            recipe = ad_hf.load_recipe(place.text(text))
            ad_hf.TaskFamily(recipe.family)
            return recipe

        return call

    return make


def _is(path: str, expected: Any) -> Callable[[Place, Any], str | None]:
    """A check that a setting was read as something."""

    def check(place: Place, recipe: Any) -> str | None:
        found = recipe
        for name in path.split("."):
            found = found[name] if isinstance(found, dict) else getattr(found, name)
        same = found == expected and type(found) is type(expected)
        return None if same else f"{path} was read as {found!r}"

    return check


def inputs() -> Iterator[Input]:
    """Recipes, refused and accepted."""
    for what, text, names in TEXTS:
        yield refused(AREA, f"recipe: {what}", _texts(text), names)
    for path, value in OF_TRAINING:
        name = path.rpartition(".")[2]
        names = rf"\b{name}\b" + (r"|test tasks" if name == "num_test_tasks" else "")
        yield refused(AREA, f"{path}: {value!r}", _trained({path: value}), names)
    for what, changes, names in OF_FAMILY:
        yield refused(AREA, f"family: {what}", _trained(changes), names)
    for what, changes, names in OF_COLLECTION:
        yield refused(AREA, f"collect: {what}", _collected(changes), names)
    yield refused(
        AREA,
        "training.learning_rate: 1e30, so that the weights grow beyond all bounds",
        _trained({"training.learning_rate": 1e30, "training.max_grad_norm": 1e30}),
        r"finite|learning.rate",
    )
    merged = "defaults: &d {gamma: 0.9}\n"
    yield refused(AREA, "recipe: a section for anchors alone", _texts(merged + TEXT), r"defaults")
    yield accepted(
        AREA, "recipe: lines that end as on Windows", _loaded(TEXT.replace("\n", "\r\n")), _is("training.max_steps", 6)
    )
    yield accepted(
        AREA,
        "recipe: a byte order mark",
        _loaded(b"\xef\xbb\xbf" + TEXT.encode()),
        _is("family.env_id", "ad_hf/DarkRoom-v0"),
    )
    yield accepted(AREA, "recipe: between --- and ...", _loaded(f"---\n{TEXT}...\n"), _is("training.max_steps", 6))
    yield accepted(AREA, "recipe: empty sections", _loaded(TEXT + "data:\n"), _is("data.keep_every_episode", 1))
    yield accepted(AREA, "recipe: as JSON", _loaded(json.dumps(TINY)), _is("model.hidden_size", 16))
    anchored = TEXT + "data: {}\n"
    anchored = anchored.replace(
        "  hyperparameters:\n", "  hyperparameters:\n    policy_kwargs: &net {net_arch: [8]}\n"
    )
    yield accepted(
        AREA,
        "recipe: an anchor and a merge key",
        _loaded(anchored.replace("net_arch: [8]}", "net_arch: [8]}\n    n_epochs: {<<: *net}")),
        _is("source.hyperparameters.n_epochs.net_arch", [8]),
    )
    yield accepted(
        AREA,
        "recipe: numbers with exponents and underscores",
        _loaded(
            TEXT.replace("max_steps: 6", "max_steps: 1_000", 1).replace(
                "batch_size: 8", "batch_size: 8\n  learning_rate: 3e-4"
            )
        ),
        _is("training.learning_rate", 3e-4),
    )
    yield accepted(
        AREA,
        "recipe: a whole number where a number is expected",
        _loaded(TEXT.replace("batch_size: 8", "batch_size: 8\n  max_grad_norm: 1")),
        _is("training.max_grad_norm", 1.0),
    )
    yield accepted(
        AREA,
        "recipe: a quoted number in a free field",
        _loaded(TEXT.replace("gamma: 0.9", 'gamma: 0.9\n    policy: "12"')),
        _is("source.hyperparameters.policy", "12"),
    )
    yield accepted(
        AREA,
        "recipe: a date in a free field",
        _loaded(TEXT.replace("gamma: 0.9", "gamma: 0.9\n    since: 2024-01-01")),
        _is("source.hyperparameters.since", "2024-01-01"),
    )
    yield accepted(
        AREA,
        "recipe: keys that are quoted",
        _loaded(TEXT.replace("training:", '"training":', 1)),
        _is("training.max_steps", 6),
    )
    yield accepted(
        AREA,
        "recipe: a float with a tag",
        _loaded(TEXT.replace("gamma: 0.9", 'gamma: !!float "0.5"')),
        _is("source.hyperparameters.gamma", 0.5),
    )

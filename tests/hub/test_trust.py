"""What lies in somebody's repository is data: no verb runs a command of it, and the flag lets code of it run."""

import json
import shutil
import sys

import pytest
import yaml
from hub_files import card_in, refusal

CODE = "open({marker!r}, 'w').close()\n"
COMMAND = "touch {marker}"
POPEN = {"class_path": "subprocess.Popen", "init_args": {"args": COMMAND, "shell": True}}
CALLED = {"tasks": [{"command": COMMAND}, {"command": "true"}, {"command": "true "}], "grid": None}

NOT_READ = "what evaluate does not read"

# What a hostile recipe changes in an honest one, by section.
HOSTILE = {
    "env_kwargs": {"family": {"env_kwargs": POPEN}},
    "tasks": {"family": {"tasks": [POPEN], "grid": None}},
    "grid": {"family": {"grid": {"goal": POPEN}}},
    "splits": {"family": {"splits": {"train": POPEN, "test": POPEN}, "grid": None}},
    "random": {"family": {"random": {"num_tasks": 9, "values": {"goal": POPEN}}, "grid": None}},
    "wrappers": {"family": {"wrappers": [POPEN], "native_vector": False}},
    "rollout": {"rollout": {"num_episodes": POPEN}},
    NOT_READ: {
        "family": {"source_observation": {"key": POPEN}},
        "source": {"hyperparameters": POPEN, "callbacks": [POPEN], "until_converged": POPEN},
        "data": {"labels": "evil_module.labels"},
        "model": {"backbone_config": POPEN, "attn_implementation": "evil/kernel"},
        "training": {"log_with": "evil_module.Tracker"},
    },
    **{
        f"stratify_by {name}": {"family": {"stratify_by": name, **CALLED}}
        for name in (
            *("os.system", "subprocess.getoutput", "stable_baselines3.common.utils.os.system"),
            *("ad_hf.storage.files.os.system", "ad_hf.envs.dark_room.np.os.system", "evil_module.labels"),
        )
    },
    "optimal_return": {"family": {"optimal_return": "os.system", **CALLED}},
    "random_return": {"family": {"random_return": "os.system", **CALLED}},
    "function": {
        "family": {
            "random": {
                "num_tasks": 9,
                "values": {"goal": {"function": "os.system", "kwargs": {"command": COMMAND}}},
            },
            "grid": None,
        }
    },
    **{
        f"wrapper {name}": {"family": {"wrappers": [{"name": name, "kwargs": kwargs}], "native_vector": False}}
        for name, kwargs in (
            ("stable_baselines3.PPO.load", {"env": "evil.zip"}),
            ("gymnasium.envs.registration.load_env_creator", {}),
            ("gymnasium.make", {}),
            ("evil_module.Wrapper", {}),
            ("gymnasium.wrappers.RecordVideo", {"video_folder": "{marker}"}),
            ("gymnasium.wrappers.TransformObservation", {"func": "os.system", "observation_space": None}),
        )
    },
    **{
        f"env_id {env_id}": {"family": {"env_id": env_id, **kwargs}}
        for env_id, kwargs in (
            ("evil_module:ad_hf/DarkRoom-v0", {}),
            ("GymV26Environment-v0", {"env_kwargs": {"env_id": "evil_module:X-v0"}, "native_vector": False}),
            ("GymV21Environment-v0", {"env_kwargs": {"make_env": "os.system"}, "native_vector": False}),
            ("Nowhere-v0", {}),
        )
    },
    "xml_file": {"family": {"env_id": "Ant-v5", "env_kwargs": {"xml_file": "{marker}"}, "native_vector": False}},
    "attributes": {"family": {"attributes": ["__class__"], "env_kwargs": {"__class__": "x"}, "native_vector": False}},
    "python tags": "family: !!python/object/apply:os.system ['touch {marker}']",
}


def filled(value, marker):
    """A hostile value that names the marker."""
    return json.loads(json.dumps(value).replace("{marker}", str(marker)))


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """What a command of a repository would make; and a module that makes it when it is imported."""
    path = tmp_path / "MARKER"
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "evil_module.py").write_text(CODE.format(marker=str(path)))
    yield path
    assert not path.exists(), "code of a repository was run"


@pytest.fixture
def somebody(hub, ad_hf_with_hub, tiny_run, tiny_histories, marker):
    """Repositories of somebody else, into which files are put, beside a module that must not be imported."""
    ad_hf_with_hub("push", "model", tiny_run, "local/model")
    ad_hf_with_hub("push", "dataset", tiny_histories, "local/data")
    ad_hf_with_hub(
        script=f"import sys; sys.path = [{str(marker.parent / 'evil')!r}] + [p for p in sys.path if 'evil' not in p]"
    )

    def put(kind, files):
        name = {"model": "local/model", "dataset": "local/data"}[kind]
        hub.commit(kind, name, {path: text.encode() for path, text in files.items()})

    return put


def hostile_recipe(honest, changes, marker):
    if isinstance(changes, str):
        return changes.replace("{marker}", str(marker))
    sections = {name: dict(section) for name, section in honest.items()}
    for name, changed in filled(changes, marker).items():
        sections[name] = {**sections.get(name, {}), **changed}
    return yaml.safe_dump(sections)


def test_evaluate_runs_nothing_of_a_recipe_that_lies_beside_a_model(
    somebody, ad_hf_with_hub, tiny_run, marker, tmp_path
):
    honest = yaml.safe_load((tiny_run / "recipe.yaml").read_text())
    for name, changes in HOSTILE.items():
        somebody("model", {"recipe.yaml": hostile_recipe(honest, changes, marker)})
        done = ad_hf_with_hub("evaluate", "--model", "local/model", "--output_dir", tmp_path / "out", check=False)
        assert not marker.exists(), name
        if name == NOT_READ:
            assert done.returncode == 0, done.stderr
        else:
            print(name, refusal(done))


def test_no_verb_runs_what_lies_in_a_repository(
    somebody, hub, ad_hf_with_hub, tiny_recipe_file, tiny_run, tiny_histories, marker, tmp_path
):
    honest = yaml.safe_load((tiny_run / "recipe.yaml").read_text())
    code = CODE.format(marker=str(marker))
    evil = hostile_recipe(honest, HOSTILE["stratify_by stable_baselines3.common.utils.os.system"], marker)
    somebody("model", {"recipe.yaml": evil, "modeling_ad.py": code, "configuration_ad.py": code})
    metadata = json.loads((tiny_histories / "default" / "metadata.json").read_text())
    metadata["env_id"] = "evil_module:X-v0"
    somebody("dataset", {"default/metadata.json": json.dumps(metadata), "recipe.yaml": evil})
    train = ["train", "--recipe", tiny_recipe_file, "--output_dir", tmp_path / "run"]
    for argv in (
        ["rollout", "--recipe", tiny_recipe_file, "--model", "local/model", "--output_dir", tmp_path / "seen"],
        [*train, "--dataset", "local/data"],
        [*train, "--dataset", tiny_histories, "--resume", "local/model"],
        ["merge", "local/data", "local/data", tmp_path / "merged"],
        ["convert", "to-minari", "local/data", "evil/data-v0"],
        ["push", "model", "local/model", "local/copy"],
        ["push", "dataset", "local/data", "local/copy"],
    ):
        done = ad_hf_with_hub(*argv, check=False)
        assert "Traceback" not in done.stderr, argv
        assert not marker.exists(), argv


def test_the_flag_lets_a_recipe_name_its_own_code(somebody, ad_hf_with_hub, tiny_run, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    (own / "benign_module.py").write_text("def distance(goal, **_):\n    return float(goal[0])\n")
    recipe = yaml.safe_load((tiny_run / "recipe.yaml").read_text())
    recipe["family"]["stratify_by"] = "benign_module.distance"
    somebody("model", {"recipe.yaml": yaml.safe_dump(recipe)})
    ad_hf_with_hub(script=f"import sys; sys.path.append({str(own)!r})")
    evaluate = ["evaluate", "--model", "local/model", "--output_dir", tmp_path / "out", "--num_seeds", "1"]
    assert "--trust_remote_code" in refusal(ad_hf_with_hub(*evaluate, check=False))
    ad_hf_with_hub(*evaluate, "--trust_remote_code")
    assert (tmp_path / "out" / "evaluation.json").is_file()
    assert "benign_module" not in sys.modules


def test_the_learner_of_a_dataset_is_a_name_that_no_verb_imports(
    somebody, hub, ad_hf_with_hub, tiny_recipe_file, tiny_histories, tmp_path
):
    folder = shutil.copytree(tiny_histories, tmp_path / "histories")
    metadata = json.loads((folder / "default" / "metadata.json").read_text())
    metadata["source"] |= {
        "algorithm": "evil_module.Evil",
        "callbacks": [{"name": "evil_module.Callback", "kwargs": {}}],
        "hyperparameters": {"policy": "evil_module.Policy", "policy_kwargs": {"activation_fn": "evil_module.ReLU"}},
    }
    (folder / "default" / "metadata.json").write_text(json.dumps(metadata))
    ad_hf_with_hub("push", "dataset", folder, "local/evil")
    card = card_in(hub, "dataset", "local/evil").text
    assert "- Source: Evil (`evil_module.Evil`), 8 parallel environments" in card
    run, small = tmp_path / "run", ["--training.max_steps", 1, "--training.eval_episodes", 1]
    ad_hf_with_hub("train", "--recipe", tiny_recipe_file, "--dataset", "local/evil", "--output_dir", run, *small)
    evaluate = ["evaluate", "--model", run, "--dataset", "local/evil", "--output_dir", tmp_path / "out"]
    ad_hf_with_hub(*evaluate, "--num_seeds", 1)
    evaluation = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert evaluation["source"]["algorithm"] == "evil_module.Evil"

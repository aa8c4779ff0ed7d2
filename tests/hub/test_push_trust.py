"""What a push of a model sends, and what stays in its repository: nothing of others, no results of other weights."""

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from transformers import PreTrainedModel

import ad_hf

CODE = {path.name: path.read_bytes() for path in Path(ad_hf.model.__file__).parent.glob("*_ad.py")}
RESULTS = {"evaluation.json", "learning_curve.png", "replay.gif"}


@pytest.fixture(scope="module")
def evaluated_run(tiny_run, tiny_histories, tmp_path_factory):
    """A run with an evaluation of its model's weights."""
    from ad_hf.pipeline import EvaluatedModel, evaluate_models

    run = Path(shutil.copytree(tiny_run, tmp_path_factory.mktemp("evaluated") / "run"))
    recipe = ad_hf.load_recipe(run / "recipe.yaml", ["--rollout.num_episodes=2"])
    own = EvaluatedModel(ad_hf.ADModel.from_pretrained(run / "model"), recipe, tiny_histories)
    evaluate_models([own], run, 1, ("gif",))
    return run


@pytest.fixture
def run(evaluated_run, tmp_path):
    """A copy of it, to be spoilt."""
    return Path(shutil.copytree(evaluated_run, tmp_path / "run"))


def names(hub, repo):
    return set(hub.files("model", repo))


def test_secrets_and_code_of_others_are_not_pushed_on(hub, ad_hf_with_hub, run):
    ad_hf_with_hub("push", "model", run, "local/model")
    honest = hub.files("model", "local/model")
    config = json.loads(honest["config.json"])
    config["auto_map"]["AutoModel"] = "somebody/evil--modeling.X"
    theirs = dict.fromkeys(("modeling_ad.py", "configuration_ad.py", "extra.py", "credentials.json"), b"evil")
    hub.commit("model", "local/model", {**theirs, "config.json": json.dumps(config).encode()})
    ad_hf_with_hub("push", "model", "local/model", "local/copy")
    for name in theirs:
        (run / "model" / name).write_bytes(theirs[name])
    (run / "model" / "passwd").symlink_to("/etc/passwd")
    ad_hf_with_hub("push", "model", run, "local/own")
    for repo in ("local/copy", "local/own"):
        files = hub.files("model", repo)
        assert set(files) == set(honest)
        assert json.loads(files["config.json"]) == json.loads(honest["config.json"])
        assert {name: files[name] for name in CODE} == CODE
    (run / "evaluation.json").unlink()
    (run / "evaluation.json").symlink_to("/etc/passwd")
    done = ad_hf_with_hub("push", "model", run, "local/refused", check=False)
    assert (done.returncode, "evaluation.json is a link out of its folder" in done.stderr) == (2, True)


CHANGED = """
import sys
import torch
import ad_hf

model = ad_hf.ADModel.from_pretrained(sys.argv[1])
with torch.no_grad():
    model.head.linear.bias += 1
if sys.argv[2] == "push_to_hub":
    model.push_to_hub(sys.argv[3], commit_description="why", tags=["mine"])
else:
    ad_hf.push_model(model, sys.argv[3], license="mit")
"""


def test_results_of_other_weights_never_stay_beside_new_ones(hub, ad_hf_with_hub, run):
    for repo in ("local/ours", "local/plain"):
        ad_hf_with_hub("push", "model", run, repo)
        assert names(hub, repo) > RESULTS
    ad_hf_with_hub("local/ours", "push_model", "local/ours", script=CHANGED)
    card = ModelCard(hub.files("model", "local/ours")["README.md"].decode())
    assert not RESULTS & names(hub, "local/ours")
    assert "recipe.yaml" in names(hub, "local/ours")
    assert not card.data.eval_results
    assert "has not been evaluated" in card.text
    assert card.data.license == "mit"

    ad_hf_with_hub(run / "model", "push_to_hub", "local/plain", script=CHANGED)  # leaves card and results as they are
    files = hub.files("model", "local/plain")
    assert set(files) > RESULTS
    assert "mine" in ModelCard(files["README.md"].decode()).data.tags
    done = ad_hf_with_hub("push", "model", "local/plain", "local/plain")
    assert "evaluation.json is of other weights" in done.stderr
    assert not RESULTS & names(hub, "local/plain")
    assert hub.files("model", "local/plain")["model.safetensors"] == files["model.safetensors"]


def test_an_evaluation_of_a_checkpoint_is_not_shown_as_that_of_the_runs_model(run, tiny_histories):
    from ad_hf.pipeline import EvaluatedModel, evaluate_models

    model = ad_hf.ADModel.from_pretrained(run / "model")
    model.head.linear.bias.data += 1
    recipe = ad_hf.load_recipe(run / "recipe.yaml", ["--rollout.num_episodes=2"])
    with pytest.warns(UserWarning, match=r"evaluation\.json is of other weights"):
        evaluate_models([EvaluatedModel(model, recipe, tiny_histories)], run, 1, ())
    assert "has not been evaluated" in (run / "model" / "README.md").read_text()


OWN = """
import ad_hf
from huggingface_hub.errors import HfHubHTTPError

spaces = {"observation_space": {"type": "Discrete", "n": 4}, "action_space": {"type": "Discrete", "n": 2}}
model = ad_hf.ADModel(ad_hf.ADConfig(**spaces, hidden_size=16, num_hidden_layers=1))
try:
    model.push_to_hub("local/fresh", create_pr=True)
except HfHubHTTPError as error:
    print("no pull requests" in str(error))
"""


def test_push_to_hub_is_the_librarys_own(hub, ad_hf_with_hub):
    assert ad_hf.ADModel.push_to_hub is PreTrainedModel.push_to_hub
    assert ad_hf_with_hub(script=OWN).stdout == "True\n"  # the Hub of these tests has none


def test_a_licence_is_given_once(hub, ad_hf_with_hub, run, tiny_histories):
    for kind, folder in (("model", run), ("dataset", tiny_histories)):
        for options, expected in (([], "apache-2.0"), (["--license", "mit"], "mit"), ([], "mit")):
            ad_hf_with_hub("push", kind, folder, "local/name", *options)
            assert ModelCard(hub.files(kind, "local/name")["README.md"].decode()).data.license == expected
    done = ad_hf_with_hub("push", "model", run, "local/name", "--license", "My own", check=False)
    assert (done.returncode, "license must be" in done.stderr) == (2, True)


def test_a_run_that_can_only_be_read_is_pushed_and_evaluated(hub, ad_hf_with_hub, run, tiny_histories, disk, tmp_path):
    folder, mount = disk
    there = Path(shutil.copytree(run, folder / "run"))
    (there / "model" / "evaluation.json").unlink()
    mount("remount,ro")
    ad_hf_with_hub("push", "model", there, "local/model")
    assert hub.files("model", "local/model")["evaluation.json"] == (run / "evaluation.json").read_bytes()
    short = ["--num_seeds", "1", "--rollout.num_episodes", "2"]
    evaluate = ["evaluate", "--model", there, "--dataset", tiny_histories, *short, "--output_dir"]
    done = ad_hf_with_hub(*evaluate, tmp_path / "out")
    assert "does not tell of these results" in done.stderr
    assert (tmp_path / "out" / "evaluation.json").is_file()
    done = ad_hf_with_hub(*evaluate, there, check=False)
    assert (done.returncode, "cannot be written to: give another folder" in done.stderr) == (2, True)
    assert "rollout on" not in done.stderr
    ad_hf_with_hub(script="import gc; gc.collect()")  # of weights that are mapped into memory


READ_ONLY_HOME = """
import sys
from ad_hf.cli import main

for _ in range(2):  # the second reads what is there
    assert main(["push", "dataset", sys.argv[1], "local/data"]) == 0
    assert main(["push", "model", sys.argv[2], "local/model"]) == 0
sys.exit(main(["push", "model", "local/model", "local/copy"]))
"""


def test_local_folders_are_pushed_where_the_cache_can_only_be_read(hub, run_with_hub, run, tiny_histories, disk):
    home, mount = disk
    mount("remount,ro")
    environment = {"HF_HOME": str(home)}
    done = run_with_hub(READ_ONLY_HOME, tiny_histories, run, environment=environment, check=False)
    assert done.returncode == 2, done.stderr
    *_, last = done.stderr.splitlines()
    assert "the cache cannot be written to" in last
    assert "set HF_HOME to a folder" in last
    assert len(hub.commits("model", "local/model")) == 2

"""Pushing models: a repository explains itself, runs nobody's code unasked, and has no results of other weights."""

import ast
import json
import re
import shutil
from pathlib import Path

import nbformat
import pytest
import yaml
from hub_files import BEGIN, END, ask_private, card_in, is_untouched, refusal
from huggingface_hub import parse_eval_result_entries
from local_hub import LocalHub
from transformers import PreTrainedModel

import ad_hf
from ad_hf.evaluation.summary import last_of
from ad_hf.hub.notebook import MARK, model_notebook
from ad_hf.storage.cards import merge_card

PACKAGE = Path(ad_hf.__file__).parent
CODE = {path.name: path.read_bytes() for path in Path(ad_hf.model.__file__).parent.glob("*_ad.py")}
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
MODEL = {"config.json", "model.safetensors", "rollout_config.json", *CODE}
RESULTS = {"evaluation.json", "learning_curve.png", "replay.gif", "paths.gif"}
RUN = {"recipe.yaml", "run.json", *RESULTS}
NOTEBOOK = "notebook.ipynb"
PUSHED_RESULTS = {*RESULTS, ".eval_results/ad_hf.yaml"}
ALWAYS = {".gitattributes", "README.md", NOTEBOOK}


@pytest.fixture(scope="module")
def evaluated_run(hub_port, worker, tiny_histories, tiny_recipe_file, tmp_path_factory):
    """A run that was trained on histories from the Hub, and rolled out; and their commit."""
    folder = tmp_path_factory.mktemp("evaluated")
    run, recipe = str(folder / "run"), ["--recipe", str(tiny_recipe_file), "--dataset", "local/histories"]
    with LocalHub(folder / "hub", hub_port) as hub:
        for argv in (
            ["push", "dataset", str(tiny_histories), "local/histories"],
            ["train", *recipe, "--output_dir", run, "--training.max_steps", "10"],
            ["rollout", *recipe, "--model", run, "--output_dir", run],
        ):
            done = worker.run({"argv": argv, "script": None, "environment": {"HF_TOKEN": "hf_local"}}, timeout=200)
            assert done.returncode == 0, done.stderr[-4000:]
        return Path(run), hub.commits("dataset", "local/histories")[0]


@pytest.fixture
def run(evaluated_run, tmp_path):
    """A copy of the evaluated run, to be spoilt."""
    return Path(shutil.copytree(evaluated_run[0], tmp_path / "run"))


@pytest.fixture
def names(hub):
    """The names of the files in a model's repository, apart from those that every one has."""
    return lambda repo, revision="main": hub.files("model", repo, revision).keys() - ALWAYS


def test_a_pushed_run_is_complete_and_its_card_says_what_it_reached_on_what(hub, ad_hf_with_hub, names, evaluated_run):
    run, revision = evaluated_run
    done = ad_hf_with_hub("push", "model", run, "local/model")
    commits, files = hub.commits("model", "local/model"), hub.files("model", "local/model")
    assert done.stdout == f"{hub.url}/local/model/tree/{commits[0]}\n"
    assert len(commits) == 2  # the first is the Hub's own
    assert names("local/model") == MODEL | RUN | PUSHED_RESULTS
    assert all(files[name] == (run / name).read_bytes() for name in RUN)
    config = json.loads(files["config.json"])
    assert config["auto_map"] == {"AutoConfig": "configuration_ad.ADConfig", "AutoModel": "modeling_ad.ADModel"}
    assert yaml.safe_load(files["recipe.yaml"])["training"]["max_steps"] == 10
    assert json.loads(files["run.json"])["dataset"]["revision"] == revision

    card, evaluation = card_in(hub, "model", "local/model"), json.loads(files["evaluation.json"])
    (entry,) = card.data.to_dict()["model-index"][0]["results"]
    last = last_of(evaluation["agents"]["AD"])
    low, high = last["return_interval"]
    assert entry["metrics"][0]["value"] == f"{last['return']:.2f} +/- {(high - low) / 2:.2f}"
    assert entry["dataset"]["revision"] == evaluation["datasets"][0]["revision"] == revision
    assert (entry["dataset"]["type"], entry["dataset"]["split"]) == ("ad_hf/DarkRoom-v0", "test")
    assert entry["dataset"]["args"].items() >= {"tasks": 2, "rollouts_per_training_and_task": 3}.items()
    (result,) = parse_eval_result_entries(yaml.safe_load(files[".eval_results/ad_hf.yaml"]))
    assert (result.dataset_id, result.dataset_revision, result.task_id) == ("local/histories", revision, "default")
    assert result.value == pytest.approx(last["return"], abs=0.005)
    assert f"{evaluation['random_return']:.2f} by random play" in result.notes
    assert (card.data.datasets, card.data.library_name) == (["local/histories"], "ad-hf")
    assert f"at revision `{revision}`" in card.text
    pictures = re.findall(r"!\[[^]]*\]\(([^)]*)\)", card.text)
    assert sorted(pictures) == [BADGE, "learning_curve.png", "paths.gif", "replay.gif"]


def test_a_repository_is_copied_and_the_quick_start_of_its_card_runs(hub, ad_hf_with_hub, run_with_hub, evaluated_run):
    ad_hf_with_hub("push", "model", evaluated_run[0], "local/first")
    ad_hf_with_hub("push", "model", "local/first", "second")  # whose owner is left out
    first, second = (hub.files("model", name) for name in ("local/first", "local/second"))
    assert {path for path in first if first[path] != second.pop(path)} == {"README.md", NOTEBOOK}
    assert not second
    (code,) = re.findall(r"```python\n(.*?)```", card_in(hub, "model", "local/second").text, re.DOTALL)
    assert 'from_pretrained("local/second"' in code
    notebook = nbformat.reads(first[NOTEBOOK].decode().replace("local/first", "local/second"), 4)
    nbformat.validate(notebook)
    install, example, curve = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    assert (install, example) == ("%pip install -q ad_hf", code.strip())
    drawn = "print(plt.gca().lines[0].get_ydata().tolist())"
    printed = run_with_hub("\n".join(["import matplotlib; matplotlib.use('agg')", example, curve, drawn])).stdout
    returns, _, drawn = printed.rstrip().rpartition("\n")
    assert re.fullmatch(r"\[\[\s*\d\.\s+\d\.\s*\]\s*\[\s*\d\.\s+\d\.\s*\]\]", returns)  # first and last return
    assert len(json.loads(drawn)) == 12  # episodes


def test_a_notebook_of_somebody_else_stays(hub, ad_hf_with_hub, evaluated_run):
    push = ("push", "model", evaluated_run[0], "local/model")
    for theirs, stays in ((b"{}", True), (MARK.encode(), False)):
        hub.commit("model", "local/model", {NOTEBOOK: theirs, "README.md": b"# Mine"})
        ad_hf_with_hub(*push)
        assert (hub.files("model", "local/model")[NOTEBOOK] == theirs) == stays
    assert "https://huggingface.co/local/model/blob/main/notebook.ipynb" in card_in(hub, "model", "local/model").text


def test_a_notebook_of_single_episodes_shows_their_steps():
    for example, by_step, shown in (
        ("out = model.rollout(envs, num_episodes=12, seed=0)", False, "out.episode_returns.mean"),
        ("out = model.rollout(envs, num_episodes=1, seed=0)", True, "out.rewards.mean"),
    ):
        card = merge_card("```python\nmine\n```", {}, f"```python\n{example}\n```")
        cells = nbformat.reads(model_notebook(card, "local/model", by_step), 4).cells
        assert cells[2].source == example
        assert shown in cells[-1].source
    assert model_notebook(merge_card(None, {}, "```python\nmodel = ...\n```"), "local/model", False) is None


FROM_PYTHON = """
import sys
import torch
import ad_hf
from huggingface_hub import HfApi

model = ad_hf.ADModel.from_pretrained(sys.argv[1])
url = ad_hf.push_model(model, "local/python", private=True, commit_message="mine")
info = HfApi().model_info("local/python")
assert info.private
assert url == f"{HfApi().endpoint}/local/python/tree/{info.sha}"
assert HfApi().list_repo_commits("local/python")[0].title == "mine"
assert ad_hf.push_model(model, "local/python") == url

loaded = ad_hf.ADModel.from_pretrained("local/python")
assert all(torch.equal(weight, loaded.state_dict()[name]) for name, weight in model.state_dict().items())
ad_hf.push_model(loaded, "local/copy", revision="side")
with torch.no_grad():
    loaded.head.linear.bias += 1
ad_hf.push_model(loaded, "local/changed")
changed = ad_hf.ADModel.from_pretrained("local/changed")
assert torch.equal(changed.head.linear.bias, model.head.linear.bias + 1)
older = HfApi().list_repo_commits("local/newer")[1].commit_id
ad_hf.push_model(ad_hf.ADModel.from_pretrained("local/newer", revision=older), "local/older")

spaces = {"observation_space": model.config.observation_space, "action_space": model.config.action_space}
fresh = ad_hf.ADModel(ad_hf.ADConfig(**spaces, hidden_size=16, num_hidden_layers=2))
fresh.save_pretrained("shards", max_shard_size="10KB")
ad_hf.push_model("shards", "local/fresh")
print(len([path for path in HfApi().list_repo_files("local/fresh") if path.endswith(".safetensors")]))
ad_hf.push_model(fresh, "local/fresh")
assert type(ad_hf.ADModel.from_pretrained("local/fresh")) is ad_hf.ADModel
"""


def test_from_python_a_model_is_pushed_with_all_that_belongs_to_it(hub, ad_hf_with_hub, names, evaluated_run):
    evaluation = (evaluated_run[0] / "evaluation.json").read_bytes()
    ad_hf_with_hub("push", "model", evaluated_run[0], "local/newer")
    hub.commit(
        "model", "local/newer", {"evaluation.json": evaluation.replace(b'"num_rollouts": 3', b'"num_rollouts": 9')}
    )
    done = ad_hf_with_hub(evaluated_run[0] / "model", script=FROM_PYTHON)
    files, copied = hub.files("model", "local/python"), hub.files("model", "local/copy", "side")
    assert names("local/python") == names("local/copy", "side") == MODEL | RUN | PUSHED_RESULTS
    assert all(copied[name] == files[name] for name in RUN)
    assert "model-index" in card_in(hub, "model", "local/python").data.to_dict()
    assert b'from_pretrained("local/copy"' in copied["README.md"]
    assert b"local/python" not in copied["README.md"]
    assert hub.files("model", "local/older")["evaluation.json"] == evaluation  # of the revision that was loaded
    assert int(done.stdout) > 1  # shards, of which none is left beside the whole
    assert names("local/fresh") == MODEL


def test_options_of_the_command_line_make_a_private_repository_and_a_branch(hub, ad_hf_with_hub, names, evaluated_run):
    push = ("push", "model", evaluated_run[0], "local/hidden")
    ad_hf_with_hub(*push, "--private", "--revision", "side")
    assert names("local/hidden", "side") > MODEL
    assert hub.files("model", "local/hidden").keys() == {".gitattributes"}
    assert ask_private(ad_hf_with_hub, "model", "local/hidden")
    assert "--config_name" in refusal(ad_hf_with_hub(*push, "--config_name", "x", check=False))


def test_text_of_people_in_a_card_survives(hub, ad_hf_with_hub, run):
    own = run / "model" / "README.md"
    own.write_text(own.read_text().replace(BEGIN, f"Written before the first push.\n\n{BEGIN}"))
    ad_hf_with_hub("push", "model", run, "local/card")
    card = hub.files("model", "local/card")["README.md"].decode()
    card = card.replace("license: apache-2.0\n", "license: mit\n").replace("tags:\n", "tags:\n- dark\n", 1)
    card = card.replace(END, f"{END}\n\nŽluťoučký.\n").replace("## Limits", "## Nonsense")
    hub.commit("model", "local/card", {"README.md": card.encode()})
    commits = []
    for _ in range(2):
        ad_hf_with_hub("push", "model", run, "local/card")
        commits.append(hub.commits("model", "local/card"))
    assert commits[0] == commits[1]
    card = card_in(hub, "model", "local/card")
    assert card.data.license == "mit"
    assert {"dark", "algorithm-distillation"} < set(card.data.tags)
    before, _, rest = card.text.partition(BEGIN)
    ours, _, after = rest.partition(END)
    assert (before.strip(), after.strip()) == ("Written before the first push.", "Žluťoučký.")
    assert "Nonsense" not in ours


def test_a_license_is_given_once(hub, ad_hf_with_hub, run, tiny_histories):
    for kind, folder in (("model", run), ("dataset", tiny_histories)):
        for options, expected in (([], "apache-2.0"), (["--license", "mit"], "mit"), ([], "mit")):
            ad_hf_with_hub("push", kind, folder, "local/name", *options)
            assert card_in(hub, kind, "local/name").data.license == expected
    wrong = ad_hf_with_hub("push", "model", run, "local/name", "--license", "My own", check=False)
    assert "license must be" in refusal(wrong)


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


def test_results_of_other_weights_never_stay_beside_new_ones(
    hub, ad_hf_with_hub, names, run, tiny_run, tiny_histories, tiny_recipe_file
):
    def is_without_results(repo, rest=frozenset({"recipe.yaml", "run.json"})):
        card = card_in(hub, "model", repo)
        assert names(repo) == MODEL | rest
        assert "has not been evaluated" in card.text
        assert "model-index" not in card.data.to_dict()
        return card

    for repo in ("local/other", "local/ours", "local/plain"):
        ad_hf_with_hub("push", "model", run, repo)
        assert names(repo) > PUSHED_RESULTS
    hub.commit("model", "local/other", {"notes.txt": b"mine"})
    ad_hf_with_hub("push", "model", tiny_run, "local/other")  # another run
    card = is_without_results("local/other", {"recipe.yaml", "run.json", "notes.txt"})
    assert "datasets" not in card.data.to_dict()  # it was trained on a local folder
    ad_hf_with_hub("local/ours", "push_model", "local/ours", script=CHANGED)  # changed in memory
    assert is_without_results("local/ours").data.license == "mit"

    ad_hf_with_hub(run / "model", "push_to_hub", "local/plain", script=CHANGED)  # leaves card and results as they are
    weights = hub.files("model", "local/plain")["model.safetensors"]
    assert names("local/plain") > PUSHED_RESULTS
    assert "mine" in card_in(hub, "model", "local/plain").data.tags
    done = ad_hf_with_hub("push", "model", "local/plain", "local/plain")
    assert "evaluation.json is of other weights" in done.stderr
    is_without_results("local/plain")
    assert hub.files("model", "local/plain")["model.safetensors"] == weights

    options = ["--recipe", tiny_recipe_file, "--dataset", tiny_histories, "--training.max_steps", "2"]
    ad_hf_with_hub("train", *options, "--output_dir", run, "--overwrite")
    ad_hf_with_hub("push", "model", run, "local/anew")
    is_without_results("local/anew")


def test_an_evaluation_of_a_checkpoint_is_not_shown_as_that_of_the_runs_model(run, tiny_histories):
    from ad_hf.pipeline import EvaluatedModel, evaluate_models

    model = ad_hf.ADModel.from_pretrained(run / "model")
    model.head.linear.bias.data += 1
    recipe = ad_hf.load_recipe(run / "recipe.yaml", ["--rollout.num_episodes=2"])
    with pytest.warns(UserWarning, match=r"evaluation\.json is of other weights"):
        evaluate_models([EvaluatedModel(model, recipe, tiny_histories)], run, 1, ())
    assert "has not been evaluated" in (run / "model" / "README.md").read_text()


def test_push_to_hub_is_the_librarys_own():
    assert ad_hf.ADModel.push_to_hub is PreTrainedModel.push_to_hub


def test_secrets_and_code_of_others_are_not_pushed_on(hub, ad_hf_with_hub, evaluated_run):
    ad_hf_with_hub("push", "model", evaluated_run[0], "local/model")
    honest = hub.files("model", "local/model")
    config = json.loads(honest["config.json"])
    config["auto_map"]["AutoModel"] = "somebody/evil--modeling.X"
    theirs = dict.fromkeys(("modeling_ad.py", "configuration_ad.py", "extra.py", "credentials.json"), b"evil")
    hub.commit("model", "local/model", {**theirs, "config.json": json.dumps(config).encode()})
    ad_hf_with_hub("push", "model", "local/model", "local/copy")
    files = hub.files("model", "local/copy")
    assert set(files) == set(honest)
    assert json.loads(files["config.json"]) == json.loads(honest["config.json"])
    assert {name: files[name] for name in CODE} == CODE


def test_folders_are_refused_before_anything_is_sent(hub, ad_hf_with_hub, run, tiny_histories, tmp_path):
    def refused(folder):
        return refusal(ad_hf_with_hub("push", "model", folder, "local/refused", check=False))

    assert "config.json" in refused(tiny_histories)
    assert "nowhere" in refused(tmp_path / "nowhere")
    for name in ("optimizer.pt", "pytorch_model.bin", "extra.pkl", "UPPER.PT"):
        (run / "model" / name).write_bytes(b"\x80\x04N.")
        assert name in refused(run)
        (run / "model" / name).unlink()
    (run / "evaluation.json").unlink()
    (run / "evaluation.json").symlink_to("/etc/passwd")
    assert "evaluation.json is a link out of its folder" in refused(run)
    assert is_untouched(hub)


def test_no_code_of_the_package_decides_to_trust_code_of_others():
    for path in [*PACKAGE.rglob("*.py"), *PACKAGE.parent.glob("scripts/*.py")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        passed_on = set()
        for function in [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]:
            arguments = {argument.arg for argument in [*function.args.args, *function.args.kwonlyargs]}
            for node in ast.walk(function):  # an argument, or a field of one, goes on under its name
                owner = node.value if isinstance(node, ast.Attribute) else node
                if isinstance(owner, ast.Name) and owner.id in arguments:
                    passed_on.add(node)
        for node in ast.walk(tree):
            named = []
            if isinstance(node, ast.keyword):
                named = [(node.arg, node.value)]
            elif isinstance(node, ast.Dict):
                named = [(getattr(key, "value", None), value) for key, value in zip(node.keys, node.values)]
            elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
                named = [(getattr(node.slice, "value", None), node)]
            for name, value in named:
                assert name != "trust_remote_code" or value in passed_on, f"{path}:{value.lineno}"


WITH_A_BACKBONE = """
import sys
import ad_hf

llama = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
llama |= {"intermediate_size": 32, "vocab_size": 4, "bos_token_id": None, "eos_token_id": None}
config = ad_hf.ADModel.from_pretrained(sys.argv[1]).config
spaces = {"observation_space": config.observation_space, "action_space": config.action_space}
ad_hf.push_model(ad_hf.ADModel(ad_hf.ADConfig(**spaces, context_length=24, backbone_config=llama)), "local/backbone")
"""


def test_code_in_a_repository_is_never_run_by_the_command_line(
    hub, ad_hf_with_hub, evaluated_run, tiny_histories, tiny_recipe_file, tmp_path
):
    ad_hf_with_hub(evaluated_run[0] / "model", script=WITH_A_BACKBONE)
    ad_hf_with_hub("push", "model", evaluated_run[0], "local/evil")
    marker = tmp_path / "it ran"
    evil = {name: f"open({str(marker)!r}, 'w')\n".encode() for name in CODE}
    hub.commit("model", "local/evil", evil)
    options = ["--recipe", tiny_recipe_file, "--dataset", tiny_histories, "--output_dir", tmp_path / "results"]
    rollout = ["rollout", *options, "--num_seeds", "1", "--rollout.num_episodes", "2", "--model"]
    ad_hf_with_hub(*rollout, "local/evil")

    config = json.loads(hub.files("model", "local/evil")["config.json"])
    for changes in ({"model_type": "evil"}, {"architectures": ["EvilModel"], "model_type": "bert"}):
        hub.commit("model", "local/evil", {"config.json": json.dumps({**config, **changes}).encode()})
        ad_hf_with_hub(*rollout, "local/evil", check=False)

    config = json.loads(hub.files("model", "local/backbone")["config.json"])
    references = {"AutoConfig": "configuration_ad.ADConfig", "AutoModel": "local/evil--modeling_ad.ADModel"}
    config["backbone_config"]["auto_map"] = references
    hub.commit("model", "local/backbone", {**evil, "config.json": json.dumps(config).encode()})
    assert "backbone_config.auto_map" in refusal(ad_hf_with_hub(*rollout, "local/backbone", check=False))
    assert not marker.exists()


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
    last = refusal(done)
    assert "the cache cannot be written to" in last
    assert "set HF_HOME to a folder" in last
    assert len(hub.commits("model", "local/model")) == 2


def test_a_training_starts_from_a_model_of_the_hub_and_its_card_names_it(
    hub, ad_hf_with_hub, tiny_recipe_file, tiny_run, tiny_histories, tmp_path
):
    ad_hf_with_hub("push", "model", tiny_run, "local/base")
    (commit, *_), run = hub.commits("model", "local/base"), tmp_path / "run"
    argv = ["train", "--recipe", tiny_recipe_file, "--dataset", tiny_histories, "--output_dir", run]
    steps = ["--training.max_steps", "2", "--training.eval_steps", "2", "--training.eval_episodes", "2"]
    ad_hf_with_hub(*argv, *steps, "--init_from", "local/base@main", "--push_to", "local/tuned")
    origin = json.loads((run / "run.json").read_text())["init_from"]
    assert (origin["name"], origin["revision"], origin["new"]) == ("local/base", commit, [])
    data = card_in(hub, "model", "local/tuned").data
    assert (data.base_model, data.to_dict()["base_model_relation"]) == ("local/base", "finetune")

"""Pushing models: a repository that explains itself, works as its card says, and runs nobody's code unasked."""

import ast
import io
import json
import pickletools
import re
import shutil
import zipfile
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from local_hub import LocalHub

import ad_hf
from ad_hf.evaluation.summary import last_of

PACKAGE = Path(ad_hf.__file__).parent
CODE = {path.name for path in Path(ad_hf.model.__file__).parent.glob("*_ad.py")}
MODEL = {"config.json", "model.safetensors", "rollout_config.json", *CODE}
RUN = {"recipe.yaml", "run.json", "evaluation.json", "learning_curve.png", "replay.gif"}
BEGIN, END = "<!-- ad_hf writes", "<!-- Here ends what ad_hf writes. -->"


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


def card_of(hub, repo):
    return ModelCard(hub.files("model", repo)["README.md"].decode())


def test_a_pushed_run_is_complete_and_its_card_tells_what_it_reached_on_what(hub, ad_hf_with_hub, evaluated_run):
    run, revision = evaluated_run
    done = ad_hf_with_hub("push", "model", run, "local/model")
    commits = hub.commits("model", "local/model")
    assert done.stdout == f"{hub.url}/local/model/tree/{commits[0]}\n"
    assert len(commits) == 2  # the first is the Hub's own
    files = hub.files("model", "local/model")
    assert files.keys() == {".gitattributes", "README.md"} | MODEL | RUN
    assert all(files[name] == (run / name).read_bytes() for name in RUN)
    config = json.loads(files["config.json"])
    assert config["auto_map"] == {"AutoConfig": "configuration_ad.ADConfig", "AutoModel": "modeling_ad.ADModel"}
    assert yaml.safe_load(files["recipe.yaml"])["training"]["max_steps"] == 10
    assert json.loads(files["run.json"])["dataset"]["revision"] == revision

    card, evaluation = card_of(hub, "local/model"), json.loads(files["evaluation.json"])
    (result,) = card.data.eval_results
    last = last_of(evaluation["agents"]["AD"])
    low, high = last["return_interval"]
    assert result.metric_value == f"{last['return']:.2f} +/- {(high - low) / 2:.2f}"
    assert result.dataset_type == "ad_hf/DarkRoom-v0"
    assert result.dataset_revision == evaluation["datasets"][0]["revision"] == revision
    assert (
        result.dataset_split,
        result.dataset_args["tasks"],
        result.dataset_args["rollouts_per_training_and_task"],
    ) == (
        "test",
        2,
        3,
    )
    assert card.data.datasets == ["local/histories"]
    assert card.data.library_name == "ad-hf"
    assert f"at revision `{revision}`" in card.text
    pictures = re.findall(r"!\[[^]]*\]\(([^)]*)\)", card.text)
    assert sorted(pictures) == ["learning_curve.png", "replay.gif"]


def test_the_quick_start_of_the_card_runs_as_it_stands(hub, ad_hf_with_hub, run_with_hub, evaluated_run):
    ad_hf_with_hub("push", "model", evaluated_run[0], "local/quick")
    (code,) = re.findall(r"```python\n(.*?)```", card_of(hub, "local/quick").text, re.DOTALL)
    assert '"local/quick"' in code
    printed = run_with_hub(code).stdout
    assert re.fullmatch(r"\[\[\s*\d\.\s+\d\.\s*\]\s*\[\s*\d\.\s+\d\.\s*\]\]\s*", printed)  # first and last return


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

spaces = {"observation_space": model.config.observation_space, "action_space": model.config.action_space}
fresh = ad_hf.ADModel(ad_hf.ADConfig(**spaces, hidden_size=16, num_hidden_layers=2))
fresh.save_pretrained("shards", max_shard_size="10KB")
ad_hf.push_model("shards", "local/fresh")
print(len([path for path in HfApi().list_repo_files("local/fresh") if path.endswith(".safetensors")]))
ad_hf.push_model(fresh, "local/fresh")
assert type(ad_hf.ADModel.from_pretrained("local/fresh")) is ad_hf.ADModel
"""


def test_from_python_a_model_is_pushed_with_all_that_belongs_to_it(hub, ad_hf_with_hub, evaluated_run):
    done = ad_hf_with_hub(evaluated_run[0] / "model", script=FROM_PYTHON)
    files = hub.files("model", "local/python")
    assert files.keys() == {".gitattributes", "README.md"} | MODEL | RUN
    assert card_of(hub, "local/python").data.eval_results
    copied = hub.files("model", "local/copy", "side")
    assert copied.keys() == files.keys()
    assert all(copied[name] == files[name] for name in RUN)
    assert 'from_pretrained("local/copy")' in copied["README.md"].decode()
    assert "local/python" not in copied["README.md"].decode()
    assert int(done.stdout) > 1  # shards, of which none is left beside the whole
    assert hub.files("model", "local/fresh").keys() == {".gitattributes", "README.md"} | MODEL


A_REVISION = """
import ad_hf

from huggingface_hub import HfApi

first = HfApi().list_repo_commits("local/newer")[1].commit_id
ad_hf.push_model(ad_hf.ADModel.from_pretrained("local/newer", revision=first), "local/older")
"""


def test_a_model_loaded_at_a_revision_is_pushed_with_the_report_of_that_revision(hub, ad_hf_with_hub, run):
    ad_hf_with_hub("push", "model", run, "local/newer")
    report = (run / "evaluation.json").read_bytes()
    hub.commit("model", "local/newer", {"evaluation.json": report.replace(b'"num_rollouts": 3', b'"num_rollouts": 9')})
    ad_hf_with_hub(script=A_REVISION)
    assert hub.files("model", "local/older")["evaluation.json"] == report


def test_a_repository_can_be_copied_and_its_owner_left_out(hub, ad_hf_with_hub, evaluated_run):
    ad_hf_with_hub("push", "model", evaluated_run[0], "local/first")
    ad_hf_with_hub("push", "model", "local/first", "second")
    first, second = (hub.files("model", name) for name in ("local/first", "local/second"))
    assert {path for path in first if first[path] != second.pop(path)} == {"README.md"}
    assert not second
    assert 'from_pretrained("local/second")' in card_of(hub, "local/second").text


def test_options_of_the_command_line_make_a_private_repository_and_a_branch(hub, ad_hf_with_hub, evaluated_run):
    ad_hf_with_hub("push", "model", evaluated_run[0], "local/hidden", "--private", "--revision", "side")
    assert hub.files("model", "local/hidden", "side").keys() > MODEL
    assert hub.files("model", "local/hidden").keys() == {".gitattributes"}
    asked = "from huggingface_hub import HfApi; print(HfApi().model_info('local/hidden').private)"
    assert ad_hf_with_hub(script=asked).stdout == "True\n"
    done = ad_hf_with_hub("push", "model", evaluated_run[0], "local/hidden", "--config_name", "x", check=False)
    assert (done.returncode, "--config_name" in done.stderr) == (2, True)


def test_what_people_write_into_a_card_survives(hub, ad_hf_with_hub, run):
    own = run / "model" / "README.md"
    own.write_text(own.read_text().replace(BEGIN, f"Written before the first push.\n\n{BEGIN}"))
    ad_hf_with_hub("push", "model", run, "local/card")
    card = hub.files("model", "local/card")["README.md"].decode()
    card = card.replace("license: apache-2.0\n", "license: mit\n").replace("tags:\n", "tags:\n- dark\n", 1)
    card = card.replace(END, f"{END}\n\nŽluťoučký.\n").replace("## Limits", "## Nonsense")
    hub.commit("model", "local/card", {"README.md": card.encode()})
    ad_hf_with_hub("push", "model", run, "local/card")
    found = card_of(hub, "local/card")
    assert found.data.license == "mit"
    assert {"dark", "algorithm-distillation"} < set(found.data.tags)
    assert len(found.data.eval_results) == 1
    before, _, rest = found.text.partition(BEGIN)
    ours, _, after = rest.partition(END)
    assert (before.strip(), after.strip()) == ("Written before the first push.", "Žluťoučký.")
    assert "Nonsense" not in ours

    commits = hub.commits("model", "local/card")
    ad_hf_with_hub("push", "model", run, "local/card")
    assert hub.commits("model", "local/card") == commits


def test_a_model_is_not_shown_with_the_results_of_the_one_before_it(hub, ad_hf_with_hub, evaluated_run, tiny_run):
    ad_hf_with_hub("push", "model", evaluated_run[0], "local/other")
    hub.commit("model", "local/other", {"notes.txt": b"mine"})
    ad_hf_with_hub("push", "model", tiny_run, "local/other")
    card = card_of(hub, "local/other")
    assert "has not been evaluated" in card.text
    assert not card.data.eval_results
    assert not card.data.datasets  # it was trained on a local folder
    unevaluated = RUN - {"evaluation.json", "learning_curve.png", "replay.gif"}
    assert (
        hub.files("model", "local/other").keys() == {".gitattributes", "README.md", "notes.txt"} | MODEL | unevaluated
    )


def test_a_run_that_is_trained_anew_is_not_shown_with_the_results_of_before(
    hub, ad_hf_with_hub, run, tiny_histories, tiny_recipe_file
):
    options = ["--recipe", tiny_recipe_file, "--dataset", tiny_histories, "--training.max_steps", "2"]
    ad_hf_with_hub("train", *options, "--output_dir", run)
    ad_hf_with_hub("push", "model", run, "local/anew")
    assert "has not been evaluated" in card_of(hub, "local/anew").text
    assert "evaluation.json" not in hub.files("model", "local/anew")


PICKLES = """
import pickle, sys
import torch

torch.save(torch.ones(2), sys.argv[1])
with open(sys.argv[2], "wb") as file:
    pickle.dump([1], file)
"""


def is_pickle(content):
    """Whether some bytes are a pickle from their first to their last one, or an archive of torch.save."""
    if zipfile.is_zipfile(io.BytesIO(content)):
        return any(name.endswith(".pkl") for name in zipfile.ZipFile(io.BytesIO(content)).namelist())
    try:
        *_, (last, _, position) = pickletools.genops(content)
    except Exception:
        return False
    return last.name == "STOP" and position == len(content) - 1


@pytest.mark.filterwarnings("ignore:invalid escape")  # of genops, at bytes that are no pickle
def test_nothing_that_is_pushed_is_a_pickle(hub, ad_hf_with_hub, evaluated_run, tiny_histories, tmp_path):
    samples = tmp_path / "torch.pt", tmp_path / "plain.pkl"
    ad_hf_with_hub(*samples, script=PICKLES)
    assert all(is_pickle(path.read_bytes()) for path in samples)

    ad_hf_with_hub("push", "model", evaluated_run[0], "local/safe")
    ad_hf_with_hub("push", "dataset", tiny_histories, "local/safe")
    files = {**hub.files("model", "local/safe"), **hub.files("dataset", "local/safe")}
    assert len(files) >= len(MODEL | RUN) + 4
    assert [path for path, content in files.items() if is_pickle(content)] == []
    known = {"", ".gif", ".json", ".md", ".parquet", ".png", ".py", ".safetensors", ".yaml"}
    assert {Path(path).suffix for path in files if path != ".gitattributes"} <= known


@pytest.mark.parametrize("name", ["optimizer.pt", "pytorch_model.bin", "extra.pkl", "UPPER.PT"])
def test_a_folder_with_a_pickle_is_refused_by_its_name(hub, ad_hf_with_hub, run, name):
    (run / "model" / name).write_bytes(b"\x80\x04N.")
    done = ad_hf_with_hub("push", "model", run, "local/pickled", check=False)
    assert done.returncode == 2
    assert name in done.stderr
    assert {request.method for request in hub.requests} <= {"GET", "HEAD"}


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
    options = ["--recipe", tiny_recipe_file, "--dataset", tiny_histories, "--output_dir", tmp_path / "report"]
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
    done = ad_hf_with_hub(*rollout, "local/backbone", check=False)
    assert done.returncode == 2
    assert "backbone_config.auto_map" in done.stderr.splitlines()[-1]
    assert not marker.exists()


def test_what_is_no_model_is_refused_before_anything_is_sent(hub, ad_hf_with_hub, tiny_histories, tmp_path):
    for folder, told in ((tiny_histories, "config.json"), (tmp_path / "nowhere", "nowhere")):
        done = ad_hf_with_hub("push", "model", folder, "local/none", check=False)
        assert done.returncode == 2
        assert told in done.stderr.splitlines()[-1]
    assert {request.method for request in hub.requests} <= {"GET", "HEAD"}

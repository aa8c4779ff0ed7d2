"""Cards as text: what we write into them, and what people wrote, which stays."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import DatasetCard, ModelCard

import ad_hf
from ad_hf.histories.card import dataset_config, write_dataset_card
from ad_hf.histories.schema import HistoryMetadata, read_metadata
from ad_hf.hub.model_card import model_card, write_model_card
from ad_hf.hub.model_files import model_files
from ad_hf.pipeline import EvaluatedModel, evaluate_models
from ad_hf.storage.cards import BEGIN, END, merge_card, without_configs

DATA = {
    "pretty_name": "Ours",
    "tags": ["b", "c"],
    "configs": [{"config_name": "new", "data_files": "new/*"}, {"config_name": "same", "data_files": "same/*"}],
}
OURS = f"{BEGIN}\n\nWritten.\n\n{END}"


def parse(card):
    """The metadata and the text of a card."""
    _, front, text = re.split(r"^---$\n?", card, maxsplit=2, flags=re.MULTILINE)
    return yaml.safe_load(front), text


def test_a_new_card_has_our_metadata_and_our_text():
    for old in (None, "", "  \n"):
        data, text = parse(merge_card(old, DATA, "Written."))
        assert data == DATA
        assert text.strip() == OURS


def test_text_outside_of_the_two_lines_stays_where_it_is():
    for old, expected in (
        ("# Mine\n\nAll of it.\n", "# Mine\n\nAll of it.\n\n" + OURS),
        ("---\nlicense: mit\n---\n", OURS),
        (f"Mine.\n\n{BEGIN}\nold\n{END}", f"Mine.\n\n{OURS}"),
        (f"{BEGIN}\nold\n{END}\n\nMine.", f"{OURS}\n\nMine."),
        (
            f"---\nlicense: mit\n---\n\n# Mine\n{BEGIN}\nold\n\n```\n---\n```\n{END}\nand mine",
            f"# Mine\n{OURS}\nand mine",
        ),
        (f"\\1 \\g<0>\n\n{BEGIN}\n{END}", f"\\1 \\g<0>\n\n{OURS}"),
        (f"# Mine\n\n---\n\nmore\n\n{BEGIN}\nold\n{END}", f"# Mine\n\n---\n\nmore\n\n{OURS}"),
        (f"Žluťoučký kůň.\n\n{BEGIN}\n{END}", f"Žluťoučký kůň.\n\n{OURS}"),
    ):
        card = merge_card(old, DATA, "Written.")
        data, text = parse(card)
        assert text.strip() == expected
        assert data.get("license") == ("mit" if "mit" in old else None)
        assert merge_card(card, DATA, "Written.") == card
        again = merge_card(card, DATA, "Written anew.")
        assert parse(again)[1].strip() == expected.replace("Written.", "Written anew.")


@pytest.mark.parametrize("kept", [BEGIN, END])
def test_text_stays_if_one_of_the_two_lines_is_gone(kept):
    card = f"First.\n\n{kept}\n\nMine.\n\nLast."
    for number in range(3):
        card = merge_card(card, DATA, f"Written {number}.")
        for line in ("First.", "Mine.", "Last."):
            assert card.count(line) == 1, (number, line)
    assert card.count("Written 2.") == 1
    assert "Written 1." not in card


def test_metadata_of_people_stays_and_ours_is_renewed():
    old = {
        "license": "mit",
        "language": ["cs", "en"],
        "pretty_name": "Theirs",
        "tags": ["a", "b"],
        "configs": [{"config_name": "same", "data_files": "old/*"}, {"config_name": "another", "data_files": "x/*"}],
        "thing": {"of": "theirs"},
    }
    card = merge_card(f"---\n{yaml.safe_dump(old)}---\n\nMine.\n", DATA, "Written.")
    data, _ = parse(card)
    assert data["license"] == "mit"
    assert data["language"] == ["cs", "en"]
    assert data["thing"] == {"of": "theirs"}
    assert data["pretty_name"] == "Ours"
    assert data["tags"] == ["a", "b", "c"]
    assert data["configs"] == [
        {"config_name": "another", "data_files": "x/*"},
        {"config_name": "new", "data_files": "new/*"},
        {"config_name": "same", "data_files": "same/*"},
    ]
    data, _ = parse(merge_card("---\ntags: mine\n---\n", DATA, "Written."))
    assert data["tags"] == ["mine", "b", "c"]


def test_metadata_that_cannot_be_kept_is_refused_and_not_thrown_away():
    for metadata in (
        *("license: [mit", "- license", "tags: 5", "tags: [5, a]"),
        *("configs: all", "configs: [{data_files: x}]"),
    ):
        with pytest.raises(ValueError, match=r"the metadata at the top of README\.md"):
            merge_card(f"---\n{metadata}\n---\n\nMine.\n", DATA, "Written.")


def test_a_licence_is_that_which_is_given_else_that_which_people_chose():
    ours = {**DATA, "license": "apache-2.0"}
    card = merge_card(None, ours, "Written.")
    assert parse(card)[0]["license"] == "apache-2.0"
    above = card.replace("---\n", "---\nlicense: mit\n", 1)  # a second line, which YAML has below
    assert parse(merge_card(above, ours, "Written."))[0]["license"] == "mit"
    assert parse(merge_card(above, ours, "Written.", "cc0-1.0"))[0]["license"] == "cc0-1.0"
    with pytest.raises(ValueError, match="license must be a name"):
        merge_card(card, ours, "Written.", "MIT License\nx: y")


def test_configurations_can_be_taken_out_of_a_card():
    card = merge_card("---\nlicense: mit\n---\n\nMine.\n", DATA, "Written.")
    data, text = parse(without_configs(card))
    assert "configs" not in data
    assert data["license"] == "mit"
    assert text.strip() == parse(card)[1].strip()


@pytest.fixture
def dataset(tiny_histories, tmp_path):
    """A dataset without a card."""
    folder = Path(shutil.copytree(tiny_histories, tmp_path / "histories"))
    (folder / "README.md").unlink()
    return folder


def test_a_dataset_card_says_what_is_in_the_dataset_and_its_example_runs(dataset, monkeypatch, capsys):
    card = DatasetCard(write_dataset_card(dataset).read_text())
    metadata = read_metadata(dataset)
    (config,) = card.data.configs
    assert config == dataset_config(dataset / "default", metadata, "default")
    assert [part["split"] for part in config["data_files"]] == ["train", "validation", "test"]
    assert metadata.fingerprint in config["description"]
    assert card.data.size_categories == ["n<1K"]
    assert {"algorithm-distillation", "ad_hf/DarkRoom-v0"} <= set(card.data.tags)
    for split, found in metadata.statistics.items():
        (row,) = [line for line in card.text.splitlines() if line.startswith(f"| {split} |")]
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        tasks = sum(task["split"] == split for task in metadata.tasks)
        assert cells[1:5] == [
            str(tasks),
            *(f"{found[name]:,}" for name in ("histories", "steps", "episodes")),
        ]
        assert cells[5:7] == [f"{found['return_first']:.2f}", f"{found['return_last']:.2f}"]
    assert '"max_episode_steps": 6' in card.text
    assert "numpy.frombuffer" not in card.text  # of frames, of which there are none
    assert "{{" not in card.text
    assert "{%" not in card.text
    (example,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    monkeypatch.chdir(dataset.parent)
    exec(example, {})
    assert re.fullmatch(r"\d+-0-0 300 \d+\.0\n", capsys.readouterr().out)


def test_a_dataset_card_that_is_written_again_keeps_what_people_wrote(dataset):
    path = write_dataset_card(dataset)
    first = path.read_text()
    assert write_dataset_card(dataset).read_text() == first
    edited = (
        first.replace("license: apache-2.0\n", "license: mit\n").replace(BEGIN, f"Mine.\n\n{BEGIN}") + "\nMine, too.\n"
    )
    path.write_text(edited.replace("## Limits", "## Nonsense"))
    card = DatasetCard(write_dataset_card(dataset).read_text())
    assert card.data.license == "mit"
    assert card.text.index("Mine.") < card.text.index(BEGIN) < card.text.index(END) < card.text.index("Mine, too.")
    assert "## Limits" in card.text
    assert "## Nonsense" not in card.text


def test_a_card_of_several_configurations_lists_each(dataset):
    metadata = read_metadata(dataset)
    metadata.env_id, metadata.fingerprint, metadata.statistics = "other/Env-v0", "f" * 16, {}  # as without statistics
    (dataset / "other").mkdir()
    shutil.copy(dataset / "default" / "train-00000-of-00001.parquet", dataset / "other")
    (dataset / "other" / "metadata.json").write_text(metadata.to_json())
    (dataset / ".incomplete" / "third").mkdir(parents=True)
    card = DatasetCard(write_dataset_card(dataset).read_text())
    assert [config["config_name"] for config in card.data.configs] == ["default", "other"]
    assert [part["split"] for part in card.data.configs[1]["data_files"]] == ["train"]
    assert card.text.count("## Configuration `default`") == card.text.count("## Configuration `other`") == 1
    assert {"other/Env-v0", "ad_hf/DarkRoom-v0"} <= set(card.data.tags)


def test_a_card_of_imported_histories_needs_no_settings_of_a_source(dataset):
    """Whose algorithm is all that is known."""
    data = json.loads((dataset / "default" / "metadata.json").read_text())
    data["source"] = {"algorithm": "human", "n_envs": None, "total_timesteps": None, "hyperparameters": {}}
    data["seeds"] = []
    (dataset / "default" / "metadata.json").write_text(HistoryMetadata.from_json(json.dumps(data)).to_json())
    text = write_dataset_card(dataset).read_text()
    assert re.search(r"^- Source: human$", text, re.MULTILINE)
    assert DatasetCard(text).data.license == "unknown"
    assert "None" not in text


@pytest.fixture(scope="module")
def evaluated_run(tiny_run, tiny_histories, tmp_path_factory):
    """A run with an evaluation and pictures."""
    run = Path(shutil.copytree(tiny_run, tmp_path_factory.mktemp("cards") / "run"))
    recipe = ad_hf.load_recipe(run / "recipe.yaml")
    own = EvaluatedModel(ad_hf.ADModel.from_pretrained(run / "model"), recipe, tiny_histories)
    evaluate_models([own], run, 2, ("gif",))
    return run


def test_a_model_card_without_an_evaluation_says_so(tiny_run, tiny_recipe):
    card = ModelCard((tiny_run / "model" / "README.md").read_text())
    assert "has not been evaluated" in card.text
    assert card.data.eval_results is None
    assert card.data.library_name == "ad-hf"
    assert card.data.datasets is None  # a local folder is none of the Hub
    assert "ad_hf/DarkRoom-v0" in card.data.tags
    assert (tiny_run / "model" / "recipe.yaml").read_text() == tiny_recipe.to_yaml()
    assert "![" not in card.text


def test_a_model_card_that_is_written_again_tells_kinds_of_tasks_apart_and_keeps_what_people_wrote(
    evaluated_run, tmp_path
):
    run = Path(shutil.copytree(evaluated_run, tmp_path / "run"))
    path = run / "model" / "README.md"
    path.write_text(path.read_text().replace("license: apache-2.0\n", "license: mit\n") + "\nMine.\n")
    evaluation = json.loads((run / "evaluation.json").read_text())
    kind = {"num_tasks": 2, "returns": {"AD": 3.5}, "normalized": {"AD": 0.875}}
    evaluation["groups"] = {"all": kind, "even": kind, "odd": {**kind, "normalized": {"AD": None}}}
    evaluation["source"]["independent_streams"] = True
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    card = ModelCard(write_model_card(run).read_text())
    even = "- On the 2 tasks of kind `even` it ends at 3.50, or 0.88 with random play as 0 and the source as 1."
    assert even in card.text
    assert "- On the 2 tasks of kind `odd` it ends at 3.50.\n" in card.text
    assert "each stream counted by itself" in card.text
    assert card.data.license == "mit"
    assert card.text.rstrip().endswith(f"{END}\n\nMine.")
    assert len(card.data.eval_results) == 1


def test_a_model_card_says_what_its_evaluation_says_and_its_example_runs(evaluated_run, capsys):
    evaluation = json.loads((evaluated_run / "evaluation.json").read_text())
    first, last = (evaluation["agents"]["AD"]["at"][episode] for episode in ("1", "12"))
    card = ModelCard((evaluated_run / "model" / "README.md").read_text())
    (result,) = card.data.eval_results
    assert result.metric_value.startswith(f"{last['return']:.2f} +/- ")
    assert result.dataset_type == "ad_hf/DarkRoom-v0"
    assert result.dataset_args["episodes"] == 12
    assert "has not been evaluated" not in card.text
    assert "(learning_curve.png)" in card.text
    assert "(replay.gif)" in card.text
    assert f"| AD (this model) | {first['return']:.2f} | {last['return']:.2f} (" in card.text
    fingerprint = json.loads((evaluated_run / "run.json").read_text())["dataset"]["fingerprint"]
    assert fingerprint in card.text
    (recipe,) = re.findall(r"```yaml\n(.*?)```", card.text, re.DOTALL)
    assert yaml.safe_load(recipe) == yaml.safe_load((evaluated_run / "recipe.yaml").read_text())
    names = {"README.md", "recipe.yaml", "run.json", "evaluation.json", "learning_curve.png", "replay.gif"}
    assert names <= {path.name for path in (evaluated_run / "model").iterdir()}
    (example,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    exec(example, {})
    assert len(capsys.readouterr().out.strip().splitlines()) == 2  # of two test tasks


def test_a_model_card_of_a_rollout_without_histories_speaks_of_no_source(tiny_run, tmp_path):
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    recipe, model = ad_hf.load_recipe(run / "recipe.yaml"), ad_hf.ADModel.from_pretrained(run / "model")
    evaluation = evaluate_models([EvaluatedModel(model, recipe)], run, 1, ("gif", "mp4"))
    first, last = (evaluation["agents"]["AD"]["at"][episode]["return"] for episode in ("1", "12"))
    card = ModelCard((run / "model" / "README.md").read_text())
    (result,) = card.data.eval_results
    assert result.metric_value.startswith(f"{last:.2f} +/- ")
    assert result.dataset_revision is None
    assert f"| AD (this model) | {first:.2f} | {last:.2f} (" in card.text
    assert "| random | " in card.text
    assert "50% of the optimum's gain over random play" in card.text
    for words in ("the source", "A2C learners", "that it was distilled from"):
        assert words not in card.text
    assert "None" not in card.text.partition("<details>")[0]
    assert "(replay.gif)" in card.text
    assert "replay.mp4" not in card.text  # which the Hub shows by itself
    assert (run / "model" / "replay.mp4").read_bytes() == (run / "replay.mp4").read_bytes()


def test_a_model_without_a_run_has_a_card(tiny_run, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((tiny_run / "model" / name).read_bytes())
    card = ModelCard(model_card(model_files(tmp_path), "someone/something"))
    assert 'AutoModel.from_pretrained("someone/something", trust_remote_code=True' in card.text
    assert "None" not in card.text
    assert card.data.model_name == "Algorithm Distillation"


def test_a_model_card_names_the_model_of_the_hub_whose_weights_the_training_started_from(tiny_run, tmp_path):
    run, file = json.loads((tiny_run / "run.json").read_text()), tmp_path / "run.json"

    def card(origin, old=None):
        file.write_text(json.dumps(run if origin is None else {**run, "init_from": {**origin, "new": ["head"]}}))
        return model_card({**model_files(tiny_run / "model"), "run.json": file}, "someone/something", old)

    pushed = card({"name": "someone/base", "revision": "a" * 40, "taken": ["embedding.observation", "trunk"]})
    data = ModelCard(pushed).data.to_dict()
    assert (data["base_model"], data["base_model_relation"]) == ("someone/base", "finetune")
    link = f"[someone/base](https://huggingface.co/someone/base/tree/{'a' * 40}) at revision `{'a' * 40}`"
    words = "its `embedding.observation, trunk`;\n`head` started at random."
    assert f"from the weights of {link}: {words}" in pushed
    for origin in (None, {"name": "runs/base", "revision": None, "taken": ["trunk"]}):
        later = card(origin, pushed)
        assert not {"base_model", "base_model_relation"} & ModelCard(later).data.to_dict().keys()
        assert ("a local folder, `runs/base`" in later) == (origin is not None)


def test_files_of_another_structure_are_named_where_a_card_is_made_of_them(evaluated_run, tmp_path):
    files = {path.name: path for path in (evaluated_run / "model").iterdir()}
    for name, content in (
        *(("run.json", {name: value}) for name in ("dataset", "init_from") for value in (3, {"name": "x"})),
        *(("run.json", value) for value in ({"versions": []}, [], "{")),
        *(("evaluation.json", {"agents": value}) for value in ([], {}, {"AD": {}})),
        *(("evaluation.json", value) for value in ({"tasks": {"0": None}}, {"groups": []}, [], "\xff")),
        ("config.json", [1]),
    ):
        if isinstance(content, dict):
            content = {**json.loads(files[name].read_text()), **content}
        path = tmp_path / name
        path.write_bytes((content if isinstance(content, str) else json.dumps(content)).encode("latin-1"))
        with pytest.raises(ValueError, match=re.escape(name)):
            model_card(files | {name: path}, "someone/something")
    for content in ("{}", '{"tasks": 5}', "[]", "\xff"):  # of earlier versions
        (tmp_path / "report.json").write_bytes(content.encode("latin-1"))
        with pytest.raises(ValueError, match=r"report\.json"):
            model_card({"config.json": files["config.json"], "report.json": tmp_path / "report.json"}, "a/b")

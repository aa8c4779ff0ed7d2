"""Names, settings and recipes of others in cards: what they stand in ends where the template ends it."""

import ast
import html
import json
import math
import re

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ad_hf.evaluation.card import evaluation_card
from ad_hf.histories.card import dataset_card
from ad_hf.histories.schema import HistoryMetadata
from ad_hf.hub.model_card import model_card
from ad_hf.storage.cards import BEGIN, END, merge_card
from ad_hf.storage.markdown import code, fence, python, text

ALPHABET = st.characters() | st.sampled_from("`|\"'\\<>&[]()!*_#-+~$ \n\r\t\u2028")
NAMES = st.text(ALPHABET, min_size=1, max_size=30)
HOSTILE = [
    '")\nimport os; os.system("id")\n("',
    "a'b\"c\\",
    "```\n\n<script>alert(1)</script>\n\n```python",
    "``a`|`b``",
    "x | y |\n|---|---|",
    "</code></details><img src=x onerror=alert(1)>",
    "[click](javascript:alert(1)) ![x](http://a/b)",
    "---\nlicense: mit\n---\n# Title\r- list\u2028\u2029",
    f"{END}\n\nafter\n\n{BEGIN}",
    "{{ 1 + 1 }} {% raw %} {# x #}",
    "# 1. heading",
    "\u202eltr\x00\x1b[31m",
    "$$\\href{javascript:x}{y}$$",
]


def fences(card):
    """The blocks of code of a card with their languages, and its other lines, as CommonMark parts them."""
    blocks, rest, opened = [], [], None
    for line in re.split(r"\r\n|\r|\n", card):
        mark = re.match(r" {0,3}(`{3,})([^`]*)$", line)
        if opened is None and mark:
            opened = mark[1], mark[2].strip(), []
        elif opened is not None and mark and len(mark[1]) >= len(opened[0]) and not mark[2].strip():
            blocks.append((opened[1], "\n".join(opened[2])))
            opened = None
        else:
            (rest if opened is None else opened[2]).append(line)
    assert opened is None, "a block of code is not closed"
    return blocks, rest


def spans(line):
    """Spans of code in a line, and the line without them."""
    pattern = r"(?<!`)(?<!\\)(`+)(?!`)(.+?)(?<!`)\1(?!`)"
    return [match[2] for match in re.finditer(pattern, line)], re.sub(pattern, "", line)


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        NAMES | st.none() | st.booleans() | st.integers() | st.floats(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
        max_leaves=6,
    )
)
def test_a_literal_of_python_is_the_value_on_one_line(value):
    literal = python(value)
    assert len(literal.splitlines()) == 1
    assert literal.isprintable()
    found = eval(compile(ast.parse(literal, mode="eval"), "", "eval"), {"__builtins__": {"float": float}})
    assert repr(found) == repr(value)  # in which NaN equals itself


@settings(max_examples=300, deadline=None)
@given(NAMES)
@example("\\|")
def test_code_and_text_stay_in_their_line_and_cell(name):
    for written in (code(name), code(name, in_table=True), text(name)):
        assert written.isprintable()
    assert not re.search(r"(?<!\\)\|", code(name, in_table=True).replace("\\\\", ""))
    (found,), rest = spans(f"a {code(name)} b")
    assert rest == "a  b"
    assert found.strip() == "".join(char if char.isprintable() else " " for char in name).strip()
    plain = text(name)
    assert not re.search(r"[<>]|&(?!amp;|lt;|gt;)|(?<!\\)(?:\\\\)*[`*\[\]|~$]", plain)
    unescaped = html.unescape(re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", plain))
    assert unescaped == "".join(char if char.isprintable() else " " for char in name)


@settings(max_examples=200, deadline=None)
@given(st.text(ALPHABET, max_size=60))
@example("```\nout\n````\n`````")
@example("\r")
def test_a_block_of_code_holds_all_of_its_text(content):
    ((language, found),), rest = fences(f"before\n\n{fence(content, 'yaml')}\n\nafter")
    assert language == "yaml"
    assert found == re.sub(r"\r\n?", "\n", content).strip("\n")
    assert rest == ["before", "", "", "after"]


def check_card(card, name):
    """That a card is of the form that the template gives it, whatever the name; returns its blocks of code."""
    _, front, body = re.split(r"^---$\n?", card, maxsplit=2, flags=re.MULTILINE)
    assert isinstance(yaml.safe_load(front), dict)
    assert body.count(BEGIN) == body.count(END) == 1
    assert merge_card(card, yaml.safe_load(front), "Anew.").count("Anew.") == 1
    blocks, lines = fences(body)
    width = None
    for line in lines:
        _, rest = spans(line)
        tags = re.findall(r"<[^>]*>", rest.replace(BEGIN, "").replace(END, ""))
        assert set(tags) <= {"<details>", "</details>", "<summary>", "</summary>", "<code>", "</code>"}, line
        ours = r"https://(huggingface\.co|colab\.research\.google\.com)/|[a-z_]+\.(png|gif)\)"
        assert not re.search(rf"(?<!\\)\]\((?!{ours})", rest), line
        if line.startswith("|"):  # all rows of a table have as many cells
            cells = len(re.findall(r"(?<!\\)\|", line))
            assert width in (None, cells), line
            width = cells
        else:
            width = None
    return blocks


def strings(program):
    """All literals of text in a program."""
    return {node.value for node in ast.walk(ast.parse(program)) if isinstance(node, ast.Constant)}


@pytest.fixture(scope="module")
def metadata(tiny_histories):
    """What a dataset says of itself."""
    return (tiny_histories / "default" / "metadata.json").read_text()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_dataset_card_cannot_be_broken_out_of(metadata, name):
    data = json.loads(metadata)
    data |= {"env_id": name, "env_kwargs": {name: name}, "wrappers": [{"name": name, "kwargs": {name: name}}]}
    data |= {"attributes": [name], "versions": {name: name}, "fingerprint": name}
    data["source"] |= {"algorithm": name, "hyperparameters": {name: name}}
    for task in data["tasks"]:
        task["kwargs"] = {name: name}
    configs = {name: HistoryMetadata.from_json(json.dumps(data))}
    card = dataset_card(configs, [{"config_name": name, "data_files": []}], name)
    ((language, program),) = check_card(card, name)
    assert language == "python"
    assert name in strings(program)


RUN = {"dataset": {"revision": "main", "config_name": "default", "fingerprint": "0", "source": "A2C"}, "versions": {}}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_model_card_cannot_be_broken_out_of(tiny_run, tmp_path, name):
    run = json.loads((tiny_run / "run.json").read_text())
    run |= {"env_id": name, "env_kwargs": {name: [name, math.inf]}, "wrappers": [{"name": name}], "attributes": [name]}
    run |= {"versions": {name: name}}
    run["dataset"] = dict.fromkeys(("name", "revision", "config_name", "fingerprint", "source"), name)
    run["init_from"] = {"name": name, "revision": name, "weights_digest": name, "taken": [name], "new": [name]}
    (tmp_path / "run.json").write_text(json.dumps(run))
    (tmp_path / "recipe.yaml").write_bytes(f"# {name}\n{name}\n".encode())
    files = {each: tmp_path / each for each in ("run.json", "recipe.yaml")}
    card = model_card({**files, "config.json": (tiny_run / "model" / "config.json").read_bytes()}, name)
    (first, program), (second, recipe) = check_card(card, name)
    assert (first, second) == ("python", "yaml")
    assert name in strings(program)
    if name.isprintable() and END not in name:
        assert recipe == f"# {name}\n{name}"


@pytest.fixture(scope="module")
def evaluation(tiny_run, tiny_histories, tmp_path_factory):
    """The content of an evaluation of a run."""
    from ad_hf.pipeline import EvaluatedModel, evaluate_models

    folder = tmp_path_factory.mktemp("evaluations")
    own = EvaluatedModel.load(tiny_run, tiny_histories, overrides=["--rollout.num_episodes", "2"])
    own.run = None  # whose card is left as it is
    return evaluate_models([own], folder, num_seeds=1)


@pytest.mark.parametrize("name", HOSTILE)
def test_cards_of_results_cannot_be_broken_out_of(evaluation, tmp_path, name):
    found = json.loads(json.dumps(evaluation)) | {"env_id": name, "versions": {name: name}, "agent": name}
    found["agents"] = {name if agent == "AD" else agent: each for agent, each in found["agents"].items()}
    ((_, program),) = check_card(evaluation_card(tmp_path, name, found), name)
    assert name in strings(program)
    group = {"num_tasks": 2, "returns": {name: 1.0}, "normalized": {name: 0.5}}
    found["groups"] = {"all": group, "b": group, name: group}
    found["source"]["algorithm"] = name
    for task in found["tasks"]:
        task["kwargs"] = {name: name}
    files = {"evaluation.json": tmp_path / "evaluation.json"}
    files["evaluation.json"].write_text(json.dumps(found))
    ((_, program),) = check_card(
        model_card(
            files | {"config.json": b'{"observation_space": {}, "action_space": {}, "context_length": 5}'}, name
        ),
        name,
    )
    assert name in strings(program)

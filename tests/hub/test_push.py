"""Pushing datasets: what is in the repository then, who can read it, and that no accident leaves half of it."""

import hashlib
import json
import re
import shutil
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest
from hub_files import (
    BEGIN,
    END,
    PREVIEW,
    ask_private,
    card_in,
    describe,
    is_untouched,
    refusal,
    shards_in,
    shards_of,
    uploads,
)

from ad_hf.histories.dataset import HistoryDataset
from ad_hf.hub.preview import preview_table

SHARD = "default/train-00000-of-00001.parquet"


@pytest.fixture
def histories(tiny_histories, tmp_path):
    """A copy of really collected histories, to be spoilt."""
    return shutil.copytree(tiny_histories, tmp_path / "histories")


@pytest.fixture
def another_family(tiny_histories, tmp_path):
    """Histories of larger rooms, as far as their metadata says."""
    folder = shutil.copytree(tiny_histories, tmp_path / "larger")
    metadata = json.loads((folder / "default" / "metadata.json").read_text())
    metadata["env_kwargs"]["size"] = 4
    metadata["fingerprint"] = ""  # that of the shards is of smaller rooms
    (folder / "default" / "metadata.json").write_text(json.dumps(metadata))
    return folder


LOAD = """
import os, re, sys
import pyarrow.parquet as pq
from datasets import get_dataset_config_names, get_dataset_split_names, load_dataset
from huggingface_hub import hf_hub_download
from pathlib import Path

repo, folder = sys.argv[1], Path(sys.argv[2])
assert get_dataset_config_names(repo) == ["default", "preview"]
assert get_dataset_split_names(repo) == ["train", "validation", "test"]
for split in ("train", "validation", "test"):
    local = [row for path in sorted(folder.glob(f"default/{split}-*")) for row in pq.read_table(path).to_pylist()]
    assert local
    assert list(load_dataset(repo, split=split, streaming=True)) == local
    assert list(load_dataset(repo, "default", split=split)) == local
for row in load_dataset(repo, "preview", split="preview"):
    assert row["last_episode"].width > row["first_episode"].height
card = Path(hf_hub_download(repo, "README.md", repo_type="dataset")).read_text()
(quick_start,) = re.findall("```python\\n(.*?)```", card, re.DOTALL)
exec(quick_start)
assert "ad_hf" not in sys.modules
sys.stdout.flush()
os._exit(0)  # after a stream that was not read to its end, pyarrow may abort at exit (apache/arrow#45214)
"""


def test_a_pushed_dataset_is_whole_loads_without_the_package_and_can_be_copied(
    hub, ad_hf_with_hub, run_with_hub, tiny_histories
):
    done = ad_hf_with_hub("push", "dataset", tiny_histories, "local/histories")
    commits = hub.commits("dataset", "local/histories")
    assert done.stdout == f"{hub.url}/datasets/local/histories/tree/{commits[0]}\n"
    assert len(commits) == 2  # the first is the Hub's own
    files = hub.files("dataset", "local/histories")
    assert shards_in(hub, "local/histories") == shards_of(tiny_histories) != {}
    assert files["default/metadata.json"] == (tiny_histories / "default" / "metadata.json").read_bytes()
    others = files.keys() - shards_of(tiny_histories).keys()
    assert others == {".gitattributes", "README.md", "default/metadata.json", f"preview{PREVIEW}"}
    printed = run_with_hub(LOAD, "local/histories", tiny_histories).stdout
    assert re.fullmatch(r"\d+-0-0 \d+ \d+\.\d+\n", printed)  # history, steps, return

    hub.clear_log()
    assert ad_hf_with_hub("push", "dataset", tiny_histories, "local/histories").stdout == done.stdout
    assert hub.commits("dataset", "local/histories") == commits
    assert not uploads(hub)

    done = ad_hf_with_hub("push", "dataset", "local/histories", "second")  # whose owner is left out
    assert done.stdout.startswith(f"{hub.url}/datasets/local/second/tree/")
    second = hub.files("dataset", "local/second")
    assert second.pop("README.md") == files.pop("README.md").replace(b"local/histories", b"local/second")
    assert second == files


FROM_PYTHON = """
import sys
import ad_hf
from huggingface_hub import HfApi

url = ad_hf.push_dataset(
    sys.argv[1], "local/secret", private=True, revision="new", token="hf_local", commit_message="mine"
)
api = HfApi(token="hf_local")
assert url == f"{api.endpoint}/datasets/local/secret/tree/{api.dataset_info('local/secret', revision='new').sha}"
assert api.list_repo_commits("local/secret", repo_type="dataset", revision="new")[0].title == "mine"
"""


def test_a_dataset_goes_to_a_private_repository_on_a_new_branch(hub, ad_hf_with_hub, tiny_histories):
    ad_hf_with_hub(tiny_histories, script=FROM_PYTHON, token=None)
    ad_hf_with_hub("push", "dataset", tiny_histories, "local/hidden", "--private", "--revision", "side/way")
    for repo, branch in (("local/secret", "new"), ("local/hidden", "side/way")):
        assert shards_in(hub, repo, branch) == shards_of(tiny_histories)
        assert hub.files("dataset", repo).keys() == {".gitattributes"}
        assert ask_private(ad_hf_with_hub, "dataset", repo)


LOAD_BOTH = """
from datasets import get_dataset_config_names, load_dataset
from ad_hf.histories.dataset import HistoryDataset

assert get_dataset_config_names("local/families") == ["large", "large_preview", "small", "small_preview"]
for name, size in (("large", 4), ("small", 3)):
    rows = list(load_dataset("local/families", name, split="test", streaming=True))
    opened = HistoryDataset.open("local/families", name)
    assert opened.metadata.env_kwargs["size"] == size
    assert len(rows) == opened.metadata.statistics["test"]["histories"] > 0
    assert list(opened.load("test")) == rows
"""


def test_families_pushed_one_after_another_are_configurations_of_one_repository(
    hub, ad_hf_with_hub, histories, another_family
):
    ad_hf_with_hub("push", "dataset", histories, "local/families", "--config_name", "small")
    ad_hf_with_hub("push", "dataset", another_family, "local/families", "--config_name", "large")
    files = hub.files("dataset", "local/families")
    folders = {"large", "large_preview", "small", "small_preview"}
    assert {path.partition("/")[0] for path in files} == {".gitattributes", "README.md", *folders}
    names = {path.rpartition("/")[2] for path in shards_of(histories)}
    assert {path.rpartition("/")[2] for path in shards_in(hub, "local/families")} == names
    card = card_in(hub, "dataset", "local/families")
    assert {config["config_name"] for config in card.data.configs} == folders
    assert card.text.count("## Configuration `small`") == card.text.count("## Configuration `large`") == 1
    ad_hf_with_hub(script=LOAD_BOTH)

    shutil.copytree(another_family / "default", histories / "large")
    hub.clear_log()
    arguments = ("push", "dataset", histories, "local/histories", "--config_name")
    last = refusal(ad_hf_with_hub(*arguments, "medium", check=False))
    assert "'medium'" in last
    assert "default, large" in last
    assert is_untouched(hub)
    ad_hf_with_hub(*arguments, "large")
    assert {path.partition("/")[0] for path in shards_in(hub, "local/histories")} == {"large"}
    configs = card_in(hub, "dataset", "local/histories").data.configs
    assert [(config["config_name"], config.get("default")) for config in configs] == [
        ("large", True),  # for `load_dataset` without a name
        ("large_preview", None),
    ]


def test_text_of_people_in_a_card_survives(hub, ad_hf_with_hub, histories, another_family):
    local = (histories / "README.md").read_text()
    (histories / "README.md").write_text(local.replace("---\n\n", "---\n\nWritten before the first push.\n\n", 1))
    push = ("push", "dataset", histories, "local/card")
    ad_hf_with_hub(*push)
    card = hub.files("dataset", "local/card")["README.md"].decode()
    assert card.index("Written before the first push.") < card.index(BEGIN) < card.index(END)

    body = card.partition(BEGIN)[2].partition(END)[0]
    card = card.replace("---\n", "---\nlicense: mit\nlanguage:\n- cs\n", 1).replace("tags:\n", "tags:\n- dark\n", 1)
    card = card.replace(BEGIN, f"Žluťoučký.\n\n{BEGIN}").replace(END, f"{END}\n\nAfterwards.\n")
    hub.commit("dataset", "local/card", {"README.md": card.replace("## Limits", "## Nonsense").encode()})
    ad_hf_with_hub(*push)
    card = card_in(hub, "dataset", "local/card")
    assert (card.data.license, card.data.language, card.data.tags[0]) == ("mit", ["cs"], "dark")
    assert "algorithm-distillation" in card.data.tags
    before, _, rest = card.text.partition(BEGIN)
    ours, _, after = rest.partition(END)
    assert before.split() == ["Written", "before", "the", "first", "push.", "Žluťoučký."]
    assert (ours, after.strip()) == (body, "Afterwards.")

    hub.commit("dataset", "local/card", {"README.md": b"---\nlicense: mit\n---\n\n# All my own\n\nText.\n"})
    commits = []
    for _ in range(2):
        ad_hf_with_hub("push", "dataset", another_family, "local/card", "--config_name", "large")
        commits.append(hub.commits("dataset", "local/card"))
    card = card_in(hub, "dataset", "local/card")
    assert card.data.license == "mit"
    assert card.text.index("# All my own\n\nText.\n") < card.text.index(BEGIN)
    assert card.text.count(BEGIN) == 1
    assert commits[0] == commits[1]


def test_stale_shards_go_and_the_files_of_others_stay(hub, ad_hf_with_hub, histories, another_family):
    whole, described = (histories / SHARD).read_bytes(), (histories / "default" / "metadata.json").read_text()
    table = pq.read_table(histories / SHARD)
    (histories / SHARD).unlink()
    for index, rows in enumerate((table.slice(0, 8), table.slice(8))):
        pq.write_table(rows, histories / "default" / f"train-0000{index}-of-00002.parquet")
    describe(histories)
    ad_hf_with_hub("push", "dataset", histories, "local/shards")
    ad_hf_with_hub("push", "dataset", another_family, "local/shards", "--config_name", "large")
    hub.commit("dataset", "local/shards", {"notes.txt": b"mine", "other/data.parquet": b"theirs"})
    assert len(shards_in(hub, "local/shards")) == 4 + 3 + 1

    for path in histories.glob("default/train-*"):
        path.unlink()
    (histories / SHARD).write_bytes(whole)
    (histories / "default" / "metadata.json").write_text(described)
    ad_hf_with_hub("push", "dataset", histories, "local/shards")
    found = shards_in(hub, "local/shards")
    assert {path: data for path, data in found.items() if path.startswith("default/")} == shards_of(histories)
    assert len(found) == 3 + 3 + 1
    assert hub.files("dataset", "local/shards")["notes.txt"] == b"mine"


def test_a_push_that_the_hub_fails_is_made_up_for_by_the_next(hub, ad_hf_with_hub, tiny_histories):
    push = ("push", "dataset", tiny_histories, "local/broken")
    hub.fail("503", times=5, path="/commit/")
    last = refusal(ad_hf_with_hub(*push, check=False))
    assert "local/broken" in last
    assert "503" in last
    assert hub.files("dataset", "local/broken").keys() == {".gitattributes"}
    assert len(uploads(hub)) == 4  # shards, and the preview

    hub.clear_log()
    hub.fail("drop", path="/commit/")
    ad_hf_with_hub(*push)
    assert shards_in(hub, "local/broken") == shards_of(tiny_histories)
    assert not uploads(hub)
    assert len(hub.commits("dataset", "local/broken")) == 2


@pytest.mark.slow  # the client itself tries each upload for 23 seconds, and we try that four times
@pytest.mark.parametrize("fault", ["503", "drop"])
def test_uploads_that_keep_failing_end_in_one_line(hub, ad_hf_with_hub, tiny_histories, fault):
    hub.fail(fault, times=10**6, method="PUT")
    last = refusal(ad_hf_with_hub("push", "dataset", tiny_histories, "local/down", check=False))
    assert "local/down" in last
    assert hub.files("dataset", "local/down").keys() == {".gitattributes"}


def test_a_killed_push_leaves_the_branch_as_it_was_and_the_next_sends_only_the_rest(
    hub, ad_hf_with_hub, tiny_histories, tmp_path
):
    before = hub.commit("dataset", "local/killed", {"notes.txt": b"mine"})
    contents = [*shards_of(tiny_histories).values(), preview_table(HistoryDataset.open(tiny_histories))]
    names = [hashlib.sha256(content).hexdigest() for content in contents]
    for name in names[1:]:
        hub.fail("503", times=2, method="PUT", path=name)  # after which the client waits for a second, and for two
    command = [sys.executable, "-m", "ad_hf.cli", "push", "dataset", str(tiny_histories), "local/killed"]
    with subprocess.Popen(command, env=hub.environment(tmp_path / "hf_home"), cwd=tmp_path) as process:
        deadline = time.monotonic() + 120
        while len(uploads(hub, 503) | uploads(hub)) < 4 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, "the push ended before it could be interrupted"
    assert (uploads(hub), uploads(hub, 503)) == ({f"/lfs/{names[0]}"}, {f"/lfs/{name}" for name in names[1:]})
    assert hub.commits("dataset", "local/killed")[0] == before

    hub.clear_log()
    ad_hf_with_hub("push", "dataset", tiny_histories, "local/killed")
    assert uploads(hub) == {f"/lfs/{name}" for name in names[1:]}
    assert shards_in(hub, "local/killed") == shards_of(tiny_histories)
    assert hub.files("dataset", "local/killed")["notes.txt"] == b"mine"


def test_lost_answers_and_pushes_of_others_neither_double_nor_lose_a_commit(hub, ad_hf_with_hub, tiny_histories):
    hub.fail("lost_answer", path="/commit/")
    done = ad_hf_with_hub("push", "dataset", tiny_histories, "local/lost")
    commits = hub.commits("dataset", "local/lost")
    assert len(commits) == 2
    assert done.stdout.strip().endswith(commits[0])
    hub.fail("stale", times=2)
    ad_hf_with_hub("push", "dataset", tiny_histories, "local/race")
    assert {"someone_else-1.txt", "someone_else-2.txt"} < hub.files("dataset", "local/race").keys()
    assert shards_in(hub, "local/race") == shards_of(tiny_histories)


CONCURRENTLY = """
import sys
from concurrent.futures import ThreadPoolExecutor
import ad_hf

with ThreadPoolExecutor(3) as pool:
    list(pool.map(lambda name: ad_hf.push_dataset(sys.argv[1], "local/crowd", config_name=name), ["a", "b", "c"]))
"""


def test_configurations_pushed_at_the_same_time_are_all_kept(hub, ad_hf_with_hub, tiny_histories):
    hub.latency = 0.1  # so that each has looked before any has committed
    ad_hf_with_hub(tiny_histories, script=CONCURRENTLY)
    assert [request.status for request in hub.requests if "/commit/" in request.path].count(412) > 0
    for name in ("a", "b", "c"):
        wanted = {path.replace("default/", f"{name}/"): data for path, data in shards_of(tiny_histories).items()}
        assert wanted.items() <= shards_in(hub, "local/crowd").items()
    card = card_in(hub, "dataset", "local/crowd")
    assert [config["config_name"] for config in card.data.configs] == [
        "a",
        "a_preview",
        "b",
        "b_preview",
        "c",
        "c_preview",
    ]
    assert all(f"## Configuration `{name}`" in card.text for name in ("a", "b", "c"))


OFFLINE = """
import sys
from huggingface_hub import constants
from ad_hf.cli import main

constants.HF_HUB_OFFLINE = True
try:
    sys.exit(main(sys.argv[1:]))
finally:
    constants.HF_HUB_OFFLINE = False
"""


def test_refusals_of_the_hub_say_what_to_do(hub, ad_hf_with_hub, tiny_histories):
    hub.commit("dataset", "local/theirs", {})
    for repo, fault, path, token in [
        ("local/new", None, None, None),
        ("local/theirs", None, None, None),
        ("local/new", None, None, "hf_wrong"),
        ("local/new", "403", "/repos/create", "hf_local"),
        ("local/theirs", "403", "/commit/", "hf_local"),
    ]:
        if fault is not None:
            hub.fail(fault, path=path)
        last = refusal(ad_hf_with_hub("push", "dataset", tiny_histories, repo, token=token, check=False))
        assert repo in last, (repo, fault, token)
        assert "HF_TOKEN" in last, (repo, fault, token)
    assert hub.files("dataset", "local/theirs").keys() == {".gitattributes"}
    hub.clear_log()
    last = refusal(ad_hf_with_hub("push", "dataset", tiny_histories, "local/new", script=OFFLINE, check=False))
    assert "HF_HUB_OFFLINE" in last
    assert not hub.requests


def test_a_damaged_dataset_is_refused_before_anything_is_sent(hub, ad_hf_with_hub, histories):
    content, table = (histories / SHARD).read_bytes(), pq.read_table(histories / SHARD)
    for damage, names in (
        (lambda: (histories / SHARD).unlink(), ["train-00000-of-00001"]),
        (
            lambda: pq.write_table(table.drop_columns(["rewards"]), histories / SHARD),
            ["train-00000-of-00001", "rewards"],
        ),
        (lambda: (histories / SHARD).write_bytes(content[:-100]), ["train-00000-of-00001"]),
        (lambda: (histories / "default" / "metadata.json").unlink(), ["metadata.json"]),
        (lambda: shutil.rmtree(histories), ["neither a folder nor"]),
    ):
        damage()
        last = refusal(ad_hf_with_hub("push", "dataset", histories, "local/half", check=False))
        assert all(name in last for name in names)
    assert is_untouched(hub)

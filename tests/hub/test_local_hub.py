"""The Hub that the tests run against: the real clients get from it what they would get from the real one."""

import base64
import hashlib
import http.client
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import local_hub
import pytest
from local_hub import LocalHub

JUNK = os.urandom(3 * 2**20)
TOKEN = {"Authorization": "Bearer hf_local"}

FOLDERS = """
import os, sys
from pathlib import Path
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError

api = HfApi()
assert api.whoami()["name"] == "local"
url = api.create_repo("local/model", private=True)
assert (url.repo_type, url.repo_id, url.endpoint) == ("model", "local/model", os.environ["HF_ENDPOINT"])
assert api.create_repo("local/model", exist_ok=True).repo_id == "local/model"
assert api.create_repo("short", repo_type="space", space_sdk="static").repo_id == "local/short"
try:
    api.create_repo("local/model")
    raise SystemExit("created twice")
except HfHubHTTPError as error:
    assert error.response.status_code == 409, error
api.delete_repo("local/short", repo_type="space")
assert not api.repo_exists("local/short", repo_type="space")
assert api.model_info("local/model").private

folder = Path("folder")
(folder / "deep" / "er").mkdir(parents=True)
(folder / "README.md").write_text("---\\nlicense: mit\\n---\\nCzech: žluťoučký")
(folder / "deep" / "er" / "weights.safetensors").write_bytes(Path(sys.argv[1]).read_bytes())
(folder / "deep" / "empty.txt").touch()
first = api.upload_folder(repo_id="local/model", folder_path=folder)
assert first.repo_url.repo_id == "local/model"
assert api.upload_folder(repo_id="local/model", folder_path=folder).oid == first.oid, "nothing to commit"

tree = {entry.path: entry for entry in api.list_repo_tree("local/model", recursive=True, expand=True)}
assert set(tree) == {".gitattributes", "README.md", "deep", "deep/empty.txt", "deep/er", "deep/er/weights.safetensors"}
weights = tree["deep/er/weights.safetensors"]
assert weights.lfs.size == weights.size == Path(sys.argv[1]).stat().st_size
assert weights.last_commit.oid == tree["deep"].last_commit.oid == first.oid != tree[".gitattributes"].last_commit.oid
assert [entry.path for entry in api.list_repo_tree("local/model", "deep")] == ["deep/empty.txt", "deep/er"]
infos = api.get_paths_info("local/model", ["deep", "README.md", "missing"])
assert [info.path for info in infos] == ["deep", "README.md"]
siblings = {sibling.rfilename: sibling for sibling in api.model_info("local/model", files_metadata=True).siblings}
assert siblings["deep/er/weights.safetensors"].lfs.sha256 == weights.lfs.sha256

path = Path(hf_hub_download("local/model", "deep/er/weights.safetensors"))
assert path.read_bytes() == Path(sys.argv[1]).read_bytes()
snapshot = Path(snapshot_download("local/model"))
assert snapshot.name == first.oid and (snapshot / "README.md").read_bytes() == (folder / "README.md").read_bytes()
"""

OFFLINE = """
from pathlib import Path
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

assert (Path(snapshot_download("local/model")) / "deep" / "empty.txt").read_bytes() == b""
print(Path(hf_hub_download("local/model", "README.md")).read_text(encoding="utf-8"))
try:
    hf_hub_download("local/model", "missing.txt")
    raise SystemExit("found a file that was never there")
except LocalEntryNotFoundError:
    pass
"""


def test_folder_goes_up_comes_down_and_is_there_offline(hub, run_with_hub, tmp_path):
    (tmp_path / "junk").write_bytes(JUNK)
    run_with_hub(FOLDERS, tmp_path / "junk")
    files = hub.files("model", "local/model")
    assert files.keys() == {".gitattributes", "README.md", "deep/empty.txt", "deep/er/weights.safetensors"}
    assert files["deep/er/weights.safetensors"] == JUNK
    assert len(hub.commits("model", "local/model")) == 2
    hub.clear_log()
    assert "žluťoučký" in run_with_hub(OFFLINE, environment={"HF_HUB_OFFLINE": "1"}).stdout
    assert hub.requests == []


COMMITS = """
from pathlib import Path
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

api = HfApi()
repo = "local/model"
initial = api.create_repo(repo) and api.model_info(repo).sha


def commit(files, deletions=(), **options):
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    operations += [CommitOperationDelete(path) for path in deletions]
    return api.create_commit(repo, operations, commit_message="a title", commit_description="why", **options).oid


def fails(kind, status, function, *arguments, **options):
    try:
        function(*arguments, **options)
    except kind as error:
        assert type(error) is kind and error.response.status_code == status, repr(error)
    else:
        raise SystemExit(f"{kind.__name__} did not come")


one = commit({"a.txt": b"one", "b/c.bin": b"\\0", "b/d.txt": b"d"}, parent_commit=initial)
fails(HfHubHTTPError, 412, commit, {"a.txt": b"late"}, parent_commit=initial)
two = commit({"a.txt": b"two"}, ["b/"], parent_commit=one)
commits = api.list_repo_commits(repo)
assert [(c.commit_id, c.title, c.message) for c in commits[:2]] == [(i, "a title", "why") for i in (two, one)]
assert commits[2].commit_id == initial
fails(EntryNotFoundError.__subclasses__()[0], 404, commit, {}, ["b/d.txt"])

api.create_tag(repo, tag="v/1", revision=one[:7])
api.create_tag(repo, tag="v/1", exist_ok=True)
api.create_branch(repo, branch="side/way", revision="v/1")
api.create_branch(repo, branch="side/way", exist_ok=True)
fails(HfHubHTTPError, 409, api.create_branch, repo, branch="side/way")
fails(HfHubHTTPError, 409, api.create_tag, repo, tag="v/1")
three = commit({"a.txt": b"three"}, revision="side/way")
copy = [CommitOperationCopy("a.txt", "copy.txt"), CommitOperationCopy("b/c.bin", "copy.bin")]
api.create_commit(repo, copy, commit_message="copies", revision="side/way")
refs = api.list_repo_refs(repo)
assert {branch.name: branch.target_commit for branch in refs.branches}.keys() == {"main", "side/way"}
assert [(tag.name, tag.ref, tag.target_commit) for tag in refs.tags] == [("v/1", "refs/tags/v/1", one)]


def text(revision):
    return Path(hf_hub_download(repo, "a.txt", revision=revision)).read_text()


texts = {None: "two", "side/way": "three", "v/1": "one", one: "one", three: "three"}
assert {revision: text(revision) for revision in texts} == texts
fails(RevisionNotFoundError, 404, text, "nowhere")
fails(RevisionNotFoundError, 404, commit, {"a.txt": b"x"}, revision="nowhere")
fails(EntryNotFoundError.__subclasses__()[0], 404, hf_hub_download, repo, "b/d.txt")
fails(RepositoryNotFoundError, 404, api.model_info, "local/nothing")
assert api.file_exists(repo, "b/d.txt", revision="v/1") and not api.file_exists(repo, "b/d.txt")
assert api.revision_exists(repo, "side/way") and not api.revision_exists(repo, "nowhere")
api.delete_tag(repo, tag="v/1")
fails(RevisionNotFoundError, 404, api.delete_tag, repo, tag="v/1")
api.delete_branch(repo, branch="side/way")
fails(HfHubHTTPError, 403, api.delete_branch, repo, branch="main")
assert [branch.name for branch in api.list_repo_refs(repo).branches] == ["main"]
assert text(three) == "three", "commits stay"
"""


def test_history_branches_and_tags(hub, run_with_hub):
    run_with_hub(COMMITS)
    files = hub.files("model", "local/model")
    assert files.keys() == {".gitattributes", "a.txt"}
    assert files["a.txt"] == b"two"
    assert hub.files("model", "local/model", hub.commits("model", "local/model")[1])["b/c.bin"] == b"\0"


LARGE_FILES = """
import os, sys
from pathlib import Path
from huggingface_hub import CommitOperationAdd, HfApi

api = HfApi()
junk = Path(sys.argv[1])
api.create_repo("local/one", repo_type="dataset")
api.create_repo("local/two", repo_type="dataset")
with junk.open("rb") as file:
    api.upload_file(repo_id="local/one", repo_type="dataset", path_in_repo="a.bin", path_or_fileobj=file)
api.upload_file(repo_id="local/one", repo_type="dataset", path_in_repo="a.bin", path_or_fileobj=junk)
api.upload_file(repo_id="local/one", repo_type="dataset", path_in_repo="b.parquet", path_or_fileobj=junk)
api.upload_file(repo_id="local/two", repo_type="dataset", path_in_repo="c.mp4", path_or_fileobj=junk.read_bytes())
add = CommitOperationAdd("d.gif", b"a gif that is committed later")
api.preupload_lfs_files("local/two", [add], repo_type="dataset")
api.create_commit("local/two", [add], commit_message="later", repo_type="dataset")
"""


def test_large_files_are_stored_once_and_bit_exact(hub, run_with_hub, tmp_path):
    (tmp_path / "junk").write_bytes(JUNK)
    run_with_hub(LARGE_FILES, tmp_path / "junk")
    assert hub.files("dataset", "local/one")["a.bin"] == hub.files("dataset", "local/one")["b.parquet"] == JUNK
    assert hub.files("dataset", "local/two")["c.mp4"] == JUNK
    assert hub.files("dataset", "local/two")["d.gif"] == b"a gif that is committed later"
    assert len(hub.commits("dataset", "local/one")) == 3  # the first, a.bin once although sent twice, b.parquet
    uploads = [request.bytes_received for request in hub.requests if request.method == "PUT"]
    assert uploads == [len(JUNK), 29]


FILE_SYSTEM = """
import os, sys
from pathlib import Path
from huggingface_hub import HfFileSystem

fs = HfFileSystem()
junk = Path(sys.argv[1]).read_bytes()
root = "datasets/local/data"
with fs.open(f"{root}/deep/junk.bin", block_size=2**16) as file:
    assert file.size == len(junk)
    file.seek(2_000_000)
    assert file.read(1000) == junk[2_000_000:2_001_000]
    file.seek(-10, os.SEEK_END)
    assert file.read() == junk[-10:]
with fs.open(f"{root}/deep/junk.bin", block_size=0) as file:
    assert b"".join(iter(lambda: file.read(10**6), b"")) == junk
assert fs.cat_file(f"{root}/deep/junk.bin", 5, 10) == junk[5:10]
assert fs.ls(root, detail=False) == [f"{root}/.gitattributes", f"{root}/a.txt", f"{root}/deep"]
assert fs.glob(f"{root}/**/*.bin") == [f"{root}/deep/junk.bin"]
assert fs.find(f"{root}/deep") == [f"{root}/deep/junk.bin"]
assert fs.isdir(f"{root}/deep") and fs.isfile(f"{root}/a.txt") and not fs.exists(f"{root}/b.txt")
with fs.open(f"{root}/b.txt", "w") as file:
    file.write("written")
assert fs.cat_file(f"{root}/b.txt") == b"written"
fs.rm(f"{root}/b.txt")
assert not fs.exists(f"{root}/b.txt")
"""


def test_file_system_reads_ranges(hub, run_with_hub, tmp_path):
    (tmp_path / "junk").write_bytes(JUNK)
    hub.commit("dataset", "local/data", {"a.txt": b"a", "deep/junk.bin": JUNK})
    run_with_hub(FILE_SYSTEM, tmp_path / "junk")
    asked = [request for request in hub.requests if "local/data" in request.path]
    # To open a file: the repository, then the folder it is in.
    assert [(request.method, request.status, request.range) for request in asked[:3]] == [
        ("GET", 200, None),
        ("GET", 200, None),
        ("GET", 206, "bytes=2000000-2066535"),
    ]
    assert asked[2].bytes_sent == 66536
    assert "b.txt" not in hub.files("dataset", "local/data")


DATASETS = """
import datasets
from huggingface_hub import HfApi

rows = {"number": list(range(1000)), "text": [f"row {i}" for i in range(1000)]}
data = datasets.Dataset.from_dict(rows)
data.push_to_hub("local/data", num_shards=2)
data.select(range(10)).push_to_hub("local/data", config_name="small", split="test")
data.select(range(5)).push_to_hub("local/data", revision="fewer")
HfApi().create_tag("local/data", tag="v1", repo_type="dataset")
data.select(range(7)).push_to_hub("local/data", private=True)

streamed = datasets.load_dataset("local/data", split="train", revision="v1", streaming=True)
assert [row["number"] for row in streamed] == rows["number"]
assert datasets.load_dataset("local/data", split="train", revision="v1").to_dict() == rows
assert len(datasets.load_dataset("local/data", split="train")) == 7
assert len(datasets.load_dataset("local/data", "small", split="test")) == 10
assert len(list(datasets.load_dataset("local/data", split="train", revision="fewer", streaming=True))) == 5
assert datasets.get_dataset_config_names("local/data") == ["default", "small"]
"""


def test_datasets_are_pushed_loaded_and_streamed(hub, run_with_hub):
    run_with_hub(DATASETS)
    shards = {path for path in hub.files("dataset", "local/data", "v1") if path.endswith(".parquet")}
    assert {"data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"} < shards
    assert "data/train-00001-of-00002.parquet" not in hub.files("dataset", "local/data")
    assert any(request.status == 206 and ".parquet" in request.path for request in hub.requests)


MODELS = """
import torch
from transformers import AutoModel, BertConfig, BertModel

torch.manual_seed(0)
sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=16)
model = BertModel(BertConfig(**sizes))
first = model.push_to_hub("local/bert", private=True)
before = {name: value.clone() for name, value in model.state_dict().items()}
with torch.no_grad():
    model.pooler.dense.bias += 1
model.push_to_hub("local/bert")
model.push_to_hub("local/bert", revision="side")

for revision, expected in [(first.oid, before), ("main", model.state_dict()), ("side", model.state_dict())]:
    loaded = AutoModel.from_pretrained("local/bert", revision=revision).state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], value) for name, value in expected.items()), revision
"""


def test_models_are_pushed_and_loaded_at_a_revision(hub, run_with_hub):
    run_with_hub(MODELS)
    assert {"config.json", "model.safetensors"} < hub.files("model", "local/bert").keys()
    assert len(hub.commits("model", "local/bert", "side")) == 3  # the same files make no commit


STRANGERS = """
from huggingface_hub import HfApi, HfFileSystem, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

api = HfApi()


def fails(kind, status, function, *arguments, **options):
    try:
        function(*arguments, **options)
    except kind as error:
        assert type(error) is kind and error.response.status_code == status, repr(error)
    else:
        raise SystemExit(f"{kind.__name__} did not come")


upload = {"path_or_fileobj": b"x", "path_in_repo": "x.txt", "repo_type": "dataset"}
hf_hub_download("local/public", "a.txt", repo_type="dataset")
fails(HfHubHTTPError, 401, api.create_repo, "local/new")
fails(RepositoryNotFoundError, 401, api.upload_file, repo_id="local/public", **upload)
fails(RepositoryNotFoundError, 401, api.create_tag, "local/public", tag="v1", repo_type="dataset")
fails(RepositoryNotFoundError, 401, api.create_branch, "local/public", branch="b", repo_type="dataset")
fails(RepositoryNotFoundError, 401, api.dataset_info, "local/private")
fails(RepositoryNotFoundError, 401, hf_hub_download, "local/private", "a.txt", repo_type="dataset")
assert not HfFileSystem().exists("datasets/local/private/a.txt")
wrong = HfApi(token="hf_wrong")
fails(HfHubHTTPError, 401, wrong.whoami)
fails(HfHubHTTPError, 401, wrong.dataset_info, "local/public")
assert HfApi(token="hf_local").dataset_info("local/private").private
"""


def test_strangers_read_what_is_public_and_write_nothing(hub, run_with_hub):
    hub.commit("dataset", "local/public", {"a.txt": b"a"})
    ask(hub, "POST", "/api/repos/create", {"name": "private", "type": "dataset", "visibility": "private"})
    hub.commit("dataset", "local/private", {"a.txt": b"a"})
    run_with_hub(STRANGERS, token=None)
    assert hub.files("dataset", "local/public").keys() == {".gitattributes", "a.txt"}


FAULTS = """
import time
from pathlib import Path
import httpx2
from huggingface_hub import HfApi, HfFileSystem, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError

api = HfApi()
repo = {"repo_id": "local/data", "repo_type": "dataset"}


def upload(path, **options):
    return api.upload_file(path_or_fileobj=path.encode(), path_in_repo=path, **repo, **options)


assert len(list(api.list_repo_tree(**repo))) == 5, "503 once"
for path, size in [("cut.bin", 3 * 2**20), ("drop.bin", 3000), ("slow.bin", 3000)]:
    start = time.monotonic()
    assert Path(hf_hub_download(filename=path, **repo)).stat().st_size == size
    assert path != "slow.bin" or time.monotonic() - start > 1.5
with HfFileSystem().open("datasets/local/data/ranges.bin", block_size=1000) as file:
    file.seek(5000)
    assert file.read(10) == b"x" * 10
try:
    upload("mine.txt", parent_commit=api.dataset_info("local/data").sha)
    raise SystemExit("the commit of someone else went unnoticed")
except HfHubHTTPError as error:
    assert error.response.status_code == 412
for path in ("lost.txt", "dropped.txt"):
    try:
        upload(path)
        raise SystemExit(f"there was an answer about {path}")
    except httpx2.RemoteProtocolError:
        pass
"""


def test_faults_strike_the_clients_once(hub, run_with_hub):
    # All different, because the clients keep one copy of each content.
    large = {"cut.bin": JUNK, "drop.bin": JUNK[:3000], "slow.bin": JUNK[-3000:], "ranges.bin": b"x" * 10000}
    hub.commit("dataset", "local/data", large)
    hub.fail("503", path="/tree/")
    for fault in ("cut", "drop", "slow"):
        hub.fail(fault, method="GET", path=f"/{fault}.bin")
    hub.fail("cut", path="/ranges.bin")
    hub.fail("stale")
    hub.fail("lost_answer", path="/commit/")
    hub.fail("drop", path="/commit/")
    run_with_hub(FAULTS)
    files = hub.files("dataset", "local/data")
    assert {"lost.txt", "someone_else-1.txt"} < files.keys()
    assert not {"mine.txt", "dropped.txt"} & files.keys()
    log = [(request.status, request.bytes_sent) for request in hub.requests if "cut.bin" in request.path]
    assert log == [(200, 0), (200, len(JUNK) // 2), (200, len(JUNK))]
    assert [request.status for request in hub.requests if "drop.bin" in request.path] == [200, 0, 200]
    assert [request.status for request in hub.requests if "/tree/" in request.path][:2] == [503, 200]


def ask(hub, method, path, body=None, headers=TOKEN, connection=None):
    """Status, headers and body of one answer."""
    connection = connection or http.client.HTTPConnection(hub.url.removeprefix("http://"), timeout=30)
    content = json.dumps(body).encode() if isinstance(body, (dict, list)) else body
    connection.request(method, path, content, dict(headers))
    response = connection.getresponse()
    return response.status, response.headers, response.read()


@pytest.mark.parametrize(
    ("wanted", "start", "stop"),
    [("0-0", 0, 1), ("1000-1999", 1000, 2000), ("1000-", 1000, None), ("-10", -10, None), ("9-99999999", 9, None)],
)
def test_byte_ranges(hub, wanted, start, stop):
    hub.commit("model", "local/model", {"a.bin": JUNK})
    headers = {"Range": f"bytes={wanted}"}
    status, headers, body = ask(hub, "GET", "/local/model/resolve/main/a.bin", headers=headers)
    assert (status, body) == (206, JUNK[start:stop])
    first = start % len(JUNK)
    assert headers["Content-Range"] == f"bytes {first}-{first + len(body) - 1}/{len(JUNK)}"


def test_range_past_the_end_is_refused(hub):
    hub.commit("model", "local/model", {"a.bin": b"12345"})
    status, headers, _ = ask(hub, "GET", "/local/model/resolve/main/a.bin", headers={"Range": "bytes=5-"})
    assert (status, headers["Content-Range"]) == (416, "bytes */5")


def test_answers_name_contents_as_git_and_lfs_do(hub):
    oid = hub.commit("model", "local/model", {"a.bin": JUNK, "a.txt": b"hello\n"})
    _, headers, body = ask(hub, "HEAD", "/local/model/resolve/main/a.bin")
    digest = hashlib.sha256(JUNK).hexdigest()
    assert headers["ETag"] == headers["X-Linked-Etag"] == f'"{digest}"'
    assert headers["X-Linked-Size"] == headers["Content-Length"] == str(len(JUNK))
    assert (headers["X-Repo-Commit"], headers["Accept-Ranges"], body) == (oid, "bytes", b"")
    _, headers, _ = ask(hub, "HEAD", "/local/model/resolve/main/a.txt")
    assert headers["ETag"] == '"ce013625030ba8dba906f756967f9e9ca394464a"'  # as `git hash-object` says
    assert "X-Linked-Etag" not in headers


def test_absent_file_is_known_to_be_absent_from_a_commit(hub):
    oid = hub.commit("model", "local/model", {"a.txt": b"a"})
    status, headers, _ = ask(hub, "GET", "/local/model/resolve/main/b.txt")
    assert (status, headers["X-Error-Code"], headers["X-Repo-Commit"]) == (404, "EntryNotFound", oid)


@pytest.mark.parametrize(
    ("path", "content", "mode"),
    [
        ("a.parquet", b"text", "lfs"),
        ("a.txt", b"zeros \0", "lfs"),
        ("a.txt", b"latin \xe9", "lfs"),
        ("a.txt", b"x" * (10 * 2**20 + 1), "lfs"),
        ("a.txt", "žluťoučký".encode(), "regular"),
        ("a.txt", b"x" + "ž".encode() * 1000, "regular"),  # the sample ends within a character
        ("a.txt", b"", "regular"),
    ],
)
def test_large_and_binary_files_go_to_lfs(hub, path, content, mode):
    hub.commit("model", "local/model", {path: content})
    wanted = {"path": path, "size": len(content), "sample": base64.b64encode(content[:512]).decode()}
    _, _, body = ask(hub, "POST", "/api/models/local/model/preupload/main", {"files": [wanted]})
    assert json.loads(body)["files"][0]["uploadMode"] == mode
    _, headers, _ = ask(hub, "HEAD", f"/local/model/resolve/main/{path}")
    assert ("X-Linked-Etag" in headers) == (mode == "lfs")


def test_upload_of_another_content_is_refused(hub):
    digest = hashlib.sha256(b"right").hexdigest()
    status, _, body = ask(hub, "PUT", f"/lfs/{digest}", b"wrong", headers={})
    assert status == 400
    assert digest in json.loads(body)["error"]
    assert ask(hub, "POST", f"/lfs/{digest}/verify", {"size": 5})[0] == 404
    assert ask(hub, "PUT", f"/lfs/{digest}", b"right", headers={})[0] == 200
    assert ask(hub, "POST", f"/lfs/{digest}/verify", {"size": 5})[0] == 200
    assert ask(hub, "POST", f"/lfs/{digest}/verify", {"size": 6})[0] == 400


def test_upload_in_chunks_of_unknown_number(hub):
    pieces = [JUNK[:10], JUNK[10:]]
    connection = http.client.HTTPConnection(hub.url.removeprefix("http://"), timeout=30)
    assert ask(hub, "PUT", f"/lfs/{hashlib.sha256(JUNK).hexdigest()}", iter(pieces), {}, connection)[0] == 200
    assert ask(hub, "GET", "/api/whoami-v2", connection=connection)[0] == 200
    assert [request.bytes_received for request in hub.requests] == [len(JUNK), 0]


def test_commit_of_content_that_was_not_uploaded_is_refused(hub):
    before = hub.commit("model", "local/model", {"a.txt": b"a"})
    pointer = {"path": "a.bin", "algo": "sha256", "oid": "0" * 64, "size": 5}
    lines = [{"key": "header", "value": {"summary": "title"}}, {"key": "lfsFile", "value": pointer}]
    body = "\n".join(map(json.dumps, lines)).encode()
    status, _, body = ask(hub, "POST", "/api/models/local/model/commit/main", body)
    assert (status, hub.commits("model", "local/model")[0]) == (400, before)
    assert "a.bin" in json.loads(body)["error"]


def test_unknown_endpoint_says_so(hub):
    status, headers, body = ask(hub, "GET", "/api/models/local/model/discussions?p=1")
    assert status == 404
    assert "/api/models/local/model/discussions" in json.loads(body)["error"]
    assert "X-Error-Code" not in headers
    assert [(request.path, request.status) for request in hub.requests] == [
        ("/api/models/local/model/discussions?p=1", 404)
    ]


@pytest.mark.parametrize("fault", ["401", "403", "404", "412", "429", "500", "503"])
def test_error_faults_are_answered_as_errors_and_change_nothing(hub, fault):
    before = hub.commit("model", "local/model", {"a.txt": b"a"})
    hub.fail(fault, times=2, method="POST", path="/commit/")
    path = "/api/models/local/model/commit/main"
    body = json.dumps({"key": "header", "value": {"summary": "title"}}).encode()
    for _ in range(2):
        status, headers, answer = ask(hub, "POST", path, body)
        assert status == int(fault)
        assert headers["X-Error-Message"] == json.loads(answer)["error"]
    assert hub.commits("model", "local/model")[0] == before
    status, _, answer = ask(hub, "POST", path, body)
    assert (status, json.loads(answer)["commitOid"]) == (200, hub.commits("model", "local/model")[0])
    assert [request.bytes_received for request in hub.requests] == [len(body)] * 3


def test_unknown_fault_is_refused(hub):
    with pytest.raises(ValueError, match=r"lost_answer.*'502'"):
        hub.fail("502")


def test_connections_stay_open_and_distance_can_be_imitated(hub):
    connection = http.client.HTTPConnection(hub.url.removeprefix("http://"), timeout=30)
    hub.fail("503", path="/verify")
    # An answer that comes before the body was read must not leave that body in the way.
    assert ask(hub, "POST", "/lfs/" + "0" * 64 + "/verify", b"x" * 10**6, connection=connection)[0] == 503
    socket = connection.sock
    hub.latency = 0.3
    start = time.monotonic()
    assert ask(hub, "GET", "/api/whoami-v2", connection=connection)[0] == 200
    assert time.monotonic() - start >= 0.3
    assert connection.sock is socket


def test_concurrent_commits_are_all_kept(hub):
    hub.commit("model", "local/model", {})

    def commit(index):
        lines = [
            {"key": "header", "value": {"summary": "title"}},
            {"key": "file", "value": {"path": f"{index}.txt", "content": "eA==", "encoding": "base64"}},
        ]
        body = "\n".join(map(json.dumps, lines)).encode()
        return ask(hub, "POST", "/api/models/local/model/commit/main", body)[0]

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(commit, range(40))) == {200}
    assert hub.files("model", "local/model").keys() == {".gitattributes", *(f"{index}.txt" for index in range(40))}
    assert len(hub.commits("model", "local/model")) == 42


def test_repositories_survive_a_restart(tmp_path):
    with LocalHub(tmp_path / "hub") as hub:
        oid = hub.commit("dataset", "local/data", {"a.bin": JUNK})
        ask(hub, "POST", "/api/datasets/local/data/tag/main", {"tag": "v1"})
        hub.commit("dataset", "local/data", {"a.bin": None})
        commits, url = hub.commits("dataset", "local/data"), hub.url
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
        ask(hub, "GET", "/api/whoami-v2", connection=connection)
        hub.stop()
        with pytest.raises(OSError, match=r"(?i)connection"):
            ask(hub, "GET", "/api/whoami-v2", connection=connection)
        hub.start()
        assert hub.url == url
        assert ask(hub, "GET", "/api/whoami-v2")[0] == 200
    with LocalHub(tmp_path / "hub") as hub:
        assert hub.commits("dataset", "local/data") == commits
        assert hub.files("dataset", "local/data").keys() == {".gitattributes"}
        _, headers, body = ask(hub, "GET", "/datasets/local/data/resolve/v1/a.bin")
        assert (headers["X-Repo-Commit"], body) == (oid, JUNK)


def test_environment_hides_how_the_tests_use_the_hub(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "a real one")
    monkeypatch.setenv("HF_HUB_CACHE", "somewhere")
    environment = hub.environment(tmp_path, token=None)
    assert (environment["HF_HUB_OFFLINE"], environment["HF_HOME"]) == ("0", str(tmp_path))
    assert not {"HF_TOKEN", "HF_HUB_CACHE", "HF_DATASETS_CACHE"} & environment.keys()
    assert environment["PATH"] == os.environ["PATH"]


def test_command_serves_a_folder_and_prints_how_to_use_it(tmp_path):
    command = [sys.executable, Path(local_hub.__file__), tmp_path, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        watchdog = threading.Timer(30, process.kill)
        watchdog.start()
        try:
            lines = iter(process.stdout.readline, "")
            url = next(line for line in lines if "HF_ENDPOINT" in line).strip().partition("=")[2]
            connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
            assert ask(None, "GET", "/api/whoami-v2", connection=connection)[0] == 200
        finally:
            watchdog.cancel()
            process.terminate()

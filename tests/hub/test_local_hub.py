"""The Hub of the tests: the real clients get from it what they would get from the real one."""

import hashlib
import http.client
import json
import os

import pytest

JUNK = os.urandom(2**20)

CLIENT = """
import os, sys, tempfile
from pathlib import Path
from huggingface_hub import HfApi, HfFileSystem, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError


def fails(kind, status, function, *arguments, **options):
    try:
        function(*arguments, **options)
    except kind as error:
        assert error.response.status_code == status, repr(error)
    else:
        raise SystemExit(f"{kind.__name__} did not come of {function}")


api, repo = HfApi(), {"repo_id": "local/data", "repo_type": "dataset"}
junk, folder = Path(sys.argv[1]), Path(tempfile.mkdtemp())
url = api.create_repo(**repo, private=True)
assert (url.repo_type, url.repo_id, url.endpoint) == ("dataset", "local/data", os.environ["HF_ENDPOINT"])
assert api.create_repo("data", repo_type="dataset", exist_ok=True).repo_id == "local/data"
fails(HfHubHTTPError, 409, api.create_repo, **repo)
assert api.dataset_info("local/data").private

(folder / "deep").mkdir()
(folder / "README.md").write_text("---\\nlicense: mit\\n---\\nCzech: žluťoučký")
(folder / "deep" / "junk.bin").write_bytes(junk.read_bytes())
(folder / "deep" / "empty.txt").touch()
first = api.upload_folder(folder_path=folder, **repo).oid
assert api.upload_folder(folder_path=folder, **repo).oid == first, "nothing to commit"
entries = {entry.path: entry for entry in api.list_repo_tree(recursive=True, **repo)}
assert set(entries) == {".gitattributes", "README.md", "deep", "deep/empty.txt", "deep/junk.bin"}
assert entries["deep/junk.bin"].lfs.size == entries["deep/junk.bin"].size == junk.stat().st_size
assert [entry.path for entry in api.list_repo_tree(path_in_repo="deep", **repo)] == ["deep/empty.txt", "deep/junk.bin"]

api.create_tag(tag="v/1", revision=first[:7], **repo)
api.create_branch(branch="side/way", revision="v/1", **repo)
api.create_branch(branch="side/way", exist_ok=True, **repo)
upload = {"path_in_repo": "README.md", "path_or_fileobj": b"new", **repo}
second = api.upload_file(commit_message="a title", **upload).oid
third = api.upload_file(revision="side/way", **{**upload, "path_or_fileobj": b"side"}).oid
fails(HfHubHTTPError, 412, api.upload_file, parent_commit=first, **{**upload, "path_or_fileobj": b"late"})
commits = api.list_repo_commits(**repo)
assert [commit.commit_id for commit in commits[:2]] == [second, first] and commits[0].title == "a title"


def text(revision, path="README.md"):
    return Path(hf_hub_download(filename=path, revision=revision, **repo)).read_text()


found = {revision: text(revision) for revision in (None, "side/way", "v/1", first, third)}
assert {name: each[-4:] for name, each in found.items()} == dict(zip(found, ("new", "side", "učký", "učký", "side")))
fails(RevisionNotFoundError, 404, text, "nowhere")
fails(EntryNotFoundError, 404, text, None, "missing.txt")
fails(RepositoryNotFoundError, 404, api.model_info, "local/nothing")
api.delete_file("deep/empty.txt", **repo)
snapshot = Path(snapshot_download(**repo))
assert {path.name for path in snapshot.rglob("*") if path.is_file()} == {".gitattributes", "README.md", "junk.bin"}
assert (snapshot / "deep" / "junk.bin").read_bytes() == junk.read_bytes()

files = HfFileSystem(skip_instance_cache=True)
with files.open("datasets/local/data/deep/junk.bin", block_size=2**16) as file:
    file.seek(500_000)
    assert file.read(1000) == junk.read_bytes()[500_000:501_000]
assert files.glob("datasets/local/data/**/*.bin") == ["datasets/local/data/deep/junk.bin"]

stranger, wrong = HfApi(token=False), HfApi(token="hf_wrong")
fails(HfHubHTTPError, 401, stranger.create_repo, "local/new")
fails(RepositoryNotFoundError, 401, stranger.dataset_info, "local/data")
fails(HfHubHTTPError, 401, wrong.dataset_info, "local/public")
stranger.dataset_info("local/public")
fails(RepositoryNotFoundError, 401, stranger.upload_file, **{**upload, "repo_id": "local/public"})
"""


def test_the_clients_get_what_they_would_get_from_the_real_one(hub, ad_hf_with_hub, tmp_path):
    (tmp_path / "junk").write_bytes(JUNK)
    hub.commit("dataset", "local/public", {"a.txt": b"a"})
    ad_hf_with_hub(tmp_path / "junk", script=CLIENT)
    files = hub.files("dataset", "local/data")
    assert files.keys() == {".gitattributes", "README.md", "deep/junk.bin"}
    assert files["deep/junk.bin"] == JUNK
    assert [request.bytes_received for request in hub.requests if request.method == "PUT"] == [len(JUNK)]  # sent once
    assert any((request.status, request.range) == (206, "bytes=500000-566535") for request in hub.requests)
    assert hub.files("dataset", "local/public").keys() == {".gitattributes", "a.txt"}


FAULTS = """
import time
from pathlib import Path
import httpx2
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError

api, repo = HfApi(), {"repo_id": "local/data", "repo_type": "dataset"}
assert len(list(api.list_repo_tree(**repo))) == 4, "503 once"
for path, size in [("cut.bin", 2**20), ("drop.bin", 3000), ("slow.bin", 3000)]:
    start = time.monotonic()
    assert Path(hf_hub_download(filename=path, **repo)).stat().st_size == size
    assert path != "slow.bin" or time.monotonic() - start > 1.5
for path, error in (("mine", HfHubHTTPError), ("lost", httpx2.RemoteProtocolError)):
    head = api.dataset_info("local/data").sha
    try:
        api.upload_file(path_or_fileobj=b"x", path_in_repo=path, parent_commit=head, **repo)
        raise SystemExit(f"there was an answer about {path}")
    except error:
        pass
"""


def test_faults_strike_the_clients_once(hub, ad_hf_with_hub):
    # All new, because the clients keep one copy of each content.
    large = os.urandom(2**20)
    hub.commit("dataset", "local/data", {"cut.bin": large, "drop.bin": large[:3000], "slow.bin": large[-3000:]})
    hub.fail("503", path="/tree/")
    for fault in ("cut", "drop", "slow"):
        hub.fail(fault, method="GET", path=f"/{fault}.bin")
    hub.fail("stale")
    hub.fail("lost_answer", path="/commit/")
    ad_hf_with_hub(script=FAULTS)
    files = hub.files("dataset", "local/data").keys()
    assert {"lost", "someone_else-1.txt"} < files
    assert "mine" not in files
    log = [(request.status, request.bytes_sent) for request in hub.requests if "cut.bin" in request.path]
    assert log == [(200, 0), (200, 2**19), (200, 2**20)]
    with pytest.raises(ValueError, match=r"lost_answer.*'502'"):
        hub.fail("502")


def ask(hub, method, path, headers=None):
    """Status, headers and body of one answer."""
    connection = http.client.HTTPConnection(hub.url.removeprefix("http://"), timeout=30)
    connection.request(method, path, headers=headers or {})
    response = connection.getresponse()
    return response.status, response.headers, response.read()


def test_answers_about_a_file(hub):
    oid = hub.commit("model", "local/model", {"a.bin": JUNK, "a.txt": b"hello\n"})
    path, digest = "/local/model/resolve/main/a.bin", hashlib.sha256(JUNK).hexdigest()
    _, headers, body = ask(hub, "HEAD", path)
    assert headers["ETag"] == headers["X-Linked-Etag"] == f'"{digest}"'
    assert headers["X-Linked-Size"] == headers["Content-Length"] == str(len(JUNK))
    assert (headers["X-Repo-Commit"], headers["Accept-Ranges"], body) == (oid, "bytes", b"")
    _, headers, _ = ask(hub, "HEAD", "/local/model/resolve/main/a.txt")
    assert headers["ETag"] == '"ce013625030ba8dba906f756967f9e9ca394464a"'  # as `git hash-object` says
    assert "X-Linked-Etag" not in headers
    for wanted, start, stop in (("0-0", 0, 1), ("9-19", 9, 20), ("9-", 9, None), ("9-9999999", 9, None)):
        status, headers, body = ask(hub, "GET", path, headers={"Range": f"bytes={wanted}"})
        assert (status, body) == (206, JUNK[start:stop])
        assert headers["Content-Range"] == f"bytes {start}-{start + len(body) - 1}/{len(JUNK)}"
    status, headers, _ = ask(hub, "GET", "/local/model/resolve/main/b.txt")  # known to be absent from this commit
    assert (status, headers["X-Error-Code"], headers["X-Repo-Commit"]) == (404, "EntryNotFound", oid)
    status, headers, body = ask(hub, "GET", "/api/models/local/model/discussions?p=1")
    assert (status, "/api/models/local/model/discussions" in json.loads(body)["error"]) == (404, True)


def test_environment_hides_how_the_tests_use_the_hub(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "a real one")
    monkeypatch.setenv("HF_HUB_CACHE", "somewhere")
    environment = hub.environment(tmp_path, token=None)
    assert (environment["HF_HUB_OFFLINE"], environment["HF_HOME"]) == ("0", str(tmp_path))
    assert not {"HF_TOKEN", "HF_HUB_CACHE", "HF_DATASETS_CACHE"} & environment.keys()
    assert environment["PATH"] == os.environ["PATH"]

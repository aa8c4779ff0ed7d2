"""What a local Hub answers: the endpoints of the Hub's API that huggingface_hub, datasets and transformers call."""

import base64
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import yaml
from local_hub_storage import Commit, File, HubError, Repo, Storage, is_lfs, lfs_pointer

USER, TOKEN = "local", "hf_local"
REPO_API = r"/api/(?P<kind>models|datasets|spaces)/(?P<repo_id>[^/]+/[^/]+)"
REPO_PAGE = r"/((?P<kind>datasets|spaces)/)?(?P<repo_id>[^/]+/[^/]+)"
# What huggingface_hub asks once, before anything else, in each new HF_HOME: which coding agents there are.
CLIENTS_OWN = "/api/agent-harnesses"
CHUNK = 2**20
# What the real Hub says when no token comes with a request that needs one, and when a wrong one comes.
NO_TOKEN = "Invalid username or password."
WRONG_TOKEN = "Invalid credentials in Authorization header"


@dataclass
class Call:
    """A request as the endpoints see it; a large body is read piece by piece from `chunks`."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: Any
    chunks: Iterator[bytes]
    logged_in: bool = False

    def body(self) -> bytes:
        """All of the body."""
        return b"".join(self.chunks)

    def flag(self, name: str) -> bool:
        """Whether a switch of the query is on."""
        return self.query.get(name, ["false"])[0].lower() in ("true", "1")


@dataclass
class Answer:
    """A response: bytes, or a range of a file."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    content: bytes = b""
    file: Path | None = None
    start: int = 0
    length: int = 0

    def chunks(self, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """The body, or the part of it from `start` to `stop`; never more than a chunk in memory."""
        stop = self.length if stop is None else stop
        if self.file is None:
            yield self.content[start:stop]
            return
        with self.file.open("rb") as file:
            file.seek(self.start + start)
            while start < stop:
                chunk = file.read(min(CHUNK, stop - start))
                start += len(chunk)
                yield chunk


def as_json(content: Any, status: int = 200, **headers: str) -> Answer:
    """An answer of JSON."""
    data = json.dumps(content).encode()
    return Answer(status, {"Content-Type": "application/json; charset=utf-8", **headers}, data, length=len(data))


def as_error(error: HubError, path: str) -> Answer:
    """An error in the form that the clients parse: JSON for people, headers for programs."""
    headers = {**error.headers, "X-Error-Message": error.message}
    code = error.code
    of_repo = re.match(REPO_API, path) or re.match(f"{REPO_PAGE}/resolve/", path)
    if error.status == 401 and error.message != WRONG_TOKEN and of_repo:
        # Of https addresses, huggingface_hub itself takes any such 401 for a repository that is not there or not
        # to be seen. Ours is http, so the code has to say it, for the same exception to come out.
        code = "RepoNotFound"
    if code is not None:
        headers["X-Error-Code"] = code
    answer = as_json({"error": error.message}, error.status)
    answer.headers.update(headers)
    return answer


Endpoint = Callable[..., Answer]
ROUTES: list[tuple[str, re.Pattern[str], bool, Endpoint]] = []


def route(methods: str, pattern: str, login: bool = False) -> Callable[[Endpoint], Endpoint]:
    """Register an endpoint, and whether it needs a token. Groups of the pattern become its arguments."""

    def register(endpoint: Endpoint) -> Endpoint:
        ROUTES.append((methods, re.compile(pattern), login, endpoint))
        return endpoint

    return register


class Api:
    """The endpoints over a storage."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.url = ""

    def answer(self, call: Call) -> Answer:
        """Find the endpoint of a request and let it answer."""
        authorization = call.headers.get("Authorization")
        if authorization not in (None, f"Bearer {TOKEN}"):
            raise HubError(401, WRONG_TOKEN)  # even where none is needed
        call.logged_in = authorization is not None
        for methods, pattern, login, endpoint in ROUTES:
            match = pattern.fullmatch(call.path)
            if match is None or call.method not in methods.split():
                continue
            arguments: dict[str, Any] = {name: unquote(value or "") for name, value in match.groupdict().items()}
            if login and not call.logged_in:
                raise HubError(401, NO_TOKEN)
            if "repo_id" in arguments:
                repo_type = (arguments.pop("kind") or "models").removesuffix("s")
                arguments["repo"] = self._find(call, repo_type, arguments.pop("repo_id"))
            return endpoint(self, call, **arguments)
        raise HubError(404, f"The local Hub has no endpoint {call.method} {call.path}")

    def _find(self, call: Call, repo_type: str, repo_id: str) -> Repo:
        repo = self.storage.repos.get((repo_type, repo_id))
        if repo is None or (repo.private and not call.logged_in):
            # Like the Hub, do not tell strangers which private repositories there are.
            status, message = (404, "Repository not found") if call.logged_in else (401, NO_TOKEN)
            raise HubError(status, message, "RepoNotFound")
        return repo

    def _repo_url(self, repo_type: str, repo_id: str) -> str:
        return f"{self.url}/{'' if repo_type == 'model' else repo_type + 's/'}{repo_id}"

    @route("GET", CLIENTS_OWN)
    def agent_harnesses(self, call: Call) -> Answer:
        return as_json({"standardEnvVars": [], "harnesses": {}})

    @route("POST", "/api/validate-yaml")
    def validate_yaml(self, call: Call) -> Answer:
        return as_json({"errors": [], "warnings": []})

    @route("POST", "/api/repos/create", login=True)
    def create_repo(self, call: Call) -> Answer:
        wanted = json.loads(call.body())
        repo_type = wanted.get("type") or "model"
        repo_id = f"{wanted.get('organization') or USER}/{wanted['name']}"
        answer = {"url": self._repo_url(repo_type, repo_id), "name": repo_id, "id": repo_id}
        if (repo_type, repo_id) in self.storage.repos:
            return as_json({**answer, "error": f"You already created this {repo_type} repo"}, 409)
        self.storage.create(repo_type, repo_id, wanted.get("visibility") == "private" or bool(wanted.get("private")))
        return as_json(answer)

    @route("GET", REPO_API + "(/revision/(?P<revision>[^/]+))?")
    def info(self, call: Call, repo: Repo, revision: str) -> Answer:
        commit = repo.find(revision or "main")
        siblings = [{"rfilename": path} for path in commit.files]
        common = {"private": repo.private, "gated": False, "disabled": False, "downloads": 0, "likes": 0, "tags": []}
        author = repo.repo_id.split("/")[0]
        names = {"_id": repo.repo_id, "id": repo.repo_id, "author": author, "sha": commit.oid}
        dates = {"createdAt": repo.created, "lastModified": commit.date}
        return as_json({**names, **dates, **common, "siblings": siblings, "cardData": self._card_data(commit)})

    def _card_data(self, commit: Commit) -> dict[str, Any] | None:
        """What the YAML of a README.md says, if there is any."""
        file = commit.files.get("README.md")
        text = "" if file is None else (self.storage.objects / file.sha256).read_text(encoding="utf-8")
        match = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
        return None if match is None else yaml.safe_load(match[1])

    @route("GET", REPO_API + "/tree/(?P<revision>[^/]+)(/(?P<path>.*))?")
    def tree(self, call: Call, repo: Repo, revision: str, path: str) -> Answer:
        commit = repo.find(revision)
        prefix = f"{path}/" if path else ""
        below = [name.removeprefix(prefix) for name in commit.files if name.startswith(prefix)]
        if path and not below:
            raise HubError(404, f"{path} does not exist on {revision!r}", "EntryNotFound", X_Repo_Commit=commit.oid)
        parts = [name.split("/") for name in below]
        found = {"/".join(names[:depth]) for names in parts for depth in range(1, len(names) + 1)}
        if not call.flag("recursive"):
            found = {name for name in found if "/" not in name}
        return as_json([self._entry(commit, prefix + name) for name in sorted(found)])

    def _entry(self, commit: Commit, path: str) -> dict[str, Any]:
        """A file or folder as the tree lists it."""
        file = commit.files.get(path)
        if file is None:
            return {"type": "directory", "path": path, "oid": commit.oid, "size": 0}
        entry: dict[str, Any] = {"type": "file", "path": path, "oid": file.oid, "size": file.size}
        if file.lfs:
            pointer_size = len(lfs_pointer(file.sha256, file.size))
            entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": pointer_size}
        return entry

    @route("GET", REPO_API + "/commits/(?P<revision>[^/]+)")
    def commits(self, call: Call, repo: Repo, revision: str) -> Answer:
        history = repo.history(repo.find(revision))
        return as_json(
            [
                {
                    "id": commit.oid,
                    "title": commit.title,
                    "message": commit.message,
                    "date": commit.date,
                    "authors": [{"user": USER if commit.parent else "system"}],
                }
                for commit in history
            ]
        )

    @route("POST", REPO_API + "/branch/(?P<branch>[^/]+)", login=True)
    def create_branch(self, call: Call, repo: Repo, branch: str) -> Answer:
        if branch in repo.branches:
            raise HubError(409, f"Reference already exists: refs/heads/{branch}")
        repo.branches[branch] = repo.find(json.loads(call.body() or b"{}").get("startingPoint") or "main").oid
        return as_json({})

    @route("DELETE", REPO_API + "/branch/(?P<branch>[^/]+)", login=True)
    def delete_branch(self, call: Call, repo: Repo, branch: str) -> Answer:
        if branch == "main" or branch not in repo.branches:
            raise HubError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        del repo.branches[branch]
        return as_json({})

    @route("POST", REPO_API + "/tag/(?P<revision>[^/]+)", login=True)
    def create_tag(self, call: Call, repo: Repo, revision: str) -> Answer:
        repo.tags[json.loads(call.body())["tag"]] = repo.find(revision).oid
        return as_json({})

    @route("POST", REPO_API + "/preupload/(?P<revision>[^/]+)", login=True)
    def preupload(self, call: Call, repo: Repo, revision: str) -> Answer:
        present = repo.find(revision).files
        answers = []
        for wanted in json.loads(call.body())["files"]:
            path = wanted["path"]
            lfs = is_lfs(path, wanted["size"], base64.b64decode(wanted["sample"]))
            answer = {"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
            if path in present:
                # The client leaves a file out when this equals what it computes itself: sha256 or git's sha1.
                answer["oid"] = present[path].etag
            answers.append(answer)
        return as_json({"files": answers})

    @route("POST", REPO_PAGE + r"\.git/info/lfs/objects/batch", login=True)
    def lfs_batch(self, call: Call, repo: Repo) -> Answer:
        answers = []
        for wanted in json.loads(call.body())["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if self.storage.stored_size(wanted["oid"]) != wanted["size"]:
                href = f"{self.url}/lfs/{wanted['oid']}"
                answer["actions"] = {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}
            answers.append(answer)
        return as_json({"transfer": "basic", "objects": answers})

    # No token comes with an upload: the real Hub hands out signed addresses of its storage.
    @route("PUT", "/lfs/(?P<sha256>[0-9a-f]{64})")
    def lfs_upload(self, call: Call, sha256: str) -> Answer:
        self.storage.store(call.chunks, sha256)
        return Answer()

    @route("POST", "/lfs/(?P<sha256>[0-9a-f]{64})/verify", login=True)
    def lfs_verify(self, call: Call, sha256: str) -> Answer:
        size = self.storage.stored_size(sha256)
        if size != json.loads(call.body())["size"]:
            raise HubError(404 if size is None else 400, f"Stored of {sha256}: {size} bytes")
        return as_json({})

    @route("POST", REPO_API + "/commit/(?P<revision>[^/]+)", login=True)
    def commit(self, call: Call, repo: Repo, revision: str) -> Answer:
        if revision not in repo.branches:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        operations = [json.loads(line) for line in call.body().splitlines() if line]
        header = next(operation["value"] for operation in operations if operation["key"] == "header")
        if header.get("parentCommit") not in (None, repo.branches[revision]):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        changes: dict[str, File | None] = {}
        for operation in operations:
            if operation["key"] != "header":
                changes.update(self._changes(repo.find(revision), operation["key"], operation["value"]))
        commit = self.storage.commit(repo, revision, changes, header["summary"], header.get("description", ""))
        url = f"{self._repo_url(repo.repo_type, repo.repo_id)}/commit/{commit.oid}"
        return as_json({"success": True, "commitOid": commit.oid, "commitUrl": url, "hookOutput": ""})

    def _changes(self, head: Commit, key: str, value: dict[str, Any]) -> dict[str, File | None]:
        """What one operation of a commit changes."""
        path = value["path"].rstrip("/")
        if key == "file":
            return {path: self.storage.regular_file(base64.b64decode(value["content"]))}
        if key == "lfsFile":
            size = self.storage.stored_size(value["oid"])
            if size is None or size != value.get("size", size):
                raise HubError(400, f"An LFS pointer pointed to a file that does not exist. Offending file: {path}")
            return {path: self.storage.lfs_file(value["oid"], size)}
        if path not in head.files:
            raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
        return {path: None}

    @route("GET HEAD", REPO_PAGE + "/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
    def resolve(self, call: Call, repo: Repo, revision: str, path: str) -> Answer:
        commit = repo.find(revision)
        if path not in commit.files:
            # With the commit, clients remember that it has no such file.
            raise HubError(404, "Entry not found", "EntryNotFound", X_Repo_Commit=commit.oid)
        file = commit.files[path]
        headers = {"ETag": f'"{file.etag}"', "X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        headers["Content-Type"] = "application/octet-stream" if file.lfs else "text/plain; charset=utf-8"
        if file.lfs:
            headers.update({"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(file.size)})
        stored = self.storage.objects / file.sha256
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", call.headers.get("Range", ""))
        if match is None or call.method == "HEAD":
            return Answer(200, headers, file=stored, length=file.size)
        start, stop = int(match[1]), min(file.size, int(match[2] or file.size) + 1)
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{file.size}"
        return Answer(206, headers, file=stored, start=start, length=stop - start)

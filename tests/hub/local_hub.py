"""A small Hugging Face Hub on this machine, for tests: the real clients talk to it over real HTTP."""

import contextlib
import os
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from local_hub_api import CHUNK, CLIENTS_OWN, REPO_API, TOKEN, Answer, Api, Call, as_error
from local_hub_storage import File, HubError, Storage, is_lfs

STATUS_FAULTS = {"403": "you must use a write token to upload to a repository", "503": "Service Unavailable"}
FAULTS = {*STATUS_FAULTS, "cut", "drop", "lost_answer", "slow", "stale"}
SLOW_SECONDS, SLOW_PIECES = 2.0, 20


@dataclass
class Request:
    """An entry of the log; sizes are those of the bodies, status 0 means that nothing was answered."""

    method: str
    path: str
    range: str | None
    user_agent: str
    status: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0


@dataclass
class _Fault:
    name: str
    times: int
    method: str | None
    path: str | None

    def matches(self, method: str, path: str) -> bool:
        """Whether this fault strikes a request; only an answer with a body can be cut or slow."""
        if not self.times or (self.method or method) != method or (self.name in ("cut", "slow") and method == "HEAD"):
            return False
        if self.name == "stale" and not re.match(f"{REPO_API}/commit/", path):
            return False
        return re.search(self.path or f"^(?!{CLIENTS_OWN})", path) is not None


class LocalHub:
    """A Hugging Face Hub on 127.0.0.1, which keeps its repositories in a folder.

    The user is `local` and the only valid token `hf_local`. As on the real Hub, a new repository has a first
    commit with a `.gitattributes`.
    """

    def __init__(self, folder: Path, port: int = 0) -> None:
        self.latency = 0.0  # seconds before each answer, to imitate a distant server
        self._storage = Storage(Path(folder))
        self._api = Api(self._storage)
        self._port = port
        self._server: _Server | None = None
        self._lock = threading.Lock()
        self._log: list[Request] = []
        self._faults: list[_Fault] = []
        self._strangers = 0

    @property
    def url(self) -> str:
        """Where it is, or was last, served."""
        return self._api.url

    def start(self) -> None:
        """Serve in the background; after a stop, on the same port again."""
        self._server = _Server(("127.0.0.1", self._port), _Handler)
        self._server.hub = self
        self._port = self._server.server_address[1]
        self._api.url = f"http://127.0.0.1:{self._port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self) -> None:
        """Stop serving, and cut off whoever is connected."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server.disconnect_all()
            self._server = None

    def __enter__(self) -> "LocalHub":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def environment(self, home: Path, token: str | None = TOKEN) -> dict[str, str]:
        """Environment of a process whose Hugging Face libraries use this Hub, and caches in `home`."""
        # Nothing of how this process uses the Hub gets through: offline mode, caches, tokens.
        ours = ("HF_", "HUGGING", "TRANSFORMERS_", "DATASETS_")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        environment.update(
            HF_ENDPOINT=self.url,
            HF_HOME=str(home),
            HF_HUB_OFFLINE="0",
            HF_HUB_DISABLE_XET="1",
            HF_HUB_DISABLE_TELEMETRY="1",
            HF_HUB_DISABLE_PROGRESS_BARS="1",
            HF_DATASETS_DISABLE_PROGRESS_BARS="1",
            HF_UPDATE_DOWNLOAD_COUNTS="0",  # or load_dataset reports to the real Hub
            NO_PROXY="127.0.0.1",
        )
        if token is not None:
            environment["HF_TOKEN"] = token
        return environment

    @property
    def requests(self) -> list[Request]:
        """What has been asked so far, in this order."""
        with self._lock:
            return list(self._log)

    def clear_log(self) -> None:
        """Forget what has been asked."""
        with self._lock:
            self._log.clear()

    def files(self, repo_type: str, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """What a repository holds."""
        with self._storage.lock:
            files = self._storage.repos[repo_type, repo_id].find(revision).files
        return {path: (self._storage.objects / file.sha256).read_bytes() for path, file in files.items()}

    def commits(self, repo_type: str, repo_id: str, revision: str = "main") -> list[str]:
        """Hashes of a revision's commits, newest first."""
        with self._storage.lock:
            repo = self._storage.repos[repo_type, repo_id]
            return [commit.oid for commit in repo.history(repo.find(revision))]

    def commit(self, repo_type: str, repo_id: str, files: Mapping[str, bytes | None], revision: str = "main") -> str:
        """Someone else's commit on a branch: None deletes a file, and a missing repository is created."""
        changes: dict[str, File | None] = {}
        for path, content in files.items():
            if content is None:
                changes[path] = None
            elif is_lfs(path, len(content), content[:512]):
                changes[path] = self._storage.lfs_file(*self._storage.store([content]))
            else:
                changes[path] = self._storage.regular_file(content)
        with self._storage.lock:
            repo = self._storage.repos.get((repo_type, repo_id)) or self._storage.create(repo_type, repo_id)
            return self._storage.commit(repo, revision, changes, "Someone else's commit").oid

    def fail(self, fault: str, times: int = 1, method: str | None = None, path: str | None = None) -> None:
        """Let the next `times` requests go wrong that have this method and this regular expression in their path.

        - `"403"`, `"503"`: answer with this error
        - `"cut"`: announce the whole body, send half of it, close the connection
        - `"drop"`: close the connection without an answer, having done nothing
        - `"lost_answer"`: do what is asked, then close the connection without an answer
        - `"slow"`: send the body in pieces, over about 2 seconds
        - `"stale"`: for commits; just before, someone else adds a file `someone_else-<n>.txt` to the branch
        """
        if fault not in FAULTS:
            raise ValueError(f"fault must be one of {', '.join(sorted(FAULTS))}, not {fault!r}")
        with self._lock:
            self._faults.append(_Fault(fault, times, method, path))

    def _take_fault(self, method: str, path: str) -> str | None:
        with self._lock:
            for fault in self._faults:
                if fault.matches(method, path):
                    fault.times -= 1
                    return fault.name
        return None

    def _answer(self, call: Call, fault: str | None) -> Answer:
        try:
            if fault in STATUS_FAULTS:
                raise HubError(int(fault), STATUS_FAULTS[fault])
            if call.method == "PUT":  # uploads do not wait for each other: contents need no lock
                return self._api.answer(call)
            body = call.body()  # a slow sender keeps nobody else waiting
            call.chunks = iter([body])
            with self._storage.lock:
                if fault == "stale":
                    self._commit_as_stranger(call.path)
                return self._api.answer(call)
        except HubError as error:
            return as_error(error, call.path)
        except Exception:
            # A mistake of this Hub should be seen where the client fails.
            return as_error(HubError(500, traceback.format_exc().replace("\n", " | ")), call.path)

    def _commit_as_stranger(self, path: str) -> None:
        match = re.match(f"{REPO_API}/commit/(?P<revision>[^/]+)", path)
        assert match is not None
        repo_type = match["kind"].removesuffix("s")
        if (repo_type, match["repo_id"]) in self._storage.repos:
            self._strangers += 1
            file = {f"someone_else-{self._strangers}.txt": b"someone else's"}
            self.commit(repo_type, match["repo_id"], file, unquote(match["revision"]))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # the default, 5, makes many clients at once wait for a second connection attempt
    hub: LocalHub

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._connections: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def disconnect_all(self) -> None:
        """End the connections that clients keep open."""
        for connection in list(self._connections):
            with contextlib.suppress(OSError):  # it may just have ended by itself
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report mistakes of this Hub, but not clients that go away."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections are kept open
    disable_nagle_algorithm = True  # or each answer's body waits 40 ms for the acknowledgement of its head
    server: _Server

    def serve(self) -> None:
        """Answer one request."""
        hub = self.server.hub
        fault = hub._take_fault(self.command, self.path)
        request = Request(self.command, self.path, self.headers.get("Range"), self.headers.get("User-Agent", ""))
        with hub._lock:
            hub._log.append(request)
        chunks = self._body(request)
        answer = Answer()
        if fault != "drop":
            url = urlsplit(self.path)
            answer = hub._answer(Call(self.command, url.path, parse_qs(url.query), self.headers, chunks), fault)
        for _ in chunks:
            pass  # what nobody wanted to read is still in the way of the next request
        time.sleep(hub.latency)
        if fault in ("drop", "lost_answer"):
            self.close_connection = True
            return
        try:
            self._send(answer, request, fault)
        except ConnectionError:
            self.close_connection = True  # the client went away

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Nothing on stderr: there is a log."""

    def _body(self, request: Request) -> Iterator[bytes]:
        """The request's body piece by piece."""
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                request.bytes_received += size
                yield self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass  # trailers
            return
        left = int(self.headers.get("Content-Length") or 0)
        while left > 0:
            chunk = self.rfile.read(min(CHUNK, left))
            if not chunk:
                raise ConnectionError("the client went away")
            left -= len(chunk)
            request.bytes_received += len(chunk)
            yield chunk

    def _send(self, answer: Answer, request: Request, fault: str | None) -> None:
        request.status = answer.status
        self.send_response(answer.status)
        for name, value in {**answer.headers, "Content-Length": str(answer.length)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        pieces = SLOW_PIECES if fault == "slow" else 1
        length = answer.length // 2 if fault == "cut" else answer.length
        for piece in range(pieces):
            for chunk in answer.chunks(length * piece // pieces, length * (piece + 1) // pieces):
                request.bytes_sent += len(chunk)
                self.wfile.write(chunk)
            if fault == "slow":
                time.sleep(SLOW_SECONDS / SLOW_PIECES)
        if fault == "cut":
            self.close_connection = True

"""A small server on this machine that plays the Hugging Face hub, for the real client to talk to.

It serves folders, and takes what is published: repositories, branches, pull requests, commits of small files and of
large ones by Git LFS. `break_off`, `lose_answer` and `answer_with` make it fail where a test says so.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = "a" * 40  # of everything that is served from a folder
BREAK_OFF, LOSE_ANSWER = 0, 1  # faults other than a status
LARGE = (".safetensors", ".png", ".bin")  # stored by Git LFS

Answer = tuple[int, bytes, dict[str, str]]


def as_json(code: int, content: Any, **headers: str) -> Answer:
    return code, json.dumps(content).encode(), {"Content-Type": "application/json", **headers}


@dataclass
class Repository:
    """What was published: the files of each commit, and where the branches are."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"0" * 40: {}})
    branches: dict[str, str] = field(default_factory=lambda: {"main": "0" * 40})
    titles: list[str] = field(default_factory=list)

    def files(self, revision: str = "main") -> dict[str, bytes] | None:
        return self.commits.get(self.branches.get(revision, revision))

    def commit(self, branch: str, files: dict[str, bytes], title: str) -> str:
        sha = hashlib.sha1(repr((len(self.commits), branch, sorted(files))).encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        self.titles.append(title)
        return sha


class Hub:
    """Serves the folder of each repository in `folders` and what is published; `asked` lists files asked for.

    Attributes:
        folders: repositories that are read only.
        repositories: published ones.
        gated: names of repositories whose files are refused.
        token: what a writer must show; None lets everyone write.
        requests: method and path of every request.
        faults: what to do to the next requests whose method and path contain a text.
    """

    def __init__(self) -> None:
        self.folders: dict[str, Path] = {}
        self.repositories: dict[str, Repository] = {}
        self.gated: set[str] = set()
        self.token: str | None = None
        self.asked: list[str] = []
        self.requests: list[str] = []
        self.large: dict[str, bytes] = {}
        self.faults: list[tuple[str, int]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: Any) -> None:
                pass

            def handle_any(self) -> None:
                url = urlsplit(self.path)
                asked = f"{self.command} {unquote(url.path)}"
                outer.requests.append(asked)
                length = int(self.headers.get("Content-Length") or 0)
                fault = outer.next_fault(asked)
                if fault is not None and fault[1] == BREAK_OFF:  # the line goes dead with half of the body read
                    self.rfile.read(length // 2)
                    self.connection.close()
                    return
                body = self.rfile.read(length)
                if fault is not None and fault[1] != LOSE_ANSWER:
                    self.reply(*as_json(fault[1], {"error": "a fault that the test asked for"}))
                    return
                answer = outer.answer(self.command, unquote(url.path), body, self.headers)
                if fault is not None:  # all is done, and the answer gets lost
                    self.connection.close()
                    return
                self.reply(*answer)

            do_HEAD = do_GET = do_POST = do_PUT = handle_any

            def reply(self, code: int, body: bytes, headers: dict[str, str]) -> None:
                self.send_response(code)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.handle_error = lambda request, address: None  # lines that go dead are what a test wants
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    # Faults

    def break_off(self, asked: str, times: int = 1) -> None:
        """Lets the next requests that contain `asked` go dead in the middle."""
        self.faults += [(asked, BREAK_OFF)] * times

    def lose_answer(self, asked: str) -> None:
        """Does what the next request that contains `asked` asks, and says nothing."""
        self.faults.append((asked, LOSE_ANSWER))

    def answer_with(self, asked: str, code: int, times: int = 1) -> None:
        """Answers the next requests that contain `asked` with `code`."""
        self.faults += [(asked, code)] * times

    def next_fault(self, asked: str) -> tuple[str, int] | None:
        fault = next((fault for fault in self.faults if fault[0] in asked), None)
        if fault is not None:
            self.faults.remove(fault)
        return fault

    # Answers, as the hub's interface has them

    def answer(self, method: str, path: str, body: bytes, headers: Any) -> Answer:
        if method in ("POST", "PUT") and self.token is not None and not path.startswith("/lfs/"):
            shown = headers.get("Authorization")
            if shown != f"Bearer {self.token}":
                code = 401 if shown is None else 403
                return as_json(code, {"error": "Invalid credentials"}, **{"X-Error-Message": "Invalid credentials"})
        if method == "POST" and path == "/api/repos/create":
            return self.create(json.loads(body))
        if method == "POST" and path == "/api/validate-yaml":
            content = json.loads(body)["content"]
            good = content.startswith("---\n") and "\n---\n" in content
            return as_json(200, {}) if good else as_json(400, {"errors": [{"message": "no YAML header"}]})
        if method == "PUT" and path.startswith("/lfs/"):
            oid = path.removeprefix("/lfs/")
            if hashlib.sha256(body).hexdigest() != oid:
                return as_json(400, {"error": "the content is not what was announced"})
            self.large[oid] = body
            return as_json(200, {})
        if method == "POST" and path.endswith(".git/info/lfs/objects/batch"):
            return self.batch(json.loads(body))
        path = path.removeprefix("/api/models") if path.startswith("/api/models/") else path
        repository = "/".join(path.split("/")[1:3])
        rest = path.removeprefix(f"/{repository}").removeprefix("/")
        if method == "POST":
            return self.write(repository, rest, body)
        return self.read(repository, rest)

    def create(self, asked: dict[str, Any]) -> Answer:
        name = f"{asked.get('organization') or 'someone'}/{asked['name']}"
        if name in self.repositories:
            return as_json(409, {"error": "You already created this model repo", "url": f"{self.url}/{name}"})
        self.repositories[name] = Repository(private=asked.get("visibility") == "private")
        return as_json(200, {"url": f"{self.url}/{name}", "name": name})

    def batch(self, asked: dict[str, Any]) -> Answer:
        objects = []
        for entry in asked["objects"]:
            known = {"oid": entry["oid"], "size": entry["size"]}
            if entry["oid"] not in self.large:
                known["actions"] = {"upload": {"href": f"{self.url}/lfs/{entry['oid']}"}}
            objects.append(known)
        return as_json(200, {"transfer": "basic", "objects": objects})

    def write(self, name: str, rest: str, body: bytes) -> Answer:
        repository = self.repositories.get(name)
        if repository is None:
            return as_json(404, {}, **{"X-Error-Code": "RepoNotFound"})
        what, _, revision = rest.partition("/")
        if what == "branch":
            if revision in repository.branches:
                return as_json(409, {"error": "Reference already exists"})
            repository.branches[revision] = repository.branches["main"]
            return as_json(200, {})
        if what == "discussions":
            number = 1 + sum(branch.startswith("refs/pr/") for branch in repository.branches)
            repository.branches[f"refs/pr/{number}"] = repository.branches["main"]
            return as_json(200, {"num": number})
        files = repository.files(revision)
        if files is None:
            return as_json(404, {}, **{"X-Error-Code": "RevisionNotFound"})
        if what == "preupload":
            asked = json.loads(body)["files"]
            return as_json(200, {"files": [self.upload_mode(file["path"], files) for file in asked]})
        assert what == "commit", rest
        return self.commit(name, repository, revision, body)

    def upload_mode(self, path: str, files: dict[str, bytes]) -> dict[str, Any]:
        mode = "lfs" if path.endswith(LARGE) else "regular"
        return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid_of(path, files.get(path))}

    def commit(self, name: str, repository: Repository, revision: str, body: bytes) -> Answer:
        header, *operations = [json.loads(line) for line in body.splitlines()]
        files = dict(repository.files(revision) or {})
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.large[value["oid"]]
            else:
                raise NotImplementedError(operation["key"])
        sha = repository.commit(revision, files, header["value"]["summary"])
        url = f"{self.url}/{name}/commit/{sha}"
        return as_json(200, {"success": True, "commitOid": sha, "commitUrl": url, "pullRequestUrl": ""})

    def read(self, name: str, rest: str) -> Answer:
        what, _, place = rest.partition("/")
        if what == "discussions":
            details = {
                "num": int(place), "title": "", "author": {"name": "someone"}, "status": "open", "events": [],
                "createdAt": "2026-01-01T00:00:00.000Z", "repo": {"name": name, "type": "model"}, "isPullRequest": True,
                "filesWithConflicts": [], "changes": {"base": "main"},
            }  # fmt: skip
            return as_json(200, details)
        n_parts = 3 if place.startswith("refs/pr/") else 1
        revision, file = "/".join(place.split("/")[:n_parts]), "/".join(place.split("/")[n_parts:])
        sha, files = self.state(name, revision or "main")
        if sha is None:
            return as_json(404, {}, **{"X-Error-Code": "RepoNotFound"})
        if files is None:
            return as_json(404, {}, **{"X-Error-Code": "RevisionNotFound"})
        if what != "resolve":
            siblings = [{"rfilename": found} for found in sorted(files)]
            return as_json(200, {"id": name, "sha": sha, "siblings": siblings})
        self.asked.append(file)
        if name in self.gated:
            return 403, b"", {"X-Error-Code": "GatedRepo"}
        if file not in files:
            return 404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha}
        content = files[file]
        return 200, content, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": sha}

    def state(self, name: str, revision: str) -> tuple[str | None, dict[str, bytes] | None]:
        """The commit that a revision of a repository stands for, and its files."""
        folder = self.folders.get(name)
        if folder is not None:
            files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
            return COMMIT, files if revision in ("main", COMMIT) else None
        repository = self.repositories.get(name)
        if repository is None:
            return None, None
        return repository.branches.get(revision, revision), repository.files(revision)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def oid_of(path: str, content: bytes | None) -> str | None:
    """How the hub names the content of a file: by git's hash, or by Git LFS's."""
    if content is None:
        return None
    if path.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def environment(hub: Hub, cache: Path) -> dict[str, str]:
    """What lets the client of another process talk to `hub`."""
    return {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(cache),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        **({} if hub.token is None else {"HF_TOKEN": hub.token}),
    }


@contextmanager
def running_hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that this process's client can reach, and an empty cache."""
    hub = Hub()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    try:
        yield hub
    finally:
        hub.close()

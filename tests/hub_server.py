"""A Hub on this machine: its API, its resolve redirects and its storage, which can be told to misbehave.

It speaks to the real client what huggingface.co speaks to it: the revision and tree API, ``resolve`` with
``X-Repo-Commit``, ``X-Linked-Etag`` and ``X-Linked-Size``, redirects to signed URLs of another host (here: another
port), ranges, errors with ``X-Error-Code``, and the upload of a commit. Every byte of a body is counted.

As a program it serves a folder until it kills itself at the n-th request: ``python tests/hub_server.py FOLDER N``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import unquote, urlsplit

__all__ = ["COMMIT", "Hub", "hub", "repository"]

COMMIT = "c0ffee" + "0" * 34
Refusal: TypeAlias = "tuple[int, dict[str, str]]"
_SMALL = 10_000  # bytes up to which a file is git's own, and not in LFS
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_API = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)(/(?P<what>revision|tree|preupload|commit)/(?P<revision>[^/?]+))?")
_RESOLVE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
_LFS = re.compile(r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch")


@dataclass
class Hub:
    """What it holds, how it misbehaves, and what it has sent.

    Attributes:
        repos: Repository -> file -> content.
        commit: The commit of every repository.
        gated: Repositories that need the token, to list them, too.
        terms: Repositories whose files need a token with access; everybody may list them, as at huggingface.co.
        disabled: Repositories that nobody may read.
        renamed: Old name of a repository -> its name now, to which requests are redirected.
        token: The token that opens them.
        latency: Seconds before each answer.
        busy: Statuses and headers with which the next requests to the storage are refused; None lets one pass.
        api_busy: The same for the API.
        cuts: How many of the next bodies are cut off half-way.
        pause: Seconds in the middle of each body.
        tags: Entity tags that the storage gives, one after the other; then that of the content.
        linked_tag: The entity tag that the Hub gives in place of the content's.
        lie: How the storage lies: "whole", "longer", "shorter", "range", "total", "early" or "".
        read_only: Path, less its last part, of the uploads that the token may not make.
        last: Which request is the last: it kills the process; 0 for none.
        signatures: How many requests a signed URL is good for.
        requests: Methods and paths that were asked for.
        sent: Bytes of tensor files that the storage has sent.
    """

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    commit: str = COMMIT
    gated: frozenset[str] = frozenset()
    terms: frozenset[str] = frozenset()
    disabled: frozenset[str] = frozenset()
    renamed: dict[str, str] = field(default_factory=dict)
    token: str = "hf_right"
    latency: float = 0.0
    busy: list[Refusal | None] = field(default_factory=list)
    api_busy: list[Refusal | None] = field(default_factory=list)
    cuts: int = 0
    pause: float = 0.0
    lie: str = ""
    tags: list[str] = field(default_factory=list)
    linked_tag: str = ""
    read_only: str = ""
    last: int = 0
    signatures: int = 1 << 30
    requests: list[str] = field(default_factory=list)
    sent: int = 0
    url: str = ""
    storage: str = ""
    committed: list[dict[str, Any]] = field(default_factory=list)
    uploaded: dict[str, bytes] = field(default_factory=dict)
    issued: int = 0
    used: dict[str, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def environment(self, home: Path) -> dict[str, str]:
        """What makes the real client use this Hub, with a cache of its own."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        }


def repository(folder: Path) -> dict[str, bytes]:
    """The files of a folder, as a repository has them."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@contextmanager
def hub(**repos: dict[str, bytes]) -> Iterator[Hub]:
    """A running Hub.

    Args:
        repos: Name below the owner ``owner`` -> its files.
    """
    state = Hub(repos={f"owner/{name}": files for name, files in repos.items()})
    with (
        serving(type(_Front.__name__, (_Front,), {"hub": state})) as front,
        serving(type(_Storage.__name__, (_Storage,), {"hub": state})) as storage,
    ):
        state.url, state.storage = front, storage
        yield state


@contextmanager
def serving(handler: Callable[..., BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of a server on this machine, for as long as the ``with`` block lasts."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hub: Hub

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def note(self) -> None:
        """Count the request, and be as slow as told."""
        with self.hub.lock:
            self.hub.requests.append(f"{self.command} {self.path}")
            if len(self.hub.requests) == self.hub.last:
                os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.hub.latency)

    def answer(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        """One whole answer."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer_json(self, value: object) -> None:
        """JSON."""
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def refuse(self, status: int, code: str, message: str = "") -> None:
        """An error as the Hub words it."""
        self.answer(status, b"", {"X-Error-Message": message or code, **({"X-Error-Code": code} if code else {})})

    def body(self) -> bytes:
        """What the client sent."""
        return self.rfile.read(int(self.headers.get("Content-Length", "0")))

    def turned_away(self, queue: list[Refusal | None]) -> bool:
        """Whether the request met with the next refusal of a queue."""
        with self.hub.lock:
            refusal = queue.pop(0) if queue else None
        if refusal is not None:
            self.answer(refusal[0], b"", refusal[1])
        return refusal is not None


class _Front(_Handler):
    """The Hub itself."""

    def do_GET(self) -> None:  # http.server's name
        """The API, and files."""
        self.note()
        path = unquote(urlsplit(self.path).path)
        if self.turned_away(self.hub.api_busy):
            return
        found = _API.fullmatch(path) or _RESOLVE.fullmatch(path)
        if found is None:
            self.refuse(404, "NotFound")
        elif found["repo"] in self.hub.renamed:
            self.answer(307, b"", {"Location": self.path.replace(found["repo"], self.hub.renamed[found["repo"]])})
        elif self._allowed(found["repo"], found["revision"], file=found.re is _RESOLVE):
            files = self.hub.repos[found["repo"]]
            if found.re is _RESOLVE:
                self._file(files, found["file"])
            elif found["what"] == "tree":
                self.answer_json([_entry(name, raw) for name, raw in files.items()])
            else:
                siblings = [{"rfilename": name} for name in files]
                self.answer_json({"id": found["repo"], "sha": self.hub.commit, "siblings": siblings})

    do_HEAD = do_GET  # noqa: N815

    def _allowed(self, repo: str, revision: str | None, *, file: bool) -> bool:
        token = self.headers.get("Authorization", "")
        right = token == f"Bearer {self.hub.token}"
        if token.startswith("Bearer hf_invalid"):
            self.refuse(401, "", "Invalid credentials in Authorization header")
        elif repo in self.hub.disabled:
            self.refuse(403, "", "Access to this resource is disabled.")
        elif (repo in self.hub.gated or (file and repo in self.hub.terms)) and not right:
            self.refuse(403 if token else 401, "GatedRepo", f"Access to model {repo} is restricted")
        elif repo not in self.hub.repos:
            self.refuse(401, "RepoNotFound", "Repository not found")
        elif revision not in (None, "main", self.hub.commit):
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return True
        return False

    def _file(self, files: Mapping[str, bytes], name: str) -> None:
        if name not in files:
            self.refuse(404, "EntryNotFound")
            return
        raw, tag = files[name], f'"{self.hub.linked_tag or _tag(files[name])}"'
        headers = {"X-Repo-Commit": self.hub.commit, "Accept-Ranges": "bytes"}
        if len(raw) <= _SMALL:
            _send(self, raw, {**headers, "ETag": tag})
            return
        with self.hub.lock:
            self.hub.issued += 1
            location = f"{self.hub.storage}/{_digest('sha256', raw)}?signature={self.hub.issued}"
        linked = {"Location": location, "X-Linked-Size": str(len(raw)), "X-Linked-Etag": tag}
        self.answer(302, b"", {**headers, **linked})

    def do_POST(self) -> None:
        """Uploads."""
        self.note()
        sent = self.body()
        path = unquote(urlsplit(self.path).path)
        if self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self.answer(401, b'{"error": "Invalid credentials"}', {"X-Error-Message": "Invalid credentials"})
        elif self.hub.read_only == path.rpartition("/")[0]:
            self.answer(403, b'{"error": "no write access"}', {"X-Error-Message": "no write access"})
        elif path == "/api/repos/create":
            self._create(json.loads(sent))
        elif path == "/api/validate-yaml":
            self.answer_json({"warnings": [], "errors": []})
        elif found := _LFS.fullmatch(path):
            objects = [
                {**item, "actions": {"upload": {"href": f"{self.hub.storage}/{item['oid']}"}}}
                for item in _objects(sent)
            ]
            self.answer_json({"transfer": "basic", "objects": objects})
        elif (found := _API.fullmatch(path)) and found["what"] == "preupload":
            modes = [
                {"path": one["path"], "uploadMode": "lfs" if one["size"] > _SMALL else "regular", "shouldIgnore": False}
                for one in json.loads(sent)["files"]
            ]
            self.answer_json({"files": modes})
        elif found and found["what"] == "commit":
            self._commit(found["repo"], [json.loads(line) for line in sent.splitlines()])
        else:
            self.refuse(404, "NotFound")

    def _create(self, wanted: dict[str, Any]) -> None:
        repo = f"{wanted.get('organization', 'owner')}/{wanted['name']}"
        if repo in self.hub.repos:
            self.answer(409, json.dumps({"url": f"{self.hub.url}/{repo}"}).encode())
            return
        self.hub.repos[repo] = {".gitattributes": b""}
        self.answer_json({"url": f"{self.hub.url}/{repo}", "id": repo, "name": repo})

    def _commit(self, repo: str, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.hub.repos[repo][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.hub.repos[repo][value["path"]] = self.hub.uploaded[value["oid"]]
            elif line["key"] == "deletedFile":
                del self.hub.repos[repo][value["path"]]
            else:
                self.hub.committed.append(value)
        self.answer_json(
            {"success": True, "commitOid": self.hub.commit, "commitUrl": f"{self.hub.url}/{repo}/commit/1"}
        )


class _Storage(_Handler):
    """Where large files lie, behind signed URLs."""

    def do_GET(self) -> None:
        """A file, by its hash."""
        self.note()
        parts = urlsplit(self.path)
        with self.hub.lock:
            self.hub.used[parts.query] = self.hub.used.get(parts.query, 0) + 1
            expired = self.hub.used[parts.query] > self.hub.signatures
        if "Authorization" in self.headers:
            self.answer(400, b"the token has left the Hub")
        elif expired:
            self.answer(403, b"<Error><Message>Request has expired</Message></Error>")
        elif not self.turned_away(self.hub.busy):
            raw = next(
                raw
                for files in self.hub.repos.values()
                for raw in files.values()
                if _digest("sha256", raw) == parts.path[1:]
            )
            tag = self.hub.tags.pop(0) if self.hub.tags else _digest("md5", raw)
            _send(self, raw, {"ETag": f'"{tag}"'})

    do_HEAD = do_GET  # noqa: N815

    def do_PUT(self) -> None:
        """A file that is uploaded."""
        self.note()
        raw = self.body()
        self.hub.uploaded[hashlib.sha256(raw).hexdigest()] = raw
        self.answer(200)


def _objects(sent: bytes) -> list[dict[str, Any]]:
    wanted: list[dict[str, Any]] = json.loads(sent)["objects"]
    return wanted


@lru_cache(maxsize=64)
def _digest(algorithm: str, raw: bytes) -> str:
    """In hexadecimal; kept, for large files are asked for in many ranges."""
    return hashlib.new(algorithm, raw, usedforsecurity=False).hexdigest()


def _tag(raw: bytes) -> str:
    """The git id of a small file, the SHA-256 of one in LFS."""
    if len(raw) > _SMALL:
        return _digest("sha256", raw)
    return hashlib.sha1(b"blob %d\0" % len(raw) + raw, usedforsecurity=False).hexdigest()


def _entry(name: str, raw: bytes) -> dict[str, Any]:
    """A file in the answer of the tree API."""
    entry: dict[str, Any] = {"type": "file", "path": name, "size": len(raw), "oid": _tag(raw)}
    if len(raw) > _SMALL:
        entry["lfs"] = {"oid": _tag(raw), "size": len(raw), "pointerSize": 130}
    return entry


def _send(handler: _Handler, raw: bytes, headers: Mapping[str, str]) -> None:
    """A file or a range of it, and whatever lie is told."""
    hub = handler.hub
    found = _RANGE.fullmatch(handler.headers.get("Range", ""))
    if found is None or (hub.lie == "whole" and handler.command == "GET"):
        _write(handler, 200, raw, len(raw), headers)
        return
    start, stop = int(found[1]), int(found[2] or len(raw) - 1) + 1
    part, total = raw[start:stop], len(raw)
    announced = f"bytes {start + (hub.lie == 'range')}-{stop - 1}/{total + (hub.lie == 'total')}"
    if hub.lie == "longer":
        part += b"\0"
    elif hub.lie == "shorter":
        part = part[:-1]
    chunked = hub.lie == "early"
    _write(handler, 206, part, None if chunked else len(part), {**headers, "Content-Range": announced})


def _write(handler: _Handler, status: int, part: bytes, length: int | None, headers: Mapping[str, str]) -> None:
    """The answer; without a length it is chunked, and ends before its time."""
    hub = handler.hub
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.send_header(*(("Transfer-Encoding", "chunked") if length is None else ("Content-Length", str(length))))
    handler.end_headers()
    if handler.command == "HEAD":
        return
    if length is None:
        handler.wfile.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(part) - 1, part[:-1]))
        return
    with hub.lock:
        cut = hub.cuts > 0
        hub.cuts -= cut
    half = len(part) // 2
    handler.wfile.write(part[:half])
    if cut:
        handler.close_connection = True
    else:
        time.sleep(hub.pause)
        handler.wfile.write(part[half:])
    with hub.lock:
        hub.sent += half if cut else len(part)


def _serve(folder: Path, last: int) -> None:
    """A Hub with one repository, until its last request; its address comes first on standard output."""
    with hub(name=repository(folder)) as running:
        running.last = last
        sys.stdout.write(f"{running.url}\n")
        sys.stdout.flush()
        threading.Event().wait()


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), int(sys.argv[2]))

"""Web servers on this machine that send the files of a folder."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import hub_server

__all__ = ["Plain", "Ranged", "serving"]


class Plain(SimpleHTTPRequestHandler):
    """The files of a folder, always whole, as Python's own server sends them: it knows no ranges."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Nothing."""


class Ranged(Plain):
    """The same with ranges (RFC 9110, 14.2) and entity tags; the bytes that it sends are counted."""

    sent = 0
    tag = '"one"'

    def do_GET(self) -> None:  # http.server's name
        """A range of a file, or all of it."""
        path = Path(self.translate_path(self.path))
        status = self.refusal(path)
        if status is not None:
            self.refuse(status)
            return
        raw = path.read_bytes()
        asked = self.headers.get("Range")
        first, last = map(int, asked.removeprefix("bytes=").split("-")) if asked else (0, len(raw) - 1)
        if first >= len(raw):
            self.refuse(416, {"Content-Range": f"bytes */{len(raw)}"})
            return
        part = raw[first : last + 1]
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(raw)}")
        self.send_header("Content-Length", str(len(part)))
        self.send_header("ETag", self.tag)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(part)
            type(self).sent += len(part)

    do_HEAD = do_GET  # noqa: N815

    def refusal(self, path: Path) -> int | None:
        """The status with which a request is refused; None for one that is answered."""
        return None if path.is_file() else 404

    def refuse(self, status: int, headers: Mapping[str, str] | None = None) -> None:
        """An answer without a body."""
        self.send_response(status)
        for name, value in {"Content-Length": "0", **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()


def serving(kind: type[Plain], folder: Path) -> AbstractContextManager[str]:
    """The address of a server of a folder's files."""
    return hub_server.serving(partial(kind, directory=str(folder)))

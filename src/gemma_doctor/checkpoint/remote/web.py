"""A checkpoint on a web server: one file by its URL and what lies beside it, or an index and its files.

What a file is, is asked by a GET of its first byte and not by HEAD: a URL that is signed for GET answers nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import httpx2
from huggingface_hub import constants, get_session
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # its __all__ says otherwise

from gemma_doctor.checkpoint.config import CONFIG_NAME
from gemma_doctor.checkpoint.contents import read_checkpoint
from gemma_doctor.checkpoint.layout import single
from gemma_doctor.checkpoint.model import Checkpoint
from gemma_doctor.checkpoint.quoting import shown, without_secrets
from gemma_doctor.checkpoint.remote.beside import RefusedConfigError, on_refused_config, parts_there
from gemma_doctor.checkpoint.remote.patience import AGAIN, Again, patiently, retry_after
from gemma_doctor.checkpoint.remote.ranges import NETWORK, Location, RangedFile, changed, plain_tag
from gemma_doctor.checkpoint.remote.refusals import LOG_IN
from gemma_doctor.checkpoint.remote.stream import stream
from gemma_doctor.errors import SourceNotFoundError, TransferError, UsageError

__all__ = ["WebStore", "open_url"]

_ABSENT = (HTTPStatus.NOT_FOUND, HTTPStatus.GONE)
_DENIED = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
_RANGED = (HTTPStatus.PARTIAL_CONTENT, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
_TOTAL = re.compile(r"bytes (?:0-0|\*)/(\d{1,18})")
"""``Content-Range`` of a file's first byte, or of an empty file, which has none (RFC 9110, 14.4)."""


_ENTRY = {
    True: f"Log in with {LOG_IN}, and accept the terms of a gated repository on its page",
    False: (
        "A signature may have expired: have a new URL made; or a login is missing: put user:password@ before the host, "
        "or download the file"
    ),
}
"""The next step where a file is refused: by the Hub, or by another server."""


class _DeniedError(TransferError):
    """The server does not give the file to us."""


@dataclass(frozen=True, slots=True)
class _State:
    """What a server says of a file: its size in bytes and its entity tag, if it has one."""

    size: int
    etag: str | None


@dataclass(frozen=True, slots=True)
class WebStore:
    """The files beside a URL.

    Attributes:
        base: The URL up to the last slash of its path.
        query: What follows the path, such as a signature.
        token: Access token, where ``base`` is the Hub's; the one of this machine if None.
        seen: What the server said of each file when it was first read: it must stay that.
    """

    base: str = field(repr=False)  # workers log what they were given when it fails, and a URL may hold secrets
    query: str = field(default="", repr=False)
    token: str | None = field(default=None, repr=False)
    seen: dict[str, _State] = field(default_factory=dict, compare=False, repr=False)

    @property
    def streams(self) -> int:
        """Several headers at once."""
        return 8

    @contextmanager
    def reading(self, name: str) -> Iterator[tuple[BinaryIO, int]]:
        """A file as a stream, and its size in bytes."""
        state = self._first(name)
        yield stream(self._source(name, state), name, state.size), state.size

    def source(self, name: str) -> RangedFile:
        """One of its files, to be read in ranges."""
        return self._source(name, self._first(name))

    def only(self, names: Collection[str]) -> WebStore:
        """The same for some of its files."""
        return replace(self, seen={name: said for name, said in self.seen.items() if name in names})

    def cached(self, name: str) -> Path | None:  # noqa: ARG002  # the protocol's
        """None: no cache knows it."""
        return None

    def identity(self, name: str) -> str:
        """Size and entity tag, as the server says them now."""
        return repr(self._state(name))

    def _source(self, name: str, state: _State) -> RangedFile:
        def locate() -> Location:
            if self._state(name) != state:
                raise changed(name)
            return Location(self._url(name), self._headers(), state.etag, lasting=True)

        return RangedFile(name, state.size, locate)

    def _url(self, name: str) -> str:
        return f"{self.base}{quote(name)}{self.query}"

    def _headers(self) -> dict[str, str]:
        """A token goes to the Hub only; the client takes it off where a redirect leads to another host."""
        return build_hf_headers(token=self.token if _of_the_hub(self.base) else False)

    def _first(self, name: str) -> _State:
        """What the file was when it was first asked for."""
        return self.seen[name] if name in self.seen else self.seen.setdefault(name, self._state(name))

    def _state(self, name: str) -> _State:
        """What the server says of a file now.

        Raises:
            FileNotFoundError: If there is none. A config that is refused counts as that: a signature is for one file.
        """
        try:
            return patiently(shown(name), lambda: _ask(self._url(name), self._headers()))
        except _DeniedError:
            if name != CONFIG_NAME:
                raise
            raise RefusedConfigError(CONFIG_NAME) from None


def open_url(uri: str, token: str | None = None) -> Checkpoint:
    """Opens the checkpoint at a URL.

    Args:
        uri: URL of a ``.safetensors`` or ``.gguf`` file, or of an index.
        token: Access token, if it is a URL of the Hub.

    Raises:
        SourceNotFoundError: If there is none.
        UsageError: If a token is given, and it is not the Hub's.
        TransferError: If the server does not answer, or not as it should.
    """
    plain = without_secrets(uri)
    if token is not None and not _of_the_hub(uri):
        raise UsageError(
            f"{plain}: --token is for {constants.ENDPOINT} and is sent nowhere else. Leave it out; what this server "
            "wants belongs into the URL, a signature or user:password@"
        )
    parts = urlsplit(uri)
    name = unquote(PurePosixPath(parts.path).name)
    folder = parts.path.rpartition("/")[0]
    base = urlunsplit((parts.scheme, parts.netloc, f"{folder}/", "", ""))
    store = WebStore(base, f"?{parts.query}" if parts.query else "", token)
    layout = single(Path(name), plain, lambda part: parts_there(store, part))
    try:
        store.source(name)
    except FileNotFoundError:
        raise SourceNotFoundError(f"{plain}: the server has no such file. Check the URL.") from None
    opened = read_checkpoint(plain, layout, store)
    return replace(opened, store=store, remarks=(*opened.remarks, *on_refused_config(store, opened)))


def _of_the_hub(url: str) -> bool:
    return url.startswith(f"{constants.ENDPOINT}/")


def _ask(url: str, headers: dict[str, str]) -> _State:
    """Asks for a file's first byte, which tells its size and whether it may be read at all."""
    headers = {**headers, "Range": "bytes=0-0", "Accept-Encoding": "identity"}
    try:
        with get_session().stream("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as answer:
            if answer.headers.get("Content-Length") == "1":
                answer.read()  # the connection can be used again
    except httpx2.ConnectError as error:
        raise TransferError(
            f"{without_secrets(url)}: the server cannot be reached ({error}). Check the URL and the network."
        ) from error
    except NETWORK as error:
        raise Again(f"the connection broke: {str(error) or type(error).__name__}") from error
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:  # its words may hold what is secret in the URL
        raise TransferError(f"{without_secrets(url)}: {type(error).__name__}. Check the URL and the proxy.") from None
    return _told(answer, without_secrets(url))


def _told(answer: httpx2.Response, url: str) -> _State:
    """What an answer says of the file.

    Raises:
        FileNotFoundError: If there is none.
        TransferError: If it cannot be read.
        Again: If the next answer may be another.
    """
    status, headers = answer.status_code, answer.headers
    if status in _ABSENT:
        raise FileNotFoundError(f"the server answers {status}")
    if status in _DENIED:
        raise _DeniedError(f"{url}: the server refuses it ({status}). {_ENTRY[_of_the_hub(url)]}.")
    if status in AGAIN:
        raise Again(f"the server answers {status}", retry_after(headers.get("Retry-After")))
    size = _size(answer)
    if size is None:
        raise TransferError(
            f"{url}: the server answers {status}, and does not say the file's size. Check the access, or download it."
        )
    return _State(size, plain_tag(headers.get("ETag")))


def _size(answer: httpx2.Response) -> int | None:
    """The whole file's bytes; where ranges are not understood, the whole is announced."""
    if answer.status_code == HTTPStatus.OK:
        length = answer.headers.get("Content-Length", "")
        return int(length) if length.isdigit() else None
    found = _TOTAL.fullmatch(answer.headers.get("Content-Range", ""))
    return int(found[1]) if found is not None and answer.status_code in _RANGED else None

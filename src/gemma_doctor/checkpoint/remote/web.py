"""A checkpoint on a web server: one file by its URL, or an index and the files beside it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import httpx2
from huggingface_hub import constants, get_session
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # its __all__ says otherwise

from gemma_doctor.checkpoint.contents import read_checkpoint
from gemma_doctor.checkpoint.layout import single
from gemma_doctor.checkpoint.model import Checkpoint
from gemma_doctor.checkpoint.quoting import shown, without_secrets
from gemma_doctor.checkpoint.remote.patience import AGAIN, Again, patiently, retry_after
from gemma_doctor.checkpoint.remote.ranges import NETWORK, Location, RangedFile, plain_tag
from gemma_doctor.checkpoint.remote.stream import stream
from gemma_doctor.errors import ChangedError, SourceNotFoundError, TransferError

__all__ = ["WebStore", "open_url"]

_ABSENT = (httpx2.codes.NOT_FOUND, httpx2.codes.GONE)


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
        seen: What the server said of each file when it was first read: it must stay that.
    """

    base: str = field(repr=False)  # workers log what they were given when it fails, and a URL may hold secrets
    query: str = field(default="", repr=False)
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
                raise ChangedError(f"{shown(name)}: the file changed while it was read. Scan again.")
            return Location(self._url(name), _headers(self._url(name)), state.etag, lasting=True)

        return RangedFile(name, state.size, locate)

    def _url(self, name: str) -> str:
        return f"{self.base}{quote(name)}{self.query}"

    def _first(self, name: str) -> _State:
        """What the file was when it was first asked for."""
        return self.seen[name] if name in self.seen else self.seen.setdefault(name, self._state(name))

    def _state(self, name: str) -> _State:
        return patiently(shown(name), lambda: _ask(self._url(name), name))


def open_url(uri: str) -> Checkpoint:
    """Opens the checkpoint at a URL.

    Args:
        uri: URL of a ``.safetensors`` file, or of an index.

    Raises:
        SourceNotFoundError: If there is none.
        TransferError: If the server does not answer, or not as it should.
    """
    parts = urlsplit(uri)
    name = unquote(PurePosixPath(parts.path).name)
    layout = single(Path(name), without_secrets(uri), lambda part: (part,))
    folder = parts.path.rpartition("/")[0]
    base = urlunsplit((parts.scheme, parts.netloc, f"{folder}/", "", ""))
    store = WebStore(base, f"?{parts.query}" if parts.query else "")
    if layout.index is None:
        try:
            store.source(name)
        except FileNotFoundError:
            raise SourceNotFoundError(f"{without_secrets(uri)}: the server has no such file. Check the URL.") from None
    return replace(read_checkpoint(without_secrets(uri), layout, store), store=store)


def _headers(url: str) -> dict[str, str]:
    """The token goes to the Hub only."""
    return build_hf_headers(token=None if url.startswith(f"{constants.ENDPOINT}/") else False)


def _ask(url: str, name: str) -> _State:
    headers = {**_headers(url), "Accept-Encoding": "identity"}
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    try:
        answer = get_session().head(url, headers=headers, timeout=timeout)
    except httpx2.ConnectError as error:
        raise TransferError(
            f"{without_secrets(url)}: the server cannot be reached ({error}). Check the URL and the network."
        ) from error
    except NETWORK as error:
        raise Again(f"the connection broke: {str(error) or type(error).__name__}") from error
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:  # its words may hold what is secret in the URL
        raise TransferError(f"{without_secrets(url)}: {type(error).__name__}. Check the URL and the proxy.") from None
    if answer.status_code in _ABSENT:
        raise FileNotFoundError(name)
    if answer.status_code in AGAIN:
        raise Again(f"the server answers {answer.status_code}", retry_after(answer.headers.get("Retry-After")))
    size = answer.headers.get("Content-Length", "")
    if not answer.is_success or not size.isdigit():
        raise TransferError(
            f"{without_secrets(url)}: the server answers {answer.status_code}, and the file's size is "
            f"{size or 'missing'}. Check the access to it, or download it."
        )
    return _State(int(size), plain_tag(answer.headers.get("ETag")))

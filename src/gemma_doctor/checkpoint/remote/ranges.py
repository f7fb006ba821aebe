"""One file behind HTTP, read in ranges: every byte that was asked for, or an error.

A connection that breaks is taken up again from the last byte that came. Whatever the answer says of itself is
held against what was asked for: its status, ``Content-Range``, ``Content-Length``, ``ETag`` and the file's size
(RFC 9110, 8.6, 8.8.3 and 14.4). An answer that contradicts itself is an error at once: to ask a liar again would not
make its bytes true.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import httpx2
from huggingface_hub import constants, get_session

from gemma_doctor.checkpoint.quoting import quoted, shown
from gemma_doctor.checkpoint.remote.patience import AGAIN, Again, Patience, retry_after
from gemma_doctor.checkpoint.waiting import go_on
from gemma_doctor.errors import ChangedError, TransferError

__all__ = ["NETWORK", "Location", "RangedFile", "changed", "plain_tag"]

NETWORK = (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError)
"""What a broken connection raises."""

_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")
_EXPIRED = frozenset({401, 403, 404, 410})
"""What servers of signed URLs say when one has expired."""


@dataclass(frozen=True, slots=True)
class Location:
    """Where the bytes of a file are to be had for a while.

    Attributes:
        url: The URL.
        headers: Headers to send with each request.
        etag: The entity tag that its answers must bear; None where the first answer says.
        lasting: Whether it does not expire.
    """

    url: str
    headers: Mapping[str, str] = field(repr=False)
    etag: str | None = None
    lasting: bool = False


class RangedFile:
    """A file behind HTTP, for any number of threads."""

    def __init__(
        self, name: str, size: int, locate: Callable[[], Location], tags: dict[str, str] | None = None
    ) -> None:
        """Nothing is asked for yet.

        Args:
            name: How messages call the file.
            size: Bytes that it must have.
            locate: Says where it is now; raises ChangedError if it is not what it was.
            tags: Entity tags that are known already, by place; further ones are added.
        """
        self._name = name
        self._size = size
        self._locate = locate
        self._location: Location | None = None
        self._tags = {} if tags is None else tags
        self._lock = threading.Lock()

    def read_into(self, start: int, out: memoryview) -> None:
        """Fills ``out`` with the bytes from ``start`` on.

        Raises:
            ChangedError: If the file is no longer what it was.
            TransferError: If the server does not answer, or not as it should.
            CalledOff: If the thread's pool is called off meanwhile.
        """
        at = 0
        patience = Patience(shown(self._name))
        while at < len(out):
            try:
                for chunk in self._chunks(start + at, start + len(out)):
                    go_on()
                    out[at : at + len(chunk)] = chunk
                    at += len(chunk)
                    patience.reset()
            except Again as again:
                patience.wait(again)

    def check(self) -> None:
        """Says whether the file still is what it was.

        Raises:
            ChangedError: If it is not.
        """
        self._locate()

    def _chunks(self, first: int, stop: int) -> Iterator[bytes]:
        """The body of one request for a range: exactly its bytes, or an error."""
        location = self._current()
        headers = {**location.headers, "Range": f"bytes={first}-{stop - 1}", "Accept-Encoding": "identity"}
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        missing = stop - first
        try:
            with get_session().stream("GET", location.url, headers=headers, timeout=timeout) as response:
                self._check(response, location, first, stop)
                for chunk in response.iter_raw():
                    missing -= len(chunk)
                    if missing < 0:
                        raise self._lie(f"more than the {stop - first:,} bytes that were asked for came")
                    yield chunk
        except NETWORK as error:
            raise Again(f"the connection broke: {str(error) or type(error).__name__}") from error
        if missing:
            raise self._lie(f"the body ended {missing:,} bytes before the {stop - first:,} that it had announced")

    def _current(self) -> Location:
        with self._lock:
            if self._location is None:
                self._location = self._locate()
            return self._location

    def _forget(self, location: Location) -> None:
        with self._lock:
            if self._location is location:
                self._location = None

    def _check(self, response: httpx2.Response, location: Location, first: int, stop: int) -> None:
        """Holds the head of an answer against the question."""
        status, headers = response.status_code, response.headers
        if status in AGAIN:
            raise Again(f"the server answers {status}", retry_after(headers.get("Retry-After")))
        if status in _EXPIRED and not location.lasting:
            self._forget(location)
            raise Again(f"the server answers {status} to a URL that may have expired", 0.0)
        if status == httpx2.codes.OK:
            raise self._lie("the server sends the whole file where a range was asked for (status 200 in place of 206)")
        if status != httpx2.codes.PARTIAL_CONTENT:
            raise TransferError(f"{shown(self._name)}: the server answers {status} to a range. Check the access to it.")
        self._check_range(headers.get("Content-Range", ""), first, stop)
        length = headers.get("Content-Length")
        if length is not None and length != str(stop - first):
            raise self._lie(f"Content-Length is {quoted(length)} where {stop - first:,} bytes were asked for")
        if headers.get("Content-Encoding", "identity") != "identity":
            raise self._lie(f"the body is encoded ({quoted(headers['Content-Encoding'])}), which was not asked for")
        self._check_tag(location, headers.get("ETag"))

    def _check_range(self, value: str, first: int, stop: int) -> None:
        found = _CONTENT_RANGE.fullmatch(value)
        if found is None or (int(found[1]), int(found[2])) != (first, stop - 1):
            raise self._lie(f"Content-Range is {quoted(value)} where bytes {first}-{stop - 1} were asked for")
        if found[3] not in ("*", str(self._size)):
            raise changed(self._name, f"it had {self._size:,} bytes, and has {int(found[3]):,} now")

    def _check_tag(self, location: Location, tag: str | None) -> None:
        """One place, one entity tag: signed URLs differ in their queries only."""
        if tag is None:
            return
        place = location.url.partition("?")[0]
        with self._lock:
            known = self._tags.setdefault(place, location.etag or tag)
        if plain_tag(tag) != plain_tag(known):
            raise changed(self._name, f"its ETag was {quoted(known)}, and is {quoted(tag)} now")

    def _lie(self, fact: str) -> TransferError:
        return TransferError(
            f"{shown(self._name)}: {fact}. Nothing that came was used. A proxy on the way may be the cause; try "
            "without it, or download the file."
        )


def changed(name: str, fact: str | None = None) -> ChangedError:
    """That a file is not what it was.

    Args:
        name: The file.
        fact: What is another now, if it can be said.
    """
    what = "" if fact is None else f": {fact}"
    return ChangedError(f"{shown(name)}: the file changed while it was read{what}. Scan again.")


def plain_tag(tag: str | None) -> str | None:
    """An entity tag without its quotes and its mark of weakness."""
    return None if tag is None else tag.removeprefix("W/").strip('"')

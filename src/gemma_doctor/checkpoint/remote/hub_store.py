"""The files of a Hub repository at one commit, through ``huggingface_hub``: its session, tokens, endpoint and cache."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # its __all__ says otherwise

from gemma_doctor.checkpoint.files import reading
from gemma_doctor.checkpoint.remote.hub_api import Access, HubFile
from gemma_doctor.checkpoint.remote.patience import patiently
from gemma_doctor.checkpoint.remote.ranges import Location, RangedFile, changed
from gemma_doctor.checkpoint.remote.refusals import explaining
from gemma_doctor.checkpoint.remote.stream import stream

__all__ = ["HubStore"]


@dataclass(frozen=True, slots=True)
class HubStore:
    """The files of a repository's folder at one commit.

    Attributes:
        access: The repository.
        commit: The commit.
        files: The repository's files by their whole name.
        folder: The folder, with a slash at its end; empty for the top.
        tags: The storage's entity tags of each file, by its place there: they must stay those of the header.
    """

    access: Access
    commit: str
    files: Mapping[str, HubFile] = field(repr=False)
    folder: str = ""
    tags: dict[str, dict[str, str]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def streams(self) -> int:
        """Several headers at once."""
        return 8

    @contextmanager
    def reading(self, name: str) -> Iterator[tuple[BinaryIO, int]]:
        """A file as a stream, and its size in bytes."""
        path = self.cached(name)
        if path is not None:
            with reading(path, name) as local:
                yield local
            return
        source, size = self.source(name), self._known(name).size
        yield stream(source, name, size), size

    def source(self, name: str) -> RangedFile:
        """One of its files, to be read in ranges."""
        known = self._known(name)
        return RangedFile(name, known.size, partial(self._locate, name), self.tags.setdefault(name, {}))

    def only(self, names: Collection[str]) -> HubStore:
        """The same for some of its files."""
        return replace(self, files={self.folder + name: self._known(name) for name in names})

    def cached(self, name: str) -> Path | None:
        """The same file in the Hub's cache on this machine, if it is there whole."""
        found = try_to_load_from_cache(self.access.repo, self.folder + name, revision=self.commit)
        known = self.files.get(self.folder + name)
        if not isinstance(found, str) or known is None or Path(found).stat().st_size != known.size:
            return None
        return Path(found)

    def identity(self, name: str) -> str:
        """The hash that the commit lists; whoever reads the file compares it with what the Hub serves."""
        return self._known(name).etag

    def _known(self, name: str) -> HubFile:
        """What the commit lists of a file.

        Raises:
            FileNotFoundError: If nothing.
        """
        if self.folder + name not in self.files:
            raise FileNotFoundError(name)
        return self.files[self.folder + name]

    def _locate(self, name: str) -> Location:
        """Where a file's bytes are now: at the Hub itself, or behind a signed URL of its storage.

        Raises:
            ChangedError: If the Hub says another commit, size or content than at first.
        """
        url = hf_hub_url(self.access.repo, self.folder + name, revision=self.commit)
        known = self._known(name)

        def ask() -> Location:
            with explaining(self.access.repo, self.commit):
                found = get_hf_file_metadata(url, token=self.access.token)
            _check_same(name, "commit", self.commit, found.commit_hash)
            _check_same(name, "size", known.size, found.size)
            _check_same(name, "content", known.etag, found.etag)
            if found.location.startswith(f"{constants.ENDPOINT}/"):
                headers = build_hf_headers(token=self.access.token)
                return Location(found.location, headers, found.etag, lasting=True)
            return Location(found.location, {}, None)

        return patiently(name, ask)


def _check_same(name: str, what: str, was: object, now: object) -> None:
    if now is not None and now != was:
        raise changed(name, f"its {what} was {was}, now {now}")

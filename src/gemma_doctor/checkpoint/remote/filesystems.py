"""Object stores and whatever else ``fsspec`` reads: ``s3://``, ``gs://``, ``az://``, ``hf://`` and so on.

Sign-in, endpoints and retries are those of each file system, set up as its own documentation says (environment,
``~/.config/fsspec``). What a range lacks is asked for again, and what has changed is an error.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from fsspec.core import url_to_fs

from gemma_doctor.checkpoint.config import CONFIG_NAME
from gemma_doctor.checkpoint.contents import read_checkpoint
from gemma_doctor.checkpoint.layout import Layout, arrange, single
from gemma_doctor.checkpoint.model import Checkpoint
from gemma_doctor.checkpoint.quoting import shown, without_secrets
from gemma_doctor.checkpoint.remote.beside import RefusedConfigError, on_refused_config, parts_there
from gemma_doctor.checkpoint.remote.ranges import changed
from gemma_doctor.checkpoint.remote.stream import stream
from gemma_doctor.errors import ChangedError, SourceNotFoundError, TransferError, UsageError

__all__ = ["ObjectStore", "open_url"]

_IDENTITY = ("size", "ETag", "etag", "md5Hash", "content_md5", "generation", "LastModified", "mtime")
"""What file systems tell of a file that changes when its content does."""


@dataclass(frozen=True, slots=True)
class ObjectStore:
    """The files below a URL.

    Attributes:
        base: The URL of their folder, without a slash at its end.
        seen: What the store said of each file when it was first read: it must stay that.
    """

    base: str = field(repr=False)  # workers log what they were given when it fails, and a URL may hold secrets
    seen: dict[str, Mapping[str, Any]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def streams(self) -> int:
        """Several headers at once."""
        return 8

    @contextmanager
    def reading(self, name: str) -> Iterator[tuple[BinaryIO, int]]:
        """A file as a stream, and its size in bytes."""
        source = self.source(name)
        yield stream(source, name, source.size), source.size

    def source(self, name: str) -> ObjectFile:
        """One of its files, to be read in ranges.

        Raises:
            ChangedError: If it is not what it was when it was first read.
        """
        file = ObjectFile(f"{self.base}/{name}", name)
        if self.seen.setdefault(name, file.state) != file.state:
            raise changed(name)
        return file

    def only(self, names: Collection[str]) -> ObjectStore:
        """The same for some of its files."""
        return replace(self, seen={name: said for name, said in self.seen.items() if name in names})

    def cached(self, name: str) -> Path | None:  # noqa: ARG002  # the protocol's
        """None: no cache knows it."""
        return None

    def identity(self, name: str) -> str:
        """Size, entity tag, version and times, as far as the store knows them, as it says them now."""
        return self.source(name).identity


class ObjectFile:
    """One file of a file system, for any number of threads.

    Attributes:
        size: Its bytes.
        state: What the store says of it.
    """

    def __init__(self, url: str, name: str) -> None:
        """Asks what the file is.

        Args:
            url: Its URL.
            name: How messages call it.

        Raises:
            FileNotFoundError: If there is none.
            TransferError: If the store does not answer.
        """
        self._name = name
        self._system, self._path = url_to_fs(url, use_listings_cache=False)
        self.state = self._ask()
        self.size = int(self.state["size"])

    @property
    def identity(self) -> str:
        """What the store said of it."""
        return repr(sorted(self.state.items()))

    def read_into(self, start: int, out: memoryview) -> None:
        """Fills ``out`` with the bytes from ``start`` on.

        Raises:
            TransferError: If the store does not answer, or gives fewer or more bytes.
        """
        with _explaining(self._name):
            raw = self._system.cat_file(self._path, start=start, end=start + len(out))
        if len(raw) != len(out):
            raise TransferError(
                f"{shown(self._name)}: {len(raw):,} bytes came where {len(out):,} were asked for. Nothing of them was "
                "used. Scan again, or download the file."
            )
        out[:] = raw

    def check(self) -> None:
        """Says whether the file still is what it was.

        Raises:
            ChangedError: If it is not.
        """
        try:
            now = self._ask()
        except FileNotFoundError:
            raise ChangedError(f"{shown(self._name)}: it is gone. Scan again.") from None
        if now != self.state:
            raise changed(self._name)

    def _ask(self) -> Mapping[str, Any]:
        with _explaining(self._name):
            info = self._system.info(self._path)
        return {key: info[key] for key in _IDENTITY if key in info}


@contextmanager
def _explaining(what: str) -> Iterator[None]:
    """Turns what file systems raise into errors of this package; each has its own, below OSError or not."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        if what == CONFIG_NAME and isinstance(error, PermissionError):  # who may not list a bucket hears no "missing"
            raise RefusedConfigError(CONFIG_NAME) from None
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise TransferError(f"{shown(what)}: {reason}. Check the access to the store, and the network.") from error


def open_url(uri: str, token: str | None = None) -> Checkpoint:
    """Opens the checkpoint at a URL.

    Args:
        uri: URL of a folder, of a ``.safetensors`` or ``.gguf`` file, or of an index.
        token: Access token for the Hub, which nothing here takes.

    Raises:
        SourceNotFoundError: If there is none.
        UsageError: If a token is given, or the package for its scheme is not installed.
        TransferError: If the store does not answer, or not as it should.
    """
    plain = without_secrets(uri)
    if token is not None:
        raise UsageError(
            f"{plain}: --token is for the Hub and is sent nowhere else. Leave it out, and sign in as the documentation "
            "of this file system says"
        )
    try:
        store, layout = _layout(uri.rstrip("/"))
    except FileNotFoundError:
        raise SourceNotFoundError(f"{plain}: nothing is there. Check the URL.") from None
    opened = read_checkpoint(plain, layout, store)
    return replace(opened, store=store, remarks=(*opened.remarks, *on_refused_config(store, opened)))


def _layout(uri: str) -> tuple[ObjectStore, Layout]:
    """Where the files are, and which of them make the checkpoint. A file is found where nothing may be listed, too."""
    plain = without_secrets(uri)
    try:
        system, path = url_to_fs(uri, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise UsageError(f"{plain}: {error}; pip install 'gemma-doctor[remote]' brings s3:// and gs://") from error
    with _explaining(plain):
        folder = system.info(path)["type"] == "directory"
        found = system.ls(path, detail=True) if folder else []
    if not folder:
        base, _, name = uri.rpartition("/")
        store = ObjectStore(base)
        return store, single(Path(name), plain, lambda part: parts_there(store, part))
    names = sorted(item["name"].rpartition("/")[2] for item in found if item["type"] == "file")
    visible = tuple(name for name in names if not name.startswith("."))

    def nothing() -> str:
        return f"{plain}: no *.safetensors, no *.safetensors.index.json and no *.gguf in this folder. Check the URL."

    return ObjectStore(uri), arrange(plain, Path(), visible, nothing)

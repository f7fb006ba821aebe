"""How a user names what lies on the Hub: ``owner/name``, perhaps with a revision and a file or folder of it.

The grammar is that of ``huggingface_hub``'s URIs, ``hf://owner/name[@revision][/path]``. The scheme may be left out
where nothing else can be meant. It is read here, for ``huggingface_hub`` takes half a second to load.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from urllib.parse import quote, unquote

from gemma_doctor.checkpoint.filenames import PICKLES
from gemma_doctor.errors import UsageError

__all__ = ["HubName", "hub_name"]

_SCHEME = "hf://"
_REF = re.compile(r"refs/(?:convert/[\w.-]+|pr/[0-9]+)", re.ASCII)
"""The revisions that hold a slash; in another one it is written %2F."""

_NAME = re.compile(
    r"(?P<repo>\w[\w.-]*/\w[\w.-]*)"
    rf"(?:@(?P<revision>{_REF.pattern}|[^/\s]+))?"
    r"(?:/(?P<path>(?!\.{0,2}(?:/|\Z))(?:(?!/\.{0,2}(?:/|\Z)).)+))?",
    re.ASCII | re.DOTALL,
)
_OTHER_KINDS = ("buckets/", "datasets/", "kernels/", "spaces/")
_FILES = (*PICKLES, ".gguf", ".json", ".safetensors", ".txt")
"""Endings of files: ``folder/model.safetensors`` is a path that is wrong, and no repository."""


@dataclass(frozen=True, slots=True)
class HubName:
    """A model repository, or what is in it.

    Attributes:
        repo: ``owner/name``.
        revision: Branch, tag or commit; None for the default branch.
        path: A file or folder of the repository; empty for all of it.
    """

    repo: str
    revision: str | None = None
    path: str = ""

    @property
    def is_file(self) -> bool:
        """Whether it names a file, as far as its ending tells."""
        return self.path.endswith(_FILES)

    def at(self, revision: str | None) -> HubName:
        """The same at another revision."""
        return replace(self, revision=revision)

    def __str__(self) -> str:
        """As a user may write it, so that it is understood again."""
        scheme = "" if self.revision or self.is_file or not self.path else _SCHEME
        revision = "" if self.revision is None else f"@{_written(self.revision)}"
        return f"{scheme}{self.repo}{revision}{self.path and f'/{self.path}'}"


def _written(revision: str) -> str:
    return revision if _REF.fullmatch(revision) else quote(revision, safe="")


def hub_name(source: str) -> HubName | None:
    """What SOURCE names on the Hub; None if it is a path of this machine, or a URL of another kind.

    A path that exists wins. ``owner/name/file.gguf`` is a path where the folder ``owner/name`` exists.

    Args:
        source: SOURCE as the user gave it.

    Raises:
        UsageError: If it begins with ``hf://`` and names no model repository.
    """
    if os.path.lexists(source):
        return None
    if source.startswith(_SCHEME):
        return _of_uri(source)
    name = _read(source)
    if name is None or (not name.path and source.endswith(_FILES)):
        return None
    if name.path and name.revision is None and (not name.is_file or os.path.isdir(name.repo)):  # noqa: PTH112  # a str
        return None
    return name


def _read(text: str) -> HubName | None:
    found = _NAME.fullmatch(text)
    if found is None:
        return None
    revision = found["revision"]
    return HubName(found["repo"], revision and unquote(revision), found["path"] or "")


def _of_uri(uri: str) -> HubName:
    kind = next((kind for kind in _OTHER_KINDS if uri.startswith(_SCHEME + kind)), None)
    if kind is not None:
        raise UsageError(
            f"{uri}: of the Hub, model repositories are read (hf://owner/name), and this is below {kind}. Give a "
            "file's https address, or download it and give the path"
        )
    name = _read(uri.removeprefix(_SCHEME).removeprefix("models/").rstrip("/"))
    if name is None:
        raise UsageError(f"{uri}: not a name of the Hub. Write hf://owner/name, hf://owner/name@revision or …/path")
    return name

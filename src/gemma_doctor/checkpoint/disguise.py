"""What a file is that bears the name of a safetensors file and is none."""

from __future__ import annotations

__all__ = ["HEAD", "unmask"]

HEAD = 512
"""Bytes from the start of a file that :func:`unmask` wants to see."""

_NEVER_UNPICKLED = (
    "Pickles can run code, so it is never loaded here; convert it on a machine that may be lost: "
    "torch.load(..., weights_only=True), then safetensors.torch.save_file"
)
_LENGTH = 8
_AGAIN = "Download the file again"
_LEGACY_TORCH = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The long 0x1950a86a20f9469cfc6c, with which torch.save began before version 1.6."""

_SIGNATURES: tuple[tuple[bytes, str, str], ...] = (
    (
        b"version https://git-lfs.github.com/spec/",
        "a Git LFS pointer, a few lines of text in place of the file",
        "Fetch the file itself: 'git lfs pull' in the repository, or 'hf download'",
    ),
    (b"PK\x03\x04", "a zip archive, such as torch.save writes (.bin, .pt)", _NEVER_UNPICKLED),
    (b"PK\x05\x06", "an empty zip archive", _AGAIN),
    (b"GGUF", "a GGUF file", "Give it its name back, ending in .gguf"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, such as Keras writes (.h5)", "Convert it to safetensors first"),
    (b"\x1f\x8b", "a gzip archive", "Unpack it first"),
)
_MARKUP = (b"<!doctype", b"<html", b"<?xml", b"<error", b"<head")


def unmask(head: bytes) -> tuple[str, str] | None:
    """What the file is, and what to do; None where nothing is recognised.

    For files that have been refused only: a sound header may begin with any of these bytes.

    Args:
        head: The first :data:`HEAD` bytes, or all there are.
    """
    if not head:
        return "an empty file (0 bytes)", _AGAIN
    if head[_LENGTH:].lstrip(b" \t\r\n").startswith(b"{"):
        return None
    return _signed(head) or _pickled(head) or _text(head)


def _signed(head: bytes) -> tuple[str, str] | None:
    for signature, what, advice in _SIGNATURES:
        if head.startswith(signature):
            return what, advice
    if len(head) == HEAD and not any(head):
        return "a file that begins with zeros, as one does whose download has never finished", _AGAIN
    return None


def _pickled(head: bytes) -> tuple[str, str] | None:
    """A pickle of protocol 2 to 5: PROTO, its number, then FRAME or, where a header's length has zeros, opcodes."""
    if _LEGACY_TORCH in head[:32]:
        return "a pickle, written by torch.save before version 1.6", _NEVER_UNPICKLED
    begins = head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5")
    if begins and (len(head) < _LENGTH or head[2:3] == b"\x95" or any(head[4:_LENGTH])):
        return "a pickle", _NEVER_UNPICKLED
    return None


def _text(head: bytes) -> tuple[str, str] | None:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(_MARKUP):
        return "a web page (HTML or XML), as servers send in place of a file that they refuse", _AGAIN
    if start.startswith((b"{", b"[")):
        return "JSON text without the eight bytes of length that a safetensors file begins with", _AGAIN
    return None

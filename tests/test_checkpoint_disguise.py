"""Files that bear the name of a safetensors file and are something else: the error says what, and what to do."""

from __future__ import annotations

import gzip
import io
import pickle
import zipfile

import pytest
from checkpoint_bytes import F32, framed, ours

from gemma_doctor.checkpoint.disguise import HEAD, unmask
from gemma_doctor.checkpoint.header import read_header
from gemma_doctor.errors import HeaderError

LFS = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)
LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}q\x00(X\x10\x00\x00\x00protocol"
TORCH_ZIP = b"PK\x03\x04\x00\x00\x08\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00archive/data.pkl"


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return buffer.getvalue()


DISGUISED = {
    "nothing": (b"", "an empty file (0 bytes). Download the file again."),
    "Git LFS pointer": (
        LFS,
        "a Git LFS pointer, a few lines of text in place of the file. Fetch the file itself: 'git",
    ),
    "torch.save": (TORCH_ZIP, "a zip archive, such as torch.save writes (.bin, .pt). Pickles can run code"),
    "zip": (zipped("a"), "a zip archive"),
    "empty zip": (zipped(), "an empty zip archive"),
    "torch.save of old": (LEGACY_TORCH, "a pickle, written by torch.save before version 1.6. Pickles can run code"),
    **{f"pickle {n}": (pickle.dumps({"w": 1}, protocol=n), "a pickle. Pickles can") for n in range(2, 6)},
    "short pickle": (b"\x80\x04N.", "a pickle"),
    "GGUF": (b"GGUF\x03\0\0\0\x01\0\0\0\0\0\0\0", "a GGUF file. Give it its name back"),
    "HDF5": (b"\x89HDF\r\n\x1a\n\0\0\0\0", "an HDF5 file"),
    "gzip": (gzip.compress(b"x"), "a gzip archive. Unpack it first"),
    "web page": (b"<!DOCTYPE html>\n<html><head><title>Login</title>", "a web page (HTML or XML)"),
    "web page after blanks": (b"\r\n\n  <HTML lang=en>", "a web page"),
    "S3 error": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "a web page (HTML or XML)"),
    "JSON": (b'{"error": "Repository not found"}', "JSON text without the eight bytes of length"),
    "zeros": (bytes(4096), "a file that begins with zeros, as one does whose download has never finished"),
}


@pytest.mark.parametrize(("raw", "words"), DISGUISED.values(), ids=DISGUISED)
def test_the_error_says_what_the_file_is(raw: bytes, words: str) -> None:
    with pytest.raises(HeaderError) as caught:
        read_header(io.BytesIO(raw), len(raw), "m.safetensors")
    assert str(caught.value).startswith(f"m.safetensors: not a readable safetensors file: it is {words}")


@pytest.mark.parametrize("raw", [b"\x80\x02", b"PK\x03\x04", b"GGUF", b"\x1f\x8b"])
def test_a_header_whose_length_looks_like_a_signature_is_judged_as_a_header(raw: bytes) -> None:
    head = raw.ljust(8, b"\0") + b' {"a":' + F32
    assert unmask(head) is None


def test_a_sound_header_of_a_length_that_begins_like_a_pickle_is_read() -> None:
    raw = framed(b"{}".ljust(0x0280))
    assert raw.startswith(b"\x80\x02")
    assert ours(raw) == {}


@pytest.mark.parametrize("head", [b"\0" * (HEAD - 1), b"\x80\x02\0\0\0\0\0\0[", b"\x80\x09abcdefgh", b"nonsense"])
def test_what_is_not_known_is_not_guessed(head: bytes) -> None:
    assert unmask(head) is None

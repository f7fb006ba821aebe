"""The recorder in C++ is compiled once; where that fails the trace runs in Python, and the log tells why."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
import torch
from native_recorder import compiled_recorder

from gemma_doctor.verify import native


def test_without_a_compiler_there_is_none(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("CXX", "/nowhere/c++")
    assert native._built() is None  # noqa: SLF001  # building() remembers
    assert not caplog.records


@pytest.mark.parametrize("named", ["", " "])
def test_an_empty_name_of_a_compiler_is_none(monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    monkeypatch.delenv("CXX", raising=False)
    usual = native._command()  # noqa: SLF001
    monkeypatch.setenv("CXX", named)
    assert native._command() == usual  # noqa: SLF001


@pytest.mark.parametrize(
    ("does", "told"),
    [
        ("sys.exit('cannot do that')", "cannot do that"),
        (
            "sys.exit('In file included from a.h:1,\\nb.h:2: fatal error: no Python.h')",
            "b.h:2: fatal error: no Python.h",
        ),
        ("sys.exit(3)", f"{sys.executable} ended with status 3"),
        ("import os; os.write(2, bytes([255])); sys.exit(3)", "\N{REPLACEMENT CHARACTER}"),
        ("import time; time.sleep(60)", "not done after 2 seconds"),
    ],
)
def test_a_compiler_that_fails_is_told_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, does: str, told: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", f'{sys.executable} -c "import sys; {does}"')
    if "sleep" in does:
        monkeypatch.setattr(native, "_PATIENCE", 2.0)
    with caplog.at_level(logging.WARNING):
        assert native._built() is None  # noqa: SLF001
    (record,) = caplog.records
    assert "runs in Python, more slowly" in record.getMessage()
    assert record.getMessage().endswith(f"could not be compiled ({told})")
    assert [*tmp_path.rglob("*")] == [tmp_path / "gemma-doctor"]


def test_a_command_that_cannot_be_made_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What is no shell's words; and torch's helper needs setuptools, which a virtual environment may lack."""
    with monkeypatch.context() as patch:
        patch.setenv("CXX", "c++ '")
        assert native._built() is None  # noqa: SLF001
    monkeypatch.setenv("CXX", sys.executable)
    monkeypatch.delattr(torch.utils, "cpp_extension", raising=False)
    monkeypatch.setitem(sys.modules, "torch.utils.cpp_extension", None)
    assert native._built() is None  # noqa: SLF001
    quotes, lacking = (record.getMessage() for record in caplog.records)
    assert "No closing quotation" in quotes
    assert "cpp_extension" in lacking


def test_it_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled_recorder()
    monkeypatch.setattr(native, "_compile", pytest.fail)
    assert native._built() is not None  # noqa: SLF001


@pytest.mark.parametrize("told", ["", "here"])
def test_the_cache_is_the_users_where_no_absolute_path_is_told(monkeypatch: pytest.MonkeyPatch, told: str) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", told)
    assert native._cache() == Path.home() / ".cache" / "gemma-doctor"  # noqa: SLF001

"""Small things that a stranger at a terminal meets: the home folder, NO_COLOR, pipes, the time that --help takes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from checkpoints import write
from command import Terminal, call

SLACK = 4.0
"""A help takes 0.2 s on a quiet machine; the machines that run the tests are shared."""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with a healthy checkpoint in it."""
    write(tmp_path / "model", {"a.weight": np.ones((4, 4), np.float32)})
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("source", ["~/model", "~/model/", "~/model/model.safetensors"])
def test_a_quoted_home_is_found(home: Path, source: str) -> None:
    done = call("scan", source, "--json=~/report.json")
    assert (done.code, done.err) == (0, "")
    assert (home / "report.json").is_file()
    assert "~" not in done.out


def test_a_tilde_elsewhere_is_what_it_is(home: Path) -> None:
    assert "~model: no such file" in call("scan", "~model").err
    assert call("scan", "~/model", "--include", "a~/*").err == (
        f"gemma-doctor: no tensor of {home}/model is selected; check --include and --exclude\n"
    )


def test_no_color_is_respected_on_a_terminal(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[" in call("rule", "GD101", stream=Terminal).out
    monkeypatch.setenv("NO_COLOR", "1")
    done = call("scan", home / "model", stream=Terminal)
    assert done.code == 0
    assert not any(f"\x1b[{code}" in done.out for code in ("31", "32", "33", "34", "35", "36", "38"))


@pytest.mark.parametrize("words", [["--help"], ["scan", "--help"], ["rule"], ["completion", "bash"]])
def test_a_pipe_that_is_closed_early_says_nothing(words: list[str]) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "gemma_doctor", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


def test_more_jobs_than_any_machine_has(home: Path) -> None:
    assert call("scan", home / "model", "--jobs", str(10**9)).code == 0


def test_a_document_that_cannot_be_finished_is_not_there(home: Path) -> None:
    limited = "ulimit -f 1; trap '' XFSZ; exec \"$@\""
    (home / "report.json").write_text("before", encoding="utf-8")
    write(home / "large", {f"layer.{i}.weight": np.ones((4, 4), np.float32) for i in range(20)})
    words = [sys.executable, "-m", "gemma_doctor", "scan", "large", "--json", "report.json"]
    done = subprocess.run(
        ["/bin/bash", "-c", limited, "bash", *words], capture_output=True, text=True, check=False, cwd=home
    )
    assert done.returncode == 2
    assert "report.json cannot be written: File too large" in done.stderr
    assert (home / "report.json").read_text(encoding="utf-8") == "before"
    assert sorted(os.listdir(home)) == ["large", "model", "report.json"]  # noqa: PTH208


def test_a_document_may_go_to_a_device_or_through_a_link(home: Path) -> None:
    assert call("scan", home / "model", "--json", "/dev/null").code == 0
    assert Path("/dev/null").is_char_device()
    (home / "link.json").symlink_to("real.json")
    assert call("scan", home / "model", "--json", home / "link.json").code == 0
    assert (home / "link.json").is_symlink()
    assert (home / "real.json").is_file()


def test_help_comes_at_once() -> None:
    """Several commands of one start: the quickest of five counts."""
    times = []
    for _ in range(5):
        started = time.monotonic()
        subprocess.run([sys.executable, "-m", "gemma_doctor", "--help"], check=True, stdout=subprocess.DEVNULL)
        times.append(time.monotonic() - started)
    assert min(times) < 0.25 * SLACK

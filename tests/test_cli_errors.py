"""What goes wrong ends in one clear sentence on standard error and exit code 2, never in a traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest
from command import call, run

from gemma_doctor import doctor


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["scan"], "Missing argument"),
        (["scna", "."], "No such command 'scna'"),
        (["scan", ".", "--bogus"], "No such option: --bogus\n"),
        (["scan", ".", "--slect", "GD1"], "No such option: --slect. Did you mean --select?\n"),
        (["demo", "--outptu", "x"], "No such option: --outptu. Did you mean --output?\n"),
        (["scan", ".", "--jobs", "0"], "'--jobs'"),
        (["scan", ".", "--fail-on", "bad"], "'--fail-on': 'bad' is not one of 'error', 'warning'"),
        (["scan", ".", "--loader", "hf"], "'--loader'"),
        (["scan", ".", "--target-dtype", "fp16"], "'--target-dtype'"),
    ],
)
def test_bad_usage_exits_with_2_and_points_to_the_help(arguments: list[str], complaint: str) -> None:
    done = call(*arguments)
    assert (done.code, done.out) == (2, "")
    assert complaint in done.err
    assert "Usage: gemma-doctor" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["scan", "nowhere"], "nowhere"),
        (["scan", "bad\x1b[31m\nname"], r"bad\x1b[31m\nname"),
        (["scan", "."], "."),
        (["scan", ".", "--config", "none.toml"], "none.toml cannot be read: No such file or directory"),
        (["scan", ".", "--baseline", "none.json"], "none.json cannot be read: No such file or directory"),
        (["scan", ".", "--json", "none/report.json"], "none/report.json cannot be written: its folder is missing"),
        (["scan", ".", "--json", "."], ". cannot be written: it is a folder"),
        (["scan", ".", "--write-baseline", "model.safetensors"], "model.safetensors is named like a tensor file"),
        (["rule", "GD1O1"], "no rule 'GD1O1'; did you mean GD101"),
        (["rule", "rescale-cnov"], "no pass 'rescale-cnov'; did you mean 'rescale-conv'?"),
        (["scan", ".", "--select", "GD140"], "no rule has the id or prefix 'GD140'; did you mean GD104"),
        (["scan", ".", "--select", "fp16-wieght-overflow"], "did you mean GD102?"),
        (["scan", "./ful"], "./ful: no such file or folder (is full meant?)"),
        (["scan", "full/iner.safetensors"], "no such file or folder. Give"),
        (["report", "ful"], "ful cannot be read: No such file or directory (is full meant?)"),
        (["demo", "--output", "full"], "full is not an empty folder"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], complaint: str
) -> None:
    (tmp_path / "full" / "inner").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    done = call(*arguments)
    assert (done.code, done.out) == (2, "")
    assert complaint in done.err
    assert done.err.startswith("gemma-doctor: ")
    assert done.err.endswith("\n")
    assert done.err[:-1].isprintable()


def test_the_same_holds_in_a_process_of_its_own() -> None:
    done = run("scan", "größe\n", env={"PYTHONIOENCODING": "ascii"})
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("gemma-doctor: ")
    assert r"gr\xf6\xdfe\n" in done.err


def test_a_fault_of_the_program_is_no_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> NoReturn:
        raise ZeroDivisionError

    monkeypatch.setattr(doctor, "scan", broken)
    done = call("scan", tmp_path)
    assert (done.code, done.out) == (2, "")
    assert "ZeroDivisionError" in done.err
    assert "please report it" in done.err


def test_what_the_system_refuses_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> NoReturn:
        raise PermissionError(13, "Permission denied", "model.safetensors")

    monkeypatch.setattr(doctor, "scan", refused)
    done = call("scan", tmp_path)
    assert (done.code, done.out) == (2, "")
    assert done.err == "gemma-doctor: [Errno 13] Permission denied: 'model.safetensors'\n"


def test_an_interrupt_exits_with_130(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "scan", interrupted)
    done = call("scan", tmp_path)
    assert (done.code, done.out, done.err) == (130, "", "gemma-doctor: interrupted\n")


LONG_REPORT = """
import resource, sys
from gemma_doctor import doctor
def scan(*_, **__):
    resource.setrlimit(resource.RLIMIT_FSIZE, ({disk}, resource.RLIM_INFINITY))
    sys.path.insert(0, {tests!r})
    from sample_reports import finding, report
    return report([finding("GD101", "warning", f"a.x{{n}}.weight", f"number {{n}} " + 300 * "long ") for n in range(9)])
doctor.scan = scan
from gemma_doctor.cli import main
sys.argv[0] = "gemma-doctor"
main()
"""


def long_report(*arguments: str | Path, disk: int = -1) -> list[str]:
    """A command with a long output, whose scan finds warnings only.

    Args:
        arguments: Arguments of the command.
        disk: Bytes that the file at its standard output may hold; -1 for no limit.
    """
    code = LONG_REPORT.format(tests=str(Path(__file__).parent), disk=disk)
    return [sys.executable, "-c", code, *map(str, arguments)]


@pytest.mark.parametrize("options", [[], ["--json", "-"]])
def test_a_reader_that_leaves_early_changes_nothing(tmp_path: Path, options: list[str]) -> None:
    with subprocess.Popen(
        long_report("scan", tmp_path, *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unbuffered: str) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    with (tmp_path / "out").open("w") as out:
        command = long_report("scan", tmp_path, "--json", "-", disk=1000)
        done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "gemma-doctor: standard output cannot be written: File too large\n"


def test_closed_streams_do_not_matter(tmp_path: Path) -> None:
    closing = ["/bin/sh", "-c", 'exec "$@" >&- 2>&-', "sh"]
    done = subprocess.run([*closing, *long_report("scan", tmp_path)], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")

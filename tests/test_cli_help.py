"""What the command line says of itself: every command and option, with examples that hold."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
import typer.main
from command import call, run

import gemma_doctor
from gemma_doctor import cli
from gemma_doctor.catalog import RULES
from gemma_doctor.choices import FAIL_ON, LOADERS, TARGET_DTYPES
from gemma_doctor.repair.planning.registry import PASSES

ROOT: Any = typer.main.get_command(cli.app)
COMMANDS: dict[str, Any] = ROOT.commands
EXAMPLES = [
    example
    for command in (ROOT, *COMMANDS.values())
    for example in re.findall("^ {2}gemma-doctor (.+)$", command.epilog, re.MULTILINE)
]


def test_the_commands_are_those_that_work() -> None:
    assert sorted(COMMANDS) == ["completion", "demo", "repair", "report", "rule", "scan", "verify"]
    assert len(EXAMPLES) > 10


@pytest.mark.parametrize("command", [ROOT, *COMMANDS.values()], ids=lambda command: command.name)
def test_every_command_and_option_is_documented(command: Any) -> None:  # noqa: ANN401  # typer's own click
    assert command.help
    assert [param.name for param in command.params if not getattr(param, "help", None)] == []


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_option_is_in_the_help_with_examples(name: str) -> None:
    done = call(name, "--help")
    assert (done.code, done.err) == (0, "")
    options = [param.opts[0] for param in COMMANDS[name].params if param.param_type_name == "option"]
    assert [option for option in options if option not in done.out] == []
    assert f"    gemma-doctor {name}" in done.out


def test_the_help_of_scan_is_in_sections_and_names_every_choice() -> None:
    text = call("scan", "-h").out
    titles = ("Arguments", "What to examine", "What counts", "Output", "Running")
    places = [text.index(f"\n{title}:\n") for title in titles]
    assert places == sorted(places)
    for option, choices in {"--loader": LOADERS, "--target-dtype": TARGET_DTYPES, "--fail-on": FAIL_ON}.items():
        assert f"{option} {'|'.join(choices)}\n" in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_the_help_fits_a_terminal_of_80_columns(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = call(*name.split(), "--help").out
    assert [line for line in text.splitlines() if len(line) > 80] == []
    assert not re.search(r"[a-z,]\.\.\.$", text.partition("\n")[2], re.MULTILINE)  # a summary that was cut


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_examples_parse(example: str) -> None:
    name, *arguments = shlex.split(example.partition(" | ")[0])
    assert COMMANDS[name].make_context(name, arguments).params


def test_the_version_is_the_package_s_in_a_process_of_its_own() -> None:
    done = run("--version")
    assert (done.code, done.out, done.err) == (0, f"gemma-doctor {gemma_doctor.__version__}\n", "")


def test_no_arguments_show_the_help_and_fail() -> None:
    done = call()
    assert done.code == 2
    assert "Commands:" in done.out + done.err


def test_all_rules_and_passes_are_listed() -> None:
    done = call("rule")
    assert (done.code, done.err) == (0, "")
    rules, passes = done.out.split("\n\nRepair passes:\n")
    assert [line.split()[0] for line in rules.splitlines()] == [rule.id for rule in RULES]
    assert [line.split()[0] for line in passes.splitlines()] == [one.name for one in PASSES]
    assert "\nprune-shared-kv (exact; GD201, GD202): k/v tensors " in done.out
    assert "GD101 nonfinite-weight (error): a weight is NaN or infinite.\n" in done.out


@pytest.mark.parametrize("name", ["GD101", "gd101", "nonfinite-weight"])
def test_one_rule_is_explained_in_markdown(name: str) -> None:
    done = call("rule", name)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("# GD101 nonfinite-weight: ")
    sections = re.findall("^## (.*)$", done.out, re.MULTILINE)
    assert sections == ["What it checks", "Why it matters", "Example", "How to mend", "Limits"]


@pytest.mark.parametrize("name", [one.name for one in PASSES])
def test_one_pass_is_explained_in_markdown(name: str) -> None:
    done = call("rule", name.upper())
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"# {name}: ")


@pytest.mark.parametrize(
    ("slip", "meant"), [("rescale-con", "rescale-conv"), ("nonfinite-wieght", "nonfinite-weight"), ("GD1O4", "GD104")]
)
def test_a_slip_of_the_pen_is_answered_with_the_closest_rule_or_pass(slip: str, meant: str) -> None:
    done = call("rule", slip)
    assert (done.code, done.out) == (2, "")
    assert meant in done.err

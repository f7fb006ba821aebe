"""The completion scripts, as the shells themselves run them."""

from __future__ import annotations

import shutil
import subprocess
from typing import Any

import pytest
import typer.main
from command import call

from gemma_doctor import cli
from gemma_doctor.catalog import RULES
from gemma_doctor.repair.planning.registry import PASSES

ROOT: Any = typer.main.get_command(cli.app)
COMMANDS: dict[str, Any] = ROOT.commands

ASK = """
COMP_WORDS=("${@:2}")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
eval "$1"
_gemma_doctor
printf '%s\\n' "${COMPREPLY[@]}"
"""


def completed(*words: str) -> list[str]:
    """What bash proposes for the last word."""
    script = call("completion", "bash").out
    command = ["bash", "-c", ASK, "bash", script, "gemma-doctor", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_bash_knows_every_option(name: str) -> None:
    known = {word for param in COMMANDS[name].params for word in param.opts if word.startswith("--")}
    assert {word for word in completed(name, "--") if word != "--help"} == known


@pytest.mark.parametrize(
    ("words", "proposed"),
    [
        (("sc",), ["scan"]),
        (("",), list(COMMANDS)),
        (("scan", "--loader", "v"), ["vllm"]),
        (("scan", "--loader", "=", "v"), ["vllm"]),
        (("scan", "--loader", "="), ["transformers", "transformers-pre-5.6", "vllm", "llama.cpp"]),
        (("scan", "folder", "--select", "GD10"), [rule.id for rule in RULES if rule.id.startswith("GD10")]),
        (("repair", "folder", "--pass", ""), [one.name for one in PASSES]),
        (("rule", "GD10"), [rule.id for rule in RULES if rule.id.startswith("GD10")]),
        (("rule", "rescale-"), ["rescale-conv", "rescale-residual"]),
        (("verify", "--loss-scale", ""), ["auto"]),
        (("completion", ""), ["bash", "zsh", "fish"]),
        (("scan", "--json", "re"), []),
        (("scan", "mod"), []),
    ],
)
def test_bash_proposes(words: tuple[str, ...], proposed: list[str]) -> None:
    assert completed(*words) == proposed


def test_where_nothing_is_proposed_bash_itself_proposes_files() -> None:
    assert "complete -o bashdefault -o default -F _gemma_doctor gemma-doctor\n" in call("completion", "bash").out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_can_read_its_script(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    script = call("completion", shell).out
    done = subprocess.run([shell, "-n"], input=script, text=True, check=False)
    assert done.returncode == 0


def test_fish_knows_every_option_and_its_values() -> None:
    lines = call("completion", "fish").out.splitlines()
    for name, command in COMMANDS.items():
        of_command = [line for line in lines if f"_from {name}'" in line]
        for param in command.params:
            for word in param.opts if param.param_type_name == "option" else ():
                flag = f"-l {word[2:]} " if word.startswith("--") else f"-s {word[1:]} "
                assert any(flag in line for line in of_command), (name, word)
    assert any("-l loader -x -a 'transformers transformers-pre-5.6 vllm llama.cpp'" in line for line in lines)
    assert all(line.count("'") % 2 == 0 for line in lines if "\\'" not in line)
